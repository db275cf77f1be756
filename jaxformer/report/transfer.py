"""The predicted effect at the target of a change compared at several sizes: as text and as a picture."""

import math

from jaxformer.ablation import verdict
from jaxformer.ablation.transfer_result import Proposal, SizeResult, TransferResult
from jaxformer.host.console import format_duration, format_rows, plain, printable, wrap
from jaxformer.report.formatting import number, signed, with_error
from jaxformer.report.style import COLOURS, GREY, INK, make_figure
from jaxformer.statistics.significance import INTERIM_SEEDS
from jaxformer.statistics.transfer import CONFIDENCE, TransferVerdict
from jaxformer.statistics.transfer_design import POWER, Design

_COLOURS = {
    TransferVerdict.TRANSFERS: COLOURS[verdict.Word.KEEP],
    TransferVerdict.REVERSES: COLOURS[verdict.Word.REVERT],
    TransferVerdict.FADES: COLOURS[verdict.Word.EQUIVALENT],
    TransferVerdict.UNKNOWN: COLOURS[verdict.Word.UNDECIDED],
}


def describe_transfer(result: TransferResult, columns: int | None = None) -> list[str]:
    """Returns the lines of a result: the word, each size, the effect at the target, and what would decide it."""
    lines = [f"{result.verdict.value}  {printable(result.variant)}, at {printable(result.target)}"]
    paragraphs = [f"{printable(result.reason)}."]
    if result.prediction:
        target, same_sign = result.prediction.target, result.prediction.same_sign
        interval = f"[{signed(target.low)}, {signed(target.high)}]"
        paragraphs.append(
            f"At the target, {result.compute / result.counted[-1].compute:.3g} x the compute of the largest size, the "
            f"effect is {signed(target.mean)} {interval} bits per byte ({CONFIDENCE:.0%}), and has the same sign as at "
            f"the smallest size with a probability of {same_sign:.0%}, if the law holds beyond the sizes."
        )
    lines += [line for text in paragraphs for line in wrap(f"  {text}", columns, 2)]
    if result.sizes:
        lines += ["", *format_rows([_HEADINGS, *map(_row, result.sizes)], columns, left=(0, 4, 5)), ""]
    lines += [line for text in _notes(result) for line in wrap(f"  note: {text}", columns, 4)]
    return lines + (_designs(result, result.proposal, columns) if result.proposal else [])


_HEADINGS = ("parent", "compute", "seeds", "difference", "rate", "verdict there")


def _row(one: SizeResult) -> tuple[str, ...]:
    found, verdict = one.difference, one.comparison.verdict.word.value
    difference = with_error(found) if found else "not known"
    return plain(one.size, 26), f"{one.compute:.1e}", str(len(one.comparison.seeds)), difference, one.rates, verdict


def _notes(result: TransferResult) -> list[str]:
    """Returns the gaps of the result: untuned learning rates, and sizes that do not count."""
    notes = []
    if untuned := [one.size for one in result.counted if not one.is_tuned]:
        advice = "`jaxformer tune --experiment=SIZE`"
        notes.append(f"the learning rate of {', '.join(untuned)} is untuned, and may cause the trend; {advice}")
    notes += [f"{one.size} does not count: {printable(one.why_not)}" for one in result.sizes if one.why_not]
    return [*notes, *(f"not read: {line}" for line in result.unread)]


def _designs(result: TransferResult, proposal: Proposal, columns: int | None) -> list[str]:
    """Returns the runs that would decide it; commands are on lines of their own, to be copied."""
    sizes, target, hint = proposal.designs
    about = f"an effect of {number(proposal.effect, 4)} bits per byte that is the same at all sizes"
    lines = wrap(f"  What would show {about}, with a probability of {POWER:.0%}:", columns, 4)
    if proposal.assumed:
        lines += wrap(f"  - assumed, since no run has shown it yet: {'; '.join(proposal.assumed)}", columns, 4)
    most = INTERIM_SEEDS[-1]
    limit = f"up to {most} seeds of each" if math.isinf(proposal.budget) else f"within {proposal.budget:g} device hours"
    none = f"no three sizes below the target are close enough to it, or they have {most} seeds already"
    for name, design, why_not in (
        ("at sizes", sizes, none),
        ("at the target itself", target, f"it has {most} seeds already"),
    ):
        if design is None:
            lines += wrap(f"  - {name}: {why_not}", columns, 4)
        elif proposal.suffices(design):
            lines += wrap(f"  - {name}: {_describe(proposal, design)}", columns, 4)
            lines += [f"      {line}" for line in result.commands(design)]
        else:
            what = "least" if design.hours > proposal.budget else "most"
            text = f"nothing suffices {limit}; the {what} is {_describe(proposal, design)}"
            lines += wrap(f"  - {name}: {text}, which show it with a probability of {design.power:.0%}", columns, 4)
    if hint:
        text = f"{_seeds(proposal, hint)} alone decide nothing: their sign matches the target's in {hint.power:.0%}"
        lines += wrap(f"  - {text}", columns, 4)
    return lines


def _seeds(proposal: Proposal, design: Design) -> str:
    pairs = zip(proposal.options, design.seeds_N, strict=True)
    return ", ".join(f"{seeds} seeds of {name}" for (name, _), seeds in pairs if seeds)


def _describe(proposal: Proposal, design: Design) -> str:
    hours = f"{format_duration(3600 * design.hours)} more of a device"
    return f"{_seeds(proposal, design)}; {hours if proposal.has_hours else f'{design.hours:.1e} operations more'}"


def draw_transfer(result: TransferResult):
    """Returns the picture: effects against compute, the law up to the target, and the interval there."""
    figure = make_figure(6.4, 4.0)
    axes = figure.subplots()
    colour = _COLOURS[result.verdict]
    if result.law:
        compute_L, law = result.law
        axes.fill_between(compute_L, law.low, law.high, color=colour, alpha=0.14, lw=0)
        axes.plot(compute_L, law.mean, color=colour, lw=1.3)
    for one in result.counted:
        if difference := one.difference:
            low, high = difference.interval(CONFIDENCE)
            axes.plot([one.compute] * 2, [low, high], color=INK, lw=1.1)
            axes.plot([one.compute], [difference.mean], "o", color=INK, ms=5)
            text = f"{plain(one.size, 20)}\n{len(one.comparison.seeds)} seeds"
            axes.annotate(text, (one.compute, high), (0, 4), textcoords="offset points", ha="center", fontsize=7)
    if result.prediction:
        target = result.prediction.target
        axes.plot([result.compute] * 2, [target.low, target.high], color=colour, lw=2.6)
        axes.plot([result.compute], [target.mean], "D", color=colour, ms=6)
        text = f"{plain(result.target, 20)}\n{result.verdict.value}"
        place = {"textcoords": "offset points", "ha": "right", "zorder": 1}
        axes.annotate(text, (result.compute, target.high), (-8, 2), color=colour, weight="bold", fontsize=8, **place)
        if math.isfinite(margin := result.prediction.margin):
            axes.axhspan(-margin, margin, color=GREY, alpha=0.1, lw=0)
    axes.axhline(0, color=INK, lw=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:.0e}")
    title = f"{plain(result.variant, 40)}: measured at sizes, predicted at the target ({CONFIDENCE:.0%})"
    axes.set(title=title, xlabel="training compute, floating-point operations")
    axes.set_ylabel("bits per byte, variant minus parent (lower is better)")
    axes.margins(x=0.09, y=0.16)
    return figure
