"""What a compiled program costs: floating-point operations of its matrix products, bytes from and to HBM, bytes between chips."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

from dat_jax.compilation.hlo import Computation, Instruction, Module, Shape, trip_count

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
# Instructions that move nothing by themselves: names, views, control flow, and the second half of an asynchronous pair.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call") + (
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
    "domain",
)
CUBLAS = ("__cublas$gemm", "__cublas$lt$matmul")  # what a matrix product becomes on a GPU; the first result is the product
SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}  # matrix products of each splash kernel


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction with how often it runs; bytes are what a chip receives each time."""

    kind: str
    op_name: str
    shape: str
    group: int
    bytes: float
    times: float


@dataclasses.dataclass
class Cost:
    """Totals per device. flops: matrix products by named scope; hbm_bytes: an estimate from the instructions' operands and results."""

    flops: Counter[str] = dataclasses.field(default_factory=Counter)
    hbm_bytes: float = 0.0
    collectives: dict[str, Collective] = dataclasses.field(default_factory=dict)
    unknown_loops: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Cost, times: float) -> None:
        """Adds `other` so many times; one channel seen in several fusions of a loop is one collective, split over them."""
        for scope, flops in other.flops.items():
            self.flops[scope] += flops * times  # type: ignore[assignment]
        self.hbm_bytes += other.hbm_bytes * times
        for key, collective in other.collectives.items():
            scaled = dataclasses.replace(collective, times=collective.times * times)
            if key not in self.collectives or self.collectives[key].times < scaled.times:
                self.collectives[key] = scaled
        self.unknown_loops += [loop for loop in other.unknown_loops if loop not in self.unknown_loops]

    def by_kind(self) -> dict[str, dict[str, float]]:
        """Collectives summed by kind: count and bytes received per device."""
        totals: dict[str, dict[str, float]] = {}
        for collective in self.collectives.values():
            total = totals.setdefault(collective.kind, {"count": 0.0, "bytes": 0.0})
            total["count"] += collective.times
            total["bytes"] += collective.times * collective.bytes
        return totals


def cost(module: Module) -> Cost:
    """The costs of one run of a program on each device, loops counted; see `trip_count` for loops that may end early."""
    known: dict[tuple[str, bool], Cost] = {}

    def total(name: str, fused: bool) -> Cost:
        if (name, fused) not in known:
            known[name, fused] = _of_computation(module, module.computations[name], fused, total)
        return known[name, fused]

    return total(module.entry, False)


def _of_computation(module: Module, computation: Computation, fused: bool, total) -> Cost:  # type: ignore[no-untyped-def]
    result = Cost()
    for instruction in computation.instructions.values():
        opcode = instruction.opcode
        if opcode == "while":
            turns = trip_count(module, computation, instruction)
            if turns is None:
                result.unknown_loops.append(instruction.op_name or instruction.name)
            result.add(total(instruction.attribute("body"), fused), 1 if turns is None else turns)
        elif opcode == "conditional":
            names = re.findall(r"%?([\w.\-]+)", instruction.attribute("branch_computations") or "") or [
                name for name in (instruction.attribute("true_computation"), instruction.attribute("false_computation")) if name
            ]
            result.add(max((total(name, fused) for name in names), key=lambda c: (sum(c.flops.values()), c.hbm_bytes)), 1)
        elif opcode == "call":
            result.add(total(instruction.attribute("to_apply"), fused), 1)
        elif opcode in ("fusion", "async-start"):
            result.add(total(instruction.attribute("calls"), True), 1)
        elif opcode == "custom-call":  # what the sparse cores of a TPU7x do for the others, such as a collective
            for name in re.findall(r"%([\w.\-]+)", instruction.attribute("called_computations") or ""):
                result.add(total(name, True), 1)
        flops = _flops(computation, instruction)
        if flops:
            result.flops[scope(instruction.op_name)] += flops  # type: ignore[assignment]
        collective = _collective(computation, instruction)
        if collective:
            result.collectives[instruction.attribute("channel_id") or f"{computation.name}/{instruction.name}"] = collective
        if not fused:
            result.hbm_bytes += _hbm_bytes(module, computation, instruction)
    return result


