"""A pool of prompts: complete records, resumed exactly, selected against the given judge, and its cost."""

import dataclasses
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from dat_jax.data.behaviors import Behavior
from dat_jax.data.prompts import PromptRecord
from dat_jax.diffusion import pool as pools
from dat_jax.diffusion.denoiser import forward_flops
from dat_jax.diffusion.pool import Pool, build_pool, forbidden_tokens
from dat_jax.models import attention, splash
from dat_jax.settings import read

BEHAVIORS = [
    Behavior("open/safe", "how do i open the safe", ("turn it", "pull it now"), ("no",)),
    Behavior("close door", "how do i close the door", ("pull door",), ("no",)),
    Behavior("three", "why", ("yes",), ("no",)),
]


def settings(**changes):
    small = dict(
        samples=6, keep=2, prompt_tokens=(2, 4), response_tokens=4, steps=4, batch_size=4, likelihood_samples=2, separator="answer:"
    )
    return ConfigDict({**dataclasses.asdict(Pool()), "model": "small", **small, **changes})


def compliance(behaviors, prompts, responses):
    assert len(behaviors) == len(prompts) == len(responses)
    assert all(response in behavior.targets for behavior, response in zip(behaviors, responses))
    return [len(prompt) / 100 for prompt in prompts]


def build(folder, sampler, config=None, behaviors=BEHAVIORS, judge=compliance, **options):
    return build_pool(config or settings(), behaviors, sampler, judge, str(folder), report=lambda line: None, **options)


def test_records_are_complete_and_nothing_forbidden_is_drawn(tmp_path, small_sampler):
    records = build(tmp_path, small_sampler, settings(samples=24, keep=3))
    assert len(records) == 72 and {record.behavior_id for record in records} == {behavior.id for behavior in BEHAVIORS}
    words = set(small_sampler.tokenizer.get_vocab()) - set(small_sampler.tokenizer.all_special_tokens)
    for record in records:
        assert set(record.prompt.split()) <= words and len(record.prompt.split()) == record.tokens
        assert 2 <= record.tokens <= 4 and record.log_likelihood < 0 and record.sampler == "small"
        assert record.compliance == pytest.approx(len(record.prompt) / 100)
        assert record.settings["temperature"] == 1.0 and "sample" in record.settings
    assert {record.tokens for record in records} == {2, 3, 4}
    for behavior in BEHAVIORS:
        mine = [record for record in records if record.behavior_id == behavior.id]
        assert {record.response for record in mine} == set(behavior.targets)
        assert sum(record.selected for record in mine) == 3


