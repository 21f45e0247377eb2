"""The sampler against the public references' recorded runs, exact enumeration, and itself under padding and batching."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dat_jax.diffusion.denoiser import masked_logits
from dat_jax.diffusion.sampler import InfillSettings, Noise, generate, infill, row_keys

MASK = 510
LLADA_CASES = (
    "one_block", "two_blocks", "parallel_tokens", "uneven_quota", "left_padded", "cfg_1.5", "cfg_0.5_left_padded", "gqa_two_blocks",
    "random_remasking", "gumbel_0.7", "logits_eos_inf", "confidence_eos_eot_off", "confidence_eos_eot_inf",
    "confidence_eos_eot_inf_gumbel_0.5",
)  # fmt: skip
DREAM_CASES = (
    "maskgit_plus.16_steps", "maskgit_plus.5_steps", "maskgit_plus.8_steps_left_padded", "topk_margin.16_steps", "topk_margin.5_steps",
    "topk_margin.8_steps_left_padded", "entropy.16_steps", "entropy.5_steps", "entropy.8_steps_left_padded", "origin.6_steps",
    "entropy.eps_0.1", "inpaint_prompt.entropy",
)  # fmt: skip
DREAM_ALGORITHMS = {"maskgit_plus": "low_confidence", "topk_margin": "margin", "entropy": "entropy", "origin": "ancestral"}


def keys(count, seed=0):
    return row_keys(jax.random.key(seed), jnp.arange(count))


def recording(golden, folder, name):
    """The arrays of a golden file, and the settings that made them."""
    return np.load(golden / folder / f"{name}.npz"), json.loads((golden / folder / f"{name}_cases.json").read_text())


@pytest.mark.parametrize("name", LLADA_CASES)
def test_llada_generate_token_for_token(golden, llada, name):
    data, cases = recording(golden, "llada_tiny", "generate")
    case = cases[name]
    params, config = llada[case["checkpoint"]]
    prompt = jnp.asarray(data[f"{name}.prompt"])
    valid = jnp.asarray(data[f"{name}.attention_mask"], bool) if f"{name}.attention_mask" in data else jnp.ones(prompt.shape, bool)
    late = ()
    if case["confidence_eos_eot_inf"]:
        late = (500, 505) if case["temperature"] == 0 else (505,)  # the reference spares EOS when it draws: two of its tensors alias
    settings = InfillSettings(
        steps=case["steps"], block_length=case["block_length"], temperature=case["temperature"], cfg_scale=case["cfg_scale"],
        remasking=case["remasking"], forbidden=(500,) if case["logits_eos_inf"] else (), late=late,
    )  # fmt: skip
    gumbel = order = None
    if f"{name}.uniforms_gumbel" in data:
        gumbel = jnp.asarray(-np.log(-np.log(data[f"{name}.uniforms_gumbel"])), jnp.float32)
    if f"{name}.uniforms_remask" in data:
        order = jnp.asarray(data[f"{name}.uniforms_remask"])
    done = generate(params, config, prompt, valid, keys(len(prompt)), settings, case["gen_length"], Noise(gumbel, order), history=True)
    np.testing.assert_array_equal(done.history_SxBxT, data[f"{name}.trajectory"][1:])
    np.testing.assert_array_equal(done.tokens_BxT, data[f"{name}.output"])
    assert set(np.asarray(done.forwards_B)) == {case["forward_calls"]}


@pytest.mark.parametrize("name", DREAM_CASES)
def test_dream_generate_token_for_token(golden, dream, name):
    data, cases = recording(golden, "dream_tiny", "generate")
    case, (params, config) = cases[name], dream
    prompt = data[f"{name}.input_ids"]
    tokens = np.concatenate([prompt, np.full((len(prompt), case["max_new_tokens"]), MASK)], axis=1)
    valid = np.ones(tokens.shape, bool)
    if f"{name}.attention_mask" in data:
        valid[:, : prompt.shape[1]] = data[f"{name}.attention_mask"]
    settings = InfillSettings(
        steps=case["steps"], remasking=DREAM_ALGORITHMS[case["alg"]], schedule="times", epsilon=case.get("eps", 1e-3), temperature=0.0,
        tempered_confidence=True,
    )  # fmt: skip
    order = None
    if case["alg"] == "origin":  # recorded for the masked positions of each step, in row-major order
        recorded, canvases = data[f"{name}.uniforms_transfer"], [tokens, *data[f"{name}.history"]]
        order = np.ones((len(recorded), *tokens.shape), np.float32)
        for step, uniforms in enumerate(recorded):
            masked = canvases[step] == MASK
            order[step][masked] = uniforms[: masked.sum()]
        order = jnp.asarray(order)
    done = infill(
        params, config, jnp.asarray(tokens), jnp.asarray(tokens == MASK), jnp.asarray(valid), keys(len(prompt)), settings,
        noise=Noise(None, order), history=True,
    )  # fmt: skip
    np.testing.assert_array_equal(done.history_SxBxT, data[f"{name}.history"])
    np.testing.assert_array_equal(done.tokens_BxT, data[f"{name}.output"])


def test_dream_with_unequal_masks_fills_every_row_and_keeps_given_tokens(golden, dream):
    """The reference spends the batch's mean number of masks and destroys given tokens here."""
    data, _ = recording(golden, "dream_tiny", "generate")
    tokens = data["inpaint_unequal_masks.entropy.input_ids"]
    settings = InfillSettings(steps=9, remasking="entropy", schedule="times", temperature=0.0, tempered_confidence=True)
    masked = tokens == MASK
    assert len(set(masked.sum(axis=1))) > 1
    done = infill(*dream, jnp.asarray(tokens), jnp.asarray(masked), jnp.ones(tokens.shape, bool), keys(len(tokens)), settings).tokens_BxT
    assert not (np.asarray(done) == MASK).any()
    np.testing.assert_array_equal(np.asarray(done)[~masked], tokens[~masked])


