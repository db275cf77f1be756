"""What a step recomputes and in how many parts it is computed, so that it fits the device's memory.

Neither changes what a run learns. The cheapest combination that fits is chosen at the start of a run: by an estimate,
or, where the run is long and on a GPU, by timing a few (`timed_step`). It is printed on the run's screen, and kept in
its record: a resumed run computes with the same. On the GPU at hand a step fits if it does as the compiler has it; the
formula of `memory` says in which order they are compiled, and which need not be. Where there is only a GPU's name, the
formula decides.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxformer.attention.dispatch import (
    Choice,
    Implementation,
    choose_implementation,
    compare_with_xla,
    implementation_from,
)
from jaxformer.attention.document_mask import limit_window
from jaxformer.attention.support import AttentionShape
from jaxformer.config import UserError, did_you_mean, replace, require
from jaxformer.data.packing import Batch
from jaxformer.devices.device import MEMORY_GB, device_memory, memory_gigabytes, named_has_bfloat16
from jaxformer.devices.fastest import Fastest, take_fastest
from jaxformer.devices.mesh import DATA, FSDP, MeshConfig, check_rows
from jaxformer.devices.multihost import all_max, all_min, from_first
from jaxformer.experiment.experiment import Experiment, attention_shapes, run_mesh, shapes_of, spans_of, training_flops
from jaxformer.flops import forward_operations, training_flops_per_token
from jaxformer.host.console import format_size, print_notice, print_wrapped
from jaxformer.host.files import read_json
from jaxformer.host.gpu_memory import memory_fraction
from jaxformer.loss_kernels import TILES, why_not
from jaxformer.model import SAVED, ModelConfig, plain_block
from jaxformer.plan.compiled_step import compiled_bytes, lower_steps
from jaxformer.plan.memory import StepMemory, Target, admits_loss_kernels, step_memory
from jaxformer.plan.timed_loss import with_kept_loss
from jaxformer.run.identity import timed_with
from jaxformer.step import compute_dtype

# Shares of what JAX may take of the memory. A step may take the first by the formula, which is right within a tenth but
# for parts that make much within a layer; or the second as it is compiled: beside it there are the batch that comes
# next and what lies between arrays. Below the third and above the fourth the formula decides, since compiling takes
# time: the least that it saw of a compiled step was a third (an attention that made the logits of all rows at once,
# compiled for a CPU).
_MARGIN, _MARGIN_COMPILED, _FITS_BY_FORMULA, TOO_MUCH_BY_FORMULA = 0.9, 0.95, 0.3, 1.25

# Time that recomputing all elementwise operations adds to a step of a CPU, as a share: assumed.
_ELEMENTWISE_COST = 0.01

# Time that a GPU's blocks take, as a share of the step without it, to write what they keep into stacks and to read it
# there, where they are a loop. Predicted of an H100 by its bandwidth, from compiled steps of 27 to 500 million
# parameters. `none` takes as long as `elementwise` without one, and a tenth more memory than the formula says.
_LOOP_COST = {"none": 0.2, "elementwise": 0.12, "feed_forward": 0.08, "block": 0.01}

# Depth up to which a GPU's blocks are no loop: 42 of them take half a minute to compile, in place of ten seconds.
MOST_UNROLLED = 64

# Tokens in whose time the gradients of a micro-batch are added up, 12 bytes a parameter: the operations of an H100 per
# byte of its memory, 295, at 40 % of its peak, over 6 a token and parameter.
_ACCUMULATION_TOKENS = 240


@dataclass(frozen=True)
class Fit:
    """One way to compute a step on a device."""

    experiment: Experiment
    """With its `remat` and `micro_batches` set."""
    target: Target
    cost: float
    """Time that it adds to a step that recomputes nothing and has one part, as a share of that: estimated."""
    compiled: int = 0
    """Bytes at the peak as the step is compiled; 0 where it was not, or the compiler does not tell."""
    program: jax.stages.Compiled | None = None
    """The step as it is compiled, of a run with phases the first one's."""
    timed: str = ""
    """That it is the fastest, as it was timed; '' where the estimate chose."""

    @property
    def remat(self) -> str:
        """What its blocks recompute."""
        return self.experiment.model.remat

    @property
    def micro_batches(self) -> int:
        """In how many parts it is computed."""
        return self.experiment.training.micro_batches

    @property
    def scan_unroll(self) -> int:
        """How many of its blocks are an iteration of their loop; 0 leaves it to the model."""
        return self.experiment.model.scan_unroll

    @functools.cached_property  # A traced step takes longer than all else, and is of no use where there is no limit.
    def memory(self) -> StepMemory:
        """By formula; of a run with phases, that of the step which takes most."""
        memories = (step_memory(one, self.target) for one in shapes_of(self.experiment))
        return max(memories, key=lambda memory: memory.peak)

    @property
    def peak(self) -> int:
        """Bytes at the peak, as compiled if that is known, else by formula."""
        return self.compiled or self.memory.peak

    def __str__(self) -> str:
        text = f"remat {self.remat}, {self.micro_batches} micro-batch{'es' if self.micro_batches > 1 else ''}"
        return f"{text}, blocks unrolled" if self.scan_unroll >= self.experiment.model.depth else text


