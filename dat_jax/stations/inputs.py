"""What a seed's run reads: every file checked before a model is loaded, and what is missing listed at once."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from dat_jax import judges, models, settings, world
from dat_jax.attacks import ATTACKS
from dat_jax.attacks.victim import BLOCKS, Decoding
from dat_jax.config import TABLES, check_training
from dat_jax.data import behaviors as behaviors_lib
from dat_jax.data import chats as chats_lib
from dat_jax.data import conversations, files, pipeline, tasks, utility
from dat_jax.data import rewrites as rewrites_lib
from dat_jax.data.behaviors import Behavior
from dat_jax.data.rewrites import Rewrite
from dat_jax.data.tasks import Question
from dat_jax.judges import JUDGES
from dat_jax.methods import METHODS
from dat_jax.methods.method import Method
from dat_jax.models import huggingface
from dat_jax.models.huggingface import Model

# What a user brings: config key -> the format, and what makes the file. docs/formats.md has the details.
BROUGHT = {
    "behaviors": "CSV of training behaviors, e.g. HarmBench's columns Behavior, BehaviorID; docs/formats.md",
    "targets": "JSON {BehaviorID: text or list of texts}, the harmful responses; docs/formats.md",
    "safe_responses": "CSV Behavior, Safe_Response, the refusals; docs/formats.md",
    "chats": "utility chats, JSON lines, parquet or a folder; python -m dat_jax.data.prepare, or python -m dat_jax.stations.own_answers",
    "eval_behaviors": "CSV of evaluation behaviors, none of them trained on; docs/formats.md",
    "eval_targets": "JSON {BehaviorID: text or list of texts}; docs/formats.md",
    "rewrites": "JSON lines id, rewrite, prompt; docs/formats.md",
    "train_rewrites": "JSON lines id, rewrite, prompt, of training behaviors; docs/formats.md",
    "watch_behaviors": "CSV of behaviors that are attacked during training, neither trained on nor evaluated; docs/formats.md",
    "watch_targets": "JSON {BehaviorID: text or list of texts}; docs/formats.md",
    "benign": "JSON lines id, prompt, optional response: prompts that must be answered; docs/formats.md",
    "borderline": "JSON lines as benign, or a CSV of XSTest or OR-Bench; docs/formats.md",
    "unsafe": "JSON lines as benign, or OR-Bench's CSV: contrasts that must be refused; docs/formats.md",
    "heldout_chats": "chats that nothing was trained on, in the formats of chats; docs/formats.md",
}
TASKS = "multiple-choice questions in MMLU's or ARC's format, a file or a folder of files; docs/formats.md"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a seed's run reads, checked."""

    config: ConfigDict  # with the paths of this seed's files
    folder: epath.Path  # workdir/seed_<s>
    seed: int
    behaviors: list[Behavior]  # trained on; [] where nothing is trained
    eval_behaviors: list[Behavior]
    chats: list[list[dict[str, str]]]
    rewrites: list[Rewrite]  # of the evaluation behaviors, in the forms that are tried
    utility_sets: dict[str, list[utility.UtilityPrompt]]
    heldout_chats: list[list[dict[str, str]]] = dataclasses.field(default_factory=list)
    tasks: dict[str, list[Question]] = dataclasses.field(default_factory=dict)  # by name, those that are asked
    examples: dict[str, list[Question]] = dataclasses.field(default_factory=dict)  # by the name of their task
    train_rewrites: Sequence[Rewrite] = ()  # of the training behaviors, for methods that train on rewrites
    watched: Sequence[Behavior] = ()  # attacked during training, by config.training.watch_attacks

    @property
    def methods(self) -> list[Method]:
        """The methods of config.training.methods."""
        return [METHODS[name] for name in self.config.training.methods]

    @property
    def watched_rewrites(self) -> list[Rewrite]:
        """The watched behaviors by rules, for attacks on rewrites."""
        return rewrites_lib.make_rewrites(self.watched)

    @property
    def headline(self) -> str:
        """The judge whose verdicts are the headline: the name of the first of config.evaluation.judges."""
        return self.config.evaluation.judges[0]

    @property
    def harmless_judge(self) -> str:
        """The judge that tells answered harmless prompts from refused ones: the first of config.evaluation.judges that can."""
        return judges.fallback(self.config.evaluation.judges)

    @property
    def decoding(self) -> Decoding:
        """How this run asks a model."""
        data, evaluation = self.config.data, self.config.evaluation
        return Decoding(
            prompt_length=data.prompt_length,
            response_length=data.response_length,
            max_new_tokens=evaluation.max_new_tokens,
            batch_size=evaluation.batch_size,
            temperature=evaluation.temperature,
            perturb=data.perturb,
            system=data.system,
            prompt_block=evaluation.prompt_block,
        )


