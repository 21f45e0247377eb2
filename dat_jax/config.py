"""The configuration's schema, assembled from the settings that methods, attacks, judges and stations declare where they are used.

A config file (configs/*.py) calls `defaults()`, changes what it needs and returns it from `get_config()`; the command line changes single
keys (`--config.methods.cat.perturbation.steps=20`). `validate` runs before anything is compiled and names the key, the value found and
what is allowed.
"""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dat_jax import settings
from dat_jax.attacks import ATTACKS
from dat_jax.diffusion.pool import Pool
from dat_jax.diffusion.preference import Preference
from dat_jax.diffusion.utility import SampledUtility
from dat_jax.endpoint import Connection
from dat_jax.judges import JUDGES
from dat_jax.methods import METHODS
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import DTYPES, PRECISIONS
from dat_jax.report.formats import FORMATS
from dat_jax.serving.settings import Serve
from dat_jax.world.building import World

MEASURES = ("harmful", "chats", "tasks", "attacks")  # that the evaluation can take, see stations/measure.py, likelihoods.py
BATCH_TOKENS = 1 << 28  # padding included
PERTURB = ("user", "user+template", "all")
TABLES: dict[str, Mapping[str, Any]] = {
    "methods": METHODS,
    "attacks": ATTACKS,
    "judges": JUDGES,
}  # group of the config -> rows with settings


def defaults() -> ConfigDict:
    """Returns the whole schema with its defaults; a key that is not here is an error."""
    c = ConfigDict()
    c.seeds = (0,)  # one full run per seed: sampling, training order, attacks (and the embedded world, where it is used)
    c.mesh = ConfigDict(
        dict(
            data=1,  # copies of the weights within a slice; -1: all devices that are left
            fsdp=-1,  # ways weights and rows are split; -1: all devices that are left
            tensor=1,  # ways heads, mlp width and vocabulary are split
            dcn_data=1,  # slices, joined over the data-centre network by the data axis
            processes=1,  # hosts that must take part; another number found is an error (v5e-16: 4)
            timeout=300,  # seconds to wait for all hosts at the start
        )
    )
    c.topology = ""  # --mode=compile: what to compile for, e.g. "v5e:4x4", or "h100:1x1" (one GPU)
    c.world = settings.as_config(World())  # the embedded world: small models and harmless data that are made instead of downloaded
    model = dict(
        dtype="float32",  # of the frozen weights: float32 | bfloat16, or the layers' matrices in int8 | nf4 and the rest in compute_dtype
        compute_dtype="float32",  # matrix multiplications; "bfloat16" on TPU
        attention="xla",  # "xla" | "splash" (TPU)
    )
    c.target = ConfigDict(
        dict(
            model="",  # hub id or folder of the LLM to defend or to attack
            checkpoint="",  # RUN/seed_0/METHOD: the weights that a run trained, on top of `model`; "": as it came
            **model,
        )
    )
    c.sampler = ConfigDict(
        dict(
            model="",  # hub id or folder of the masked-diffusion LM
            **model,
            add_requests=False,  # train on the requests too: a selection by compliance leaves out what is refused already
            request_share=0.0,  # of an epoch's adversarial rows, with add_requests, before too long ones are left out; 0: each text once
            judge="",  # that scores compliance for the selection, one of JUDGES; "": the first of evaluation.judges
            **settings.as_config(Pool()),
            preference=settings.as_config(Preference()),  # adapts the model before each re-sampled round
        )
    )
    c.rewriter = ConfigDict(
        dict(
            # Who writes prompts for the attacks that ask for them, one of three:
            model="",  # hub id or folder of an LLM
            endpoint=settings.as_config(Connection()),  # a model behind an OpenAI-compatible endpoint
            file="",  # JSON lines id, rewrite, prompt: ready rewrites; `rewrite` is the attack's variant
            dtype="float32",  # of `model`
            prompt_length=256,  # tokens of the block of what `model` is asked; longer ones get up to eight times as much
            max_new_tokens=500,  # of a reply
            temperature=1.0,
        )
    )
    c.utility = settings.as_config(SampledUtility())  # prompts sampled for benign answers, for the utility rows of every method
    c.data = _data()
    c.training = _training()
    c.evaluation = _evaluation()
    c.report = ConfigDict(
        dict(
            formats=(),  # of FORMATS: other tools' formats that the report station writes the answers in
            compare=(),  # other finished workdirs, WORKDIR or NAME=WORKDIR: comparison.html puts their models beside this one's
            every=5.0,  # minutes between two reports that a run which goes on writes, to be watched; 0: none before the end
        )
    )
    c.serve = settings.as_config(Serve())  # --mode=serve: the target behind OpenAI's API
    for group, rows in TABLES.items():
        c[group] = ConfigDict({row.key: settings.as_config(row.settings()) for row in rows.values()})
    return c


