"""Attempts that are ready before their attack starts: of templates, of the sampler, of others' test cases, of what broke other models."""

import dataclasses
import json
import logging
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from dat_jax import sharding
from dat_jax.attacks import ATTACKS
from dat_jax.attacks.attack import Attack, Attempt
from dat_jax.attacks.given import Infilling
from dat_jax.data import answers as answers_lib
from dat_jax.data import files, provenance
from dat_jax.data.answers import answer_checksum, checksum
from dat_jax.data.behaviors import Behavior
from dat_jax.data.cases import ALLOWED, read_cases
from dat_jax.data.infilled import read_infilled, write_infilled
from dat_jax.data.plain_text import encode_text
from dat_jax.data.rewrites import forms
from dat_jax.data.templates import fill, read_templates
from dat_jax.diffusion import pool
from dat_jax.diffusion.pool import Pool
from dat_jax.models.huggingface import Model
from dat_jax.settings import read
from dat_jax.stations.inputs import Inputs, load_model
from dat_jax.stations.subjects import Subject

# Text attacks whose prompts other embedding attacks begin from: the request, which direct_samples repeats, and its rewrites
PERTURBED_ELSEWHERE = ("direct", "direct_samples", "rewrite")
ANSWER = "\nAnswer: "  # stands before the target in a row of the published infilling attack


def check(inputs: Inputs) -> None:
    """Raises ValueError for a file or sampler that an attack needs and that is not there, before a model is loaded."""
    chosen = inputs.config.evaluation.attacks
    for name in chosen:
        variants(inputs, ATTACKS[name])
    if "templates" in chosen:
        of_templates(inputs)
    if "test_cases" in chosen:
        of_test_cases(inputs)
    for name in chosen:
        if ATTACKS[name].uses_sampler and not inputs.config.sampler.model:
            raise ValueError(f"config.attacks.{ATTACKS[name].key} needs config.sampler.model, a masked-diffusion LM")
    if "infilling" in chosen:
        settings = ATTACKS["infilling"].read_settings(inputs.config)
        if settings.file:
            read_infilled(settings.file, inputs.eval_behaviors)
        elif not inputs.config.sampler.model:
            raise ValueError("config.attacks.infilling needs config.sampler.model, a masked-diffusion LM, or config.attacks.infilling.file")


def of_templates(inputs: Inputs) -> list[Attempt]:
    """Every template with every request in it; config.attacks.templates.count: so many per behavior, drawn by seed and id."""
    settings = ATTACKS["templates"].read_settings(inputs.config)
    if not settings.file:
        raise ValueError("config.attacks.templates.file is ''; allowed: a file of templates, JSON lines name, template")
    templates = list(read_templates(settings.file).values())
    count, found = min(settings.count or len(templates), len(templates)), []
    for behavior in inputs.eval_behaviors:
        draw = np.random.default_rng([inputs.seed, zlib.crc32(behavior.id.encode())])
        chosen = sorted(draw.choice(len(templates), count, replace=False)) if count < len(templates) else range(len(templates))
        found += [Attempt(behavior.id, fill(templates[i], behavior), behavior.targets[0]) for i in chosen]
    return found


def of_test_cases(inputs: Inputs) -> list[Attempt]:
    """What somebody else sent to a model about these behaviors, each text once."""
    file = ATTACKS["test_cases"].read_settings(inputs.config).file
    if not file:
        raise ValueError(f"config.attacks.test_cases.file is ''; allowed: {ALLOWED}")
    cases, left_out = read_cases(file, inputs.eval_behaviors)
    if left_out:
        logging.info("%s: %d test cases; left out: %s", file, len(cases), left_out)
    targets = {behavior.id: behavior.targets[0] for behavior in inputs.eval_behaviors}
    found = [Attempt(case.behavior, case.prompt, targets[case.behavior], prefill=case.prefill) for case in cases]
    return list(dict.fromkeys(found))


def preset(settings: Infilling, sampler: Pool) -> Pool:
    """How prompts are drawn: as `config.sampler` says, or as one of the two public presets.

    A row of a preset is masks and then the ids of ANSWER and the target as one text: no BOS, no EOS, nothing cut; see `of_behaviors`.
    """
    drawn = pool.unselected(sampler, settings.samples)
    if settings.preset == "sampler":
        return drawn
    length = int(settings.preset.partition("/")[0])
    return dataclasses.replace(
        drawn, prompt_tokens=(length, length), prompt_lengths="uniform", steps=length, remasking="low_confidence", temperature=0.0,
        condition_remasking=1.0, mend=0, acceptance="quota", cache_refresh=1, top_p=1.0, cfg_scale=0.0, separator="", begin=False,
    )  # fmt: skip