def computed_with(experiment: Experiment, remat: str, micro_batches: int, scan_unroll: int = 0) -> Experiment:
    """Returns the experiment with a `model.remat` and `training.micro_batches`, and the unrolling if it is open."""
    scan_unroll = experiment.model.scan_unroll or scan_unroll
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, remat=remat, scan_unroll=scan_unroll),
        training=dataclasses.replace(experiment.training, micro_batches=micro_batches),
    )


def device_at_hand(experiment: Experiment) -> Target:
    """Returns the device that JAX computes on, and how many of them the run takes.

    Raises:
        UserError: the devices of the mesh are not there, or the attention or the loss that is configured cannot run on
            them.
    """
    device, mesh = jax.local_devices()[0], run_mesh(experiment)
    if experiment.model.loss in TILES:
        refused = why_not(experiment.model.width, compute_dtype(experiment.training), device)
        require(not refused, f"model.loss = {experiment.model.loss!r} cannot run here: {refused}")
    shape, *others = attention_shapes(experiment, mesh.size)
    attention = choose_implementation(experiment.attention, shape, others=others).implementation.name
    dtype = compute_dtype(experiment.training)
    return Target(
        device.device_kind, device.platform, device_memory(), attention, dtype, mesh.shape[DATA], mesh.shape[FSDP]
    )


def device_to_come(experiment: Experiment) -> Target:
    """Returns the device that a run will compute on if it is started here; other processes' are like this one's.

    Raises:
        UserError: as `device_at_hand`, or the rows of a step do not divide among the devices.
    """
    if experiment.mesh.processes == 1:
        return device_at_hand(experiment)
    return _spread(device_at_hand(replace(experiment, {"mesh": MeshConfig()})), experiment)


def _spread(target: Target, experiment: Experiment) -> Target:
    """Returns as many devices as the mesh asks for; of an axis that takes what is left there is one."""
    data, fsdp = max(1, experiment.mesh.data), max(1, experiment.mesh.fsdp)
    for span in spans_of(experiment):
        check_rows(data, fsdp, span.rows_per_step, experiment.training.micro_batches or 1)
    return target._replace(data=data, fsdp=fsdp)


