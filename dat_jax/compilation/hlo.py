"""Reads compiled HLO text: what a program computes, moves and communicates, with every loop counted as often as it runs.

XLA's own cost analysis counts a loop body once, so for a step that is a loop of loops it is wrong by orders of magnitude. Here the module
is parsed into computations, and costs are added up from the entry: a loop multiplies by its trip count, which is read from its condition
and body; of a conditional's branches the costliest counts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s64": 8, "u64": 8, "c64": 8, "f64": 8, "c128": 16, "token": 0, "opaque": 0, "bf16": 2}
_LEAF = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{[^}]*?(?:S\((\d+)\))?\})?")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's type and the memory it lives in: 0 is HBM, 1 the vector memory on the chip, others are small or on the host."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> float:
        """Size without padding."""
        digits = re.search(r"\d+", self.dtype)
        size = BYTES.get(self.dtype, int(digits[0]) / 8 if digits and not self.dtype.startswith("f8") else 1)
        return size * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO; `text` holds what stands between the operands' brackets, `rest` the attributes behind them."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # the leaves of its type
    operands: tuple[str, ...]
    text: str
    rest: str

    def attribute(self, name: str) -> str | None:
        """The value of `name=...`, without braces; None where it is absent."""
        match = re.search(rf"(?:^|[\s,]){name}=(?:\{{([^{{}}]*)\}}|\"([^\"]*)\"|%?([^\s,]+))", self.rest)
        return next((group for group in match.groups() if group is not None), "") if match else None

    @functools.cached_property
    def op_name(self) -> str:
        """Where in the program it comes from: jit(train_step)/attack/while/body/..."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""

    @property
    def bytes(self) -> float:
        """Size of all leaves."""
        return sum(shape.bytes for shape in self.shapes)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions; the last or marked one is its root."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def parameters(self) -> list[Instruction]:
        """The parameters in the order of the caller's operands."""
        return sorted((i for i in self.instructions.values() if i.opcode == "parameter"), key=lambda i: int(i.text))

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read `name`."""
        return [i for i in self.instructions.values() if name in i.operands]


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program."""

    computations: dict[str, Computation]
    entry: str


_END = re.compile(r"\}(, execution_thread=\"\w+\")?")  # of a computation; a TPU7x's collectives run in a thread of its sparse cores


def parse(text: str) -> Module:
    """Parses the text of a compiled module (`compiled.as_text()`). Raises ValueError when it holds no entry computation."""
    computations: dict[str, Computation] = {}
    entry, name, root, lines = "", "", "", {}  # type: ignore[var-annotated]
    for line in _logical_lines(text):
        if line.endswith("{") and (header := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line)):
            name, root, lines = header[2], "", {}
            entry = name if header[1] else entry
        elif _END.fullmatch(line) and name:
            computations[name] = Computation(name, lines, root or next(reversed(lines)))
            name = ""
        elif name and (instruction := _instruction(line)):
            lines[instruction.name] = instruction
            root = instruction.name if line.lstrip().startswith("ROOT ") else root
    if not entry:
        raise ValueError("the text is no HLO module: it has no ENTRY computation")
    return Module(computations, entry)


