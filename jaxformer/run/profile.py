"""A profile of some steps: XLA's trace, and a table of the kernels that take the most time.

What a kernel does is read from the compiled step: its instructions keep the names of the traced code
(`jax.named_scope`), with `transpose(` around those of the backward pass. The events of a trace are kernels on a GPU,
and XLA's thunks on a CPU; thunks that only call others are left out.
"""

import collections
import contextlib
import itertools
import re
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData

from jaxformer.data.packing import Batch
from jaxformer.host.console import format_table, print_line, print_notice, shorten
from jaxformer.host.files import write_whole
from jaxformer.model import SCOPES
from jaxformer.run.progress import Progress
from jaxformer.step import TrainState

# Option of JAX: the key of cached programs includes the names in the code.
_NAMES_IN_KEY = "jax_compilation_cache_include_metadata_in_key"

# In the folder of a profile.
TABLE = "kernels.txt"

_PARTS = (*SCOPES, "loss", "optimizer", "metrics")
_MOST_ROWS, _COLUMNS = 10, 80

# Thunks that only call others.
_CALLING = re.compile(r"(while|call|conditional)(\.|$)")

# What an instruction does: the first of these that matches one of its operations, as XLA or JAX names them; and
# operations that only move numbers, as loops do for their conditions.
_OPERATIONS = {
    "communication": r"all-|reduce-scatter|collective",
    "matmul": r"dot|convolution|.*(gemm|matmul)",
    "custom call": r"custom-call",
    "look-up": r"gather|scatter",
    "softmax": r"exp(onential)?$",
    "reduction": r"reduce(?!-precision)",  # XLA's reduce-precision rounds each number alone.
}
_COPYING = (
    r"copy|transpose|bitcast|reshape|slice|dynamic|concat|pad|broadcast|convert|iota|tuple|get-tuple|parameter|constant|"
    r"fusion|while|conditional|mem(cpy|set)"
)


