"""Tiny random folders in the shape of the published classifiers."""

import math

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from dat_jax.config import defaults
from dat_jax.judges import local, templates

WORDS = "Yes\nNo\nyes\nno\nYES\n1\n2\n3\n4\n5\n Yes no\n maybe\n"
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}


def bpe(texts, size=420):
    """A byte-level tokenizer with a BOS in front, trained on texts."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>", "<bos>", "<eos>"], initial_alphabet=alphabet, show_progress=False),
    )
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", inner.token_to_id("<bos>"))])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="session")
def make_tokenizer():
    """make_tokenizer(texts) -> a tokenizer trained on them."""
    return bpe


@pytest.fixture(scope="session")
def tokenizer():
    """Knows the words that the judges answer with, and the prompts' words."""
    return bpe([WORDS] * 200 + [templates.PLAIN["llama"], templates.STRONGREJECT])


@pytest.fixture(scope="session")
def torch_model():
    """make(kind, vocab_size) -> a random torch model, float32, with plain attention."""
    torch = pytest.importorskip("torch", reason="compares with transformers' torch models")

    def make(kind, vocab_size):
        config = getattr(transformers, f"{kind}Config")(
            **SIZES, vocab_size=vocab_size, num_key_value_heads=2, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2
        )
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(0.1 * noise + ("norm" in name and kind != "Gemma") if tensor.ndim == 1 else noise / math.sqrt(tensor.shape[1]))
        return model

    return make


@pytest.fixture
def config(monkeypatch):
    """The defaults, with small shapes for the judges; the tests' models have the size that each judge wants."""
    found = defaults()
    for group in local.SIZES:
        monkeypatch.setitem(local.SIZES, group, (SIZES["num_hidden_layers"], SIZES["hidden_size"]))
    for group in ("harmbench", "harmbench_val", "strongreject"):
        found.judges[group].batch_size, found.judges[group].prompt_length = 8, 256
    return found