def named_device(experiment: Experiment, kind: str) -> Target:
    """Returns a GPU by its name, such as 'H100', with what JAX would take of its memory.

    Raises:
        UserError: it is not known, the loss that is configured cannot run on it, or the rows of a step do not divide
            among so many.
    """
    gigabytes = memory_gigabytes(kind)
    if gigabytes is None:
        raise UserError(f"unknown GPU {kind!r}{did_you_mean(kind, MEMORY_GB)}; known are {', '.join(MEMORY_GB)}")
    named, has_bfloat16, width = experiment.training.compute_dtype, named_has_bfloat16(kind), experiment.model.width
    dtype = jnp.dtype(("bfloat16" if has_bfloat16 else "float32") if named == "auto" else named)
    require(
        experiment.model.loss not in TILES or admits_loss_kernels(kind, dtype, width),
        f"model.loss = {experiment.model.loss!r} cannot run on {kind} with {dtype} and model.width {width}: it needs a "
        "GPU with bfloat16, matmuls of 16 bits and a width that 16 divides",
    )
    attention = experiment.attention.implementation
    if attention == "auto":
        can_flash = dtype == jnp.bfloat16 and experiment.model.K in (32, 64, 128) and has_bfloat16
        attention = "pallas" if can_flash else "xla"
    return _spread(Target(kind, "gpu", int(gigabytes * 1e9 * memory_fraction()), attention, dtype), experiment)


def fit_to_device(
    experiment: Experiment,
    target: Target,
    token_count: int,
    record: dict | None = None,
    *,
    attention: Implementation | None = None,
    fastest: Callable[[Experiment, Target, Callable[[Fit], Fit]], Fit | None] | None = None,
) -> tuple[Experiment, str]:
    """Returns the experiment as its step is computed here, and a text that says how.

    Args:
        target: the device at hand.
        token_count: ids that the tokenizer has.
        record: the `config.json` of the run so far: on the same device it goes on as it began, if that fits.
        attention: of the run; None as in `lower_steps`.
        fastest: returns the way that was timed to be the fastest, of an experiment, a target and `compiled_here`; None
            leaves it to the estimate.
    """
    # All processes compile the same, so they are to know the same; each has a device of its own.
    kind, attention_name, record = from_first((target.kind, target.attention, record))
    target = target._replace(kind=kind, attention=attention_name, memory=all_min(target.memory))
    fit, reason = None, "as configured"
    compiled = to_choose = compiled_here(experiment, target, token_count, attention)
    if experiment.model.remat != "auto" and experiment.training.micro_batches:
        to_choose = None  # The loop alone is open, which the formula decides.
    else:
        reason = "the cheapest that fits" if target.memory else "since its memory is not known"
    if record and target.is_recorded(record):
        as_before = choose_fit(opened := _recorded(experiment, record), target, to_choose)
        if not target.memory or fits(as_before):
            fit, reason = as_before, reason if opened == experiment else "as the run began"
    if fit is None and fastest and compiled and (fit := fastest(experiment, target, compiled)):
        reason = fit.timed
    fit = fit or choose_fit(experiment, target, to_choose)
    if target.memory and not fits(fit):
        print_notice(
            f"the run may need more memory than there is, {format_size(fit.peak)} of {format_size(target.memory)}, and "
            f"be killed; {advise(experiment, target)}"
        )
        reason = "as much as that saves"
    text = f"{fit}, {reason}"
    if target.memory:
        estimated, by = ("", " by the compiler") if fit.compiled else ("an estimated ", "")
        text = f"{estimated}{format_size(fit.peak)} of {format_size(target.memory)}{by}: {text}"
    return fit.experiment, text


def compiled_here(
    experiment: Experiment, target: Target, token_count: int, attention: Implementation | None = None
) -> Callable[[Fit], Fit] | None:
    """Returns the function that adds to a way what the compiler makes of it, with an attention, and says of it.

    It is None where there is no choice for the compiler to make: the memory of the device is not known, or the other
    processes of the run are not there; and on a CPU, of whose memory it knows less than the formula.
    """
    if not target.memory or target.platform == "cpu" or experiment.mesh.processes != jax.process_count():
        return None
    return functools.partial(_compiled, token_count, attention)


def _compiled(token_count: int, attention: Implementation | None, fit: Fit) -> Fit:
    print_wrapped(f"memory      compiling the step with {fit}: an estimated {format_size(fit.memory.peak)}")
    try:
        steps = lower_steps(fit.experiment, run_mesh(fit.experiment), token_count, attention)
        program, *others = [step.compile() for step in steps]
        size = max(map(compiled_bytes, (program, *others)))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        program, size = None, max(fit.target.memory, fit.memory.peak)  # More than there is; how much is not known.
    return dataclasses.replace(fit, compiled=all_max(size), program=program)