def _logical_lines(text: str) -> Iterator[str]:
    """Lines with the continuations of an instruction (a kernel's metadata holds line ends) joined to it."""
    whole = ""
    for line in text.splitlines():
        if line.startswith(("  ", "%", "ENTRY ", "HloModule")) or not line or _END.fullmatch(line):
            yield whole
            whole = line
        else:
            whole += line
    yield whole


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"^\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    start = match.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opcode = re.match(r"\s*([\w\-]+)\(", line[end:])
    if not opcode:
        return None
    opened = end + opcode.end() - 1
    closed = _closing(line, opened)
    inside = line[opened + 1 : closed]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(match[1], opcode[1], tuple(shapes(line[start:end])), operands, inside, line[closed + 1 :])


def _closing(text: str, opened: int) -> int:
    depth = 0
    for index in range(opened, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"unbalanced brackets in HLO: {text[:120]}")


def shapes(text: str) -> Iterator[Shape]:
    """The arrays in the text of a type, outermost first."""
    for dtype, dims, space in _LEAF.findall(text):
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        yield Shape(dtype, sizes, int(space or 0))


# Trip counts


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often the body of a while loop runs; None where its text does not tell.

    The condition compares a counter with a bound; start and step of the counter come from the loop's operand and the body's result. A
    further term of the condition (all rows have stopped) can only end a loop earlier: the count is then the most it can be.
    """
    known = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition = module.computations[loop.attribute("condition") or ""]
    body = module.computations[loop.attribute("body") or ""]
    for compare, scope in _comparisons(module, condition):
        left, right = (_origin(module, condition, scope, operand) for operand in compare.operands)
        found = compare.attribute("direction") or ""
        mirrored = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}.get(found, found)
        for counter, bound, direction in ((left, right, found), (right, left, mirrored)):
            if not isinstance(counter, int) or direction not in ("LT", "LE", "GT", "GE", "NE"):
                continue
            start = _initial(module, computation, loop, counter)
            step = _step(module, body, counter)
            limit = _initial(module, computation, loop, bound) if isinstance(bound, int) else _number(bound)
            if start is not None and limit is not None and step:
                limit += {"LE": 1, "GE": -1}.get(direction, 0)
                return max(0, math.ceil((limit - start) / step))
    return None


def _comparisons(module: Module, condition: Computation) -> Iterator[tuple[Instruction, list[tuple[Computation, Instruction]]]]:
    """The comparisons that must all hold for another turn, each with the fusions it is nested in."""
    pending: list[tuple[Computation, str, list[tuple[Computation, Instruction]]]] = [(condition, condition.root, [])]
    while pending:
        where, name, scope = pending.pop()
        instruction = where.instructions[name]
        if instruction.opcode == "compare":
            yield instruction, [*scope, (where, instruction)]
        elif instruction.opcode in ("and", "copy", "bitcast", "convert"):
            pending += [(where, operand, scope) for operand in instruction.operands]
        elif instruction.opcode in ("fusion", "call"):
            inner = module.computations[instruction.attribute("calls") or instruction.attribute("to_apply") or ""]
            pending.append((inner, inner.root, [*scope, (where, instruction)]))


def _origin(module: Module, condition: Computation, scope: list[tuple[Computation, Instruction]], name: str) -> int | str | None:
    """A value of a loop's condition: the index of the loop variable it is, or the text of the constant it is."""
    level = len(scope) - 1
    where = scope[level][0]
    for _ in range(64):
        instruction = where.instructions.get(name)
        if instruction is None:
            return None
        if instruction.opcode == "constant":
            return instruction.text
        if instruction.opcode in ("copy", "bitcast", "convert", "reshape") and instruction.operands:
            name = instruction.operands[0]
        elif instruction.opcode == "get-tuple-element":
            return int(instruction.attribute("index") or 0)
        elif instruction.opcode == "parameter" and level > 0:
            level -= 1
            where, caller = scope[level]
            name = caller.operands[int(instruction.text)]
        else:
            return None
    return None


def _initial(module: Module, computation: Computation, loop: Instruction, index: int) -> float | None:
    """The constant that loop variable `index` starts from."""
    operand = computation.instructions.get(loop.operands[0])
    while operand is not None and operand.opcode in ("copy", "bitcast", "opt-barrier"):
        operand = computation.instructions.get(operand.operands[0])
    if operand is None or operand.opcode != "tuple":
        return None
    return _number(_constant(module, computation, operand.operands[index]))


def _constant(module: Module, computation: Computation, name: str) -> str | None:
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert", "reshape", "broadcast"):
        instruction = computation.instructions.get(instruction.operands[0])
    if instruction is None:
        return None
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.attribute("calls") or ""]
        return _constant(module, inner, inner.root)
    return instruction.text if instruction.opcode == "constant" else None


def _step(module: Module, body: Computation, index: int) -> float | None:
    """What one turn adds to loop variable `index`."""
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return None
    where, name, caller = body, root.operands[index], None
    for _ in range(64):
        instruction = where.instructions.get(name)
        if instruction is None:
            return None
        if instruction.opcode in ("copy", "bitcast", "convert", "reshape"):
            name = instruction.operands[0]
        elif instruction.opcode == "fusion" and caller is None:
            caller, where = instruction, module.computations[instruction.attribute("calls") or ""]
            name = where.root
        elif instruction.opcode in ("add", "subtract"):
            amounts = [_number(_constant(module, where, operand)) for operand in instruction.operands]
            if caller is not None:  # a constant may come in as the fusion's operand
                inputs = [where.instructions[operand] for operand in instruction.operands]
                amounts += [_number(_constant(module, body, caller.operands[int(i.text)])) for i in inputs if i.opcode == "parameter"]
            amount = next((a for a in amounts if a is not None), None)
            return None if amount is None else amount if instruction.opcode == "add" else -amount
        else:
            return None
    return None


def _number(text: str | int | None) -> float | None:
    try:
        return float(text) if isinstance(text, str) else None
    except ValueError:
        return None