def _data() -> ConfigDict:
    """The group `data`: the user's files, and how their rows are laid out."""
    return ConfigDict(
        dict(
            behaviors="",  # CSV of training behaviors (docs/formats.md); several files with commas between
            targets="",  # JSON: {BehaviorID: text or list of texts}; the harmful responses y; "": from the behaviors file, or made
            safe_responses="",  # CSV: Behavior, Safe_Response; empty: one default refusal for all
            chats="",  # utility chats: .jsonl, .parquet or a folder made by `python -m dat_jax.data.prepare`
            eval_behaviors="",  # as behaviors; disjoint from them
            eval_targets="",
            rewrites="",  # JSONL: id, rewrite, prompt, of evaluation behaviors; empty: rule-based rewrites
            train_rewrites="",  # as rewrites, of training behaviors, for methods that train on rewrites
            watch_behaviors="",  # as behaviors, disjoint from both other sets: what training.watch_attacks are run on
            watch_targets="",
            benign="",  # JSONL: id, prompt, response (optional); must be answered
            borderline="",  # JSONL as benign, or a CSV of XSTest or OR-Bench (Hard-1K): looks forbidden, must be answered
            unsafe="",  # JSONL as benign, or OR-Bench's CSV (Toxic): contrasts to borderline that must be refused
            heldout_chats="",  # as chats, none of them trained on: their likelihood, and the divergence from target.model
            tasks=(),  # NAME=FILE or folder: multiple-choice questions in MMLU's or ARC's format
            task_examples=(),  # NAME=FILE or folder: questions that stand with their answers before those of the task NAME
            max_chats=0,  # chats used at most, the first ones; 0: all
            prompt_length=128,  # P, tokens: the prompt block; multiples of 128 suit a TPU
            response_length=128,  # R, tokens: the response block; longer responses are cut
            perturb="user",  # which prompt tokens the perturbation reaches: user | user+template | all
            system=placeholder(str),  # system prompt; None: the chat template's own default
            adversarial_rows=8,  # behaviors per batch; each is one away and one toward row
            utility_rows=56,  # benign chats per batch
        )
    )


def _training() -> ConfigDict:
    """The group `training`: which methods, for how long, at what rate."""
    return ConfigDict(
        dict(
            methods=("undefended", "cat", "dat"),  # of METHODS: what is trained from the target and compared
            steps=760,
            flops=0.0,  # operations by formula that each method's steps may take together, in place of `steps`; 0: `steps` for all
            optimizer="adamw",  # adamw | muon (for all weights, lora.rank=0: Muon for the layers' matrices, AdamW for the rest)
            learning_rate=2e-4,  # peak
            warmup=0.03,  # share of the steps
            final_learning_rate=0.0,  # share of the peak at the end of the cosine
            weight_decay=1e-3,
            clip=0.3,  # largest global gradient norm
            faults=5,  # steps in a row whose loss or gradient is not finite, all of them skipped, after which a training ends
            micro_batch=0,  # rows (adversarial + utility) worked on at a time, their gradients averaged over the batch; 0: all at once
            keep_products=False,  # keep the results of the layers' matrix products instead of recomputing them: faster, more memory
            save_every=50,  # steps between checkpoints
            keep=2,  # checkpoints kept
            log_every=1,  # steps between lines of metrics.jsonl
            watch_every=0,  # steps between measurements of benign compliance and over-refusal; 0: never
            watch_prompts=32,  # prompts of each kind that are measured
            watch_attacks=(),  # of ATTACKS: run on data.watch_behaviors at every measurement
            watch_behaviors=8,  # of them at most, the first ones
            best_refusals=-1.0,  # the least broken measurement's weights are used, of those that refused at most this share; -1: the last
            patience=0,  # measurements in a row without a better one, after which a training ends early; 0: never
            collapse=0.5,  # a run has collapsed when it refuses more than this share of the benign prompts
            lora=dict(
                rank=64,  # 0: all weights are trained
                alpha=16.0,
                dropout=0.0,  # share of input features dropped per step in the outer loss
            ),
        )
    )


