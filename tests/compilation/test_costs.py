"""The HLO reader against programs whose costs are known in closed form."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dat_jax import sharding
from dat_jax.compilation import costs, hlo


def cost(function, *arguments, **options):
    module = hlo.parse(jax.jit(function, **options).lower(*arguments).compile().as_text())
    return costs.cost(module)


def flops(function, *arguments):
    return sum(cost(function, *arguments).flops.values())


x, w = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 16), jnp.float32)
PRODUCT = 2 * 8 * 16 * 16


def chain(x, w, times):
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=times)[0]


def test_a_scan_of_products_is_counted_as_often_as_it_runs():
    assert flops(lambda x, w: chain(x, w, 37), x, w) == 37 * PRODUCT


def test_nested_loops_multiply():
    def nested(x, w):
        return jax.lax.scan(lambda h, _: (chain(h, w, 5), None), x, None, length=11)[0]

    assert flops(nested, x, w) == 55 * PRODUCT


def test_gradient_of_a_rematerialized_scan():
    def loss(x, w):
        body = jax.checkpoint(lambda h, _: (jnp.tanh(jnp.tanh(h @ w) @ w), None), prevent_cse=False)
        return jnp.sum(jax.lax.scan(body, x, None, length=7)[0])

    assert flops(jax.grad(loss), x, w) == 7 * (2 + 2 + 2) * PRODUCT  # forward, recomputed, transposed


@pytest.mark.parametrize(("start", "stop"), [(3, 20), (0, 1)])
def test_fori_loops(start, stop):
    assert flops(lambda x, w: jax.lax.fori_loop(start, stop, lambda i, h: jnp.tanh(h @ w) + i, x), x, w) == (stop - start) * PRODUCT


def test_a_loop_that_may_end_early_counts_its_most():
    def search(x, w):
        return jax.lax.while_loop(lambda s: (s[0] < 9) & ~jnp.all(s[1] < 0), lambda s: (s[0] + 1, jnp.tanh(s[1] @ w)), (jnp.int32(1), x))

    assert flops(search, x, w) == 8 * PRODUCT


def test_the_costliest_branch_of_a_conditional_counts():
    def choose(x, w, flag):
        return jax.lax.cond(flag, lambda h: h @ w, lambda h: chain(h, w, 3), x)

    assert flops(choose, x, w, jax.ShapeDtypeStruct((), bool)) == 3 * PRODUCT


def test_batched_and_contracted_products():
    q, k = (jax.ShapeDtypeStruct((2, 5, 3, 7), jnp.float32) for _ in range(2))
    assert flops(lambda q, k: jnp.einsum("bthk,bshk->bhts", q, k), q, k) == 2 * 2 * 3 * 5 * 5 * 7


def test_a_loop_without_a_readable_bound_is_named():
    def halve(x):
        with jax.named_scope("halving"):
            return jax.lax.while_loop(lambda h: jnp.sum(h) > 1, lambda h: h / 2, x)

    assert len(cost(halve, x).unknown_loops) == 1


def test_scopes():
    def both(x, w):
        with jax.named_scope("attack"):
            h = chain(x, w, 4)
        with jax.named_scope("defence"):
            return h @ w

    assert dict(cost(both, x, w).flops) == {"attack": 4 * PRODUCT, "defence": PRODUCT}


WHOLE, LAYER = 32 * 64 * 128, 64 * 128
FUSED = """HloModule m
%arranged (p: u8[32,64,128]) -> u8[32,64,128] {
  %p = u8[32,64,128]{2,1,0} parameter(0)
  ROOT %c = u8[32,64,128]{2,1,0} copy(%p)
}
%fused (codes: u8[32,64,128], i: s32[]) -> u8[RESULT] {
  %codes = u8[32,64,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %view = u8[32,64,128]{2,1,0} fusion(%codes), kind=kLoop, calls=%arranged
  LAST
}
ENTRY %main (codes: u8[32,64,128], i: s32[]) -> u8[RESULT] {
  %codes = u8[32,64,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = u8[RESULT]{2,1,0} fusion(%codes, %i), kind=kLoop, calls=%fused
}
"""


@pytest.mark.parametrize(("last", "result", "read"), [
    # the slice, and its index
    ("ROOT %s = u8[1,64,128]{2,1,0} dynamic-slice(%view, %i, %z, %z), dynamic_slice_sizes={1,64,128}", "1,64,128", LAYER + 4),
    ("ROOT %s = u8[32,64,128]{2,1,0} not(%view)", "32,64,128", WHOLE),
])  # fmt: skip
def test_a_fusion_that_arranges_a_stack_anew_reads_what_its_users_read(last, result, read):
    """As a TPU's compiler writes it: the copy within the fusion is never whole in memory."""
    module = hlo.parse(FUSED.replace("LAST", last).replace("RESULT", result))
    written = module.computations["main"].instructions["f"].bytes
    assert costs.cost(module).hbm_bytes == read + written


def test_collectives_are_counted_with_loops_and_bytes():
    mesh = sharding.make_mesh(fsdp=8)
    rows, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())
    shards = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows)
    total = cost(lambda x: jnp.sum(x * x, axis=0), shards, out_shardings=whole).by_kind()
    assert total == {"all-reduce": {"count": 1, "bytes": 2 * 32 * 4 * 7 / 8}}
    gathered = cost(lambda x: x, shards, out_shardings=whole).by_kind()
    assert gathered == {"all-gather": {"count": 1, "bytes": 8 * 32 * 4 * 7}}

    def sums(x):
        def local(x):
            return jax.lax.scan(lambda h, _: (jnp.tanh(jax.lax.psum(h, "fsdp")), None), x, None, length=5)[0]

        return jax.shard_map(local, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False)(x)

    assert cost(sums, shards).by_kind() == {"all-reduce": {"count": 5, "bytes": 5 * 2 * 8 * 32 * 4 * 7 / 8}}


