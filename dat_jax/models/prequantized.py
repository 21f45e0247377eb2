"""Checkpoints whose matrices are quantized already: bitsandbytes's 8 and 4 bits become float32 rows as they are read, others are named.

Both formats are told from the tensors' names, as bitsandbytes 0.50 writes them (`Linear8bitLt`, `QuantState.as_dict(packed=True)`).
`X.weight` in int8 has `X.SCB`, the greatest absolute value of each row. In 4 bits it is a column of bytes, two numbers in each, the first
one in the high bits; beside it `X.weight.absmax` of each block of consecutive numbers, the 16 values of `X.weight.quant_map`, and the
rest as JSON in `X.weight.quant_state.bitsandbytes__nf4`. With double quantization absmax is bytes with a map and blocks of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ALLOWED = (
    "the model that is not quantized (target.dtype and sampler.dtype quantize it while it is read), or bitsandbytes's int8, nf4 or fp4"
)
STATE = ".quant_state.bitsandbytes__"
# Endings of tensors by which a format that is not read is known; GPTQ's and AWQ's older folders say nothing of it in config.json.
KNOWN = {
    ".g_idx": "GPTQ",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "fp8",
    ".weight_scale": "fp8 or compressed-tensors",
    ".codebooks": "AQLM",
    ".W_q": "HQQ",
}


def check_config(fields: dict[str, Any], place: str) -> None:
    """Raise ValueError where a config.json's quantization_config is of a format that is not read; it names the format."""
    if not (found := fields.get("quantization_config")):
        return
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method is None and isinstance(found, dict) and (found.get("load_in_8bit") or found.get("load_in_4bit")):
        method = "bitsandbytes"  # older folders
    if method != "bitsandbytes":
        said = f"of quant_method {method!r:.80}" if method is not None else "without a quant_method"
        raise ValueError(f"{place} has a quantization_config {said}; allowed: {ALLOWED}")