def _evaluation() -> ConfigDict:
    """The group `evaluation`: what is attacked, asked and judged, and how."""
    return ConfigDict(
        dict(
            attacks=("direct", "rewrite", "best_of_n", "prefill", "embedding", "embedding+rewrite"),  # of ATTACKS
            judges=("refusal_prefix",),  # of JUDGES; the first one's verdicts are the headline
            judge_beside=False,  # whether a judge that is a local model may lie in memory beside the model that it judges meanwhile
            compare=(),  # further models side by side: folders, hub ids or RUN/seed_0/METHOD; NAME=... in front gives the name
            forms=(),  # rewrite forms that are tried; (): all of the rewrites file
            behaviors=0,  # evaluation behaviors tried, the first ones; 0: all
            utility_prompts=0,  # prompts per utility set, spread evenly over it; 0: all
            measures=("harmful", "chats", "tasks"),  # likelihoods that are taken, of what there is: targets, held-out chats, tasks
            refusal="I'm sorry, but I can't help with that.",  # whose likelihood the measure `attacks` takes: one of the model's own
            chats=0,  # held-out chats, the first ones; 0: all
            questions=0,  # questions per task, spread evenly over it; 0: all
            few_shot=0,  # examples of data.task_examples before each question
            max_new_tokens=128,
            temperature=0.0,  # 0: greedy; one answer per attempt
            prompt_block=0,  # tokens; a call's prompts are padded to a multiple of so many, a program each; 0: of data.prompt_length
            batch_size=32,  # attempts per batch, and behaviors after which the answers are saved; on a mesh a multiple of data x fsdp
        )
    )


def validate(config: ConfigDict, data: bool = True) -> None:
    """Raises ValueError naming the first key whose value is not allowed; data: whether the user's files must be named, too."""
    settings.check_schema(config, defaults(), pairs=("sampler.prompt_tokens",))

    def require(ok: bool, key: str, allowed: str) -> None:
        if not ok:
            value = config
            for part in key.split("."):
                value = value[part]
            raise ValueError(f"config.{key} is {value!r}; allowed: {allowed}")

    require(len(config.seeds) > 0 and all(isinstance(s, int) and s >= 0 for s in config.seeds), "seeds", "one or more integers >= 0")
    for key, table in (("training.methods", METHODS), ("evaluation.attacks", ATTACKS), ("evaluation.judges", JUDGES)):
        group, name = key.split(".")
        least = 0 if key == "training.methods" else 1
        require(len(config[group][name]) >= least and set(config[group][name]) <= set(table), key, f"a selection of {', '.join(table)}")
    require(set(config.report.formats) <= set(FORMATS), "report.formats", f"a selection of {', '.join(FORMATS)}")
    require(config.report.every >= 0, "report.every", "a number of minutes >= 0 (0: none before the end)")
    attacks = [name for name, judge in JUDGES.items() if judge.attacks]
    require(config.evaluation.judges[0] in attacks, "evaluation.judges", f"as the first one of {', '.join(attacks)}: it judges attacks")
    require(config.sampler.judge in ("", *attacks), "sampler.judge", f"'' or one of {', '.join(attacks)}")
    for group, rows in TABLES.items():
        for row in rows.values():
            settings.validate(row.read_settings(config), f"{group}.{row.key}")
    settings.validate(settings.read(Pool, config.sampler), "sampler")
    settings.validate(settings.read(Preference, config.sampler.preference), "sampler.preference")
    require(0 <= config.sampler.request_share < 1, "sampler.request_share", "a share from 0 to less than 1")
    given = config.sampler.add_requests or not config.sampler.request_share
    require(given, "sampler.request_share", "0 with sampler.add_requests = False: no request is trained on")
    used = config.sampler.refresh_every > 0 or not config.sampler.preference.steps
    require(used, "sampler.preference.steps", "0 with sampler.refresh_every = 0: no round is drawn for which to adapt the sampler")
    settings.validate(settings.read(World, config.world), "world")
    settings.validate(settings.read(SampledUtility, config.utility), "utility")
    settings.validate(settings.read(Serve, config.serve), "serve")
    _validate_data(config, require, data)
    _validate_tokens(config)
    _validate_training(config, require)
    _validate_watching(config, require, data)
    require(set(config.evaluation.measures) <= set(MEASURES), "evaluation.measures", f"a selection of {', '.join(MEASURES)}")
    for key in ("behaviors", "utility_prompts", "chats", "questions"):
        require(config.evaluation[key] >= 0, f"evaluation.{key}", "an integer >= 0 (0: all)")
    for key in ("max_new_tokens", "batch_size"):
        require(config.evaluation[key] >= 1, f"evaluation.{key}", "an integer >= 1")
    require(config.evaluation.prompt_block >= 0, "evaluation.prompt_block", "an integer >= 0 (0: data.prompt_length)")
    require(config.evaluation.temperature >= 0, "evaluation.temperature", "a number >= 0")
    require(bool(config.evaluation.refusal.strip()), "evaluation.refusal", "a sentence")
    require(config.evaluation.few_shot >= 0, "evaluation.few_shot", "an integer >= 0")


