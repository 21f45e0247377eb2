"""Attention on TPU: jax's splash kernel inside shard_map, for causal, sliding-window, soft-capped and bidirectional masks.

The scores never reach memory, so a long sequence costs what its matrix products cost. Notable choices:
* Rows are split over (data, fsdp) and heads over tensor; a device runs the kernel on its own rows and heads, without communication.
* Padding is a segment of its own: it attends to padding alone, no row is fully masked, and valid tokens never see it.
* Key/value heads are not repeated: one multi-query kernel serves the query heads of a key/value head, mapped over those.
* First derivatives only, as the kernel has no second ones; the attack needs no more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as kernels

from dat_jax import sharding
from dat_jax.models.config import ModelConfig

BLOCK = 128  # sequence lengths must be multiples of the kernel's smallest block
LARGEST_BLOCK = 512


def attend(
    q_BxTxHxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    valid_BxT: jax.Array,
    config: ModelConfig,
    local: jax.Array | bool = False,
    interpret: bool = False,
) -> jax.Array:
    """Return the values' means BxTxHxK as `attention.attend_xla` does, padding queries excepted: theirs have no meaning.

    `local` may be traced: both masks are then compiled and one runs. `interpret` runs the kernel on a CPU, for tests.
    Raises ValueError unless T is a multiple of 128, and rows and key/value heads divide by the mesh that is set.
    """
    B, T, H, K = q_BxTxHxK.shape
    N = k_BxTxNxK.shape[2]
    if T % BLOCK or k_BxTxNxK.shape[1] != T:
        raise ValueError(
            f"attention='splash' needs as many queries as keys and a multiple of {BLOCK}, found {T} and {k_BxTxNxK.shape[1]}; "
            "choose data.prompt_length + data.response_length so, or attention='xla'"
        )
    scale = K**-0.5 if config.query_scale is None else config.query_scale
    q_BxNxGxTxK = (q_BxTxHxK * scale).reshape(B, T, N, H // N, K).transpose(0, 2, 3, 1, 4)
    k_BxNxTxK, v_BxNxTxK = k_BxTxNxK.swapaxes(1, 2), v_BxTxNxK.swapaxes(1, 2)
    run = functools.partial(_run, config, T, interpret=interpret)
    arguments = (q_BxNxGxTxK, k_BxNxTxK, v_BxNxTxK, valid_BxT)
    if config.sliding_window is None or config.sliding_window >= T:
        out_BxNxGxTxK = run(False, *arguments)
    elif isinstance(local, bool):
        out_BxNxGxTxK = run(local, *arguments)
    else:
        out_BxNxGxTxK = jax.lax.cond(local, functools.partial(run, True), functools.partial(run, False), *arguments)
    return out_BxNxGxTxK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def _run(
    config: ModelConfig, length: int, local: bool, q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, *, interpret: bool
) -> jax.Array:
    """The kernel over a whole batch; under a mesh each device takes its rows and heads."""
    kernel = _kernel(config, length, q.shape[2], local, interpret)

    def own_rows(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> jax.Array:
        def row(q_NxGxTxK: jax.Array, k_NxTxK: jax.Array, v_NxTxK: jax.Array, valid_T: jax.Array) -> jax.Array:
            segments_T = valid_T.astype(jnp.int32)
            segments = kernels.SegmentIds(q=segments_T, kv=segments_T)
            out_NxGxTxK: jax.Array = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q_NxGxTxK, k_NxTxK, v_NxTxK, segments)
            return out_NxGxTxK

        return jax.vmap(row)(q, k, v, valid)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return own_rows(q, k, v, valid)
    specs = [
        sharding.spec(mesh, axes, x.shape)
        for axes, x in ((("batch", "kv_heads", None, None, None), q), (("batch", "kv_heads", None, None), k), (("batch", None), valid))
    ]
    if specs[0] != sharding.spec(mesh, ("batch", "kv_heads", None, None, None), (mesh.size, mesh.size, 1, 1, 1)):
        raise ValueError(
            f"attention='splash' on mesh {dict(mesh.shape)}: {q.shape[0]} rows must divide by data x fsdp and "
            f"{q.shape[1]} key/value heads by tensor"
        )
    mapped = jax.shard_map(own_rows, mesh=mesh, in_specs=(specs[0], specs[1], specs[1], specs[2]), out_specs=specs[0], check_vma=False)
    out: jax.Array = mapped(q, k, v, valid)
    return out


def _kernel(config: ModelConfig, length: int, group: int, local: bool, interpret: bool) -> Callable[..., Any]:
    """The multi-query kernel for one mask; blocks are the largest that divide the length."""
    shape = (length, length)
    mask: kernels.Mask = kernels.CausalMask(shape) if config.causal else kernels.FullMask(shape)
    if local and config.sliding_window is not None:
        reach = config.sliding_window - 1  # the window counts the query's own position
        mask = kernels.LocalMask(shape, (reach, 0 if config.causal else reach), 0)
    block = next(size for size in (LARGEST_BLOCK, 384, 256, BLOCK) if length % size == 0)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return kernels.make_splash_mqa_single_device(
        kernels.splash_attention_mask.MultiHeadMask([mask] * group),
        block_sizes=sizes,
        attn_logits_soft_cap=config.attention_softcap,
        interpret=interpret,
    )
