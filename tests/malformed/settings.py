"""Settings: the command line, a config file's keys and their values."""

import pathlib

from dat_jax.config import validate
from dat_jax.stations import parse
from malformed import Row, argument, configured, put, setting

nan, inf = float("nan"), float("inf")
LINE, KEYS, VALUES = "The command line", "Keys of a config file", "Values of settings"


def key(name: str, value: object, message: str) -> Row:
    """A key that a config file sets and that the schema does not have."""

    def run(folder: pathlib.Path) -> None:
        config = configured()
        put(config, name, value)
        validate(config)

    return Row(KEYS, f"c.{name} = {value!r}", run, message)


def without(name: str, message: str) -> Row:
    """A key that a config file deletes."""

    def run(folder: pathlib.Path) -> None:
        config = configured()
        group, _, last = name.rpartition(".")
        del (config[group] if group else config)[last]
        validate(config)

    return Row(KEYS, f"del c.{name}", run, message)


ROWS = [
    argument(LINE, "--config.methods.cat.perturbation.step=1", '--config.methods.cat.perturbation.step: no such key; did you mean --config.methods.cat.perturbation.steps?'),
    argument(LINE, "--config.attack.best_of_n.attempts=1", '--config.attack.best_of_n.attempts: no such key; did you mean --config.attacks.best_of_n.attempts?'),
    argument(LINE, "--config.evaluation.judge=world", '--config.evaluation.judge: no such key; did you mean --config.evaluation.judges?'),
    argument(LINE, "--config.training.microbatch=1", '--config.training.microbatch: no such key; did you mean --config.training.micro_batch?'),
    argument(LINE, "--config.zzzzzzzz=1", '--config.zzzzzzzz: no such key'),
    argument(LINE, "--config=configs/quickstrat.py", '--config=configs/quickstrat.py: no such file; did you mean configs/quickstart.py?'),
    argument(LINE, "--config=nowhere/quickstart.py", '--config=nowhere/quickstart.py: no such file'),
    Row(LINE, "--mode=tarin", lambda folder: parse("tarin"), '--mode=tarin; allowed: ...'),
    Row(LINE, "--mode=train,,evaluate", lambda folder: parse("train,,evaluate"), '--mode=train,,evaluate; allowed: ...'),
    key("training.stepz", 1, 'config.training.stepz: no such key; did you mean config.training.steps?'),
    key("trainig", 1, 'config.trainig: no such key; did you mean config.training.keep?'),
    key("methods.cat.perturbation.epsilon", 0.1, 'config.methods.cat.perturbation.epsilon: no such key; did you mean config.methods.cat.perturbation.steps?'),
    key("attacks.gcg.step", 3, 'config.attacks.gcg.step: no such key; did you mean config.attacks.gcg.steps?'),
    key("judges.world.strict", True, 'config.judges.world.strict: no such key...'),
    without("training.steps", 'config.training.steps is missing; its default is 760'),
    without("data.chats", "config.data.chats is missing; its default is ''"),
    without("seeds", 'config.seeds is missing; its default is (0,)'),
    setting(VALUES, "seeds", (), 'config.seeds is (); allowed: one or more integers >= 0'),
    setting(VALUES, "seeds", (1, 1), 'config.seeds is (1, 1); allowed: each once'),
    setting(VALUES, "seeds", (1.5,), 'config.seeds is 1.5; allowed: an integer up to 2147483647'),
    setting(VALUES, "seeds", (True,), 'config.seeds is True; allowed: an integer'),
    setting(VALUES, "seeds", (-1,), 'config.seeds is (-1,); allowed: one or more integers >= 0'),
    setting(VALUES, "seeds", (1 << 40,), 'config.seeds is 1099511627776; allowed: an integer up to 2147483647'),
    setting(VALUES, "seeds", 0, 'config.seeds is 0; allowed: a list such as (0,)'),
    setting(VALUES, "seeds", "0,1", "config.seeds is '0,1'; allowed: a list such as (0,)"),
    setting(VALUES, "target.model", "", "config.target.model is ''; allowed: a path or hub id (there is no embedded world in this config)"),
    setting(VALUES, "target.model", 7, 'config.target.model is 7; allowed: a text'),
    setting(VALUES, "target.dtype", "float16", "config.target.dtype is 'float16'; allowed: float32 | bfloat16 | int8 | nf4"),
    setting(VALUES, "target.compute_dtype", "int8", "config.target.compute_dtype is 'int8'; allowed: float32 | bfloat16"),
    setting(VALUES, "target.attention", "flash", "config.target.attention is 'flash'; allowed: xla | splash"),
    setting(VALUES, "target.attention", "splash_", "config.target.attention is 'splash_'; allowed: xla | splash"),
    setting(VALUES, "rewriter.temperature", nan, 'config.rewriter.temperature is nan; allowed: a finite number'),
    setting(VALUES, "rewriter.max_new_tokens", 0, 'config.rewriter.max_new_tokens is 0; allowed: an integer >= 1'),
    setting(VALUES, "rewriter.prompt_length", 10**9, 'config.rewriter.prompt_length is 1000000000; allowed: an integer up to 1048576'),
    setting(VALUES, "rewriter.dtype", "half", "config.rewriter.dtype is 'half'; allowed: float32 | bfloat16"),
    setting(VALUES, "data.behaviors", "", "config.data.behaviors is ''; allowed: a path (there is no embedded world in this config)"),
    setting(VALUES, "data.chats", "", "config.data.chats is ''; allowed: a path (there is no embedded world in this config)"),
    setting(VALUES, "data.chats", None, 'config.data.chats is None; allowed: a text'),
    setting(VALUES, "data.max_chats", -5, 'config.data.max_chats is -5; allowed: an integer >= 0 (0: all)'),
    setting(VALUES, "data.max_chats", "all", "config.data.max_chats is 'all'; allowed: an integer up to 2147483647"),
    setting(VALUES, "data.prompt_length", 0, 'config.data.prompt_length is 0; allowed: an integer >= 1'),
    setting(VALUES, "data.prompt_length", 10**8, 'config.data.prompt_length is 100000000; allowed: an integer up to 1048576'),
    setting(VALUES, "data.prompt_length", 128.0, 'config.data.prompt_length is 128.0; allowed: an integer up to 1048576'),
    setting(VALUES, "data.response_length", -1, 'config.data.response_length is -1; allowed: an integer >= 1'),
    setting(VALUES, "data.response_length", 10**8, 'config.data.response_length is 100000000; allowed: an integer up to 1048576'),
    setting(VALUES, "data.adversarial_rows", 0, 'config.data.adversarial_rows is 0; allowed: an integer >= 1'),
    setting(VALUES, "data.utility_rows", 1 << 30, 'config.data.utility_rows is 1073741824; allowed: an integer up to 1048576'),
    setting(VALUES, "data.utility_rows", 1 << 20, 'config.data.adversarial_rows + utility_rows is 1048584, each of 256 tokens (prompt and response): together 268437504; allowed: 268435456 in a batch'),
    setting(VALUES, "data.perturb", "everything", "config.data.perturb is 'everything'; allowed: user | user+template | all"),
    setting(VALUES, "data.system", 3, 'config.data.system is 3; allowed: a text or None'),
    setting(VALUES, "training.methods", ("cta",), "config.training.methods is ('cta',); allowed: a selection of ..."),
    setting(VALUES, "training.methods", ("cat", "cat"), "config.training.methods is ('cat', 'cat'); allowed: each once"),
    setting(VALUES, "training.methods", "cat", "config.training.methods is 'cat'; allowed: a list such as ('undefended', 'cat', 'dat')"),
    setting(VALUES, "training.steps", 0, 'config.training.steps is 0; allowed: an integer >= 1'),
    setting(VALUES, "training.steps", "many", "config.training.steps is 'many'; allowed: an integer up to 2147483647"),
    setting(VALUES, "training.steps", 1.5, 'config.training.steps is 1.5; allowed: an integer up to 2147483647'),
    setting(VALUES, "training.steps", True, 'config.training.steps is True; allowed: an integer'),
    setting(VALUES, "training.steps", 10**12, 'config.training.steps is 1000000000000; allowed: an integer up to 2147483647'),
    setting(VALUES, "training.optimizer", "muon", "config.training.optimizer is 'muon'; allowed: adamw with training.lora.rank = 64"),
    setting(VALUES, "training.learning_rate", nan, 'config.training.learning_rate is nan; allowed: a finite number'),
    setting(VALUES, "training.learning_rate", 0.0, 'config.training.learning_rate is 0.0; allowed: a number > 0'),
    setting(VALUES, "training.learning_rate", "2e-4", "config.training.learning_rate is '2e-4'; allowed: a finite number"),
    setting(VALUES, "training.final_learning_rate", -0.1, 'config.training.final_learning_rate is -0.1; allowed: a number >= 0'),
    setting(VALUES, "training.warmup", nan, 'config.training.warmup is nan; allowed: a finite number'),
    setting(VALUES, "training.warmup", 1.5, 'config.training.warmup is 1.5; allowed: a share from 0 to 1'),
    setting(VALUES, "training.weight_decay", -1e-3, 'config.training.weight_decay is -0.001; allowed: a number >= 0'),
    setting(VALUES, "training.weight_decay", inf, 'config.training.weight_decay is inf; allowed: a finite number'),
    setting(VALUES, "training.clip", inf, 'config.training.clip is inf; allowed: a finite number'),
    setting(VALUES, "training.clip", 0.0, 'config.training.clip is 0.0; allowed: a number > 0'),
    setting(VALUES, "training.faults", 0, 'config.training.faults is 0; allowed: an integer >= 1'),
    setting(VALUES, "training.micro_batch", 3, "config.training.micro_batch is 3; allowed: 0, or so many of the batch's 8 + 56 rows: 64, 32, 16, 8"),
    setting(VALUES, "training.keep_products", 1, 'config.training.keep_products is 1; allowed: True or False'),
    setting(VALUES, "training.save_every", 0, 'config.training.save_every is 0; allowed: an integer >= 1'),
    setting(VALUES, "training.keep", 0, 'config.training.keep is 0; allowed: an integer >= 1'),
    setting(VALUES, "training.log_every", -1, 'config.training.log_every is -1; allowed: an integer >= 1'),
    setting(VALUES, "training.watch_every", -1, 'config.training.watch_every is -1; allowed: an integer >= 0 (0: never)'),
    setting(VALUES, "training.watch_prompts", 0, 'config.training.watch_prompts is 0; allowed: an integer >= 1'),
    setting(VALUES, "training.watch_behaviors", 0, 'config.training.watch_behaviors is 0; allowed: an integer >= 1'),
    setting(VALUES, "training.watch_attacks", ("direct",), "config.training.watch_attacks is ('direct',); allowed: () with training.watch_every = 0: nothing is measured"),
    setting(VALUES, "training.watch_attacks", ("tense",), "config.training.watch_attacks is ('tense',); allowed: a selection of direct, direct_samples, rewrite, ..."),
    setting(VALUES, "training.watch_attacks", ("replay",), "config.training.watch_attacks is ('replay',); allowed: a selection of direct, direct_samples, rewrite, ..."),
    setting(VALUES, "training.best_refusals", -0.5, 'config.training.best_refusals is -0.5; allowed: a share from 0 to 1, or -1 (off)'),
    setting(VALUES, "training.best_refusals", 0.2, 'config.training.best_refusals is 0.2; allowed: -1 without training.watch_attacks: there is nothing to choose by'),
    setting(VALUES, "training.patience", -1, 'config.training.patience is -1; allowed: an integer >= 0 (0: never)'),
    setting(VALUES, "training.patience", 3, 'config.training.patience is 3; allowed: 0 without training.best_refusals: no measurement is the best'),
    setting(VALUES, "training.collapse", 1.5, 'config.training.collapse is 1.5; allowed: a share from 0 to 1'),
    setting(VALUES, "training.lora.rank", -1, 'config.training.lora.rank is -1; allowed: an integer >= 0 (0 trains all weights)'),
    setting(VALUES, "training.lora.rank", 10**9, 'config.training.lora.rank is 1000000000; allowed: an integer up to 16384'),
    setting(VALUES, "training.lora.alpha", 0.0, 'config.training.lora.alpha is 0.0; allowed: a number > 0'),
    setting(VALUES, "training.lora.dropout", 1.0, 'config.training.lora.dropout is 1.0; allowed: a share from 0 up to 1'),
    setting(VALUES, "training.lora.dropout", nan, 'config.training.lora.dropout is nan; allowed: a finite number'),
    setting(VALUES, "methods.cat.objective.away_weight", -1.0, 'config.methods.cat.objective.away_weight is -1.0; allowed: a number >= 0'),
    setting(VALUES, "methods.cat.objective.away_weight", nan, 'config.methods.cat.objective.away_weight is nan; allowed: a finite number'),
    setting(VALUES, "methods.cat.objective.slope", nan, 'config.methods.cat.objective.slope is nan; allowed: a finite number'),
    setting(VALUES, "methods.cat.objective.cutoff_over", "row", "config.methods.cat.objective.cutoff_over is 'row'; allowed: token | example | batch"),
    setting(VALUES, "methods.cat.perturbation.radius", inf, 'config.methods.cat.perturbation.radius is inf; allowed: a finite number'),
    setting(VALUES, "methods.cat.perturbation.radius", -0.1, 'config.methods.cat.perturbation.radius is -0.1; allowed: a number >= 0'),
    setting(VALUES, "methods.cat.perturbation.optimizer", "sgd", "config.methods.cat.perturbation.optimizer is 'sgd'; allowed: sign | normalized | adam"),
    setting(VALUES, "methods.cat.perturbation.iterate", "worst", "config.methods.cat.perturbation.iterate is 'worst'; allowed: last | best"),
    setting(VALUES, "methods.cat.perturbation.steps", -1, 'config.methods.cat.perturbation.steps is -1; allowed: an integer >= 0'),
    setting(VALUES, "methods.cat.perturbation.step_size", 0.0, 'config.methods.cat.perturbation.step_size is 0.0; allowed: a number > 0'),
    setting(VALUES, "methods.cat.perturbation.sites", (), 'config.methods.cat.perturbation.sites is (); allowed: one or more integers >= 0, each once: 0 is the embeddings, k the stream before layer k'),
    setting(VALUES, "methods.cat.perturbation.sites", (0, 0), 'config.methods.cat.perturbation.sites is (0, 0); allowed: each once'),
    setting(VALUES, "evaluation.attacks", ("direkt",), "config.evaluation.attacks is ('direkt',); allowed: a selection of ..."),
    setting(VALUES, "evaluation.attacks", (), 'config.evaluation.attacks is (); allowed: a selection of ...'),
    setting(VALUES, "evaluation.attacks", ("direct", "direct"), "config.evaluation.attacks is ('direct', 'direct'); allowed: each once"),
    setting(VALUES, "evaluation.judges", ("llama",), "config.evaluation.judges is ('llama',); allowed: a selection of ..."),
    setting(VALUES, "evaluation.judges", (), 'config.evaluation.judges is (); allowed: a selection of ...'),
    setting(VALUES, "evaluation.judges", ("world", "world"), "config.evaluation.judges is ('world', 'world'); allowed: each once"),
    setting(VALUES, "evaluation.behaviors", -1, 'config.evaluation.behaviors is -1; allowed: an integer >= 0 (0: all)'),
    setting(VALUES, "evaluation.utility_prompts", -1, 'config.evaluation.utility_prompts is -1; allowed: an integer >= 0 (0: all)'),
    setting(VALUES, "evaluation.max_new_tokens", 0, 'config.evaluation.max_new_tokens is 0; allowed: an integer >= 1'),
    setting(VALUES, "evaluation.max_new_tokens", 10**8, 'config.evaluation.max_new_tokens is 100000000; allowed: an integer up to 1048576'),
    setting(VALUES, "evaluation.temperature", nan, 'config.evaluation.temperature is nan; allowed: a finite number'),
    setting(VALUES, "evaluation.temperature", -1.0, 'config.evaluation.temperature is -1.0; allowed: a number >= 0'),
    setting(VALUES, "evaluation.batch_size", 0, 'config.evaluation.batch_size is 0; allowed: an integer >= 1'),
    setting(VALUES, "evaluation.batch_size", 1 << 20, 'config.evaluation.batch_size is 1048576, each of ... tokens (prompt and response): together ...; allowed: 268435456 in a batch'),
    setting(VALUES, "evaluation.forms", ("past", "past"), "config.evaluation.forms is ('past', 'past'); allowed: each once"),
    setting(VALUES, "evaluation.forms", (1,), 'config.evaluation.forms is 1; allowed: a text'),
    setting(VALUES, "evaluation.compare", ("a", "a"), "config.evaluation.compare is ('a', 'a'); allowed: each once"),
    setting(VALUES, "report.formats", ("word",), "config.report.formats is ('word',); allowed: a selection of ..."),
    setting(VALUES, "world.enabled", "yes", "config.world.enabled is 'yes'; allowed: True or False"),
    setting(VALUES, "world.target.steps", 0, 'config.world.target.steps is 0; allowed: a number > 0'),
    setting(VALUES, "world.target.layers", 10**9, 'config.world.target.layers is 1000000000; allowed: an integer up to 1024'),
    setting(VALUES, "world.sampler.width", 10**9, 'config.world.sampler.width is 1000000000; allowed: an integer up to 16384'),
    setting(VALUES, "utility.samples", -1, 'config.utility.samples is -1; allowed: an integer >= 0 (0: off)'),
    setting(VALUES, "utility.keep", "none", "config.utility.keep is 'none'; allowed: agree | judge | likelihood | all"),
    setting(VALUES, "utility.threshold", nan, 'config.utility.threshold is nan; allowed: a finite number'),
    setting(VALUES, "utility.threshold", 1.0, 'config.utility.threshold is 1.0; allowed: a number <= 0, in nats per token'),
    setting(VALUES, "mesh.data", 1.5, 'config.mesh.data is 1.5; allowed: an integer up to 2147483647'),
    setting(VALUES, "mesh.timeout", "long", "config.mesh.timeout is 'long'; allowed: an integer up to 2147483647"),
]