def of_behaviors(how: Pool, behaviors: Sequence[Behavior], sampler: Model) -> Pool:
    """A preset for certain behaviors and a certain sampler: rows as long as the longest response, and a BOS where it cannot do without.

    A sampler with shifted logits reads the first prompt token off the position before it. The published code knows none of these.
    """
    longest = max(len(encode_text(sampler.tokenizer, behavior.targets[0])) for behavior in behaviors)
    return dataclasses.replace(how, response_tokens=longest, begin=sampler.config.logit_shift)


def of_infilling(inputs: Inputs, mesh) -> list[Attempt]:
    """The sampler's prompts for every behavior's target, drawn once for all models into seed_<s>/infilling, or those of the user's CSV.

    The folder also gets prompts.csv, in the format that is read. Raises ValueError when it holds prompts of other settings.
    """
    settings = ATTACKS["infilling"].read_settings(inputs.config)
    targets = {behavior.id: behavior.targets[0] for behavior in inputs.eval_behaviors}
    if settings.file:
        prompts = read_infilled(settings.file, inputs.eval_behaviors)
    else:
        prompts = drawn(inputs, settings, mesh)
    return [Attempt(id, prompt, targets[id]) for id in targets for prompt in prompts.get(id, ()) if prompt.strip()]


def drawn_with(inputs: Inputs, how: Pool) -> dict[str, Any]:
    """What sampled prompts depend on beside the seed and the behaviors."""
    return {"sampler": str(inputs.config.sampler.model).rstrip("/").split("/")[-1], **pool.recorded(how)}


def drawn(inputs: Inputs, settings: Infilling, mesh) -> dict[str, list[str]]:
    """Returns behavior id -> sampled prompts. The sampler is loaded only to draw, and given up before a model is attacked."""
    folder, how = inputs.folder / "infilling", preset(settings, read(Pool, inputs.config.sampler))
    published = settings.preset != "sampler"
    first = [dataclasses.replace(b, targets=(ANSWER * published + b.targets[0],)) for b in inputs.eval_behaviors]
    wanted = {"seed": inputs.seed, **drawn_with(inputs, how)}
    wanted["behaviors"] = checksum([(behavior.id, behavior.targets[0]) for behavior in first])
    wanted |= {"response_tokens": "all", "ended": False} if published else {}
    provenance.claim(folder / "made_with.json", json.loads(json.dumps(wanted)), "delete that folder to draw again")
    if not sharding.agreed((folder / "cost.json").exists()):
        sampler = load_model(inputs.config.sampler, mesh)
        how = of_behaviors(how, first, sampler) if published else how
        records, cost = pool.draw_all(how, first, sampler, folder, inputs.seed, 0, logging.info, "infilling", ended=not published)
        del sampler
        prompts: dict[str, list[str]] = {}
        for record in records:
            prompts.setdefault(record.behavior_id, []).append(record.prompt)
        if jax.process_index() == 0:
            files.write_text(folder / "prompts.json", json.dumps(prompts, ensure_ascii=False) + "\n")
            write_infilled(folder / "prompts.csv", first, prompts)
            files.write_text(folder / "cost.json", json.dumps(cost, indent=1) + "\n")  # last: its presence says that all are drawn
        multihost_utils.sync_global_devices("infilling")
    return files.read_json(str(folder / "prompts.json"))


def ready(inputs: Inputs, mesh) -> dict[str, list[Attempt]]:
    """The attempts of the chosen attacks that are the same for every model, by where they come from."""
    chosen = inputs.config.evaluation.attacks
    found = {"templates": of_templates(inputs)} if "templates" in chosen else {}
    found |= {"test_cases": of_test_cases(inputs)} if "test_cases" in chosen else {}
    return found | ({"infilling": of_infilling(inputs, mesh)} if "infilling" in chosen else {})


