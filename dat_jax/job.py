"""The whole job: sample prompts, train undefended -> CAT -> DAT from one configuration, attack all of them, write the report.

    workdir/config.json                          what the folder was made with; another config is refused
    workdir/seed_<s>/world/                      the embedded world's models and files, where it is used
    workdir/seed_<s>/prompts/                    the prompt pool: prompts.jsonl, cost.json; round_<r>/ those drawn during the training
    workdir/seed_<s>/<method>/                   checkpoints, metrics.jsonl, events, finished.json
    workdir/seed_<s>/evaluation/<method>/        one JSONL per attack and utility set
    workdir/seed_<s>/export/<method>/            Hugging Face folders (--mode=export)
    workdir/results.json report.md report.html

Every station skips what is finished and goes on with what is not. All input files are read and checked before a model is loaded.
"""

import dataclasses
import functools
import json
import logging
import time
import zlib
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from dat_jax import models, sharding, world
from dat_jax.config import METHODS, dotted
from dat_jax.data import behaviors as behaviors_lib
from dat_jax.data import chats as chats_lib
from dat_jax.data import conversations, files, pipeline
from dat_jax.data.behaviors import Behavior
from dat_jax.data.prompts import PromptRecord, read_prompts
from dat_jax.diffusion import denoiser, pool, selection
from dat_jax.evaluation import card, judges, report, responses, runner, utility
from dat_jax.evaluation.attacks import rewrites as rewrites_lib
from dat_jax.evaluation.attacks.text import Attempt
from dat_jax.models import adapters, families, huggingface
from dat_jax.models import lora as lora_lib
from dat_jax.models.huggingface import Model
from dat_jax.training import loop
from dat_jax.world import census

# Keys that may change between two calls with one workdir: they change where or how long a run works, not what it computes.
MUTABLE = ("mesh.", "topology", "seeds", "methods", "training.save_every", "training.keep", "training.log_every", "evaluation.batch_size")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a seed's run reads, checked."""

    config: ConfigDict  # with the paths of this seed's files
    folder: epath.Path  # workdir/seed_<s>
    seed: int
    behaviors: list[Behavior]
    eval_behaviors: list[Behavior]
    chats: list[list[dict[str, str]]]
    rewrites: list[rewrites_lib.Rewrite] | None
    utility_sets: dict[str, list[utility.UtilityPrompt]]


def run(mode: str, config: ConfigDict, workdir: str) -> int:
    """Runs one mode for every seed and returns the exit status. Raises ValueError for whatever the user can mend."""
    if mode == "compile":
        from dat_jax import compilation  # here: it starts the TPU's compiler

        return compilation.run(config, workdir)
    started = time.monotonic()
    if config.world.enabled and (files.is_remote(workdir) or config.mesh.processes > 1):
        raise ValueError(
            f"config.world.enabled is True with --workdir={workdir} and config.mesh.processes = {config.mesh.processes}; allowed: "
            "a local workdir and one process, or the folder of a world that was built so in the keys of config.target, sampler and data"
        )
    workdir = files.absolute(workdir)  # now: a run may change its folder
    sharding.initialize(config.mesh.processes, config.mesh.timeout)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, config.mesh.dcn_data)
    check_claim(epath.Path(workdir), config)
    check_agreement(config)
    jax.config.update("jax_compilation_cache_dir", str(epath.Path(workdir) / "compilation_cache"))
    with jax.set_mesh(mesh):
        for seed in config.seeds:
            inputs = read_inputs(config, epath.Path(workdir) / f"seed_{seed}", seed)
            claim(epath.Path(workdir), config)  # now: a call that ends at a wrong path leaves nothing that the mended call would trip over
            if mode in ("all", "sample") and "dat" in config.methods:
                sample(inputs, mesh)
            if mode in ("all", "train"):
                train(inputs, mesh)
            if mode in ("all", "evaluate"):
                evaluate(inputs, mesh)
            if mode == "export":
                export(inputs, mesh)
        if mode in ("all", "evaluate") and jax.process_index() == 0:
            logging.info("report: %s", report.write(workdir, config, logging.info))
    logging.info("%s: done in %.0f s", mode, time.monotonic() - started)
    return 0


