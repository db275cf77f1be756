"""What a compiled program consists of, read from its text in XLA's HLO.

Of each kernel (a fusion, a custom call or an operation by itself): how often it runs, the bytes that it reads and
writes, and its operations. What a fusion takes only a part of, such as a slice of a stack, counts by that part, and
what is written into an array that stays where it is by what is written.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_BITS = {"pred": 8, "bf16": 16}

# Neither read nor written: they are names of what is there, or run other computations, which are counted themselves.
_FREE = "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id"
_MOVES = "copy copy-start transpose reshape broadcast slice dynamic-slice dynamic-update-slice concatenate pad iota"
_MOVES += f" convert reverse gather {_FREE}"
_TRANSCENDENTAL = "exponential exponential-minus-one log log-plus-one tanh rsqrt sqrt cosine sine power logistic divide"
_FREE, _MOVES, _TRANSCENDENTAL = (frozenset(names.split()) for names in (_FREE, _MOVES, _TRANSCENDENTAL))


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """Element type and dimensions of each array of the result, which is a tuple where there are several."""
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    """All that stands behind the operands."""
    is_root: bool

    @property
    def bytes(self) -> int:
        """Of the result."""
        return sum(_bits(dtype) * math.prod(shape) // 8 for dtype, shape in self.shapes)

    @property
    def elements(self) -> int:
        """Of the result."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def attribute(self, name: str) -> str:
        """Returns the value of an attribute that is a name, such as `calls`; '' where there is none."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        """Returns the value of an attribute that is a list of numbers in braces."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(each) for each in found[1].split(",") if each) if found else ()

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]
"""Instructions by name, in their order."""


class Kernel(NamedTuple):
    """What the device runs at once."""

    name: str
    op_name: str
    opcodes: frozenset[str]
    """Of all instructions in it."""
    runs: int
    """How often it runs in the program."""
    read: int
    written: int
    """`read` and `written`: bytes of a run, each once."""
    matmul: int
    """Floating-point operations of a run's matmuls; a multiplication and an addition are two."""
    computes: int
    """Elements that a run computes, but by a matmul; 0 where it only moves them."""
    transcendental: int
    """Those among them that are divided, exponentials, roots and the like."""
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """Of the results."""
    operands: tuple[tuple[str, tuple[int, ...]], ...]
    """Element type and dimensions of each array that is given."""

    @property
    def bytes(self) -> int:
        """Read and written by a run."""
        return self.read + self.written