def variants(inputs: Inputs, attack: Attack) -> Sequence[str]:
    """An attack's variants; of one that goes on from other attacks' texts the names of these, those of the run or those that it names.

    Raises ValueError naming the key for an attack that is not among the run's text attacks.
    """
    settings, known = attack.read_settings(inputs.config), forms(inputs.rewrites)
    if attack.given != "answers":
        return attack.variants(settings, known)
    texts = [row for row in ATTACKS.values() if row.name in inputs.config.evaluation.attacks and row.surface == "text" and not row.curve]
    names = {row.name: [f"{row.name}:{variant}".rstrip(":") for variant in row.variants(row.read_settings(inputs.config), known)]
             for row in texts}  # fmt: skip
    every = [name for found in names.values() for name in found]
    for name in settings.on:
        if name not in names and name not in every:
            raise ValueError(f"config.attacks.{attack.key}.on names {name!r}; allowed: text attacks of config.evaluation.attacks, "
                             f"{', '.join(dict.fromkeys([*names, *every])) or 'of which there is none'}")  # fmt: skip
    chosen = settings.on or [name for name in names if name not in PERTURBED_ELSEWHERE]
    if not chosen:
        raise ValueError(f"config.evaluation.attacks has {attack.name!r} and no text attack to put it on but "
                         f"{', '.join(names) or 'none'}; allowed: a further one, or names in config.attacks.{attack.key}.on")  # fmt: skip
    return list(dict.fromkeys(found for name in chosen for found in names.get(name, [name])))


def of_answers(inputs: Inputs, subject: str, name: str) -> list[Attempt] | None:
    """The texts that an attack tried on a model, each once; None where it was not tried on every behavior yet."""
    found = answers_lib.read(inputs.folder / "answers" / subject / answers_lib.file_name(name))
    targets = {behavior.id: behavior.targets[0] for behavior in inputs.eval_behaviors}
    if not targets.keys() <= found.done.keys():
        return None
    lines = {_key(line): line for line in found.lines if line["behavior"] in targets and line["surface"] == "text"}
    return [_again(line, targets[line["behavior"]]) for line in lines.values()]


def of_replay(inputs: Inputs, subject: Subject, others: Sequence[Subject]) -> list[Attempt]:
    """What broke another model, by the headline judge, and was not sent to this one yet; texts and prefilled answers alone.

    Raises ValueError where another model was not attacked and judged yet.
    """
    most = ATTACKS["replay"].read_settings(inputs.config).most
    sent = {_key(line) for found in _answers(inputs.folder, subject.name) for line in found.lines if "behavior" in line}
    targets = {behavior.id: behavior.targets[0] for behavior in inputs.eval_behaviors}
    attempts: dict[tuple, Attempt] = {}
    for other in others:
        folder = inputs.folder / "verdicts" / answers_lib.file_name(inputs.headline) / other.name
        if not folder.exists():
            raise ValueError(f"{folder}: no verdicts yet, and replay sends what broke a model; run --mode=evaluate,judge without it first")
        for found in _answers(inputs.folder, other.name):
            path = folder / f"{found.stem.name}.jsonl"
            if found.about.get("surface") not in ("text", "prefill") or not path.exists():
                continue
            complied = {row["answer"] for _, row in files.read_jsonl(str(path)) if row["label"] == "comply"}
            for line in found.asked:
                if answer_checksum(line) in complied and line["behavior"] in targets and _key(line) not in sent:
                    attempts.setdefault(_key(line), _again(line, targets[line["behavior"]]))
    kept: dict[str, list[Attempt]] = {}
    for attempt in attempts.values():
        kept.setdefault(attempt.behavior, []).append(attempt)
    return [attempt for found in kept.values() for attempt in found[:most]]


def _answers(folder: epath.Path, subject: str) -> list[answers_lib.Answers]:
    """A model's answers to attacks but to the replay itself, whose attempts come from these."""
    stems = answers_lib.stems(folder / "answers" / subject)
    return [found for found in map(answers_lib.read, stems) if found.about.get("attack", "replay") != "replay"]


def _key(line: answers_lib.Line) -> tuple:
    return line["behavior"], line["prompt"], line.get("prefill", ""), tuple(line.get("tokens", ()))


def _again(line: answers_lib.Line, target: str) -> Attempt:
    return Attempt(line["behavior"], line["prompt"], target, prefill=line.get("prefill", ""), tokens=tuple(line.get("tokens", ())))