@contextlib.contextmanager
def profiled(
    jitted_step: Callable, steps: range, next_step: int, folder: Path, progress: Progress
) -> Iterator[Callable]:
    """Yields the jitted step of a run, with some steps traced; it computes the same.

    The trace and the table are written at the last of these steps; the device is idle where the trace begins and ends.
    A failure is reported and never ends the run.

    Args:
        steps: numbers, from 1, of those to trace; steps before `next_step` are left out.
        next_step: number of the step that is computed first.
        folder: made for the trace and the table.
        progress: leaves out time that is not training.
    """
    left = range(max(steps.start, next_step), steps.stop)
    if steps and not left and not (folder / TABLE).exists():
        print_notice(f"steps {steps[0]} to {steps[-1]} are not profiled: the run resumes at step {next_step}")
    if not left:
        yield jitted_step
        return
    numbers = itertools.count(next_step)
    begun: tuple[str, float] | None = None
    # Else the cache gives a program with the names of the code that was first compiled.
    is_named = jax.config.values[_NAMES_IN_KEY]
    jax.config.update(_NAMES_IN_KEY, True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        nonlocal begun
        number = next(numbers)
        if number == left[0]:
            print_line(f"steps {left[0]} to {left[-1]} are profiled: their pace includes the profiler")
            with _reported():
                hlo = jitted_step.lower(state, batch).compile().as_text()  # Compiled already, or needed anyway.
                jax.block_until_ready((state, batch))
                jax.profiler.start_trace(folder)
                begun = hlo, time.perf_counter()
        state, metrics = jitted_step(state, batch)
        if begun and number == left[-1]:
            jax.block_until_ready((state, metrics))
            (hlo, started), begun, ended = begun, None, time.perf_counter()
            with _reported():
                jax.profiler.stop_trace()
                write_table(folder, hlo, left, ended - started)
            progress.leave_out(time.perf_counter() - ended)
        return state, metrics

    try:
        yield step
    finally:
        jax.config.update(_NAMES_IN_KEY, is_named)
        if begun:
            with contextlib.suppress(Exception):
                jax.profiler.stop_trace()


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Of the profiler, the disk, or a trace in a new format.
        print_notice(f"no profile ({type(error).__name__}: {error}); the run goes on without it")


def write_table(folder: Path, hlo: str, steps: range, seconds: float) -> None:
    """Writes the table of the newest trace in a folder, and prints it.

    Args:
        hlo: text of the compiled step.
        steps, seconds: as of `kernel_table`.

    Raises:
        ValueError: the trace has no kernel of the step.
        OSError: the trace cannot be read, or the table not written.
    """
    trace = max(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    events = list(read_events(ProfileData.from_file(str(trace)), hlo.split(maxsplit=2)[1].rstrip(",")))
    if not events:
        raise ValueError(f"{trace} has no kernel of the step")
    table = "\n".join(kernel_table(events, read_instructions(hlo), steps, seconds))
    write_whole(folder / TABLE, f"{table}\n".encode())
    print_line(f"{table}\nThese lines are in {folder / TABLE}, beside the trace")


class Event(NamedTuple):
    """A kernel, or a thunk, that ran once."""

    device: str
    kernel: str
    instruction: str
    """Its name in the compiled step; '' where the trace has none."""
    op_name: str
    """As that of an `Instruction`, where the trace has it."""
    start: int
    """Nanoseconds, and so is `end`."""
    end: int
    times: int = 1
    """0 for another thread's part of a thunk that is already counted."""


class Instruction(NamedTuple):
    """An instruction of the compiled step."""

    op_name: str
    """The names of its code: 'jit(train_step)/transpose(jvp(attention))/dot_general'; '' where it has none."""
    operations: frozenset[str]
    """Its operation, or all that are fused in it, as XLA names them, and the targets of custom calls."""


def read_instructions(hlo: str) -> dict[str, Instruction]:
    """Returns the instructions of a compiled program by name; one without names from the code has its caller's.

    Args:
        hlo: its text, as of `jax.stages.Compiled.as_text`.
    """
    found: dict[str, Instruction] = {}
    bodies, body, places, callers = collections.defaultdict(list), "", {}, {}
    for line in hlo.splitlines():  # Fused instructions stand before the fusion.
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            body = header[1]
        elif match := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = .*?\s([a-z][\w-]*)\(", line):
            name, operation = match.groups()
            fused = re.search(r"\bcalls=%?([\w.-]+)", line)
            within: list[Instruction] = bodies[fused[1]] if fused else []
            # The last of a fusion is what it returns.
            op_names = [*re.findall(r'op_name="([^"]*)"', line), *(each.op_name for each in reversed(within))]
            targets = re.findall(r'custom_call_target="([^"]*)"', line)
            operations = frozenset([operation, *targets]).union(*(each.operations for each in within))
            found[name] = Instruction(next(filter(None, op_names), ""), operations)
            bodies[body].append(found[name])
            places[name] = body
            callers |= dict.fromkeys(re.findall(r"\b(?:calls|body|condition|to_apply)=%?([\w.-]+)", line), name)

    def named(name: str) -> Instruction:
        one, caller = found[name], callers.get(places[name])
        return one if one.op_name or caller is None else one._replace(op_name=named(caller).op_name)

    return {name: named(name) for name in found}


def read_events(profile: Any, module: str) -> Iterator[Event]:
    """Yields the events of a program in a trace, each once; on a GPU also copies, which belong to none.

    Args:
        profile: a `jax.profiler.ProfileData`.
        module: name of the program: 'jit_train_step'.
    """
    for plane in profile.planes:
        if plane.name == "/host:CPU":
            yield from _read_thunks(plane, module)
        for line in plane.lines if plane.name.startswith("/device:GPU:") else ():
            for event in line.events if line.name.startswith("Stream #") else ():
                stats = dict(event.stats)
                if stats.get("hlo_module", module) == module:
                    yield _event(event, stats, plane.name)


def _read_thunks(plane: Any, module: str) -> Iterator[Event]:
    """Yields the thunks of a program, and the parts that other threads do.

    A thunk may leave most of its work to regions of other threads: five sixths of the loss's matmul. A region has the
    number of the record that scheduled it, within a thunk or within another of its regions.
    """
    scheduled_by: dict[int, Event | int | None] = {}  # By the number of a record: a thunk, or the number of a region.
    pieces: list[tuple[int, int, int]] = []  # Number of a region, start and end.
    for line in plane.lines:
        thunk, region, since = None, None, 0
        for event in sorted(line.events, key=lambda one: (one.start_ns, -one.duration_ns)):
            stats, now = dict(event.stats), int(event.start_ns)
            if "hlo_op" in stats and not _CALLING.match(str(stats["hlo_op"])):
                if region is not None:
                    pieces.append((region, since, now))
                thunk, since = None, now + int(event.duration_ns)
                if stats.get("hlo_module") == module:
                    thunk = _event(event, stats, f"/device:CPU:{stats.get('device_ordinal', 0)}")
                    yield thunk
            elif event.name == "ThreadpoolListener::Record":
                scheduled_by[stats["_p"]] = thunk if thunk and now < thunk.end else region
            elif event.name == "ThreadpoolListener::StartRegion":
                region, since = stats["_c"], now
            elif event.name == "ThreadpoolListener::StopRegion" and region is not None:
                pieces.append((region, since, now))
                region = None
    for region, start, end in pieces:
        thunk = scheduled_by.get(region)
        while isinstance(thunk, int):
            thunk = scheduled_by.get(thunk)
        if thunk and start < end:
            yield thunk._replace(start=start, end=end, times=0)


def _event(event: Any, stats: Mapping[str, Any], device: str) -> Event:
    start = int(event.start_ns)
    end, instruction, op_name = start + int(event.duration_ns), str(stats.get("hlo_op", "")), str(stats.get("name", ""))
    return Event(device, event.name, instruction, op_name, start, end)


def part_of(op_name: str) -> str:
    """Returns the part of a step that an operation belongs to: the innermost of its names that is one, or 'other'."""
    words = re.split(r"[/()]", op_name.partition(";")[0])  # Of several that were merged, the first.
    return next((word.replace("_", "-") for word in reversed(words) if word in _PARTS), "other")


def describe(instruction: Instruction) -> str:
    """Returns what an instruction does: 'attention, backward: matmul'.

    Forward operations that the backward pass recomputes count as backward.
    """
    op_name, operations = instruction
    part = part_of(op_name)
    direction = ", backward" if "transpose(" in op_name else ", forward" if "jvp(" in op_name else ""
    found = [what for what, names in _OPERATIONS.items() if any(re.match(names, each) for each in operations)]
    if part not in ("attention", "loss") and "softmax" in found:
        found.remove("softmax")
    rest = "copy" if all(re.match(_COPYING, each) for each in operations) else "elementwise"
    return f"{part}{direction}: {[*found, rest][0]}"


def busy_nanoseconds(events: Iterable[Event]) -> int:
    """Returns how long at least one of a device's events was running."""
    total, end = 0, 0
    for event in sorted(events, key=lambda one: one.start):
        total += max(0, event.end - max(event.start, end))
        end = max(end, event.end)
    return total


def kernel_table(
    events: Collection[Event], instructions: Mapping[str, Instruction], steps: range, seconds: float
) -> list[str]:
    """Returns the largest kernels, the share of each part, and how busy the device was, in lines of 80 columns.

    Kernels that do the same and whose names differ only in a number, as in each layer, share a row with the name of the
    largest. Shares are of the time of all kernels together.

    Args:
        events: of all devices in the steps, at least one.
        steps: their numbers.
        seconds: that the steps took, without validations or saves.
    """
    times, counts = collections.defaultdict(collections.Counter), collections.Counter()
    parts, by_device = collections.Counter(), collections.defaultdict(list)
    for event in events:
        duration = event.end - event.start
        instruction = instructions.get(event.instruction) or _by_names(event)
        row = describe(instruction), re.sub(r"[._]\d+$", "", event.kernel)
        times[row][event.kernel] += duration
        counts[row] += event.times
        parts[part_of(instruction.op_name)] += duration
        by_device[event.device].append(event)
    total, per_step = parts.total(), len(steps) * len(by_device)
    largest = sorted(times, key=lambda row: -times[row].total())[:_MOST_ROWS]
    cells = [("share", "ms/step", "times", "what")]
    for row in largest:
        ns = times[row].total()
        cells.append((f"{ns / total:.1%}", f"{ns / 1e6 / per_step:.2f}", f"{counts[row] / per_step:.4g}", row[0]))
    table = format_table(cells, left=(3,))
    width = max(map(len, table)) + 2
    names = ["kernel", *(times[row].most_common(1)[0][0] for row in largest)]
    shares = ", ".join(f"{part} {each / total:.1%}" for part, each in parts.most_common())
    busy = sum(map(busy_nanoseconds, by_device.values())) / len(by_device) / 1e9
    return [
        f"profile of steps {steps[0]} to {steps[-1]}",
        *(f"{line:{width}}{shorten(name, _COLUMNS - width)}" for line, name in zip(table, names, strict=True)),
        *textwrap.wrap(f"by part: {shares}", _COLUMNS, subsequent_indent="  ", break_on_hyphens=False),
        f"a step took {seconds / len(steps) * 1e3:.1f} ms, and the device was busy for {busy / seconds:.0%} of it",
    ]


def _by_names(event: Event) -> Instruction:
    """Returns an instruction made of an event's names, for one that the compiled step lacks."""
    names = event.op_name.split("/")[-1].replace("_", "-"), event.kernel.lower()
    return Instruction(event.op_name, frozenset(filter(None, names)))
