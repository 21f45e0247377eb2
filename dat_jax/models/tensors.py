"""Safetensors files to sharded parameters and back, one shard of one weight on the host at a time.

Linear weights lie (out, in) per layer in the files and (layers, in, out) in memory. Every tensor of a checkpoint is used exactly
once; a missing, extra or misshapen one is an error before anything is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dat_jax.data.files import read_json
from dat_jax.models import prequantized, quantized, weights
from dat_jax.models.config import ModelConfig
from dat_jax.models.families import Names, Part
from dat_jax.models.quantized import Quantized
from dat_jax.models.weights import Weight

INDEX = "model.safetensors.index.json"
Staging = np.ndarray[Any, Any]

BLOCK_BYTES = 1 << 22  # how much of a tensor is read at once: small enough to be transposed in the processor's cache
FLOATS = ("F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder: open slices by name, and where they come from."""

    folder: pathlib.Path
    slices: dict[str, Any]
    files: dict[str, str]  # of each tensor


@contextlib.contextmanager
def opened(folder: pathlib.Path) -> Iterator[Checkpoint]:
    """Open all safetensors files of a folder; ValueError when there are none or the index disagrees with them.

    Matrices that are quantized already stand there in float32, or are an error, see `prequantized.decoded`.
    """
    index = folder / INDEX
    listed = _weight_map(index) if index.exists() else None
    files = sorted(set(listed.values())) if listed is not None else sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no *.safetensors file; other formats are not read, since they can run code")
    with contextlib.ExitStack() as stack:
        slices: dict[str, Any] = {}
        homes: dict[str, str] = {}
        for name in files:
            if not (folder / name).exists():
                raise ValueError(f"{index} names {name}, which is not in the folder")
            try:
                handle = stack.enter_context(safe_open(folder / name, framework="np"))
            except SafetensorError as error:
                raise ValueError(f"{folder / name} is damaged: {error}") from error
            for key in handle.keys():  # noqa: SIM118 (not a mapping)
                if key in slices:
                    raise ValueError(f"{folder / name}: tensor {key!r} is also in another file")
                slices[key], homes[key] = handle.get_slice(key), name
        if listed is not None and set(listed) != set(slices):
            raise ValueError(f"{index} and its files disagree on {_some(set(listed) ^ set(slices))}")
        yield Checkpoint(folder, prequantized.decoded(slices, folder), homes)


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    """Tensor names and the files of this folder that hold them."""
    found = read_json(str(index))
    listed = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{index} has no weight_map; allowed: an object of tensor names and file names")
    for key, name in listed.items():
        if not isinstance(name, str) or not name.endswith(".safetensors") or pathlib.PurePath(name).name != name or "\\" in name:
            raise ValueError(f"{index}: weight_map[{key!r}] is {name!r}; allowed: the name of a .safetensors file in this folder")
    return listed