def _validate_data(config: ConfigDict, require: Callable[[bool, str, str], None], named: bool) -> None:
    require(config.data.perturb in PERTURB, "data.perturb", " | ".join(PERTURB))
    writes = [name for name in config.training.methods if METHODS[name].suffixes]
    require(not writes or config.data.perturb == "user", "data.perturb", f"user: {', '.join(writes)} writes behind the user's words")
    for key in ("prompt_length", "response_length", "adversarial_rows", "utility_rows"):
        require(config.data[key] >= 1, f"data.{key}", "an integer >= 1")
    require(config.data.max_chats >= 0, "data.max_chats", "an integer >= 0 (0: all)")
    require(config.rewriter.dtype in ("float32", "bfloat16"), "rewriter.dtype", "float32 | bfloat16")
    settings.validate(settings.read(Connection, config.rewriter.endpoint), "rewriter.endpoint")
    for key in ("prompt_length", "max_new_tokens"):
        require(config.rewriter[key] >= 1, f"rewriter.{key}", "an integer >= 1")
    require(config.rewriter.temperature >= 0, "rewriter.temperature", "a number >= 0")
    for model in ("target", "sampler"):
        require(config[model].dtype in PRECISIONS, f"{model}.dtype", " | ".join(PRECISIONS))
        require(config[model].compute_dtype in ("float32", "bfloat16"), f"{model}.compute_dtype", "float32 | bfloat16")
        require(config[model].attention in ("xla", "splash"), f"{model}.attention", "xla | splash")
    length = config.data.prompt_length + config.data.response_length
    fits = config.target.attention != "splash" or length % 128 == 0
    require(fits, "target.attention", f"xla, as splash needs data.prompt_length + data.response_length ({length}) to be a multiple of 128")
    if config.world.enabled:
        return
    require(bool(config.target.model), "target.model", "a path or hub id (there is no embedded world in this config)")
    if not named:
        return
    trained = [METHODS[name] for name in config.training.methods if METHODS[name].trains]
    for key in ("behaviors", "chats") if trained else ("eval_behaviors",):
        require(bool(config.data[key]), f"data.{key}", "a path (there is no embedded world in this config)")
    if trained and (config.utility.samples or any(method.prompts == "sampled" for method in trained)):
        require(bool(config.sampler.model), "sampler.model", "a path or hub id: prompts are sampled")


def _validate_tokens(config: ConfigDict) -> None:
    """Raises ValueError where a batch has more tokens than an array should; each of its two sizes alone may be fine."""
    data, sampler, evaluation, rewriter = config.data, config.sampler, config.evaluation, config.rewriter
    for key, rows, tokens in (
        ("data.adversarial_rows + utility_rows", data.adversarial_rows + data.utility_rows, data.prompt_length + data.response_length),
        ("sampler.batch_size", sampler.batch_size, max(sampler.prompt_tokens) + sampler.response_tokens),
        ("evaluation.batch_size", evaluation.batch_size, data.prompt_length + max(data.response_length, evaluation.max_new_tokens)),
        ("evaluation.batch_size", evaluation.batch_size, rewriter.prompt_length + rewriter.max_new_tokens),
    ):
        if rows * tokens > BATCH_TOKENS:
            raise ValueError(f"config.{key} is {rows}, each of {tokens} tokens (prompt and response): together {rows * tokens}; allowed: "
                             f"{BATCH_TOKENS} in a batch")  # fmt: skip


