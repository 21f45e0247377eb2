"""The device mesh, the one table from logical to mesh axes, and the placement of batches.

Mesh axes: `data` replicates the weights, `fsdp` splits both rows and weights, `tensor` splits heads, mlp width and vocabulary.
With several slices the data axis alone crosses the data-center network, slices outermost: it is then `dcn_data` times as long.
All axes are Auto: XLA's partitioner places the collectives, `constrain` steers it, and only the splash kernel is mapped by hand.
"""

import functools
import itertools
import logging
import math
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

logger = logging.getLogger(__name__)

AXES = ("data", "fsdp", "tensor")

# Logical axis of a weight or activation -> mesh axes it is split over; everything not named here is replicated.
TABLE: dict[str | None, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "positions": ("tensor",),  # of the residual stream between layers: norms and what is saved for the backward pass are then split too
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "embed": ("fsdp",),
    "layers": (),
    "rank": (),
    None: (),
}


def initialize(processes: int, timeout: int = 300) -> None:
    """Joins `processes` hosts with jax.distributed; must run before any other use of jax. One process: does not wait for others.

    On Cloud TPU and GKE the addresses are found by jax. Elsewhere the environment gives JAX_COORDINATOR_ADDRESS (host:port),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. timeout: seconds until a host that does not show up is an error.
    Raises ValueError when another number of processes than config.mesh.processes is found, or jax cannot use the devices.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        count, index = _environment_integer("JAX_NUM_PROCESSES"), _environment_integer("JAX_PROCESS_ID")
        if count != processes:
            raise ValueError(f"config.mesh.processes is {processes}, but JAX_NUM_PROCESSES is {count}; they must be equal")
        if processes > 1:
            jax.distributed.initialize(
                num_processes=count, process_id=index, initialization_timeout=timeout, cluster_detection_method="deactivate"
            )
    elif processes > 1:
        jax.distributed.initialize(initialization_timeout=timeout)
    try:
        found = jax.process_count()  # the first use of the devices
    except RuntimeError as error:
        if "'cuda'" not in str(error):  # a TPU may be busy for a while: trying again may help, which status 2 would rule out
            raise
        remedy = "mend its driver or jax's plugin for it (what they said is above), or set JAX_PLATFORMS=cpu to do without it"
        raise ValueError(f"the GPU cannot be used; {remedy}: {error}") from error
    check_processes(processes, found)
    kind, local, total = jax.devices()[0].device_kind, jax.local_device_count(), jax.device_count()
    logger.info("process %d of %d: %d local devices of %d (%s)", jax.process_index(), jax.process_count(), local, total, kind)


def check_processes(configured: int, found: int) -> None:
    """Raises ValueError, naming the config key, unless as many processes are running as the config says."""
    if configured != found:
        raise ValueError(
            f"config.mesh.processes is {configured}, but {found} processes are running; start one per host and set "
            f"--config.mesh.processes={found}, or fix the slice"
        )


def _environment_integer(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdigit():
        raise ValueError(f"JAX_COORDINATOR_ADDRESS is set, so {name} must be a whole number, found {text!r}")
    return int(text)


def mesh_shape(data: int, fsdp: int, tensor: int, dcn_data: int, devices: int) -> tuple[int, int, int]:
    """The mesh shape within a slice; one of data, fsdp and tensor may be -1: what is left of `devices` / `dcn_data`.

    Raises ValueError naming the config key whose size is not allowed.
    """
    sizes = {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}
    if dcn_data < 1:
        raise ValueError(f"config.mesh.dcn_data is {dcn_data}; allowed: 1, 2, ... slices")
    for key, size in sizes.items():
        if size < 1 and size != -1:
            raise ValueError(f"config.{key} is {size}; allowed: 1, 2, ... or -1 for all devices that are left")
    open_keys = [key for key, size in sizes.items() if size == -1]
    if len(open_keys) > 1:
        raise ValueError(f"only one mesh axis may be -1, found {' and '.join(open_keys)}")
    known = dcn_data * math.prod(size for size in sizes.values() if size != -1)
    if open_keys and devices % known:
        raise ValueError(f"config.{open_keys[0]} is -1, but {devices} devices cannot be divided by the other mesh axes ({known})")
    shape = tuple(devices // known if size == -1 else size for size in sizes.values())
    return shape[0], shape[1], shape[2]


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, dcn_data: int = 1, devices: list[Any] | None = None) -> Mesh:
    """A mesh (data, fsdp, tensor) over all devices of all processes; over `devices` when given (a topology's, for compiling ahead).

    dcn_data: how many TPU slices are joined; the mesh's data axis is dcn_data * data long and alone crosses the network between them.
    Raises ValueError when the device or slice count differs from the config; only imitated CPU devices may be left over.
    """
    found = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(data, fsdp, tensor, dcn_data, len(found))
    whole = (dcn_data * shape[0], *shape[1:])
    wanted = math.prod(whole)
    imitated = found[0].platform == "cpu" and all(device.process_index == found[0].process_index for device in found)
    if wanted > len(found) or (wanted < len(found) and not imitated):
        sizes = "x".join(map(str, (dcn_data, *shape)))
        raise ValueError(
            f"config.mesh needs dcn_data x data x fsdp x tensor = {sizes} = {wanted} devices, "
            f"but {len(found)} are present ({found[0].device_kind})"
        )
    found = found[:wanted]
    if found[0].platform == "cpu":  # in order; consecutive devices imitate a slice
        return Mesh(np.array(found).reshape(whole), AXES)
    present = {getattr(device, "slice_index", 0) for device in found}
    if len(present) != dcn_data:
        raise ValueError(f"config.mesh.dcn_data is {dcn_data}, but {len(present)} slices are present")
    if dcn_data == 1:
        return Mesh(mesh_utils.create_device_mesh(shape, found, allow_split_physical_axes=True), AXES)
    return Mesh(mesh_utils.create_hybrid_device_mesh(shape, (dcn_data, 1, 1), found, allow_split_physical_axes=True), AXES)


def spec(mesh: Any, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """The PartitionSpec of an array with logical `axes`; a mesh axis is used once, for the first dimension that names it.

    A dimension that does not divide by its mesh axes is replicated, which is logged once per kind.
    Raises ValueError for an unknown logical axis or when axes and shape differ in length.
    """
    if len(axes) != len(shape):
        raise ValueError(f"an array of shape {shape} has {len(shape)} dimensions, but {len(axes)} logical axes were given: {axes}")
    taken: set[str] = set()
    entries: list[tuple[str, ...] | str | None] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis not in TABLE:
            raise ValueError(f"unknown logical axis {axis!r}; allowed: {sorted(name for name in TABLE if name)} or None")
        names = tuple(name for name in TABLE[axis] if name not in taken and mesh.shape[name] > 1)
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            if size > 1:
                _log_replicated(axis, size, names, parts)
            names = ()
        taken.update(names)
        entries.append(None if not names else names[0] if len(names) == 1 else names)
    return PartitionSpec(*entries)


@functools.cache
def _log_replicated(axis: str, size: int, names: tuple[str, ...], parts: int) -> None:
    logger.warning("%s of size %d does not divide by mesh axes %s = %d: it is replicated there", axis, size, "x".join(names), parts)


def named_sharding(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """Where an array with logical `axes` and `shape` lives; see `spec`."""
    return NamedSharding(mesh, spec(mesh, axes, shape))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a scalar, key or small array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins x to the placement of its logical axes under `jax.set_mesh(mesh)`; without a mesh returns x."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(mesh, axes, x.shape))


def rows_of_tokens(x_BxTxD: jax.Array) -> jax.Array:
    """Returns (B * T)xD on one device; where batch and positions lie on several, x as it is: merging their axes would gather it.

    XLA's CPU backend multiplies and differentiates that shape faster: a product that sums over two axes costs it a transposed copy.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x_BxTxD.reshape(-1, x_BxTxD.shape[-1]) if mesh.empty or mesh.size == 1 else x_BxTxD


def local_rows(mesh: Mesh, rows: int) -> slice:
    """The rows [start, stop) of a global batch of `rows` that this process must read: those of its devices.

    Raises ValueError when the batch does not divide by the mesh, or the rows of one process are not contiguous.
    """
    sharding = batch_sharding(mesh, (rows,))
    indices = [index for index in sharding.addressable_devices_indices_map((rows,)).values() if index is not None]
    owned = sorted({index[0].indices(rows)[:2] for index in indices})
    if any(before[1] != after[0] for before, after in itertools.pairwise(owned)):
        raise ValueError(
            f"the rows of process {jax.process_index()} are not contiguous on mesh {dict(mesh.shape)}: "
            "put the axis that crosses hosts first"
        )
    return slice(owned[0][0], owned[-1][1])


def batch_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Rows over (data, fsdp), all else whole; ValueError when the rows do not divide, as devices would then repeat each other's work."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if shape[0] % parts:
        raise ValueError(f"a batch of {shape[0]} rows does not divide by mesh.data x mesh.fsdp = {parts}; choose a multiple of {parts}")
    return named_sharding(mesh, ("batch", *(None,) * (len(shape) - 1)), shape)


def place_batch(mesh: Mesh, batch: Any, rows: int) -> Any:
    """Global arrays from this process's part of a batch, a pytree of numpy arrays with rows first.

    rows: size of the global batch. Each leaf holds either `local_rows(mesh, rows)` or all rows; both give the same global array.
    """

    def place(leaf: np.ndarray) -> jax.Array:
        shape = (rows, *leaf.shape[1:])
        return jax.make_array_from_process_local_data(batch_sharding(mesh, shape), leaf, shape)

    return jax.tree.map(place, batch)


def agreed(found: Any) -> np.ndarray:
    """Process 0's numbers on every process: what it finds in a folder decides for all, as the others may look later; all must call."""
    return np.asarray(found if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(np.asarray(found, np.int32)))


def agreed_text(found: str) -> str:
    """Process 0's text on every process; all must call, and none with an empty one."""
    if jax.process_count() == 1:
        return found
    data = np.frombuffer(found.encode(), np.uint8)
    size = int(np.asarray(multihost_utils.broadcast_one_to_all(np.int32(len(data)))))
    return np.asarray(multihost_utils.broadcast_one_to_all(np.resize(data, size))).astype(np.uint8).tobytes().decode()


def on_host(array: jax.Array) -> np.ndarray:
    """The whole array as numpy, on every process; where several hold parts of it, all of them must call."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