def read(
    checkpoint: Checkpoint, config: ModelConfig, names: Names, dtype: str, mesh: jax.sharding.Mesh | None, ignore: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the parameters in `dtype`, each shard filled from slices of the files and moved to its device before the next.

    dtype: as in `weights.abstract`. ignore: prefixes of tensors that are not loaded. Raises ValueError naming the tensors that are missing,
    extra or of another shape or kind than the config implies.
    """
    check(checkpoint, config, names, ignore)
    table = traverse_util.flatten_dict(weights.table(config), sep="/")
    placements = traverse_util.flatten_dict(weights.abstract(config, dtype, mesh), sep="/")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placements = jax.tree.map(lambda x: x if x.sharding else x.update(sharding=here), placements)
    params: dict[str, Any] = {
        path: quantized.filled(placed, functools.partial(_matrix, checkpoint, names[path]))
        for path, placed in placements.items()
        if isinstance(placed, Quantized)
    }
    plain = {path: placed for path, placed in placements.items() if path not in params}
    # One buffer, as large as the largest shard, serves all: jax frees host buffers late, so fresh ones would pile up.
    staging = np.empty(max(math.prod(x.sharding.shard_shape(x.shape)) for x in plain.values()), plain["embedding"].dtype)
    params |= {path: _assemble(checkpoint, names[path], path, table[path], x.sharding, staging) for path, x in plain.items()}
    return traverse_util.unflatten_dict({path: params[path] for path in table}, sep="/")


def check(checkpoint: Checkpoint, config: ModelConfig, names: Names, ignore: tuple[str, ...] = ()) -> None:
    """Raise one ValueError that names the tensors which are missing, left over, or not as the config implies."""
    expected = tensor_shapes(config, names)
    found = {key: slice_ for key, slice_ in checkpoint.slices.items() if not key.startswith(ignore or ("\0",))}
    # older Llama files store the rotary frequencies, which follow from the config; tied models may store the embedding twice
    found = {key: slice_ for key, slice_ in found.items() if not key.endswith("rotary_emb.inv_freq")}
    twice = config.tied_head and found.pop("lm_head.weight", None) is not None
    problems = []
    if missing := expected.keys() - found.keys():
        problems.append(f"missing {_some(missing)}")
    if extra := found.keys() - expected.keys():
        problems.append(f"not part of a {config.model_type!r} model: {_some(extra)}")
    shapes = {key: tuple(found[key].get_shape()) for key in expected.keys() & found.keys()}
    if wrong := {f"{key} {shape} instead of {expected[key]}" for key, shape in shapes.items() if shape != expected[key]}:
        problems.append(f"shapes {_some(wrong)}")
    if kinds := {f"{key} is {found[key].get_dtype()}" for key in shapes if found[key].get_dtype() not in FLOATS}:
        problems.append(f"kinds other than {', '.join(FLOATS)}: {_some(kinds)}")
    if problems:
        raise ValueError(f"the tensors in {checkpoint.folder} do not fit its config.json: " + "; ".join(problems))
    if twice:
        _check_tied(checkpoint, names["embedding"].name)


def tensor_shapes(config: ModelConfig, names: Names) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor in a checkpoint of this model."""
    table = traverse_util.flatten_dict(weights.table(config), sep="/")
    shapes: dict[str, tuple[int, ...]] = {}
    for path, part in names.items():
        shape = table[path].shape[1:] if path.startswith("layers/") else table[path].shape
        shape = shape[::-1] if _transposed(path) else shape
        rows = shape[0] if part.last is None else part.last
        for layer in range(config.layers if path.startswith("layers/") else 1):
            name = part.name.format(layer)
            shapes[name] = (max(rows, shapes.get(name, (0,))[0]), *shape[1:])
    return shapes


def write(params: dict[str, Any], config: ModelConfig, names: Names, folder: pathlib.Path, dtype: str, shard_bytes: int) -> None:
    """Write all tensors in `dtype` to numbered safetensors files of at most shard_bytes (or one tensor) with an index.

    Every process must call this when arrays are spread over several; process 0 writes.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    shapes = tensor_shapes(config, names)
    parts: dict[str, list[tuple[Part, str, int | None]]] = {name: [] for name in shapes}
    for path, part in names.items():
        for layer in range(config.layers if path.startswith("layers/") else 1):
            parts[part.name.format(layer)].append((part, path, layer if path.startswith("layers/") else None))
    files = _split(shapes, np.dtype(jnp.dtype(dtype)).itemsize, shard_bytes)
    weight_map = {}
    for number, group in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {}
        for key in group:
            blocks = [_fetch(flat[path], path, layer, dtype) for _, path, layer in sorted(parts[key], key=lambda p: p[0].first)]
            tensors[key] = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
            weight_map[key] = name
        if jax.process_index() == 0:
            save_file(tensors, folder / name, metadata={"format": "pt"})
            (folder / name).chmod(0o644)  # written readable by its owner alone
    if len(files) > 1 and jax.process_index() == 0:
        size = sum(math.prod(shape) for shape in shapes.values()) * np.dtype(jnp.dtype(dtype)).itemsize
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=2) + "\n")


def keeps_host_buffers(device: jax.Device) -> bool:
    """Whether an array put on the device may be the host's buffer itself, as on a CPU, so that the buffer must not be used again."""
    return device.platform == "cpu"


def to_host(x: jax.Array) -> np.ndarray[Any, Any]:
    """Return a whole array as numpy, gathering it when other processes hold parts."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))


def _transposed(path: str) -> bool:
    return path == "head" or path in {f"layers/{name}" for name in ("q", "k", "v", "o", "gate", "up", "down")}


def _some(names: Any) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def _assemble(checkpoint: Checkpoint, part: Part, path: str, weight: Weight, placement: Any, staging: Staging) -> jax.Array:
    """Fill each distinct shard once in the staging buffer and copy it to the devices that hold it."""
    devices: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in placement.addressable_devices_indices_map(weight.shape).items():
        bounds = tuple(piece.indices(size)[:2] for piece, size in zip(index, weight.shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    pieces = []
    for bounds, holders in devices.items():
        shape = [stop - start for start, stop in bounds]
        size = math.prod(shape)
        shard = (np.empty(size, staging.dtype) if keeps_host_buffers(holders[0]) else staging[:size]).reshape(shape)
        if path.startswith("layers/"):
            for target, layer in zip(shard, range(*bounds[0]), strict=True):
                _fill(target, checkpoint, part.name.format(layer), part.first, bounds[1:], _transposed(path))
        else:
            _fill(shard, checkpoint, part.name, part.first, bounds, _transposed(path))
        pieces += [jax.block_until_ready(jax.device_put(shard, device)) for device in holders]  # before the buffer is filled again
    return jax.make_array_from_single_device_arrays(weight.shape, placement, pieces)


def _matrix(checkpoint: Checkpoint, part: Part, layer: int, inputs: slice, outputs: slice) -> Staging:
    """A part of one layer's matrix in float32, (in, out) as in memory."""
    matrix = np.empty((inputs.stop - inputs.start, outputs.stop - outputs.start), np.float32)
    bounds = ((inputs.start, inputs.stop), (outputs.start, outputs.stop))
    _fill(matrix, checkpoint, part.name.format(layer), part.first, bounds, transposed=True)
    return matrix


def _fill(
    target: np.ndarray[Any, Any], checkpoint: Checkpoint, name: str, first: int, bounds: tuple[tuple[int, int], ...], transposed: bool
) -> None:
    """Copy a slice of a tensor into the target, in blocks of rows so that little of it is in memory twice.

    Raises ValueError naming file and tensor where a value is not finite.
    """
    tensor = checkpoint.slices[name]
    rows, *columns = bounds[::-1] if transposed else bounds
    target = target.T if transposed else target
    row_bytes = 4 * math.prod(stop - start for start, stop in columns)
    block = max(1, BLOCK_BYTES // row_bytes)
    for start in range(rows[0], rows[1], block):
        stop = min(start + block, rows[1])
        found = tensor[(slice(first + start, first + stop), *(slice(*bound) for bound in columns))]
        if not finite(found):
            file = checkpoint.folder / checkpoint.files[name]
            raise ValueError(f"{file}: tensor {name!r} holds NaN or infinity; allowed: finite numbers")
        target[start - rows[0] : stop - rows[0]] = found


def finite(x: np.ndarray[Any, Any]) -> bool:
    """Return whether an array of floats holds finite numbers alone, told from their bits: isfinite of bfloat16 takes 17 times as long.

    The bits of a float grow with its size, and those of the infinities and NaN are above all others: read as signed integers among the
    positive numbers, read as unsigned ones among the negative.
    """
    if not x.size:
        return True
    signed, unsigned = np.dtype(f"i{x.dtype.itemsize}"), np.dtype(f"u{x.dtype.itemsize}")
    plus, minus = (np.array(sign * np.inf, x.dtype).view(unsigned) for sign in (1, -1))
    return bool(x.view(signed).max() < plus.view(signed) and x.view(unsigned).max() < minus)


def _check_tied(checkpoint: Checkpoint, embedding: str) -> None:
    one, two = checkpoint.slices[embedding], checkpoint.slices["lm_head.weight"]
    if one.get_shape() != two.get_shape():
        raise ValueError(f"{checkpoint.folder}: lm_head.weight is {two.get_shape()}; allowed: {one.get_shape()}, as {embedding}")
    rows, width = one.get_shape()
    block = max(1, BLOCK_BYTES // (4 * width))
    pieces = [slice(start, min(start + block, rows)) for start in range(0, rows, block)]
    equal = all(np.array_equal(one[piece], two[piece]) for piece in pieces)
    if not equal:
        raise ValueError(f"{checkpoint.folder}: config.json ties the head to the embedding, but lm_head.weight differs from {embedding}")


def _fetch(x: jax.Array, path: str, layer: int | None, dtype: str) -> np.ndarray[Any, Any]:
    host = to_host(x if layer is None else x[layer]).astype(jnp.dtype(dtype))
    return np.ascontiguousarray(host.T if _transposed(path) else host)


def _split(shapes: dict[str, tuple[int, ...]], itemsize: int, shard_bytes: int) -> list[list[str]]:
    files: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if files[-1] and used + size > shard_bytes:
            files.append([])
            used = 0
        files[-1].append(name)
        used += size
    return files