def check_claim(workdir: epath.Path, config: ConfigDict) -> None:
    """Raises ValueError naming the first key in which the workdir's config.json differs from this config."""
    path = workdir / "config.json"
    wanted = json.loads(json.dumps(dict(dotted(config)), default=str))
    if path.exists():
        found = files.read_json(str(path))
        for key, value in wanted.items():
            if key in found and found[key] != value and not key.startswith(MUTABLE):
                raise ValueError(f"{workdir} was made with config.{key} = {found[key]!r}, now it is {value!r}; use another --workdir")


def check_agreement(config: ConfigDict) -> None:
    """Raises ValueError unless all processes have one configuration; also, nobody claims a workdir before everybody has checked it."""
    text = json.dumps(dict(dotted(config)), default=str)
    sums = np.ravel(multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode()))))
    if len(set(sums.tolist())) > 1:
        raise ValueError(f"the {len(sums)} processes were started with {len(set(sums.tolist()))} configurations; allowed: the same for all")


def claim(workdir: epath.Path, config: ConfigDict) -> None:
    """Writes config.json, by which later calls know what the folder was made with."""
    if jax.process_index() == 0:
        files.write_text(workdir / "config.json", json.dumps(dict(dotted(config)), default=str, indent=1, ensure_ascii=False) + "\n")


def read_inputs(config: ConfigDict, folder: epath.Path, seed: int) -> Inputs:
    """Reads and checks everything a seed's run needs; builds the embedded world first where it is used."""
    if config.world.enabled:
        world.build(folder / "world", seed, config.world, logging.info)
        config = with_world(config, folder / "world")
    data = config.data
    inputs = Inputs(
        config=config,
        folder=folder,
        seed=seed,
        behaviors=behaviors_lib.load_behaviors(data.behaviors, data.targets, data.safe_responses),
        eval_behaviors=behaviors_lib.load_behaviors(data.eval_behaviors, data.eval_targets) if data.eval_behaviors else [],
        chats=chats_lib.load_chats(data.chats)[: data.max_chats or None],
        rewrites=rewrites_lib.read_rewrites(data.rewrites) if data.rewrites else None,
        utility_sets=utility.load_sets(data.benign, data.borderline),
    )
    trained = {b.text for b in inputs.behaviors}
    for behavior in inputs.eval_behaviors:
        if behavior.text in trained:
            raise ValueError(f"{data.eval_behaviors}: behavior {behavior.id!r} is one of the training behaviors in {data.behaviors}")
    source = huggingface.locate(config.target.model)
    tokenizer = huggingface.load_tokenizer(source, huggingface.read_fields(source)["model_type"])
    for group in (inputs.behaviors, inputs.eval_behaviors):
        pipeline.adversarial_rows(tokenizer, pipeline.triples(group, None, 0), data) if group else None
    if inputs.eval_behaviors:  # a form that no rewrite has is to be known now, not after the training
        made = rewrites_lib.make_rewrites(inputs.eval_behaviors) if inputs.rewrites is None else inputs.rewrites
        runner.plan(inputs.eval_behaviors, made, config.evaluation, seed)
    if "dat" in config.methods:
        denoiser.mask_id(families.read(huggingface.read_fields(huggingface.locate(config.sampler.model))))
    return inputs


def with_world(config: ConfigDict, folder: epath.Path) -> ConfigDict:
    """Returns the config with the embedded world's folders and files where a user's would stand."""
    config = config.copy_and_resolve_references()  # a plain copy would share the groups
    for group, key, name in world.FILES:
        config[group][key] = str(folder / name)
    return config


def load_model(group: ConfigDict, mesh) -> Model:
    """Loads `config.target` or `config.sampler` onto the mesh, with the config's compute type and attention."""
    model = models.load(group.model, mesh=mesh, dtype=group.dtype)
    return dataclasses.replace(
        model, config=dataclasses.replace(model.config, compute_dtype=group.compute_dtype, attention=group.attention)
    )


def ask(inputs: Inputs, model: Model, attempts: Sequence[Attempt], judge: judges.Judge, mesh) -> list[str]:
    """Returns the judge's label of the model's answer to each attempt."""
    answers = responses.respond(model, attempts, runner.decoding(inputs.config), inputs.seed, mesh=mesh)
    return [judge(attempt.behavior, answer) for attempt, answer in zip(attempts, answers)]