def _recorded(experiment: Experiment, record: dict) -> Experiment:
    """Returns the experiment with what a record says of what it leaves open."""
    values = {}
    for path, is_open in (("model.remat", "auto"), ("model.scan_unroll", 0), ("training.micro_batches", 0)):
        section, name = path.split(".")
        recorded = record.get("config", {}).get(section, {}).get(name, is_open)
        if path == "model.scan_unroll" and jax.default_backend() != "cpu":
            recorded = recorded or 1  # Runs that began before it was chosen had a loop.
        if getattr(getattr(experiment, section), name) == is_open:
            values[path] = recorded
    return replace(experiment, values)


def choose_fit(experiment: Experiment, target: Target, compiled: Callable[[Fit], Fit] | None = None) -> Fit:
    """Returns the cheapest way to compute a step that fits, among those that the experiment leaves open.

    Where none fits it is the one that takes the least memory, and where the memory is not known the fastest.

    Args:
        compiled: `compiled_here`; None for the formula alone.
    """
    if not target.memory:
        return next(ways(experiment, target))
    tried = []
    for fit in ways(experiment, target):
        if compiled and _FITS_BY_FORMULA < fit.memory.peak / target.memory <= TOO_MUCH_BY_FORMULA:
            fit = compiled(fit)
        if fits(fit):
            return fit
        tried.append(fit)
    return min(tried, key=lambda fit: fit.peak)


def fits(fit: Fit) -> bool:
    """Returns whether a step surely fits its device, whose memory is known."""
    return fit.peak <= (_MARGIN_COMPILED if fit.compiled else _MARGIN) * fit.target.memory


def ways(experiment: Experiment, target: Target, *, unrolls: Sequence[int] = ()) -> Iterator[Fit]:
    """Yields the ways to compute the steps that an experiment leaves open, the cheapest first.

    Args:
        unrolls: what `scan_unroll` may be where it is open; none for what the formula knows the memory of.
    """
    model, training, shapes = experiment.model, experiment.training, shapes_of(experiment)
    remats = [model.remat] if model.remat != "auto" else ["none", *SAVED]
    parts = [training.micro_batches]
    if not training.micro_batches:
        rows = math.gcd(*(one.training.rows_per_step for one in shapes))
        parts = [n for n in range(1, rows + 1) if rows % (n * target.devices) == 0]
    flops = [training_flops(one) for one in shapes]
    unrolls = (model.scan_unroll,) if model.scan_unroll else unrolls
    costs = {
        way: sum(x * _cost(one, target, *way) for x, one in zip(flops, shapes, strict=True)) / sum(flops)
        for remat in remats
        for count in parts
        for way in ((remat, count, unroll) for unroll in unrolls or (_unroll(model, target, remat, count),))
    }
    for way in sorted(costs, key=costs.__getitem__):
        yield Fit(computed_with(experiment, *way), target, costs[way])


def _unroll(model: ModelConfig, target: Target, remat: str, micro_batches: int) -> int:
    """Returns the `scan_unroll` of a step where it is open; 0 leaves it to the model.

    Without a loop, a GPU's step keeps as much as with it where something is recomputed, unless it is within the loop
    over micro-batches, or has parts: there up to twice as much was kept.
    """
    if target.platform == "cpu":
        return 0
    is_plain = plain_block(model) == model and target.attention != "xla"
    is_alone = micro_batches == 1 and target.fsdp == 1
    return model.depth if is_plain and is_alone and remat != "none" and model.depth <= MOST_UNROLLED else 1