def test_an_interrupted_pool_resumes_to_the_same_bytes(tmp_path, small_sampler, monkeypatch):
    whole = build(tmp_path / "whole", small_sampler)
    drawn = []
    real = pools.draw

    def interrupted(*arguments):
        if len(drawn) == 1:
            raise KeyboardInterrupt
        drawn.append(1)
        return real(*arguments)

    monkeypatch.setattr(pools, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cut", small_sampler)
    monkeypatch.setattr(pools, "draw", real)
    assert build(tmp_path / "cut", small_sampler) == whole
    assert (tmp_path / "cut" / "prompts.jsonl").read_bytes() == (tmp_path / "whole" / "prompts.jsonl").read_bytes()
    monkeypatch.setattr(pools, "draw", None)  # a finished pool is read, not drawn
    assert build(tmp_path / "whole", small_sampler) == whole


def test_samples_depend_on_seed_round_and_behavior_alone(tmp_path, small_sampler):
    whole = build(tmp_path / "whole", small_sampler)
    last = build(tmp_path / "last", small_sampler, settings(batch_size=6), BEHAVIORS[1:2])
    assert [r.prompt for r in last] == [r.prompt for r in whole if r.behavior_id == "close door"]
    np.testing.assert_allclose(
        [r.log_likelihood for r in last], [r.log_likelihood for r in whole if r.behavior_id == "close door"], rtol=1e-4
    )
    other = build(tmp_path / "round", small_sampler, round=1)
    assert [r.prompt for r in other] != [r.prompt for r in whole]


def test_cost_is_that_of_the_passes_made(tmp_path, small_sampler):
    build(tmp_path, small_sampler, settings(prompt_tokens=(4, 4)))
    cost = json.loads((tmp_path / "cost.json").read_text())
    batches, length = 3 * 2, (1 + 4 + 2) + 4
    assert cost["forward_passes"] == batches * (4 + 2)
    config = small_sampler.config
    assert cost["flops"] == pytest.approx(batches * 4 * (4 * forward_flops(config, length, 1) + 2 * forward_flops(config, length, 4)))
    assert cost["samples"] == 18 and cost["seconds"] > 0 and cost["tokens"] == 18 * 4


def test_fast_acceptance_takes_fewer_passes_and_is_in_the_records(tmp_path, small_sampler):
    fast = settings(acceptance="count", bound=2.0, cache_refresh=2, prompt_tokens=(4, 4))
    records = build(tmp_path, small_sampler, fast)
    assert records[0].settings["acceptance"] == "count" and all(len(record.prompt.split()) == 4 for record in records)
    # 18 rows of four tokens in four slots are drawn in five rounds of two passes, and measured in five batches of two draws.
    assert json.loads((tmp_path / "cost.json").read_text())["forward_passes"] == 5 * (2 + 2)
    with pytest.raises(ValueError, match="cfg_scale"):
        read(Pool, settings(acceptance="count", cfg_scale=1.0)).validate()


@pytest.mark.parametrize(
    "changes", [{}, {"acceptance": "count", "bound": 1.0}, {"acceptance": "entropy", "bound": 2.0, "cache_refresh": 2}]
)
def test_prompts_are_the_same_however_many_rows_a_pass_has(tmp_path, small_sampler, changes):
    few, all_at_once = (
        build(tmp_path / str(size), small_sampler, settings(samples=7, prompt_tokens=(1, 6), steps=6, batch_size=size, **changes))
        for size in (2, 7)
    )
    assert [(r.prompt, r.response, r.tokens, r.settings["sample"]) for r in few] == [
        (r.prompt, r.response, r.tokens, r.settings["sample"]) for r in all_at_once
    ]
    np.testing.assert_allclose([r.log_likelihood for r in few], [r.log_likelihood for r in all_at_once], rtol=1e-4)


def test_passes_follow_the_lengths_of_the_prompts(tmp_path, small_sampler):
    """Batches hold rows of like length, and with refilled slots a pass is lost at the end alone."""
    for name, changes in (("quota", {}), ("count", {"acceptance": "count", "bound": 1.0})):
        varied = settings(samples=9, prompt_tokens=(1, 6), steps=6, batch_size=3, likelihood_samples=0, selection="random", **changes)
        records = build(tmp_path / name, small_sampler, varied, BEHAVIORS[:1])
        passes = json.loads((tmp_path / name / "cost.json").read_text())["forward_passes"]
        lengths = [record.tokens for record in records]
        batches = sum(sorted(lengths, reverse=True)[::3])
        assert batches < sum(max(lengths[start : start + 3]) for start in range(0, 9, 3))  # what it were in the order of the samples
        assert passes == batches if name == "quota" else sum(lengths) / 3 <= passes <= batches


def test_behaviors_are_drawn_together_where_slots_are_refilled(tmp_path, small_sampler):
    """Seven behaviors of two prompts in batches of two: four and three at once, in fewer passes; another version's group is told."""
    seven = [Behavior(str(n), "why", ("yes", "pull it"), ("no",)) for n in range(7)]
    how = settings(samples=2, batch_size=2, prompt_tokens=(1, 6), likelihood_samples=0, selection="random", acceptance="count", bound=1.0)
    records = build(tmp_path / "all", small_sampler, how, seven)
    assert [len(group) for group in pools.drawn_together(read(Pool, how), seven)] == [4, 3]
    assert len(pools.drawn_together(read(Pool, settings(samples=2, batch_size=2)), seven)) == 7
    assert len(list((tmp_path / "all" / "samples").glob("*.jsonl"))) == 2
    passes = json.loads((tmp_path / "all" / "cost.json").read_text())["forward_passes"]
    lengths = [record.tokens for record in records]
    assert sum(lengths) / 2 <= passes <= sum(map(max, zip(lengths[::2], lengths[1::2])))  # the most: of seven behaviors one by one
    one = build(tmp_path / "one", small_sampler, how, seven[:1])
    assert [r.prompt for r in one] == [r.prompt for r in records[:2]]
    for kind in ("jsonl", "cost.json"):
        of_one, of_all = (next((tmp_path / name / "samples").glob(f"0-*.{kind}")) for name in ("one", "all"))
        of_all.write_bytes(of_one.read_bytes())
    (tmp_path / "all" / "prompts.jsonl").unlink()
    (tmp_path / "all" / "cost.json").unlink()
    with pytest.raises(ValueError, match=r"holds 2 prompts of an earlier version's group of behaviors, and 4 x 2 are drawn together now"):
        build(tmp_path / "all", small_sampler, how, seven)


def test_lengths_may_follow_the_requests(tmp_path, small_sampler):
    """The requests have 6, 6 and 1 words: with lengths from 2 on, all prompts have 6; and another request would give another pool."""
    follow = settings(prompt_lengths="behaviors", prompt_tokens=(2, 8), steps=8, samples=24, likelihood_samples=0, selection="random")
    assert {r.tokens for r in build(tmp_path / "six", small_sampler, follow)} == {6}
    follow.prompt_tokens = (1, 8)
    found = [r.tokens for r in build(tmp_path / "all", small_sampler, follow)]
    assert set(found) == {1, 6} and 0.5 < np.mean(np.array(found) == 6) < 0.85  # two thirds of 72
    asked = [dataclasses.replace(BEHAVIORS[0], text="why"), *BEHAVIORS[1:]]
    with pytest.raises(ValueError, match="lengths"):
        build(tmp_path / "all", small_sampler, follow, asked)
    follow.prompt_tokens = (2, 4)
    with pytest.raises(ValueError, match=r"config\.sampler\.prompt_tokens is \(2, 4\), but the requests have 1 to 6 tokens"):
        build(tmp_path / "none", small_sampler, follow)
    assert not (tmp_path / "none").exists()


def test_another_configuration_does_not_silently_reuse_a_pool(tmp_path, small_sampler):
    build(tmp_path, small_sampler)
    with pytest.raises(ValueError, match="temperature"):
        build(tmp_path, small_sampler, settings(temperature=0.5))
    with pytest.raises(ValueError, match="behaviors"):
        build(tmp_path, small_sampler, behaviors=BEHAVIORS[:2])


def test_without_a_judge_the_policies_that_need_none_work(tmp_path, small_sampler):
    records = build(tmp_path, small_sampler, settings(selection="likelihood", keep=1), judge=None)
    best = [max((r for r in records if r.behavior_id == b.id), key=lambda r: r.log_likelihood / r.tokens) for b in BEHAVIORS]
    assert [r.prompt for r in records if r.selected] == [r.prompt for r in best]


def test_compliance_is_asked_once_for_a_prompt_and_consistency_once_for_each_response_to_it():
    first, second = BEHAVIORS[0].targets
    drawn = [("a", first), ("a", second), ("b", first), ("a", first)]
    records = [PromptRecord(BEHAVIORS[0].id, prompt, response, 0, "s", {}, None, 1, None, False) for prompt, response in drawn]
    calls = []

    def scores(behaviors, prompts, responses):
        assert list(behaviors) == [BEHAVIORS[0]] * len(prompts)
        calls.append(list(zip(prompts, responses)))
        return range(len(prompts))

    found = pools.measure(records, BEHAVIORS, scores, scores)
    assert [prompt for prompt, _ in calls[0]] == ["a", "b"] and calls[1] == drawn[:3]
    assert [(record.compliance, record.consistency) for record in found] == [(0.0, 0.0), (0.0, 1.0), (1.0, 2.0), (0.0, 0.0)]
    assert pools.measure(records, BEHAVIORS, None, None) == records


def test_a_prompt_that_is_not_consistent_is_not_selected(tmp_path, small_sampler):
    """Scores are the prompts' words: those of two words lie below the bound, however likely they are; each is asked for once."""
    asked = []

    def words(behaviors, prompts, responses):
        asked.extend(zip([behavior.id for behavior in behaviors], prompts, responses))
        return [len(prompt.split()) - 5.0 for prompt in prompts]

    options = dict(consistency=2.5, samples=24, keep=20, selection="stratified")
    records = build(tmp_path / "some", small_sampler, settings(**options), judge=None, consistency=words)
    assert len(asked) == len(set(asked)) == len({(r.behavior_id, r.prompt, r.response) for r in records})
    assert all(r.consistency == len(r.prompt.split()) - 5.0 for r in records)
    assert {r.tokens for r in records} == {2, 3, 4} and {r.tokens for r in records if r.selected} == {3, 4}
    for behavior in BEHAVIORS:
        able = {r.prompt for r in records if r.behavior_id == behavior.id and r.tokens > 2}
        assert sum(r.selected for r in records if r.behavior_id == behavior.id) == min(20, len(able))
    assert build(tmp_path / "some", small_sampler, settings(**options), judge=None, consistency=words) == records
    with pytest.raises(ValueError, match=r"config.sampler.consistency is 0.5, and none of 72 sampled prompts is consistent"):
        build(tmp_path / "none", small_sampler, settings(**options | {"consistency": 0.5}), judge=None, consistency=words)


def test_forbidden_are_specials_and_ids_without_a_string(small_sampler):
    assert forbidden_tokens(small_sampler.tokenizer, small_sampler.config.vocab_size, 4) == (0, 1, 2, 3, 4, 23, 24)


@pytest.mark.parametrize(
    "bad",
    [
        {"keep": 100},
        {"prompt_tokens": (5, 2)},
        {"samples": 0},
        {"consistency": -0.1},
        {"given": -1},
        {"selection": "best"},
        {"temperature": -1.0},
        {"likelihood_scheme": "x"},
        {"prompt_lengths": "x"},
    ],
)
def test_bad_settings_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        read(Pool, settings(**bad)).validate()


def test_rows_for_the_attention_kernel_are_padded_and_the_samples_stay(tmp_path, small_sampler, monkeypatch):
    lengths = []

    def kernel(q_BxTxHxK, k, v, valid_BxT, config, local):  # the real one needs a TPU; test_splash proves it equal to this
        lengths.append(q_BxTxHxK.shape[1])
        return attention.attend_xla(q_BxTxHxK, k, v, valid_BxT, config, local)

    monkeypatch.setattr(splash, "attend", kernel)
    padded = dataclasses.replace(small_sampler, config=dataclasses.replace(small_sampler.config, attention="splash"))
    plain = build(tmp_path / "plain", small_sampler)
    assert [r.prompt for r in build(tmp_path / "padded", padded)] == [r.prompt for r in plain]
    assert lengths and set(lengths) == {splash.BLOCK}


def resumed(folder, sampler, damage, gone=("prompts.jsonl", "cost.json")):
    """A pool whose samples alone are left, one file of which is damaged before it is asked for again."""
    build(folder, sampler)
    for name in gone:
        (folder / name).unlink()
    damage(next((folder / "samples").glob("*.jsonl")))
    return build(folder, sampler)


def test_samples_that_were_damaged_are_named_and_those_that_are_gone_drawn_again(tmp_path, small_sampler, caplog):
    whole = build(tmp_path / "whole", small_sampler)
    damages = {
        "cut": lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1])),
        "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "edited": lambda path: path.write_text(path.read_text().replace('"tokens": ', '"tokens": 1', 1)),
    }
    for name, damage in damages.items():
        with pytest.raises(ValueError, match=r"samples/.*\.jsonl was cut, damaged or edited: it has .* delete both to draw these prompts"):
            resumed(tmp_path / name, small_sampler, damage)
    with pytest.raises(ValueError, match=r"cost\.json was damaged or edited"):
        resumed(
            tmp_path / "cost",
            small_sampler,
            lambda path: (c := path.with_suffix(".cost.json")).write_text(c.read_text().replace("1", "2", 1)),
        )
    assert resumed(tmp_path / "gone", small_sampler, lambda path: path.unlink()) == whole and "made again" in caplog.text
    with pytest.raises(ValueError, match=r"provenance\.json is gone: nobody knows what the prompts beside it were made with"):
        resumed(tmp_path / "unknown", small_sampler, lambda path: None, ("provenance.json",))


def test_what_stands_beside_a_pool_is_there_before_it_is_complete(tmp_path, small_sampler, monkeypatch):
    def killed(path, content, *rest, write=pools.manifest.write):
        if str(path).endswith("census.json"):
            raise KeyboardInterrupt
        write(path, content, *rest)

    beside = {"beside": lambda records: {"census.json": {"prompts": len(records)}}}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pools.manifest, "write", killed)
        build(tmp_path, small_sampler, **beside)
    assert not pools.complete(tmp_path)
    build(tmp_path, small_sampler, **beside)
    assert pools.manifest.read(tmp_path / "census.json") == {"prompts": 18}
    (tmp_path / "census.json").unlink()
    with pytest.raises(ValueError, match=r"census\.json is gone: cost\.json beside it says"):
        build(tmp_path, small_sampler, **beside)