@pytest.mark.parametrize(
    "name", ["prompt_masked", "prompt_masked_6_steps", "ragged_right_padded", "prompt_masked_cfg_1.0", "prompt_masked_blocks_of_8"]
)
def test_dllm_infill_token_for_token(golden, llada, name):
    data, cases = recording(golden, "llada_tiny", "inpaint")
    case, (params, config) = cases[name], llada["mha"]
    tokens = jnp.asarray(data[f"{name}.input_ids"])
    valid = jnp.arange(tokens.shape[1])[None] < jnp.asarray(data[f"{name}.lengths"])[:, None]
    settings = InfillSettings(
        steps=case["steps"], block_length=case["block_size"], tile_row=True, schedule="rounded", temperature=0.0,
        remasking="low_confidence", cfg_scale=case.get("cfg_scale", 0.0),
    )  # fmt: skip
    done = infill(params, config, tokens, (tokens == MASK) & valid, valid, keys(len(tokens)), settings)
    np.testing.assert_array_equal(done.tokens_BxT, data[f"{name}.output"])


@pytest.mark.parametrize("template", ["prompt given response", "response given prompt", "both", "holes"])
@pytest.mark.parametrize("remasking", ["random", "low_confidence", "margin", "entropy", "ancestral"])
def test_any_set_of_positions_is_filled_and_the_rest_kept(tiny_world, template, remasking):
    masked = {
        "prompt given response": [1, 1, 1, 0, 0, 0],
        "response given prompt": [0, 0, 0, 1, 1, 1],
        "both": [1] * 6,
        "holes": [1, 0, 0, 1, 0, 1],
    }[template]
    masked = np.array([masked, [0, 1, 0, 0, 0, 0]], bool)
    tokens = np.array([[0, 1, 2, 3, 0, 1]] * 2)
    settings = InfillSettings(steps=4, remasking=remasking, forbidden=(2, 4), condition_remasking=0.5)
    done = infill(
        tiny_world.params, tiny_world.config, jnp.asarray(tokens), jnp.asarray(masked), jnp.ones(masked.shape, bool), keys(2), settings
    )
    filled = np.asarray(done.tokens_BxT)
    np.testing.assert_array_equal(filled[~masked], tokens[~masked])
    assert np.isin(filled[masked], [0, 1, 3]).all()
    assert (np.asarray(done.log_prob_BxT)[masked] < 0).all() and (np.asarray(done.log_prob_BxT)[~masked] == 0).all()


def sample_counts(world, settings, rows=6000, seed=0):
    tokens = jnp.tile(jnp.asarray(world.tokens_T), (rows, 1))
    masked = jnp.tile(jnp.asarray(world.masked_T), (rows, 1))
    done = infill(world.params, world.config, tokens, masked, jnp.ones(tokens.shape, bool), keys(rows, seed), settings, 3)
    filled = np.asarray(done.tokens_BxT)[:, world.masked_T]
    return np.bincount(filled @ [16, 4, 1], minlength=64), done


