"""Mesh, table and batch placement on 8 forced CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dat_jax import sharding


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((1, -1, 1, 1), (1, 8, 1)),
        ((-1, 2, 2, 1), (2, 2, 2)),
        ((2, 2, 2, 1), (2, 2, 2)),
        ((-1, 2, 1, 2), (2, 2, 1)),
        ((1, 1, 1, 1), (1, 1, 1)),
    ],
)
def test_mesh_shape(sizes, shape):
    assert sharding.mesh_shape(*sizes, devices=8) == shape


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1, 1, 1), "mesh.data is 0"),
        ((1, -2, 1, 1), "mesh.fsdp is -2"),
        ((1, 1, 1, -1), "mesh.dcn_data is -1"),
        ((-1, -1, 1, 1), "only one mesh axis may be -1, found mesh.data and mesh.fsdp"),
        ((3, -1, 1, 1), "mesh.fsdp is -1, but 8 devices"),
    ],
)
def test_mesh_shape_errors(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.mesh_shape(*sizes, devices=8)


def test_hybrid_mesh_puts_slices_outermost_on_data():
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=2, dcn_data=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    slice_of_data = [{device.id // 4 for device in mesh.devices[row].ravel()} for row in range(2)]
    assert slice_of_data == [{0}, {1}]


def test_too_few_devices_names_the_keys():
    with pytest.raises(ValueError, match=r"data x fsdp x tensor = 1x2x8x1 = 16 devices, but 8 are present"):
        sharding.make_mesh(data=2, fsdp=8)


def test_spec_uses_a_mesh_axis_once_and_replicates_what_does_not_divide(caplog):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    assert sharding.spec(mesh, ("layers", "embed", "heads"), (3, 8, 6)) == P(None, "fsdp", "tensor")
    assert sharding.spec(mesh, ("vocab", "embed"), (10, 8)) == P("tensor", "fsdp")
    assert sharding.spec(mesh, ("batch", None, "embed"), (8, 5, 8)) == P(("data", "fsdp"), None, None)
    sharding._log_replicated.cache_clear()
    for _ in range(2):
        assert sharding.spec(mesh, ("vocab", "embed"), (9, 8)) == P(None, "fsdp")
    expected = "vocab of size 9 does not divide by mesh axes tensor = 2: it is replicated there"
    assert [record.message for record in caplog.records] == [expected]
    with pytest.raises(ValueError, match="unknown logical axis 'width'"):
        sharding.spec(mesh, ("width",), (8,))
    with pytest.raises(ValueError, match="2 dimensions, but 1 logical axes"):
        sharding.spec(mesh, ("embed",), (8, 8))


def test_constrain_is_a_no_op_without_a_mesh_and_places_with_one():
    x = jnp.ones((8, 4))
    assert sharding.constrain(x, "batch", "mlp") is x
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        placed = jax.jit(lambda x: sharding.constrain(2 * x, "batch", "mlp"))(x)
    assert placed.sharding.spec == P(("data", "fsdp"), "tensor")
    np.testing.assert_array_equal(placed, 2 * np.ones((8, 4)))


def test_place_batch_and_its_rows():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    batch = {"tokens_BxT": np.arange(48).reshape(16, 3), "weight_B": np.arange(16.0)}
    assert sharding.local_rows(mesh, 16) == slice(0, 16)
    placed = sharding.place_batch(mesh, batch, rows=16)
    np.testing.assert_array_equal(placed["tokens_BxT"], batch["tokens_BxT"])
    assert placed["weight_B"].sharding.spec == P(("data", "fsdp"))
    with pytest.raises(ValueError, match=r"batch of 12 rows does not divide by mesh.data x mesh.fsdp = 8"):
        sharding.place_batch(mesh, {"x": np.zeros((12, 2))}, rows=12)


def test_initialize_refuses_another_number_of_processes(monkeypatch):
    sharding.initialize(1)
    with pytest.raises(ValueError, match=r"mesh.processes is 4, but 1 processes are running"):
        sharding.check_processes(4, 1)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES must be a whole number, found ''"):
        sharding.initialize(2)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(ValueError, match=r"mesh.processes is 2, but JAX_NUM_PROCESSES is 3"):
        sharding.initialize(2)