def scope(op_name: str) -> str:
    """The named scope of an instruction: the first part of its name below the jitted function, if it is one of ours."""
    parts = [part for part in op_name.split("/")[1:] if part in ("attack", "defence", "sampler", "prefill", "decode")]
    return parts[0] if parts else "other"


# Matrix products


def _flops(computation: Computation, instruction: Instruction) -> float:
    if instruction.opcode == "dot":
        left = _operand(computation, instruction, 0)
        contracted = _integers(instruction.attribute("lhs_contracting_dims"))
        return 2.0 * math.prod(instruction.shapes[0].dims) * math.prod(left.dims[axis] for axis in contracted)
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if instruction.opcode == "custom-call" and instruction.attribute("custom_call_target") in CUBLAS:
        return _cublas(computation, instruction)
    if instruction.opcode == "custom-call" and "splash" in instruction.name + instruction.op_name:
        return _splash(computation, instruction)
    return 0.0


def _cublas(computation: Computation, instruction: Instruction) -> float:
    left = _operand(computation, instruction, 0)
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.rest)
    axes = _integers(contracted[1] if contracted else None)
    return 2.0 * math.prod(instruction.shapes[0].dims) * math.prod(left.dims[axis] for axis in axes)


def _convolution(computation: Computation, instruction: Instruction) -> float:
    """On TPU every matrix product is a convolution; taps that meet padding or dilation zeros are not counted."""
    left, kernel, out = _operand(computation, instruction, 0), _operand(computation, instruction, 1), instruction.shapes[0]
    match = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if not match:
        raise ValueError(f"a convolution without dim_labels: {instruction.name}")
    left_labels, kernel_labels, out_labels = match.groups()
    groups = int(instruction.attribute("batch_group_count") or 1)
    flops = 2.0 * left.dims[left_labels.index("b")] / groups * kernel.dims[kernel_labels.index("i")] * out.dims[out_labels.index("f")]
    window = re.search(r"window=\{([^}]*)\}", instruction.rest)
    spatial = [label for label in left_labels if label.isdigit()]
    fields = dict(field.split("=", 1) for field in window[1].split()) if window else {}
    for axis in sorted(spatial):
        position = int(axis)
        size = left.dims[left_labels.index(axis)]
        taps, outputs = kernel.dims[kernel_labels.index(axis)], out.dims[out_labels.index(axis)]
        stride, left_dilation, kernel_dilation = (_field(fields, name, position) for name in ("stride", "lhs_dilate", "rhs_dilate"))
        low = int(fields["pad"].split("x")[position].split("_")[0]) if "pad" in fields else 0
        flops *= _valid_taps(size, taps, outputs, stride, left_dilation, kernel_dilation, low)
    return flops


def _field(fields: dict[str, str], name: str, position: int) -> int:
    return int(fields[name].split("x")[position]) if name in fields else 1


def _valid_taps(size: int, taps: int, outputs: int, stride: int, left_dilation: int, kernel_dilation: int, low: int) -> int:
    """How many (output, tap) pairs of one spatial axis read a real element."""
    last = (size - 1) * left_dilation
    count = 0
    for tap in range(taps):
        for output in range(outputs):
            position = output * stride + tap * kernel_dilation - low
            count += 0 <= position <= last and position % left_dilation == 0
    return count


def _splash(computation: Computation, instruction: Instruction) -> float:
    """A splash kernel's products over the full square of positions: blocks that a mask skips are counted as if computed."""
    name = instruction.name + instruction.op_name
    products = next((count for part, count in SPLASH_PRODUCTS.items() if f"_{part}" in name), 0)
    arrays = [_operand(computation, instruction, i) for i in range(len(instruction.operands))]
    q, k = [x for x in arrays if x.dtype in ("bf16", "f32") and len(x.dims) >= 3][:2]
    return 2.0 * products * math.prod(q.dims) * k.dims[-2]


# Collectives


