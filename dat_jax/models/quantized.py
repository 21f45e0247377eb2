"""Frozen weights in 8 or 4 bits: one type that stands where a layer's matrix stood, made on the host and multiplied as it is.

`int8`: a number's code is it over its output channel's scale, rounded. The scale is the channel's greatest absolute value over 127.
`nf4`: 4-bit NormalFloat (QLoRA, arXiv 2305.14314), in blocks of 64 inputs of one output; each block's greatest absolute value is bfloat16.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dat_jax import sharding

KINDS = ("int8", "nf4")
BLOCK = 64  # inputs that share a scale in nf4
FEW = 256  # rows of x up to which a TPU multiplies nf4 part by part
PART = 1 << 21  # bytes of codes that few rows are multiplied with at a time: decoded, they take 16 MiB of a TPU's vector memory
NUMBERS = 1 << 18  # that are quantized at a time, so that the work stays in the processor's cache
# QLoRA's appendix E: quantiles of the normal distribution, scaled to -1..1, with an exact zero.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
Array = np.ndarray[Any, Any]


@flax.struct.dataclass
class Quantized:
    """A stack of matrices LxIxO (or one, without L) in few bits, and maybe factors of an update that is merged into them.

    codes: int8 LxIxO, or for nf4 uint8 Lx(I/2)xO: each byte holds the inputs i (low four bits) and i + 32 of a block.
    scales: float32 Lx1xO, or for nf4 bfloat16 Lx(I/64)xO. a, b: LxIxr and LxrxO; a b is added to the matrix, never to its codes.
    """

    codes: Any
    scales: Any
    a: Any = None
    b: Any = None
    kind: str = flax.struct.field(pytree_node=False, default="int8")

    def matrix(self, dtype: Any) -> jax.Array:
        """Return the matrix that the codes and scales stand for, without the update."""
        if self.kind == "int8":
            return (self.codes.astype(jnp.float32) * self.scales).astype(dtype)
        *stack, half, columns = self.codes.shape
        pairs = self.codes.reshape(*stack, half // (BLOCK // 2), BLOCK // 2, columns)
        values = _decoded(jnp.concatenate([pairs & 15, pairs >> 4], axis=-2))
        return (values * self.scales[..., None, :].astype(jnp.float32)).astype(dtype).reshape(*stack, 2 * half, columns)

    def updated(self, a: jax.Array, b: jax.Array) -> Quantized:
        """Return the same matrices plus a b; the factors stay beside the codes, and those of an earlier update with them."""
        if self.a is not None:
            a, b = jnp.concatenate([self.a, a], axis=-1), jnp.concatenate([self.b, b], axis=-2)
        return self.replace(a=a, b=b)  # type: ignore[attr-defined, no-any-return]


def product(x: jax.Array, weight: jax.Array | Quantized) -> jax.Array:
    """Return x W in the dtype of x; a quantized W becomes numbers here, one layer at a time, in the backward pass once more."""
    if not isinstance(weight, Quantized):
        return x @ weight.astype(x.dtype)
    y = _product(x, weight.codes, weight.scales, weight.kind)
    if weight.a is not None:
        y = y + (x @ weight.a.astype(x.dtype)) @ weight.b.astype(x.dtype)
    return y


# Recomputed, because the backward pass would else be handed all layers' matrices where the layers themselves are not recomputed.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def _product(x: jax.Array, codes: jax.Array, scales: jax.Array, kind: str) -> jax.Array:
    if kind == "nf4" and math.prod(x.shape[:-1]) <= FEW:
        return jax.lax.platform_dependent(x, codes, scales, tpu=_product_in_parts, default=_product_with_matrix)  # type: ignore[no-any-return]
    if kind == "nf4":
        return _product_with_matrix(x, codes, scales)
    y = x @ codes.astype(x.dtype)  # whole numbers up to 127 are exact in bfloat16, so the scale comes after
    return (y.astype(jnp.float32) * scales.reshape((1,) * (y.ndim - 1) + (-1,))).astype(x.dtype)


def _product_with_matrix(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    """Return x W for nf4, the matrix made first."""
    return x @ Quantized(codes, scales, kind="nf4").matrix(x.dtype)


def _product_in_parts(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    """Return x W for nf4: the sum over parts of the inputs, of at most PART bytes of codes, and over a byte's low and high four bits.

    What is decoded has the layout of the codes and stays in a TPU's vector memory. A layer's matrix decoded at once is too large for that
    and goes to the chip's memory and back as float32. Where the inputs are split over devices, each device goes through its own. A GPU has
    no such memory: its compiler writes every part, and the sum so far, which is more than the matrix.
    Legend: N parts in turn, S shares of the devices, R rows of x, I bytes of codes (of two inputs each), O outputs.
    """
    half, outputs = codes.shape
    blocks, sizes = len(scales), jax.sharding.get_abstract_mesh().shape
    shares = math.gcd(blocks, math.prod(sizes.get(axis, 1) for axis in ("fsdp", "tensor")))
    least = -(-half * outputs // (PART * shares))
    parts = next((n for n in range(least, blocks // shares) if blocks // shares % n == 0), blocks // shares)

    def cut(array: jax.Array) -> jax.Array:
        return jnp.moveaxis(array.reshape(shares, parts, -1, outputs), 1, 0)

    def add(y_SxRxO: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x_2xSxRxI, codes_SxIxO, scales = part
        scale_SxIxO = jnp.repeat(scales.astype(jnp.float32), BLOCK // 2, axis=1)
        for x_SxRxI, code in zip(x_2xSxRxI, (codes_SxIxO & 15, codes_SxIxO >> 4), strict=True):
            matrix = (_decoded(code) * scale_SxIxO).astype(x.dtype)
            y_SxRxO += jnp.einsum("sri,sio->sro", x_SxRxI, matrix, preferred_element_type=jnp.float32)
        return y_SxRxO, None

    blocks_of_x = x.reshape(-1, shares, parts, blocks // (shares * parts), 2, BLOCK // 2)
    x_Nx2xSxRxI = jnp.transpose(blocks_of_x, (2, 4, 1, 0, 3, 5)).reshape(parts, 2, shares, len(blocks_of_x), -1)
    begin = jnp.zeros((shares, len(blocks_of_x), outputs), jnp.float32)
    # Recomputed: the backward pass would else be handed every part's matrix.
    y_SxRxO, _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), begin, (x_Nx2xSxRxI, cut(codes), cut(scales)))
    return y_SxRxO.sum(axis=0).reshape(*x.shape[:-1], outputs).astype(x.dtype)


def _decoded(codes: jax.Array) -> jax.Array:
    """Return the NF4 values of codes 0 to 15 by choices of two: a TPU has no quick gather, and choices fuse with the product."""
    values = [jnp.float32(value) for value in NF4]
    for bit in range(4):
        high = (codes >> bit) & 1 == 1
        values = [jnp.where(high, two, one) for one, two in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def quantize(matrix_IxO: Array, kind: str) -> tuple[Array, Array]:
    """Return codes and scales of one matrix, float32 on the host, by the nearest of the values that its scale allows."""
    I, O = matrix_IxO.shape
    step = BLOCK * max(1, NUMBERS // (BLOCK * O))
    if kind == "int8":
        scales = np.maximum(matrix_IxO.max(axis=0, keepdims=True), -matrix_IxO.min(axis=0, keepdims=True)) / np.float32(127)
        divisor, codes = np.where(scales > 0, scales, 1), np.empty((I, O), np.int8)
        for start in range(0, I, step):
            codes[start : start + step] = np.rint(matrix_IxO[start : start + step] / divisor)
        return codes, scales
    codes, absmax = np.empty((I // 2, O), np.uint8), np.empty((I // BLOCK, O), ml_dtypes.bfloat16)
    for start in range(0, I, step):
        some = matrix_IxO[start : start + step].reshape(-1, BLOCK, O)
        found = np.max(np.abs(some), axis=1).astype(ml_dtypes.bfloat16)
        divisor = found.astype(np.float32)[:, None]
        shares, index = some / np.where(divisor > 0, divisor, 1), np.zeros(some.shape, np.uint8)
        for one, two in itertools.pairwise(NF4):
            index += shares > np.float32((one + two) / 2)
        packed = index[:, : BLOCK // 2] | index[:, BLOCK // 2 :] << 4
        codes[start // 2 : (start + step) // 2] = packed.reshape(-1, O)
        absmax[start // BLOCK : (start + step) // BLOCK] = found
    return codes, absmax


def of_stack(matrices_LxIxO: Any, kind: str) -> Quantized:
    """Return the quantized form of matrices that are in memory, one layer after the other."""
    pairs = [quantize(np.asarray(matrix, np.float32), kind) for matrix in matrices_LxIxO]
    codes, scales = (jnp.stack([jnp.asarray(part) for part in parts]) for parts in zip(*pairs, strict=True))
    return Quantized(codes, scales, kind=kind)


def precision(params: Any) -> str:
    """Return how a model's layers are kept: one of KINDS, or the dtype of its embedding."""
    kinds = [weight.kind for weight in params.get("layers", {}).values() if isinstance(weight, Quantized)]
    return kinds[0] if kinds else str(params["embedding"].dtype)