def check_files(config: ConfigDict) -> None:
    """Raises one ValueError that lists every file of config.data that is not there, with its format and what makes it.

    Or one that names a key in which a file or model is given that the embedded world makes: its own would silently take that place.
    """
    for group, key, _ in world.FILES if config.world.enabled else ():
        if config[group][key]:
            raise ValueError(f"config.{group}.{key} is {config[group][key]!r}; allowed: '' with config.world.enabled = True, as that "
                             "makes it")  # fmt: skip
    named = [(key, path) for key in BROUGHT for path in behaviors_lib.paths(config.data[key])]
    named += [(key, path) for key in ("tasks", "task_examples") for path in tasks.named(config.data[key]).values()]
    missing = [(key, epath.Path(path)) for key, path in named if not epath.Path(path).exists()]
    if missing:
        lines = [f"  {path}  (config.data.{key}{files.nearest(path)}): {BROUGHT.get(key, TASKS)}" for key, path in missing]
        count = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
        raise ValueError(f"{count} not there; bring what is missing, or set its key to where it is:\n" + "\n".join(lines))


def read_inputs(config: ConfigDict, folder: epath.Path, seed: int) -> Inputs:
    """Reads and checks everything a seed's run needs; builds the embedded world first where it is used."""
    if config.world.enabled:
        check_training(config, world.target_config(config.world))  # building it takes minutes
        world.build(folder / "world", seed, config.world, logging.info)
        config = with_world(config, folder / "world")
    data = config.data
    trains = any(METHODS[name].trains for name in config.training.methods)
    eval_behaviors = behaviors_lib.load_behaviors(data.eval_behaviors, data.eval_targets) if data.eval_behaviors else []
    behaviors = behaviors_lib.load_behaviors(data.behaviors, data.targets, data.safe_responses) if trains else []
    watched = _watched(config, behaviors, eval_behaviors) if trains else []
    eval_behaviors = eval_behaviors[: config.evaluation.behaviors or None]
    inputs = Inputs(
        config=config,
        folder=folder,
        seed=seed,
        behaviors=behaviors,
        eval_behaviors=eval_behaviors,
        chats=chats_lib.load_chats(data.chats)[: data.max_chats or None] if trains else [],
        rewrites=_rewrites(config, eval_behaviors),
        utility_sets=utility.load_sets(data.benign, data.borderline, data.unsafe),
        train_rewrites=_train_rewrites(config, behaviors),
        watched=watched,
        **_measured(config),
    )
    trained = {b.text for b in inputs.behaviors}
    for behavior in inputs.eval_behaviors:
        if behavior.text in trained:
            raise ValueError(f"{data.eval_behaviors}: behavior {behavior.id!r} is one of the training behaviors in {data.behaviors}")
    if made := behaviors_lib.describe_targets(inputs.eval_behaviors):
        logging.info("%s", made)
    if made := behaviors_lib.describe_refusals(inputs.behaviors):
        logging.warning("%s", made)
    _check_lengths(inputs)
    tried = (*config.evaluation.attacks, *(config.training.watch_attacks if watched else ()))
    check_fit(config, config.target.model, {"attacks": tried})
    check_training(config, huggingface.read_config(huggingface.locate(config.target.model)))
    _check_judges(inputs)
    for name in config.evaluation.attacks:  # a form that no rewrite has is to be known now, not after the training
        ATTACKS[name].variants(ATTACKS[name].read_settings(config), rewrites_lib.forms(inputs.rewrites))
    for name in config.training.watch_attacks if watched else ():
        if not ATTACKS[name].variants(ATTACKS[name].read_settings(config), rewrites_lib.forms(inputs.watched_rewrites)):
            raise ValueError(f"config.training.watch_attacks names {name!r}, and no rule rewrites a behavior of {data.watch_behaviors}")
    return inputs


def _watched(config: ConfigDict, behaviors: list[Behavior], eval_behaviors: list[Behavior]) -> list[Behavior]:
    """The behaviors that are attacked during training; ValueError for one that is trained on or evaluated."""
    data = config.data
    if not config.training.watch_attacks:
        return []
    if config.world.enabled and not epath.Path(data.watch_behaviors).exists():
        raise ValueError(f"{data.watch_behaviors} is not there: an earlier version built this world; use a new --workdir, or leave out "
                         "config.training.watch_attacks")  # fmt: skip
    found = behaviors_lib.load_behaviors(data.watch_behaviors, data.watch_targets)
    for others, what, path in ((behaviors, "trained on", data.behaviors), (eval_behaviors, "evaluated", data.eval_behaviors)):
        texts = {other.text for other in others}
        if shared := next((behavior for behavior in found if behavior.text in texts), None):
            raise ValueError(
                f"{data.watch_behaviors}: behavior {shared.id!r} is {what}, it is one of {path}; allowed: behaviors of neither, as a "
                "checkpoint is chosen by them"
            )
    return found[: config.training.watch_behaviors]


