"""Matched operations: as many steps as a budget pays for, by each method's formula; a budget below one step names its key."""

import pytest

from dat_jax.config import defaults, validate
from dat_jax.methods import METHODS
from dat_jax.methods.method import Method
from dat_jax.models.config import ModelConfig

MODEL = ModelConfig(vocab_size=37, width=16, layers=3, heads=2)
TRAINED = [name for name, method in METHODS.items() if method.trains]


@pytest.fixture
def config():
    c = defaults()
    c.target.model = "m"
    c.data.update({"prompt_length": 6, "response_length": 5, "adversarial_rows": 2, "utility_rows": 3})
    c.training.lora.rank, c.methods.lat.perturbation.sites = 0, (0, 2)
    return c


def test_every_method_takes_the_steps_that_the_budget_pays_for(config):
    assert {METHODS[name].steps(MODEL, config) for name in METHODS} == {760}
    config.training.flops = 2e10
    found = {name: METHODS[name].steps(MODEL, config) for name in TRAINED}
    for name, steps in found.items():
        each = sum(METHODS[name].step_flops(MODEL, config).values())
        assert each > 0 and steps * each <= 2e10 < (steps + 1) * each, name
    assert found["refusal_sft"] > found["cat"] == found["dat"] > found["lat"] > found["r2d2"]
    assert METHODS["undefended"].steps(MODEL, config) == 760  # nothing is trained


def test_refusal_tuning_by_hand(config):
    """Twice the products of forward and input gradient, once those of the weights', attention thrice; one gradient of the head more."""
    tokens, linear = 5 * 11, 3 * (4 * 16 * 16 + 3 * 16 * MODEL.mlp_width)
    head, scores = 2 * 5 * 5 * 16 * 37, 4 * 5 * 11**2 * 3 * 16
    by_hand = 3 * 2 * tokens * linear + 3 * head + 3 * scores
    assert sum(METHODS["refusal_sft"].step_flops(MODEL, config).values()) == by_hand
    config.training.flops = 7.5 * by_hand
    assert METHODS["refusal_sft"].steps(MODEL, config) == 7


def test_a_budget_that_cannot_be(config):
    each = sum(METHODS["cat"].step_flops(MODEL, config).values())
    for budget in (0.999 * each, each * 2.0**32):
        config.training.flops = budget
        with pytest.raises(ValueError, match=r"config\.training\.flops is .*; allowed: 0, or .* \(one step of cat\) up to "):
            METHODS["cat"].steps(MODEL, config)
    uncounted = Method(name="uncounted", title="", prompts="requests", group="cat", loss=lambda: None)
    with pytest.raises(ValueError, match=r"config\.training\.flops is .*, and uncounted does not count its operations; allowed: 0"):
        uncounted.steps(MODEL, config)
    config.training.flops = -1.0
    with pytest.raises(ValueError, match=r"config\.training\.flops is -1.0; allowed: a number >= 0"):
        validate(config, data=False)