def _cost(experiment: Experiment, target: Target, remat: str, micro_batches: int, scan_unroll: int) -> float:
    model, T = experiment.model, experiment.packing.row_length
    total, forward = training_flops_per_token(model, T), forward_operations(model, T)
    blocks = total / 3 - 2 * model.vocabulary_size * model.width
    recomputed = {"none": 0.0, "elementwise": 0.0, "feed_forward": forward.hidden, "block": blocks}[remat] / total
    if target.attention.startswith("cudnn") and remat in ("elementwise", "feed_forward"):  # Its forward pass as well.
        recomputed += (total / 3 - forward.matmuls) / total
    tokens = experiment.training.rows_per_step * T / micro_batches / target.devices
    added_up = _ACCUMULATION_TOKENS / tokens if micro_batches > 1 else 0.0
    if target.platform == "cpu":
        return recomputed + (_ELEMENTWISE_COST if remat != "none" else 0.0) + added_up
    is_loop = scan_unroll < model.depth // model.group
    return recomputed + (_LOOP_COST[remat] if is_loop else 0.0) + added_up


def advise_here(experiment: Experiment) -> str:
    """Returns `advise` for the device at hand."""
    target = device_at_hand(experiment)
    return advise(with_kept_loss(experiment, target), target)


def advise(experiment: Experiment, target: Target) -> str:
    """Returns what to set where a step did not fit a device: what would by the formula, or the least that there is.

    It is '' where the memory of the device is not known.
    """
    if not target.memory:
        return ""
    failed = choose_fit(experiment, target)
    opened = computed_with(experiment, "auto", 0)
    # What failed may have fitted by the formula, and others may share the device: what is taken must take much less.
    bound = min(_MARGIN * target.memory, 0.85 * failed.memory.peak)
    has = f"of {format_size(target.memory)}"
    open_ways = list(ways(opened, target))
    better = next((fit for fit in open_ways if fit.memory.peak <= bound), None)
    if better is not None:
        return f"set {_settings(better)}: an estimated {format_size(better.memory.peak)} {has}"
    smallest = min(open_ways, key=lambda fit: fit.memory.peak)
    return (
        f"the least that it needs is {format_size(smallest.memory.peak / _MARGIN)} {has}, with {_settings(smallest)}; "
        "lower packing.row_length or the size of the model, or take a larger device"
    )


def _settings(fit: Fit) -> str:
    return f"--training.micro_batches={fit.micro_batches} --model.remat={fit.remat}"


def choose_attention(experiment: Experiment, batches: Sequence[Batch], workdir: Path, devices: int = 1) -> Choice:
    """Returns the choice of the attention, compared on one of the devices and its rows of batches.

    Args:
        batches: one of each of `shapes_of`; on the first is timed what is not kept in the cache.
    """
    shape, *others = attention_shapes(experiment, devices)
    record = read_json(workdir / "config.json")
    try:
        is_here = record and record["config"]["attention"] and record["device"] == jax.devices()[0].device_kind
        recorded = implementation_from(record["attention"]) if record and is_here else None
    except (KeyError, TypeError) as error:
        path = workdir / "config.json"
        raise UserError(f"{path}: not the record of a run ({error!r}); move the run folder away") from error
    bounds = _document_bounds(batches[0], shape)

    def take(key: Mapping, time: Callable[[], Fastest]) -> Fastest | None:
        return take_fastest("attention", {**timed_with(), **key}, time)

    choice = choose_implementation(experiment.attention, shape, *bounds, recorded=recorded, others=others, take=take)
    for other, batch in zip(others, batches[1:], strict=True):
        compare_with_xla(choice.implementation, other, *_document_bounds(batch, other))
    # Each process has chosen by itself.
    return choice._replace(implementation=implementation_from(from_first(dataclasses.asdict(choice.implementation))))


def _document_bounds(batch: Batch, shape: AttentionShape) -> tuple[jax.Array, jax.Array]:
    """Returns where the documents of a batch's first rows start and end, as attention in a shape sees them."""
    starts_BT, ends_BT = (jnp.asarray(x[: shape.rows]) for x in (batch.document_starts_BT, batch.document_ends_BT))
    return limit_window(starts_BT, ends_BT, shape.window) if shape.window else (starts_BT, ends_BT)
