"""Re-sampled rounds with an adapted sampler: what is asked, what is kept, what it costs, and that a kill changes nothing."""

import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest

from dat_jax import models, sharding
from dat_jax.attacks import ATTACKS
from dat_jax.attacks.attack import Attempt
from dat_jax.config import validate
from dat_jax.data import manifest
from dat_jax.data.prompts import PromptRecord, read_pool, write_pool
from dat_jax.diffusion import pool, preference
from dat_jax.methods import METHODS
from dat_jax.settings import dotted
from dat_jax.stations import evaluate, sample, train, workdir
from dat_jax.stations.clock import Clock
from dat_jax.stations.inputs import read_inputs
from dat_jax.stations.rewriter import Rewriter

STEPS = 3


@pytest.fixture
def adapting(config):
    config.training.methods = ("dat",)
    config.sampler.update({"refresh_every": 1, "likelihood_samples": 0, "selection": "random", "samples": 2, "keep": 1})
    config.sampler.preference.update({"steps": STEPS, "learning_rate": 0.05, "draws": 1, "batch_size": 2, "rank": 1})
    validate(config)
    return config


def offline(inputs, folder):
    """A pool of two prompts per behavior, one of which will break the model."""
    records = [PromptRecord(b.id, text, b.targets[0], 0, "s", {}, None, 3, None, True) for b in inputs.behaviors for text in ("yes", "no")]
    manifest.write(folder / "provenance.json", {})
    write_pool(folder, records, {"flops": 1.0, "seconds": 1.0}, {})


def test_a_round_is_drawn_by_the_adapted_sampler_and_a_kill_changes_nothing(adapting, tmp_path, monkeypatch):
    asked, draw = [], pool.draw_all

    def labels(inputs, model, attempts, requests, judge, mesh):
        asked.append([attempt.prompt for attempt in attempts])
        return ["comply" if attempt.prompt == "yes" else "refuse" for attempt in attempts]

    mesh = sharding.make_mesh(1, 1, 1)

    def drawn(folder, kill=False):
        """The prompts of round 1, and the sampler's weights that drew them."""
        with jax.set_mesh(mesh):
            inputs = read_inputs(adapting, folder / "seed_0", 0)
            if not (folder / "seed_0" / "prompts").exists():
                offline(inputs, folder / "seed_0" / "prompts")
            used = []

            def spy(settings, behaviors, sampler, *rest):
                used.append(sampler.params)
                if kill:
                    raise KeyboardInterrupt
                return draw(settings, behaviors, sampler, *rest)

            monkeypatch.setattr(pool, "draw_all", spy)
            target = models.load(adapting.target.model, mesh)
            rows = train.rows_of(inputs, METHODS["dat"], inputs.behaviors, target, mesh)
            rows(1, target.params, None)
            return used[0], (folder / "seed_0" / "prompts" / "round_1" / "prompts.jsonl").read_text()

    monkeypatch.setattr(sample, "ask", labels)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    weights, prompts = drawn(whole)
    behaviors = len({record.behavior_id for record in read_pool(whole / "seed_0" / "prompts")})
    assert asked == [["yes", "no"] * behaviors]  # the current model, once per prompt, though the selection does not ask
    kept = whole / "seed_0" / "prompts" / "round_1" / preference.FOLDER
    pairs = [json.loads(line) for line in (kept / preference.PAIRS).read_text().splitlines()]
    assert {(pair["preferred"], pair["rejected"]) for pair in pairs} == {("yes", "no")} and len(pairs) == behaviors
    before = models.load(adapting.sampler.model).params
    assert not bool((weights["layers"]["q"] == before["layers"]["q"]).all())
    cost = json.loads((kept.parent / "cost.json").read_text())
    assert cost["adapting_flops"] > 0 and cost["adapting_seconds"] > 0 and cost["adapting_pairs"] == behaviors

    with pytest.raises(KeyboardInterrupt):
        drawn(cut, kill=True)
    assert drawn(cut)[1] == prompts and len(asked) == 2  # after the kill nothing is asked or learned again
    shutil.rmtree(cut / "seed_0" / "prompts" / "round_1")
    again, text = drawn(cut)
    assert text == prompts and len(asked) == 3
    jax.tree.map(np.testing.assert_array_equal, weights, again)

    # A model that nothing breaks leaves the sampler as it is, and says so.
    monkeypatch.setattr(sample, "ask", lambda inputs, model, attempts, *_: ["refuse"] * len(attempts))
    still, text = drawn(tmp_path / "robust")
    jax.tree.map(np.testing.assert_array_equal, still, before)
    assert text != prompts
    cost = json.loads((tmp_path / "robust/seed_0/prompts/round_1/cost.json").read_text())
    assert cost["adapting_pairs"] == 0 and cost["adapting_flops"] > 0  # it was asked, and nothing was learned


def test_an_attack_gets_the_sampler_and_all_behaviors_at_once(config, tmp_path, monkeypatch):
    config.evaluation.attacks = ("infilling_adapted",)
    config.attacks.infilling_adapted.samples = 3
    seen = []

    def spy(behaviors, victim, context):
        model, settings = context.sampler()
        assert model.config.mask_token is not None and settings.samples == 3 and settings.prompt_tokens == config.sampler.prompt_tokens
        assert context.judge is not None
        seen.append([behavior.id for behavior in behaviors])
        return [Attempt(behavior.id, "p", behavior.targets[0]) for behavior in behaviors]

    monkeypatch.setitem(ATTACKS, "infilling_adapted", dataclasses.replace(ATTACKS["infilling_adapted"], attempts=spy))
    inputs = read_inputs(config, tmp_path / "seed_0", 0)
    (job, *_) = evaluate.plan(inputs, "dat", {}, Rewriter(inputs, None))
    assert job.about["made_with"]["sampler"]["samples"] == 3 and job.about["made_with"]["judge"] == "refusal_prefix"
    spent = {"answers": 0, "flops": 0.0}
    victim = types.SimpleNamespace(
        mesh=None, spent=spent, decoding=types.SimpleNamespace(batch_size=1), answer=lambda found, *_: ["no"] * len(found)
    )
    missing = evaluate.what_is_missing(job, tmp_path / "answers")
    evaluate.answer(job, missing, tmp_path / "answers", victim, "w", Clock([(job.slow, len(missing))]), "dat")
    assert seen == [[behavior.id for behavior in inputs.eval_behaviors]] and len(seen[0]) == 3
    assert evaluate.what_is_missing(job, tmp_path / "answers") == []


def test_without_rounds_there_is_nothing_to_adapt_for(adapting):
    adapting.sampler.refresh_every = 0
    message = r"config\.sampler\.preference\.steps is 3; allowed: 0 with sampler\.refresh_every = 0"
    with pytest.raises(ValueError, match=message):
        validate(adapting)
    adapting.sampler.preference.update({"steps": 0, "beta": -1.0})
    with pytest.raises(ValueError, match=r"config\.sampler\.preference\.beta is -1\.0; allowed: a number > 0"):
        validate(adapting)


def test_a_workdir_of_an_earlier_version_goes_on(config, tmp_path):
    (tmp_path / "seed_0").mkdir()
    known = {key: value for key, value in dotted(config) if not key.startswith(workdir.LATER)}
    manifest.write(tmp_path / workdir.CONFIG, known)
    manifest.write(tmp_path / workdir.INPUTS, {})
    workdir.check_claim(tmp_path, config)
    config.sampler.preference.steps = 2
    with pytest.raises(ValueError, match=r"was made with config\.sampler\.preference\.steps = 0, now it is 2"):
        workdir.check_claim(tmp_path, config)
