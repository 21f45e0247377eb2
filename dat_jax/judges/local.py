"""A judge that is a language model of the user's: its folder checked before anything is judged, and its next token read in batches."""

import dataclasses
import functools
import math
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dat_jax import models, sharding
from dat_jax.models import adapters, families, flops, huggingface, lora, tensors, transformer
from dat_jax.models.config import ModelConfig
from dat_jax.models.huggingface import Model
from dat_jax.settings import check

# Layers and width of the published models, by the settings' group: a family alone would let any Llama pass as the classifier.
SIZES = {"harmbench": (40, 5120), "harmbench_val": (32, 4096), "strongreject": (18, 2048)}
PIECES = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json")


@dataclasses.dataclass(frozen=True)
class Local:
    """Settings of a judge that is a model."""

    model: str = ""  # its Hugging Face folder
    base: str = ""  # of a PEFT adapter: the folder of the model below it; "": what its adapter_config.json names
    dtype: str = "float32"  # float32 | bfloat16, of weights and matrix products
    batch_size: int = 16  # answers at a time; on a mesh a multiple of data x fsdp
    prompt_length: int = 1024  # tokens of a prompt's block; where prompts need more, the next multiple of it

    def validate(self, key: str) -> None:
        """Raises ValueError naming the key of a value that no folder could make right."""
        rules = {
            "dtype": (self.dtype in huggingface.DTYPES, " | ".join(huggingface.DTYPES)),
            "batch_size": (self.batch_size >= 1, "an integer >= 1"),
            "prompt_length": (self.prompt_length >= 1, "an integer >= 1"),
        }
        check(self, key, rules)


@dataclasses.dataclass(frozen=True)
class Found:
    """A judge's folder that is what the judge needs."""

    key: str  # the config's group
    folder: pathlib.Path  # weights, or an adapter
    weights: pathlib.Path  # the folder itself, or that of the model below the adapter
    config: ModelConfig
    tokenizer: Any
    ids: tuple[int, ...]  # of the tokens that the judge reads

    @property
    def identity(self) -> dict[str, Any]:
        """What the folder holds: of weights samples, of config and tokenizer everything; wherever it lies."""
        found: dict[str, Any] = {}
        for name, folder in (("model", self.folder), ("base", self.weights)):
            texts = [(folder / piece).read_bytes() for piece in PIECES if (folder / piece).exists()]
            found[name] = f"{huggingface.identity(str(folder))} {zlib.crc32(b'|'.join(texts)):08x}"
        return found if self.weights != self.folder else {"model": found["model"]}


def inspect(settings: Local, group: str, kinds: Sequence[str], needed: Sequence[str]) -> Found:
    """Reads all of a judge's folder but the weights' values. `kinds`: model types that the judge may be; `needed`: tokens that it reads.

    Raises one ValueError that names the key for a folder that is not such a model: another architecture or size, no weights or other ones
    than its config.json implies, no tokenizer, a vocabulary without the tokens.
    """
    key = f"config.judges.{group}"
    if not settings.model:
        raise ValueError(f"{key}.model is ''; allowed: the Hugging Face folder of a {' or '.join(kinds)} model, the judge of this name")
    try:
        folder = huggingface.locate(settings.model)
        adapted = adapters.is_adapter(folder)
        weights = huggingface.locate(settings.base or adapters.base(folder)) if adapted else folder
        fields = huggingface.read_fields(weights)
        if fields.get("model_type") not in kinds:
            raise ValueError(f"{weights} holds a model of type {fields.get('model_type')!r}; allowed: {', '.join(kinds)}")
        config, (layers, width) = huggingface.read_config(weights), SIZES[group]
        if (config.layers, config.width) != (layers, width):
            raise ValueError(
                f"{weights} holds a model of {config.layers} layers of width {config.width}; allowed: {layers} layers of width {width}, "
                "the published judge's"
            )
        with tensors.opened(weights) as found:
            tensors.check(found, config, families.family(config.model_type).names(config))
        if adapted:
            adapters.load_adapter(folder, config)
        tokenizer = huggingface.load_tokenizer(folder, config.model_type) or huggingface.load_tokenizer(weights, config.model_type)
        if tokenizer is None:
            raise ValueError(f"{folder} has no tokenizer; allowed: a folder with tokenizer.json or tokenizer.model")
        ids = tuple(tokenizer.convert_tokens_to_ids(list(needed)))
        lacking = [token for token, id in zip(needed, ids) if id is None or id == tokenizer.unk_token_id or id >= config.vocab_size]
        if lacking:
            raise ValueError(f"the vocabulary of {folder} lacks {', '.join(map(repr, lacking))}, which the judge answers with")
    except ValueError as error:
        raise ValueError(f"{key}.model: {error}") from error
    return Found(key, folder, weights, config, tokenizer, ids)