def test_random_order_at_temperature_one_draws_from_the_any_order_law(tiny_world):
    """Chi-square test against exact enumeration of all 64 fillings and 6 orders."""
    law = tiny_world.law()
    assert law.sum() == pytest.approx(1, abs=1e-5)
    counts, _ = sample_counts(tiny_world, InfillSettings(steps=3, forbidden=(4,)))
    common = law * counts.sum() >= 5  # the chi-square approximation wants five expected counts; the rest is one cell
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(law[common], law[~common].sum()) / law.sum() * counts.sum()
    assert len(observed) > 8
    assert stats.chisquare(observed, expected).pvalue > 0.01
    # All three at once ignores what the positions have to do with each other, and the test sees it.
    at_once, _ = sample_counts(tiny_world, InfillSettings(steps=1, forbidden=(4,)))
    observed = np.append(at_once[common], at_once[~common].sum())
    assert stats.chisquare(observed, expected).pvalue < 1e-6


@pytest.mark.parametrize("remasking", ["random", "low_confidence"])
def test_padding_and_batch_do_not_change_a_row(llada, remasking):
    params, config = llada["mha"]
    rng = np.random.default_rng(0)
    row = rng.integers(0, 490, 14)
    masked = np.isin(np.arange(14), [1, 2, 3, 4, 8])
    settings = InfillSettings(steps=3, remasking=remasking, temperature=0.8, condition_remasking=0.4, forbidden=(510,))

    def run(left, right, others):
        length = left + 14 + right
        tokens = rng.integers(0, 490, (1 + others, length))
        valid, mask = np.ones((1 + others, length), bool), rng.random((1 + others, length)) < 0.3
        tokens[0], valid[0], mask[0] = 500, False, False
        tokens[0, left : left + 14], valid[0, left : left + 14], mask[0, left : left + 14] = row, True, masked
        sample_ids = jnp.arange(7, 8 + others)
        done = infill(
            params, config, jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(valid), row_keys(jax.random.key(1), sample_ids), settings
        )
        return np.asarray(done.tokens_BxT)[0, left : left + 14]

    alone = run(0, 0, 0)
    assert (alone[masked] != row[masked]).any()
    for left, right, others in ((5, 0, 2), (0, 4, 1), (3, 3, 3)):
        np.testing.assert_array_equal(run(left, right, others), alone)


def test_log_prob_is_that_of_each_token_when_it_was_committed(tiny_world):
    world, rows = tiny_world, 16
    tokens, masked = (jnp.tile(jnp.asarray(x), (rows, 1)) for x in (world.tokens_T, world.masked_T))
    valid = jnp.ones(tokens.shape, bool)
    done = infill(world.params, world.config, tokens, masked, valid, keys(rows), InfillSettings(steps=3, forbidden=(4,)), history=True)
    canvases = [np.where(masked, 4, tokens), *np.asarray(done.history_SxBxT)]
    expected = np.zeros(tokens.shape)
    for before, after in itertools.pairwise(canvases):
        log_p = np.asarray(jax.nn.log_softmax(masked_logits(world.params, world.config, jnp.asarray(before), valid)))
        changed = before != after
        assert (changed.sum(axis=1) == 1).all()
        expected[changed] = np.take_along_axis(log_p, after[..., None], axis=-1)[..., 0][changed]
    np.testing.assert_allclose(done.log_prob_BxT, expected, atol=1e-5)


def test_settings_without_meaning_are_named():
    bad = {"remasking": "entropi", "temperature": -1, "top_p": 2.0, "steps": 0, "schedule": "cosine", "condition_remasking": 1.5}
    for key, value in bad.items():
        with pytest.raises(ValueError, match=rf"sampler\.{key}"):
            InfillSettings(**{key: value})


def test_a_causal_model_is_refused(tiny_world):
    import dataclasses

    config = dataclasses.replace(tiny_world.config, causal=True)
    with pytest.raises(ValueError, match="masked-diffusion"):
        infill(tiny_world.params, config, jnp.zeros((1, 2), int), jnp.ones((1, 2), bool), jnp.ones((1, 2), bool), keys(1), InfillSettings())