def abstract(kind: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: jax.sharding.Mesh | None) -> Quantized:
    """Return codes and scales of matrices LxIxO as shapes, with shardings when a mesh is given; ValueError where nf4 has no blocks.

    In nf4 the inputs are split by whole blocks, so that codes and their scales lie on one device.
    """
    L, I, O = shape
    if kind == "int8":
        sizes = {"codes": (shape, jnp.int8, shape), "scales": ((L, 1, O), jnp.float32, (L, 1, O))}
    else:
        if I % BLOCK:
            raise ValueError(f"dtype nf4 needs matrices whose inputs come in blocks of {BLOCK}, and one has {I}; allowed: int8")
        blocks = (L, I // BLOCK, O)
        sizes = {"codes": ((L, I // 2, O), jnp.uint8, blocks), "scales": (blocks, jnp.bfloat16, blocks)}
    parts: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(
            size, jnp.dtype(dtype), sharding=None if mesh is None else sharding.named_sharding(mesh, axes, split)
        )
        for name, (size, dtype, split) in sizes.items()
    }
    return Quantized(**parts, kind=kind)


def filled(found: Quantized, read: Callable[[int, slice, slice], Array]) -> Quantized:
    """Return the weight that `found` is the shape of, from read(layer, inputs, outputs), the matrix's float32 part on the host.

    One layer's part is read and quantized at a time, and only what this process's devices hold; int8 reads all inputs for the scales.
    """
    L, rows, columns = found.codes.shape
    codes, scales = (np.empty(part.shape, part.dtype) for part in (found.codes, found.scales))  # memory is taken as it is written
    whole, parts = slice(0, rows), []
    for index in found.codes.sharding.addressable_devices_indices_map(found.codes.shape).values():
        inputs, outputs = (slice(*piece.indices(size)[:2]) for piece, size in zip(index[1:], (rows, columns), strict=True))
        part = (whole if found.kind == "int8" else inputs, outputs)
        parts += [part] if part not in parts else []
    each = 1 if found.kind == "int8" else 2  # numbers in a byte
    for layer in range(L):
        for inputs, outputs in parts:
            span = slice(each * inputs.start, each * inputs.stop)
            block = slice(0, 1) if found.kind == "int8" else slice(span.start // BLOCK, span.stop // BLOCK)
            codes[layer, inputs, outputs], scales[layer, block, outputs] = quantize(read(layer, span, outputs), found.kind)
    one, two = (
        jax.make_array_from_callback(shape.shape, shape.sharding, values.__getitem__)
        for shape, values in ((found.codes, codes), (found.scales, scales))
    )
    return Quantized(jax.block_until_ready(one), jax.block_until_ready(two), kind=found.kind)