def load(found: Found, settings: Local, mesh: jax.sharding.Mesh | None) -> "Reader":
    """Loads the weights, an adapter merged into them, onto the mesh."""
    model = models.load(str(found.weights), mesh=mesh, dtype=settings.dtype)
    if found.weights != found.folder:
        model = dataclasses.replace(model, params=lora.merge(model.params, adapters.load_adapter(found.folder, found.config)))
    return Reader(dataclasses.replace(model, tokenizer=found.tokenizer), found.ids, settings, found.key, mesh)


@dataclasses.dataclass(frozen=True)
class Next:
    """What a model says next."""

    token: int  # the likeliest
    logits: np.ndarray  # float32, of the judge's tokens
    log_total: float  # log of the sum of exp(logit) over the whole vocabulary
    flops: float  # operations by formula, of the prompt's own tokens


@dataclasses.dataclass(frozen=True)
class Reader:
    """A loaded judge. Every process of a run must make the same calls, and gets all results."""

    model: Model
    ids: tuple[int, ...]
    settings: Local
    key: str
    mesh: jax.sharding.Mesh | None = None  # batches are spread over its data and fsdp axes

    def next_tokens(self, prompts: Sequence[list[int]]) -> Iterator[Next]:
        """What follows each prompt, in batches of one size; all prompts of a call have the shape of the longest one's block.

        Raises ValueError for a token that the model does not have.
        """
        size = self.settings.batch_size
        if not prompts:
            return
        if (largest := max(max(ids) for ids in prompts)) >= self.model.config.vocab_size:
            vocabulary = f"allowed: tokens below {self.model.config.vocab_size}, the rows of its embedding"
            raise ValueError(f"{self.key}.model: the tokenizer gives token {largest}; {vocabulary}")
        block = self.settings.prompt_length
        tokens_NxT, valid_NxT = _aligned(prompts, math.ceil(max(map(len, prompts)) / block) * block)
        for start in range(0, len(prompts), size):
            rows = np.minimum(np.arange(start, start + size), len(prompts) - 1)  # the last batch is filled up with its last row
            batch = (tokens_NxT[rows], valid_NxT[rows])
            if self.mesh is not None:
                batch = sharding.place_batch(self.mesh, batch, size)
            read = read_next(self.model.params, self.model.config, *batch, self.ids)
            token_B, logits_BxK, total_B = (sharding.on_host(array) for array in read)
            for row in range(min(size, len(prompts) - start)):
                operations = flops.forward(self.model.config, flops.Pass(1, len(prompts[start + row]), 1))
                yield Next(int(token_B[row]), logits_BxK[row], float(total_B[row]), operations)


@functools.partial(jax.jit, static_argnames=("config", "ids"))
def read_next(
    params: Any, config: ModelConfig, tokens_BxT: jax.Array, valid_BxT: jax.Array, ids: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The likeliest token after the last position, the logits of `ids`, and the logarithm of the vocabulary's sum: B, BxK, B."""
    h_BxTxD = transformer.hidden(params, config, transformer.embed(params, config, tokens_BxT), valid_BxT)
    logits_BxV = transformer.head(params, config, h_BxTxD[:, -1])
    chosen_BxK = logits_BxV[:, jnp.asarray(ids)]
    return jnp.argmax(logits_BxV, axis=-1), chosen_BxK, jax.nn.logsumexp(logits_BxV, axis=-1)


def _aligned(prompts: Sequence[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids at the right end of rows of one length, and where they are. Padding is never attended to and has no position."""
    tokens_NxT = np.zeros((len(prompts), length), np.int32)
    valid_NxT = np.zeros((len(prompts), length), bool)
    for row, ids in enumerate(prompts):
        tokens_NxT[row, length - len(ids) :] = ids
        valid_NxT[row, length - len(ids) :] = True
    return tokens_NxT, valid_NxT


def clipped(tokenizer: Any, text: str, tokens: int, side: str, skip_special_tokens: bool) -> str:
    """The text cut to so many tokens, special ones counted; `side`: the end that is cut off, left or right."""
    return tokenizer.decode(encoded(tokenizer, text, tokens, side), skip_special_tokens=skip_special_tokens)


def encoded(tokenizer: Any, text: str, tokens: int, side: str) -> list[int]:
    """The text's token ids with the tokenizer's special tokens, at most so many; `side`: the end that is cut off."""
    tokenizer.truncation_side = side
    return tokenizer(text, truncation=True, max_length=tokens)["input_ids"]