def sample(inputs: Inputs, mesh) -> None:
    """Draws, judges and selects the prompt pool x ~ p(x | y) of the training behaviors, against the undefended target."""
    folder = inputs.folder / "prompts"
    if pool.complete(folder):
        logging.info("sample, seed %d: done", inputs.seed)
        return
    sampler, target = (load_model(inputs.config[name], mesh) for name in ("sampler", "target"))
    draw_pool(inputs, sampler, target, folder, 0, mesh)


def draw_pool(inputs: Inputs, sampler: Model, target: Model, folder: epath.Path, round: int, mesh) -> list[PromptRecord]:
    """Returns the pool of a round, judged and selected against `target`; one that is complete in the folder is read."""
    config = inputs.config
    judge = judges.load(config.sampler.judge or config.evaluation.judge, inputs.behaviors)

    def compliance(behaviors: Sequence[Behavior], prompts: Sequence[str], _: Sequence[str]) -> list[float]:
        ids = [conversations.encode_prompt(target.tokenizer, [{"role": "user", "content": p}], "all")[0] for p in prompts]
        fitting = [i for i, tokens in enumerate(ids) if len(tokens) <= config.data.prompt_length]
        if len(fitting) < len(prompts):
            logging.warning("sample: %d of %d prompts are too long for the target", len(prompts) - len(fitting), len(prompts))
        attempts = [Attempt(behaviors[i].id, prompts[i], behaviors[i].targets[0]) for i in fitting]
        labels = dict(zip(fitting, ask(inputs, target, attempts, judge, mesh)))
        return [float(labels.get(i) == "comply") for i in range(len(prompts))]

    # Answering every sample costs more than drawing it, so the target is asked only where the selection needs to know.
    asked = compliance if config.sampler.selection in selection.JUDGED else None
    records = pool.build_pool(config.sampler, inputs.behaviors, sampler, asked, str(folder), inputs.seed, round, logging.info)
    selected = [r for r in records if r.selected]
    logging.info("sample, seed %d, round %d: %d of %d prompts selected", inputs.seed, round, len(selected), len(records))
    if asked is not None:
        obeyed = sum(r.compliance or 0.0 for r in selected) / max(len(selected), 1)
        logging.info("sample, seed %d: the target complies with %.0f %% of the selected prompts", inputs.seed, 100 * obeyed)
    if config.world.enabled and jax.process_index() == 0:
        counted = census.census(records)
        files.write_text(folder / "census.json", json.dumps(counted | {"sentence": census.sentence(counted)}, indent=1))
        logging.info("sample, seed %d: %s", inputs.seed, census.sentence(counted))
    return records


def train(inputs: Inputs, mesh) -> None:
    """Trains every method that trains, each from the same undefended model."""
    config = inputs.config
    todo = [m for m in config.methods if METHODS[m] and not (inputs.folder / m / "finished.json").exists()]
    if not todo:
        logging.info("train, seed %d: done", inputs.seed)
        return
    target = load_model(config.target, mesh)
    chats = pipeline.utility_rows(target.tokenizer, inputs.chats, config.data)
    for method in todo:
        refresh = config.sampler.refresh_every if METHODS[method] == "sampler" else 0
        measured = watch(inputs, target, mesh)
        rows = rows_of(inputs, method, target, mesh)
        loop.train(method, target, rows, chats, config, inputs.seed, inputs.folder / method, mesh, measured, refresh)


def rows_of(inputs: Inputs, method: str, target: Model, mesh) -> loop.Rows:
    """Returns what a method trains on: the behaviors' requests (CAT), or selected samples, drawn anew for each round's model (DAT)."""
    config, offline = inputs.config, inputs.folder / "prompts"
    sampler = functools.cache(lambda: load_model(config.sampler, mesh))  # loaded for the first refreshed round, kept for the others

    def rows(round: int, params, lora) -> pipeline.AdversarialRows:
        if METHODS[method] == "behaviors":
            return pipeline.adversarial_rows(target.tokenizer, pipeline.triples(inputs.behaviors, None, inputs.seed), config.data)
        if round == 0:
            if not (offline / "prompts.jsonl").exists():
                raise ValueError(f"{offline}/prompts.jsonl: no prompts were sampled yet; run --mode=sample first")
            records = read_prompts(offline / "prompts.jsonl")
        else:
            current = loop.merged(target, params, lora)
            records = draw_pool(inputs, sampler(), current, offline / f"round_{round}", round, mesh)
        chosen = pipeline.triples(inputs.behaviors, records, inputs.seed, config.sampler.add_requests)
        return pipeline.adversarial_rows(target.tokenizer, pipeline.fitting(target.tokenizer, chosen, config.data), config.data)

    return rows