def _measured(config: ConfigDict) -> dict[str, Any]:
    """What likelihoods are taken of: held-out chats, and the questions of tasks with the examples before them."""
    data, evaluation = config.data, config.evaluation
    chats = chats_lib.load_chats(data.heldout_chats) if data.heldout_chats and "chats" in evaluation.measures else []
    paths, of_examples = tasks.named(data.tasks), tasks.named(data.task_examples)
    if unknown := sorted(of_examples.keys() - paths.keys()):
        raise ValueError(
            f"config.data.task_examples names the task {unknown[0]!r}; allowed: those of config.data.tasks: {', '.join(paths)}"
        )
    asked = {name: tasks.spread(tasks.read(path), evaluation.questions) for name, path in paths.items()}
    examples = {name: tasks.read(path) for name, path in of_examples.items()}
    for name, questions in asked.items() if evaluation.few_shot else ():
        for question in questions:
            tasks.examples_of(question, examples.get(name, ()), evaluation.few_shot)  # too few are to be known now
    wanted = "tasks" in evaluation.measures
    return {
        "heldout_chats": chats[: evaluation.chats or None],
        "tasks": asked if wanted else {},
        "examples": examples if wanted else {},
    }


def check_fit(config: ConfigDict, source: str, chosen: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError naming a setting of the chosen rows (group -> names) that the model of a folder or hub id cannot have."""
    model = huggingface.read_config(huggingface.locate(source))
    for group, row in [(group, TABLES[group][name]) for group, names in chosen.items() for name in names]:
        settings.fits(row.read_settings(config), f"{group}.{row.key}", model)


def needs_sampler(config: ConfigDict) -> bool:
    """Whether a run draws prompts: for a method that trains on samples, or as further utility rows."""
    trained = [method for method in map(METHODS.__getitem__, config.training.methods) if method.trains]
    return bool(trained) and bool(config.utility.samples or any(method.prompts == "sampled" for method in trained))


def _rewrites(config: ConfigDict, behaviors: list[Behavior]) -> list[Rewrite]:
    """The rewrites of these behaviors in the forms of config.evaluation.forms; ValueError for a form that none has."""
    path = config.data.rewrites
    found = rewrites_lib.read_rewrites(path) if path else rewrites_lib.make_rewrites(behaviors)
    known = {behavior.id for behavior in behaviors}
    found = [rewrite for rewrite in found if rewrite.behavior in known]
    if path and behaviors and not found:
        raise ValueError(
            f"{path}: no rewrite of an evaluation behavior; allowed as id: those of {config.data.eval_behaviors} that are tried, "
            f"such as {behaviors[0].id!r}"
        )
    present, wanted = rewrites_lib.forms(found), tuple(config.evaluation.forms)
    for form in wanted:
        if form not in present:
            raise ValueError(f"config.evaluation.forms names {form!r}; the rewrites of the evaluation behaviors have {', '.join(present)}")
    order = wanted or present
    return sorted((r for r in found if r.form in order), key=lambda rewrite: order.index(rewrite.form))


def _train_rewrites(config: ConfigDict, behaviors: list[Behavior]) -> list[Rewrite]:
    """The rewrites that a method trains on; ValueError where there is none, or one is of no training behavior or in a held-out form."""
    wanted = [name for name in config.training.methods if METHODS[name].prompts == "rewrites"]
    if not wanted:
        return []
    path, known = config.data.train_rewrites, {behavior.id for behavior in behaviors}
    found = rewrites_lib.read_rewrites(path) if path else rewrites_lib.make_rewrites(behaviors)
    for rewrite in found:
        if rewrite.behavior not in known:
            raise ValueError(
                f"{path} (config.data.train_rewrites): id {rewrite.behavior!r} is no training behavior; allowed: those of "
                f"{config.data.behaviors}"
            )
        if rewrite.held_out:
            raise ValueError(
                f"{path} (config.data.train_rewrites): the form {rewrite.form!r} is held out; allowed for training: held_out false"
            )
    if not found:
        raise ValueError(
            f"config.training.methods names {wanted[0]!r}, which trains on rewrites, and no rule applies to a training behavior; allowed: "
            "a file of rewrites in config.data.train_rewrites"
        )
    return found


def _check_lengths(inputs: Inputs) -> None:
    """Tokenizes all behaviors: one whose prompt does not fit is named now, with how many there are and what to set."""
    config = inputs.config
    source, length = huggingface.locate(config.target.model), config.data.prompt_length
    tokenizer = huggingface.load_tokenizer(source, huggingface.read_fields(source)["model_type"])
    for key, group in (
        ("behaviors", inputs.behaviors),
        ("eval_behaviors", inputs.eval_behaviors),
        ("watch_behaviors", inputs.watched),
    ):
        if not group:
            continue
        conversations.check_tokenizer(tokenizer)
        asked = {b.id: conversations.prompt_tokens(tokenizer, [{"role": "user", "content": b.text}], config.data.system) for b in group}
        long = {id: tokens for id, tokens in asked.items() if tokens > length}
        for id, tokens in long.items():
            raise ValueError(
                f"the prompt of behavior {id!r} has {tokens} tokens; allowed: config.data.prompt_length = {length}. {len(long)} of the "
                f"{len(group)} behaviors are too long: set that key to {math.ceil(max(long.values()) / 128) * 128}, or leave them out of "
                f"{config.data[key]}"
            )
        pipeline.adversarial_rows(tokenizer, pipeline.triples(group, None, 0), config.data)
    if inputs.train_rewrites:
        pipeline.within_block(tokenizer, pipeline.triples(inputs.behaviors, None, 0, rewrites=inputs.train_rewrites), config.data)
    _check_blocks(inputs, tokenizer)


def _check_blocks(inputs: Inputs, tokenizer: Any) -> None:
    """Raises ValueError for a utility prompt or rewrite that is asked and has more blocks than a prompt may have."""
    config, most = inputs.config, BLOCKS * inputs.config.data.prompt_length
    counts = [config.evaluation.utility_prompts] + ([config.training.watch_prompts] if config.training.watch_every else [])
    asked = [
        (config.data["benign" if name == "benign" else "borderline"], "id", prompt.id, prompt.prompt)
        for name, prompts in inputs.utility_sets.items()
        for prompt in dict.fromkeys(prompt for count in counts for prompt in utility.spread(prompts, count))
    ]
    asked += [(config.data.rewrites, "the rewrite of", rewrite.behavior, rewrite.prompt) for rewrite in inputs.rewrites]
    asked += [("", "the rewrite of", rewrite.behavior, rewrite.prompt) for rewrite in inputs.watched_rewrites]
    for file, what, id, prompt in asked:
        conversations.check_tokenizer(tokenizer)
        if (tokens := conversations.prompt_tokens(tokenizer, [{"role": "user", "content": prompt}], config.data.system)) > most:
            raise ValueError(
                f"{file or 'rewrites by rules'}, {what} {id!r}: the prompt has {tokens} tokens; allowed: {most}, {BLOCKS} times "
                f"config.data.prompt_length = {config.data.prompt_length}; raise that key to {math.ceil(tokens / BLOCKS / 128) * 128}, or "
                "leave the prompt out"
            )


def _check_judges(inputs: Inputs) -> None:
    """Raises ValueError for a judge that does not know the behaviors or prompts whose answers it would be given."""
    data = inputs.config.data
    asked = [(data.eval_behaviors, behavior.id) for behavior in inputs.eval_behaviors]
    asked += [(data.watch_behaviors, behavior.id) for behavior in inputs.watched]
    paths = {"benign": data.benign, "borderline": data.borderline, "unsafe": data.unsafe or data.borderline}
    asked += [(paths[name], p.id) for name, some in inputs.utility_sets.items() for p in some]
    named = [(f"evaluation.judges names {name!r}", name, asked) for name in inputs.config.evaluation.judges]
    if (name := inputs.config.sampler.judge) and needs_sampler(inputs.config):
        named.append((f"sampler.judge is {name!r}", name, [(data.behaviors, behavior.id) for behavior in inputs.behaviors]))
    for key, name, items in named:
        if unknown := next(((file, id) for file, id in items if not JUDGES[name].knows(id)), None):
            raise ValueError(f"config.{key}, which does not know {unknown[1]!r} of {unknown[0]}; allowed: a judge of these behaviors")


def with_world(config: ConfigDict, folder: epath.Path) -> ConfigDict:
    """Returns the config with the embedded world's folders and files in the keys where a user's own would be named."""
    config = config.copy_and_resolve_references()  # a plain copy would share the groups
    for group, key, name in world.FILES:
        config[group][key] = str(folder / name)
    return config


def load_model(group: ConfigDict, mesh, source: str = "") -> Model:
    """Loads the model of `config.target` or `config.sampler`, or of `source` as if it were that, onto the mesh; see `configured`."""
    return configured(models.load(source or group.model, mesh=mesh, dtype=group.dtype, compute_dtype=group.compute_dtype), group)


def configured(model: Model, group: ConfigDict) -> Model:
    """Returns a model with the compute type and attention of `config.target` or `config.sampler`."""
    return dataclasses.replace(
        model, config=dataclasses.replace(model.config, compute_dtype=group.compute_dtype, attention=group.attention)
    )