def parse(text: str) -> tuple[Mapping[str, Computation], str]:
    """Returns the computations of a module by name, and the name of the entry."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.split("\n"):
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line)
        if head and not line.startswith(" "):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line == "}":
            current = None
        elif current is not None and " = " in line:
            one = _instruction(line)
            current[one.name] = one
    return computations, entry


def kernels(text: str) -> list[Kernel]:
    """Returns all kernels of a compiled module, in order, of which those in loops run as often as the loops."""
    computations, entry = parse(text)
    return list(_kernels(computations, entry, 1))


def _kernels(computations: Mapping[str, Computation], name: str, runs: int) -> Iterator[Kernel]:
    for one in computations[name].values():
        if one.opcode == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', one.attributes)
            if not trips:
                raise ValueError(f"{one.name}: it is not known how often this loop runs")
            yield from _kernels(computations, one.attribute("body"), runs * int(trips[1]))
        elif one.opcode == "call":
            yield from _kernels(computations, one.attribute("to_apply"), runs)
        elif one.opcode == "conditional":
            raise ValueError(f"{one.name}: which branch runs is not known")
        elif one.opcode not in _FREE and not one.opcode.endswith("-done"):
            yield _kernel(computations, computations[name], one, runs)


def _kernel(computations: Mapping[str, Computation], around: Computation, one: Instruction, runs: int) -> Kernel:
    operands = [around[each] for each in one.operands]
    called = one.attribute("calls")
    if called and one.opcode.startswith(("fusion", "async")):
        inside = _within(computations, called)
        read, written = _traffic(computations, called)
        root = next(each for each in computations[called].values() if each.is_root)
        matmul = sum(_matmul(each, body) for body, each in inside)
        computes = [(body, each) for body, each in inside if _is_arithmetic(each)]
        opcodes = frozenset(each.opcode for _, each in inside)
        op_name = one.op_name or root.op_name
        shapes = root.shapes
    else:
        read, written = sum(each.bytes for each in operands), one.bytes
        matmul, opcodes, op_name, shapes = _matmul(one, around), frozenset([one.opcode]), one.op_name, one.shapes
        computes = [(around, one)] if _is_arithmetic(one) else []
    elements = sum(_work(each, body) for body, each in computes)
    hard = sum(each.elements for _, each in computes if each.opcode in _TRANSCENDENTAL)
    given = tuple(shape for each in operands for shape in each.shapes)
    return Kernel(one.name, op_name, opcodes, runs, read, written, matmul, elements, hard, shapes, given)


def _within(computations: Mapping[str, Computation], name: str) -> list[tuple[Computation, Instruction]]:
    """Returns the instructions of a fused computation, and of those that are fused within it."""
    found = []
    for one in computations[name].values():
        inner = one.attribute("calls")
        found += _within(computations, inner) if inner else [(computations[name], one)]
    return found


def _traffic(computations: Mapping[str, Computation], name: str) -> tuple[int, int]:
    """Returns the bytes that a fused computation reads and writes."""
    body = computations[name]
    root = next(one for one in body.values() if one.is_root)
    results = [body[each] for each in root.operands] if root.opcode == "tuple" else [root]
    needed = _needed(computations, name, {each.name: float(each.elements) for each in results})
    parameters = [one for one in body.values() if one.opcode == "parameter"]
    read = sum(needed.get(one.name, 0.0) * _bits(one.shapes[0][0]) / 8 for one in parameters if one.shapes)
    return round(read), sum(_written(body, each) for each in results)


def _written(body: Computation, one: Instruction) -> int:
    """Returns the bytes that are written of a result: of an array that is updated where it stays, the update alone."""
    while one.opcode in ("bitcast", "reshape", "copy") and body[one.operands[0]].opcode in _IN_PLACE:
        one = body[one.operands[0]]
    if one.opcode in _IN_PLACE:
        return body[one.operands[_IN_PLACE[one.opcode]]].bytes
    return 0 if one.opcode == "parameter" else one.bytes


_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}


def _needed(computations: Mapping[str, Computation], name: str, wanted: Mapping[str, float]) -> dict[str, float]:
    """Returns how many elements of each instruction are needed for those of the results that are wanted."""
    body, needed = computations[name], dict(wanted)
    for one in reversed(body.values()):
        want = min(needed.get(one.name, 0.0), one.elements)
        if not want:
            continue
        share = want / one.elements
        inner = one.attribute("calls")
        if inner:
            inside = computations[inner]
            root = next(each for each in inside.values() if each.is_root)
            of_inner = _needed(computations, inner, {root.name: want})
            parameters = {_number(each): each.name for each in inside.values() if each.opcode == "parameter"}
        for place, operand in enumerate(one.operands):
            whole = body[operand].elements
            if inner:
                part = of_inner.get(parameters[place], 0.0)
            elif one.opcode in ("slice", "dynamic-slice", "gather") and place == 0:
                part = want
            elif one.opcode == "dynamic-update-slice" and place == 0:
                part = 0.0
            elif one.opcode == "scatter" and place == 0:
                part = body[one.operands[2]].elements  # Added to, and so read, where something is added.
            elif one.opcode == "concatenate" or whole > one.elements:  # A reduction, or a dot.
                part = share * whole
            elif one.opcode in ("dot", "scatter", "dynamic-update-slice"):
                part = whole
            else:
                part = min(want, whole)
            needed[operand] = min(needed.get(operand, 0.0) + part, whole)
    return needed


def _number(parameter: Instruction) -> int:
    return int(parameter.attributes.partition(")")[0]) if parameter.opcode == "parameter" else -1


def _matmul(one: Instruction, body: Computation) -> int:
    if one.opcode != "dot":
        return 0
    left = body[one.operands[0]].shapes[0][1]
    return 2 * one.elements * math.prod(left[axis] for axis in one.numbers("lhs_contracting_dims"))


def _is_arithmetic(one: Instruction) -> bool:
    """Returns whether an instruction computes on numbers; indices are integers."""
    is_index = all(dtype.startswith(("s", "u", "pred")) for dtype, _ in one.shapes)
    return not is_index and one.opcode not in _MOVES and one.opcode not in ("custom-call", "dot")


def _work(one: Instruction, body: Computation) -> int:
    """Returns the elements that an instruction computes."""
    if one.opcode == "dot":
        return 0
    operands = [body[each].elements for each in one.operands if each in body]
    return max(operands, default=0) if one.opcode == "reduce" else one.elements


def _instruction(line: str) -> Instruction:
    left, _, right = line.partition(" = ")
    name = left.replace("ROOT", "").strip().lstrip("%")
    right = re.sub(r"/\*.*?\*/", "", right)
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    opcode = rest[: rest.index("(")]
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    if opcode in ("parameter", "constant"):
        operands, attributes = (), f"{inside}){rest[close + 1 :]}"
    else:
        operands, attributes = tuple(re.findall(r"%([\w.\-]+)", inside)), rest[close + 1 :]
    return Instruction(name, _shapes(shape), opcode, operands, attributes, "ROOT" in left)


def _shapes(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    found = re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", text)
    return tuple((dtype, tuple(int(each) for each in dims.split(",") if each)) for dtype, dims in found)


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 0


def _closing(text: str, start: int) -> int:
    """Returns the place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"a bracket is not closed: {text[:80]}")