def watch(inputs: Inputs, target: Model, mesh) -> loop.Watch:
    """Returns the measurement made during training: which share of benign and borderline prompts the model refuses or answers."""
    judge = judges.load(inputs.config.evaluation.judge, [*inputs.behaviors, *inputs.eval_behaviors])
    count = inputs.config.training.watch_prompts
    attempts = {
        name: [Attempt(p.id, p.prompt, p.response) for p in runner.spread(inputs.utility_sets[name], count)]
        for name in ("benign", "borderline")
        if inputs.utility_sets.get(name)
    }

    def measure(params, lora) -> dict[str, float]:
        model = dataclasses.replace(target, params=lora_lib.merge(params, lora))
        rates = {}
        for name, asked in attempts.items():
            labels = ask(inputs, model, asked, judge, mesh)
            rates[f"watch/{name}_refused"] = labels.count("refuse") / len(labels)
            rates[f"watch/{name}_answered"] = labels.count("comply") / len(labels)
        return rates

    return measure


def defended(inputs: Inputs, method: str, target: Model) -> Model:
    """Returns the model of a method: as it came, or with its newest checkpoint."""
    if not METHODS[method]:
        return target
    return loop.merged(target, *loop.restore(target, inputs.config, inputs.folder / method))


def evaluate(inputs: Inputs, mesh) -> None:
    """Attacks every method's model and measures its utility."""
    config = inputs.config
    if not inputs.eval_behaviors:
        raise ValueError("config.data.eval_behaviors is empty; allowed: a behaviors CSV (and eval_targets) to attack the models with")
    judge = judges.load(config.evaluation.judge, inputs.eval_behaviors)
    target = None
    for method in config.methods:
        folder = inputs.folder / "evaluation" / method
        if runner.finished(inputs.seed, inputs.eval_behaviors, inputs.rewrites, inputs.utility_sets, config, folder):
            logging.info("evaluate %s, seed %d: done", method, inputs.seed)
            continue
        target = target or load_model(config.target, mesh)
        runner.evaluate(
            method,
            inputs.seed,
            defended(inputs, method, target),
            inputs.eval_behaviors,
            inputs.rewrites,
            inputs.utility_sets,
            judge,
            config,
            folder,
            mesh,
            logging.info,
        )


def export(inputs: Inputs, mesh) -> None:
    """Writes each trained method as a Hugging Face folder, and its LoRA factors alone as a PEFT adapter beside it."""
    target = load_model(inputs.config.target, mesh)
    for method in (m for m in inputs.config.methods if METHODS[m]):
        folder, run = inputs.folder / "export" / method, inputs.folder / method
        if (folder / "README.md").exists():
            logging.info("export %s, seed %d: done", method, inputs.seed)
            continue
        if not (run / "finished.json").exists():
            raise ValueError(f"{run}: the training of {method} is not finished; run --mode=train first")
        adapter = folder.parent / f"{method}-adapter"
        for half_written in (folder, adapter) if jax.process_index() == 0 else ():
            half_written.rmtree(missing_ok=True)
        multihost_utils.sync_global_devices(f"export {method}")  # nobody writes before all is removed
        params, lora = loop.restore(target, inputs.config, run)
        models.save(loop.merged(target, params, lora), str(folder))
        text = card.card(method, inputs.seed, inputs.config, inputs.folder.parent, files.read_json(str(run / "finished.json"))["collapsed"])
        if lora is not None:
            adapters.save_adapter(lora, target.config, str(adapter), inputs.config.target.model)
        if jax.process_index() == 0:  # last: its presence says that the folder is complete
            for written in (adapter, folder) if lora is not None else (folder,):
                files.write_text(written / "README.md", text)
        logging.info("export %s, seed %d: %s", method, inputs.seed, folder)