def _collective(computation: Computation, instruction: Instruction) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    if computation.name.startswith("all-reduce-scatter"):  # a fusion that keeps its own part of the sum
        kind = "reduce-scatter"
    arrays = [_operand(computation, instruction, i) for i in range(len(instruction.operands))]
    sent = sum(shape.bytes for shape in arrays)
    group = group_size(instruction.rest)
    largest = max((*instruction.shapes, *arrays), key=lambda shape: shape.bytes)
    share = (group - 1) / group if group else 1.0
    received = {
        "all-gather": sent * ((group or 2) - 1),
        "reduce-scatter": sent * share,
        "all-reduce": 2 * sent * share,
        "all-to-all": sent * share,
        "ragged-all-to-all": sent * share,
    }.get(kind, sent)
    return Collective(kind, instruction.op_name, f"{largest.dtype}{list(largest.dims)}", group, received, 1.0)


def group_size(rest: str) -> int:
    """Devices per replica group, from any of HLO's three notations; 0 when no groups are given."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", match[2]))
    return 0


# HBM traffic


def _hbm_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith(("-done", "-update")):
        return 0.0
    if opcode.endswith("-start"):  # its type is (operand, result, context): the result is written, the operand read
        written = sum(s.bytes for s in instruction.shapes[1:2] if s.space == 0)
        return written + sum(s.bytes for s in instruction.shapes[:1] if s.space == 0)
    arrays = [_operand(computation, instruction, i) for i in range(len(instruction.operands))]
    written = sum(shape.bytes for shape in instruction.shapes if shape.space == 0)
    if opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * written
    if opcode == "dynamic-update-slice":
        return 2 * arrays[1].bytes
    if opcode != "fusion":
        return written + sum(shape.bytes for shape in arrays if shape.space == 0)
    inner = module.computations[instruction.attribute("calls") or ""]
    operands = zip(inner.parameters(), arrays, strict=False)
    reads = [_read(module, inner, parameter, shape) for parameter, shape in operands if shape.space == 0]
    root = inner.instructions[inner.root]
    results = [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    writes = [_written(module, inner, result) for result, shape in zip(results, instruction.shapes, strict=False) if shape.space == 0]
    return sum(reads) + sum(writes)


def _read(module: Module, inner: Computation, parameter: Instruction, shape: Shape) -> float:
    """The bytes of a fusion's operand that it reads: a slice of a stack of layers, not the stack; nothing where it is updated in place."""
    total = 0.0
    for user in inner.users(parameter.name):
        if user.opcode in ("dynamic-slice", "gather", "slice") and user.operands[0] == parameter.name:
            total += user.bytes
        elif _is_view(module, user):
            total += _read(module, inner, user, shape)
        elif user.opcode == "fusion":
            nested = module.computations[user.attribute("calls") or ""]
            places = [p for p, operand in zip(nested.parameters(), user.operands, strict=False) if operand == parameter.name]
            total += sum(_read(module, nested, place, shape) for place in places)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != parameter.name:
            return shape.bytes
    return min(shape.bytes, total)


def _is_view(module: Module, instruction: Instruction) -> bool:
    """Whether an instruction within a fusion only arranges its operand anew: what reads a slice of it reads a slice of the operand."""
    if instruction.opcode == "fusion":
        nested = module.computations[instruction.attribute("calls") or ""]
        return len(nested.parameters()) == 1 and all(i.opcode == "parameter" or _is_view(module, i) for i in nested.instructions.values())
    return instruction.opcode in ("bitcast", "copy")


def _written(module: Module, inner: Computation, result: Instruction) -> float:
    """The bytes a fusion writes for one result: the update alone where it is written into a larger array in place."""
    while result.opcode == "bitcast":
        result = inner.instructions[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        return _operand(inner, result, 1).bytes
    if result.opcode == "fusion":
        nested = module.computations[result.attribute("calls") or ""]
        return _written(module, nested, nested.instructions[nested.root])
    return result.bytes


def _operand(computation: Computation, instruction: Instruction, index: int) -> Shape:
    """The type of an operand that is an array; a tuple's leaves count as one."""
    operand = computation.instructions[instruction.operands[index]]
    if len(operand.shapes) == 1:
        return operand.shapes[0]
    return Shape("u8", (int(operand.bytes),), max((shape.space for shape in operand.shapes), default=0))


def _integers(text: str | None) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text or "")]