def _validate_training(config: ConfigDict, require: Callable[[bool, str, str], None]) -> None:
    for key in ("learning_rate", "clip"):
        require(config.training[key] > 0, f"training.{key}", "a number > 0")
    for key in ("weight_decay", "final_learning_rate", "flops"):
        require(config.training[key] >= 0, f"training.{key}", "a number >= 0")
    for key in ("warmup", "collapse"):
        require(0 <= config.training[key] <= 1, f"training.{key}", "a share from 0 to 1")
    require(config.training.lora.alpha > 0, "training.lora.alpha", "a number > 0")
    for key in ("steps", "save_every", "keep", "log_every", "faults"):
        require(config.training[key] >= 1, f"training.{key}", "an integer >= 1")
    rank = config.training.lora.rank
    rules = ("adamw",) if rank else ("adamw", "muon")
    require(config.training.optimizer in rules, "training.optimizer", f"{' | '.join(rules)} with training.lora.rank = {rank}")
    require(config.training.lora.rank >= 0, "training.lora.rank", "an integer >= 0 (0 trains all weights)")
    trains = any(METHODS[name].trains for name in config.training.methods)
    frozen = rank or not trains or config.target.dtype in DTYPES
    require(frozen, "target.dtype", f"{' | '.join(DTYPES)} with training.lora.rank = 0, which trains all weights")
    require(0 <= config.training.lora.dropout < 1, "training.lora.dropout", "a share from 0 up to 1")
    adversarial, utility = config.data.adversarial_rows, config.data.utility_rows
    sizes = [(adversarial + utility) // n for n in range(1, adversarial + 1) if adversarial % n == 0 and utility % n == 0]
    allowed = f"0, or so many of the batch's {adversarial} + {utility} rows: {', '.join(map(str, sizes))}"
    require(config.training.micro_batch in (0, *sizes), "training.micro_batch", allowed)


def _validate_watching(config: ConfigDict, require: Callable[[bool, str, str], None], named: bool) -> None:
    training = config.training
    require(training.watch_every >= 0, "training.watch_every", "an integer >= 0 (0: never)")
    for key in ("watch_prompts", "watch_behaviors"):
        require(training[key] >= 1, f"training.{key}", "an integer >= 1")
    able = [name for name, attack in ATTACKS.items() if not (attack.uses_rewriter or attack.uses_sampler or attack.given or attack.curve)]
    require(set(training.watch_attacks) <= set(able), "training.watch_attacks", f"a selection of {', '.join(able)}")
    watched, chosen = bool(training.watch_attacks), training.best_refusals >= 0
    require(not watched or training.watch_every > 0, "training.watch_attacks", "() with training.watch_every = 0: nothing is measured")
    require(training.best_refusals == -1 or 0 <= training.best_refusals <= 1, "training.best_refusals", "a share from 0 to 1, or -1 (off)")
    require(not chosen or watched, "training.best_refusals", "-1 without training.watch_attacks: there is nothing to choose by")
    require(training.patience >= 0, "training.patience", "an integer >= 0 (0: never)")
    require(not training.patience or chosen, "training.patience", "0 without training.best_refusals: no measurement is the best")
    if config.world.enabled or not named:
        return
    data = config.data
    require(not watched or bool(data.watch_behaviors), "data.watch_behaviors", "a path: training.watch_attacks are run on these behaviors")
    asked = bool(data.benign or data.borderline)
    require(not chosen or asked, "data.benign", "a path, or one in data.borderline: training.best_refusals is a share of these prompts")


def check_training(config: ConfigDict, model: ModelConfig) -> None:
    """Raises ValueError naming a setting of a trained method that the model cannot have, or a budget below one step of it."""
    for method in map(METHODS.__getitem__, config.training.methods):
        settings.fits(method.read_settings(config), f"methods.{method.key}", model)
        method.steps(model, config)


def split_lists(config: ConfigDict) -> None:
    """Makes `--config.evaluation.forms=past,german` two names: the flags read words with a comma between them as one string in a list."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            split_lists(value)
        elif isinstance(value, tuple) and any(isinstance(part, str) and "," in part for part in value):
            config[name] = tuple(word.strip() for part in value for word in part.split(","))


def quoted(arguments: Sequence[str]) -> list[str]:
    """Returns the command line with Python's quotes around the parts of a list that has none, as paths need: --config.KEY=a/b,c/d."""
    lists = {f"config.{key}" for key, value in settings.dotted(defaults()) if isinstance(value, tuple)}
    found = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name.lstrip("-") in lists and "," in value and not value.lstrip().startswith(("(", "[", "'", '"')):
            *parts, last = (part.strip() for part in value.split(","))
            parts += [last] if last else []  # "21," is a list of one, as in Python
            numbers = all(part.lstrip("-").isdigit() for part in parts)
            argument = f"{name}={','.join(parts)}" if numbers else f"{name}={tuple(parts)!r}"
        found.append(argument)
    return found


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises ValueError for a config file that is not there and for a `--config.KEY` that does not exist, with the nearest one."""
    keys = dict(settings.dotted(defaults()))
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config" and value and not os.path.exists(value.split(":")[0]):
            folder = os.path.dirname(value) or "."
            near = difflib.get_close_matches(os.path.basename(value), os.listdir(folder) if os.path.isdir(folder) else [], 1)
            raise ValueError(f"--config={value}: no such file" + (f"; did you mean {os.path.join(folder, near[0])}?" if near else ""))
        key = name.removeprefix("config.")
        if name.startswith("config.") and key not in keys:
            raise settings.no_such_key(key, keys, "--config.")
