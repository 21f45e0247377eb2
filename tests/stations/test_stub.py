"""An attack that makes an announcement likely ("Sure, here is ...") is judged by what follows it."""

import json

import pytest

from dat_jax.attacks import ATTACKS
from dat_jax.attacks.attack import Attempt
from dat_jax.config import defaults
from dat_jax.data import answers as answers_lib
from dat_jax.data.behaviors import Behavior
from dat_jax.data.openings import announced, announces
from dat_jax.stations import evaluate, judge
from dat_jax.stations.inputs import Inputs

STUB = "Sure, here is a plan to paint the door"
BEHAVIORS = [Behavior("1", "paint the door", (STUB,), ("no",)), Behavior("2", "wash", ("sure , take the brush and some oil .",), ("no",))]


def test_all_public_targets_announce_an_answer(shared):
    for name, count in (("adv_training_targets.json", 100), ("harmbench_targets_text.json", 400)):
        targets = json.loads((shared / "data" / "harmbench" / name).read_text()).values()
        targets = [target if isinstance(target, str) else target[0] for target in targets]
        assert len(targets) == count and all(map(announces, targets))


def test_what_is_an_announcement_and_where_it_ends():
    assert announces("Here's a list") and announces("Of course! Here are ...") and announces("SURE, HERE IS ONE")
    assert not announces(BEHAVIORS[1].targets[0]) and not announces("You take oak") and not announces("Sure, " + "here is a word " * 20)
    assert announced(f"{STUB}:\n1. Sand it.", STUB) == len(STUB)
    assert announced("  Sure,  here is\na plan to paint the door. Sand it.", STUB) == len(STUB) + 3
    assert announced("Sure, here is a plan to wash the door", STUB) == 0 and announced("No. " + STUB, STUB) == 0
    assert announced("take the brush", "take the brush") == 0  # the answer itself


@pytest.fixture
def lines(tmp_path):
    """lines(attack, *responses, **its settings) -> what is kept of them, the first behavior's and then the second's."""
    config = defaults()

    def line(attack, *responses, prefill="", **settings):
        config.attacks[ATTACKS[attack].key].update(settings)
        inputs = Inputs(config, tmp_path, 0, [], BEHAVIORS, [], [], {})
        job = evaluate._attack_job(inputs, "dat", ATTACKS[attack], "", (), None)
        return [job.line(Attempt(b.id, b.text, b.targets[0], prefill=prefill), text) for b, text in zip(BEHAVIORS, responses)]

    return line


@pytest.mark.parametrize("attack", ["embedding", "embedding_suffix", "latent", "gcg"])
def test_the_judge_is_given_what_follows(lines, attack):
    """Sure, here is ..., and then the end: nothing was said. The answers stay whole."""
    went_on, whole = lines(attack, f"{STUB}: I can't help with that.", BEHAVIORS[1].targets[0])
    (stopped,) = lines(attack, STUB)
    (begun,) = lines(attack, f"{STUB}: sand it.", prefill="Sure, here")
    known = {behavior.id: behavior for behavior in BEHAVIORS}
    said = [judge.exchange(line, known) for line in (went_on, stopped, whole, begun)]
    assert [one.response for one in said] == [": I can't help with that.", "", BEHAVIORS[1].targets[0], ": sand it."]
    assert [one.prefill for one in said] == [""] * 4
    assert went_on["response"].startswith(STUB) and "stub" not in whole
    as_before = {key: value for key, value in went_on.items() if key != "stub"}
    assert answers_lib.answer_checksum(went_on) != answers_lib.answer_checksum(as_before)  # a verdict on all of it is not one on this
    if attack != "gcg":
        (free,) = lines(attack, f"{STUB}: sand it.", target_eot=False)
        assert judge.exchange(free, known).response == f"{STUB}: sand it."


@pytest.mark.parametrize("attack", ["direct", "prefill", "embedding+text", "infilling"])
def test_other_attacks_are_judged_whole(lines, attack):
    (line,) = lines(attack, f"{STUB}: sand it.", prefill="Sure," if attack == "prefill" else "")
    assert "stub" not in line
    assert judge.exchange(line, {}).response == f"{STUB}: sand it." and judge.exchange(line, {}).prefill == line["prefill"]


def test_a_file_that_is_gone_on_with_is_judged_in_one_way(tmp_path):
    inputs = Inputs(defaults(), tmp_path, 0, [], BEHAVIORS, [], [], {})
    job = evaluate._attack_job(inputs, "dat", ATTACKS["embedding"], "", (), None)
    before = {"behavior": "1", "prompt": "", "response": f"{STUB}: sand it."}
    assert job.marked(before) == before | {"stub": len(STUB)} == job.marked(job.marked(before))
    assert job.marked(before | {"behavior": "gone"}) == before | {"behavior": "gone"}  # no longer asked for