@pytest.mark.parametrize(("text", "size"), [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4), ("replica_groups=[2,4]<=[8]", 4), ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
    ("replica_groups=mesh['axis_0'=16,'axis_1'=2] {'axis_0'}", 16), ("dimensions={0}", 0),
])  # fmt: skip
def test_replica_groups(text, size):
    assert costs.group_size(f", channel_id=1, {text}, use_global_device_ids=true") == size


# A TPU writes products as convolutions, and a batched one as a convolution over a dilated axis.
TPU_TEXT = """HloModule jit_f

%body (p: (s32[], f32[2,8,16])) -> (s32[], f32[2,8,16]) {
  %p = (s32[]{:T(128)}, f32[2,8,16]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %h = f32[2,8,16]{2,1,0:T(8,128)} get-tuple-element(%p), index=1
  %w = f32[2,16,16]{2,1,0:T(8,128)} broadcast(%i), dimensions={}, frontend_attributes={kernel_metadata={
"xprof":"{1}"
}}, metadata={op_name="jit(f)/attack/w"}
  %g = f32[2,8,16]{2,1,0:T(8,128)S(1)} convolution(%h, %w), window={size=2 lhs_dilate=2}, dim_labels=0bf_0io->0bf
  %one = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %t = (s32[]{:T(128)}, f32[2,8,16]{2,1,0:T(8,128)}) tuple(%next, %g)
}

%condition (q: (s32[], f32[2,8,16])) -> pred[] {
  %q = (s32[]{:T(128)}, f32[2,8,16]{2,1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %end = s32[]{:T(128)} constant(10)
  ROOT %less = pred[]{:T(512)} compare(%j, %end), direction=LT
}

ENTRY %main (x: f32[2,8,16]) -> f32[2,8,16] {
  %x = f32[2,8,16]{2,1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[]{:T(128)} copy(%zero)
  %tuple = (s32[]{:T(128)}, f32[2,8,16]{2,1,0:T(8,128)}) tuple(%start, %x)
  %loop = (s32[]{:T(128)}, /*index=1*/f32[2,8,16]{2,1,0:T(8,128)}) while(%tuple), condition=%condition, body=%body
  ROOT %out = f32[2,8,16]{2,1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def test_tpu_text():
    module = hlo.parse(TPU_TEXT)
    found = costs.cost(module)
    assert sum(found.flops.values()) == 5 * 2 * (2 * 8 * 16 * 16)  # a batch of two products, five turns of step two
    assert module.computations["body"].instructions["g"].shapes[0].space == 1
    # per turn: the broadcast writes w (and reads the counter), the product reads h and w and writes to vector memory, the counter moves
    assert found.hbm_bytes == 5 * ((4 + 2048) + (1024 + 2048) + 12) + 8
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule empty")


def test_products_that_a_gpu_hands_to_cublas():
    text = """HloModule m

ENTRY main (a: bf16[8,16], b: bf16[16,24]) -> bf16[8,24] {
  a = bf16[8,16]{1,0} parameter(0)
  b = bf16[16,24]{1,0} parameter(1)
  c = (bf16[8,24]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(f)/attack/dot"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  ROOT d = bf16[8,24]{1,0} get-tuple-element(%c), index=0
}
"""  # noqa: E501
    assert costs.cost(hlo.parse(text)).flops == {"attack": 2 * 8 * 24 * 16}


OFFLOADED = """HloModule jit_f

%called_computation.1 (p: f32[4,8]) -> f32[32,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[32,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
}, execution_thread="sparsecore"

%async_computation.1 (q: f32[4,8]) -> f32[32,8] {
  %q = f32[4,8]{1,0} parameter(0)
  ROOT %custom-call.1 = f32[32,8]{1,0} custom-call(%q), custom_call_target="offload", called_computations={%called_computation.1}
}, execution_thread="sparsecore"

ENTRY %main (x: f32[4,8]) -> f32[32,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %start = ((f32[4,8]{1,0}), f32[32,8]{1,0}) async-start(%x), async_execution_thread="sparsecore", calls=%async_computation.1
  ROOT %done = f32[32,8]{1,0} async-done(%start)
}
"""


def test_a_collective_that_sparse_cores_do_is_counted():
    """As libtpu writes it for a TPU7x: the computation ends with the name of its thread, and the collective is in a custom call."""
    found = costs.cost(hlo.parse(OFFLOADED)).by_kind()
    assert found == {"all-gather": {"count": 1.0, "bytes": 7 * 4 * 8 * 4}}
