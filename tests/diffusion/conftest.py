"""Golden checkpoints and small random denoisers for the tests of this folder."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dat_jax.diffusion.denoiser import masked_logits
from dat_jax.models import weights
from dat_jax.models.config import ModelConfig


@pytest.fixture(scope="session")
def llada(golden):
    """name -> (params, config) of the tiny LLaDA checkpoints."""
    from dat_jax.models.huggingface import load

    models = {name: load(str(golden / "llada_tiny" / name)) for name in ("mha", "gqa")}
    return {name: (model.params, dataclasses.replace(model.config, remat=False)) for name, model in models.items()}


@pytest.fixture(scope="session")
def dream(golden):
    """(params, config) of the tiny Dream checkpoint."""
    from dat_jax.models.huggingface import load

    model = load(str(golden / "dream_tiny" / "checkpoint"))
    return model.params, dataclasses.replace(model.config, remat=False)


@dataclasses.dataclass
class TinyWorld:
    """A denoiser over four words (and the mask, id 4) whose any-order law of three positions can be enumerated."""

    params: dict
    config: ModelConfig
    tokens_T: np.ndarray  # [w . . w .]: two given words, three positions to fill
    masked_T: np.ndarray

    def law(self) -> np.ndarray:
        """Exact probability of each of the 64 fillings when one token at a time is drawn in uniformly random order."""
        masked = np.flatnonzero(self.masked_T)
        states = list(itertools.product(range(5), repeat=3))
        rows = np.tile(self.tokens_T, (len(states), 1))
        rows[:, masked] = states
        logits = np.array(masked_logits(self.params, self.config, jnp.asarray(rows), jnp.ones(rows.shape, bool)), np.float64)[:, masked, :4]
        p = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
        law = np.zeros(64)
        for number, filling in enumerate(itertools.product(range(4), repeat=3)):
            for order in itertools.permutations(range(3)):
                state, probability = [4, 4, 4], 1.0
                for position in order:
                    probability *= p[states.index(tuple(state)), position, filling[position]]
                    state[position] = filling[position]
                law[number] += probability / 6
        return law


@pytest.fixture(scope="session")
def tiny_world():
    """A random denoiser with strong dependence between positions."""
    config = ModelConfig(
        vocab_size=5, width=16, layers=2, heads=2, mlp_width=32, causal=False, mask_token=4, remat=False, model_type="llada"
    )
    params = weights.initialize(jax.random.key(3), config, jnp.float32)
    params = jax.tree.map(lambda x: x * 2.5, params) | {"final_norm": params["final_norm"]}
    return TinyWorld(params, config, np.array([1, 4, 4, 2, 4]), np.array([False, True, True, False, True]))


WORDS = ("how", "why", "do", "did", "i", "you", "open", "close", "safe", "door", "answer", ":", "yes", "no", "turn", "pull", "it", "now")


@pytest.fixture(scope="session")
def small_tokenizer():
    """A word-level tokenizer with LLaDA's special tokens, wrapped as a user's is."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|pad|>", "<|unknown|>", "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate([*specials, *WORDS])}, unk_token="<|unknown|>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", unk_token="<|unknown|>", bos_token="<|startoftext|>", eos_token="<|endoftext|>",
        mask_token="<|mdm_mask|>", clean_up_tokenization_spaces=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_sampler(small_tokenizer):
    """An untrained masked-diffusion LM with that tokenizer; two of its ids have no string."""
    from dat_jax.models.huggingface import Model

    config = ModelConfig(
        vocab_size=5 + len(WORDS) + 2, width=32, layers=2, heads=2, mlp_width=64, causal=False, mask_token=4, remat=False,
        model_type="llada",
    )  # fmt: skip
    return Model(weights.initialize(jax.random.key(0), config, jnp.float32), config, small_tokenizer, "small")