@dataclasses.dataclass(frozen=True)
class EightBits:
    """Stands for the slice of a matrix (out, in): int8 codes, and each row's greatest absolute value."""

    codes: Any
    greatest: Array

    def get_shape(self) -> list[int]:
        """Return the matrix's shape."""
        return self.codes.get_shape()  # type: ignore[no-any-return]

    def get_dtype(self) -> str:
        """Return what is read: float32."""
        return "F32"

    def __getitem__(self, index: slice | tuple[slice, slice]) -> Array:
        """Return rows and columns in float32."""
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        return self.codes[rows, columns].astype(np.float32) * (self.greatest[rows, None] / np.float32(127))  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True)
class FourBits:
    """Stands for the slice of a matrix (out, in): a column of bytes, the blocks' scales, and the values that codes stand for."""

    codes: Any
    scales: Any
    values: Array  # 16
    shape: tuple[int, int]
    block: int
    nested: tuple[Any, Array, int, float] | None = None  # scales of the scales, their 256 values, their block and offset

    def get_shape(self) -> list[int]:
        """Return the matrix's shape."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """Return what is read: float32."""
        return "F32"

    def __getitem__(self, index: slice | tuple[slice, slice]) -> Array:
        """Return rows and columns in float32; the rows are decoded whole."""
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        start, stop = (self.shape[1] * bound for bound in rows.indices(self.shape[0])[:2])
        codes = self.codes[start // 2 : (stop + 1) // 2][:, 0]
        pairs = self.values[np.stack([codes >> 4, codes & 15], axis=-1)].reshape(-1)[start % 2 :][: stop - start]
        first = start // self.block
        scales = self._scales(first, -(-stop // self.block))
        numbers = pairs * scales[np.arange(start, stop) // self.block - first]
        return numbers.reshape(-1, self.shape[1])[:, columns]  # type: ignore[no-any-return]

    def _scales(self, start: int, stop: int) -> Array:
        found = self.scales[start:stop]
        if self.nested is None:
            return found.astype(np.float32)  # type: ignore[no-any-return]
        outer, values, block, offset = self.nested
        first = start // block
        each = outer[first : -(-stop // block)][np.arange(start, stop) // block - first]
        return values[found] * each + np.float32(offset)  # type: ignore[no-any-return]


def decoded(slices: dict[str, Any], folder: Any) -> dict[str, Any]:
    """Return the tensors of a checkpoint with matrices in place of what bitsandbytes wrote for them.

    Raises ValueError naming folder and tensor where its parts do not fit each other, or a format that is not read.
    """
    found, used = dict(slices), set()
    for name in slices:
        if name.endswith(".SCB"):
            weight = name.removesuffix("SCB") + "weight"
            found[weight], parts = _eight(slices, weight, name, folder)
            used |= parts
        elif STATE in name:
            weight = name.partition(STATE)[0]
            found[weight], parts = _four(slices, weight, name, folder)
            used |= parts
    found = {name: slice_ for name, slice_ in found.items() if name not in used}
    for name in sorted(found):
        for ending, known in KNOWN.items():
            if name.endswith(ending):
                raise ValueError(f"{folder}: tensor {name!r} is of a checkpoint quantized by {known}; allowed: {ALLOWED}")
    return found


def _eight(slices: dict[str, Any], weight: str, name: str, folder: Any) -> tuple[EightBits, set[str]]:
    form = weight + "_format"
    if form in slices and (slices[form].get_shape() not in ([], [1]) or int(np.max(slices[form][...])) != 0):
        found = ", ".join(map(str, np.ravel(slices[form][...])[:4]))
        raise ValueError(f"{folder}: {form} is {found}; allowed: 0, rows as they are; save it again with a newer bitsandbytes")
    codes = _part(slices, weight, ("I8",), None, folder)
    return EightBits(codes, _whole(_part(slices, name, ("F32", "F16", "BF16"), codes.get_shape()[:1], folder))), {name, form}


def _four(slices: dict[str, Any], weight: str, name: str, folder: Any) -> tuple[FourBits, set[str]]:
    state = _state(bytes(_whole(slices[name])), f"{folder}: tensor {name!r}")
    shape, block = tuple(state["shape"]), state["blocksize"]
    size, names = math.prod(shape), {part: f"{weight}.{part}" for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")}
    blocks, nested = -(-size // block), None
    if names["nested_absmax"] in slices:
        inner, offset = state["nested_blocksize"], state["nested_offset"]
        outer = _part(slices, names["nested_absmax"], ("F32",), [-(-blocks // inner)], folder)
        nested = (outer, _whole(_part(slices, names["nested_quant_map"], ("F32",), [256], folder)), inner, offset)
    found = FourBits(
        _part(slices, weight, ("U8",), [-(-size // 2), 1], folder),
        _part(slices, names["absmax"], ("F32",) if nested is None else ("U8",), [blocks], folder),
        _whole(_part(slices, names["quant_map"], ("F32",), [16], folder)), shape, block, nested,
    )  # fmt: skip
    return found, {name, *names.values()}


def _state(content: bytes, place: str) -> dict[str, Any]:
    """What the JSON beside a 4-bit matrix says, its numbers checked."""
    try:
        state = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: {error}; allowed: what bitsandbytes writes") from error
    state = {"nested_blocksize": 256, "nested_offset": 0.0} | (state if isinstance(state, dict) else {})
    shape = state.get("shape")
    counts = [*(shape if isinstance(shape, list) and len(shape) == 2 else [None]), state.get("blocksize"), state["nested_blocksize"]]
    sound = all(isinstance(count, int) and not isinstance(count, bool) and 0 < count < 2**31 for count in counts)
    if not sound or not isinstance(state["nested_offset"], float | int) or not abs(state["nested_offset"]) < 1e30:
        raise ValueError(
            f"{place} says {str(state)[:200]}; allowed: shape of two sizes, blocksize, and of nested scales theirs with an offset"
        )
    return state


def _part(slices: dict[str, Any], name: str, kinds: tuple[str, ...], shape: list[int] | None, folder: Any) -> Any:
    """A tensor of these kinds and shape; shape None: any of two dimensions."""
    if name not in slices:
        raise ValueError(f"{folder}: tensor {name!r} is missing beside the others of its matrix; allowed: what bitsandbytes writes")
    kind, found = slices[name].get_dtype(), slices[name].get_shape()
    if kind not in kinds or (len(found) != 2 if shape is None else found != shape):
        wanted = f"{' or '.join(kinds)} of {'two dimensions' if shape is None else tuple(shape)}"
        raise ValueError(f"{folder}: tensor {name!r} is {kind} of {tuple(found)}; allowed: {wanted}")
    return slices[name]


def _whole(slice_: Any) -> Array:
    found: Array = np.asarray(slice_[...])
    return found.astype(np.float32) if found.dtype.kind not in "iu" else found
