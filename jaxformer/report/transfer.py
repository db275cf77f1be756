"""What a question that was asked at several sizes came to at the target: as text and as a picture."""

import math

from jaxformer.ablation.transfer import Answer, Asked
from jaxformer.ablation.verdict import Word as Verdict
from jaxformer.host.console import format_duration, format_rows, plain, printable, wrap
from jaxformer.report.formatting import number, signed, with_error
from jaxformer.report.style import BEHIND, COLOURS, GREY, INK, make_figure
from jaxformer.statistics.significance import INTERIM_SEEDS
from jaxformer.statistics.transfer import CONFIDENCE, Word
from jaxformer.statistics.transfer_design import POWER, Design

_COLOURS = {
    Word.TRANSFERS: COLOURS[Verdict.KEEP],
    Word.REVERSES: COLOURS[Verdict.REVERT],
    Word.FADES: COLOURS[Verdict.EQUIVALENT],
    Word.UNKNOWN: COLOURS[Verdict.UNDECIDED],
}


def describe_transfer(answer: Answer, columns: int | None = None) -> list[str]:
    """Returns the lines of an answer: the word, each size, the effect at the target, and what would decide it."""
    lines = [f"{answer.word.value}  {printable(answer.variant)}, at {printable(answer.target)}"]
    paragraphs = [f"{printable(answer.reason)}."]
    if answer.found:
        target = answer.found.target
        interval = f"[{signed(target.low)}, {signed(target.high)}]"
        paragraphs.append(
            f"At the target, {answer.compute / answer.counted[-1].compute:.3g} x the compute of the largest size, the "
            f"effect is {signed(target.mean)} {interval} bits per byte ({CONFIDENCE:.0%}), and has the sign of that at "
            f"the smallest size with a probability of {answer.found.same_sign:.0%}, if no law breaks beyond the sizes."
        )
    lines += [line for text in paragraphs for line in wrap(f"  {text}", columns, 2)]
    lines += ["", *format_rows([_HEADINGS, *map(_row, answer.asked)], columns, left=(0, 4, 5)), ""]
    lines += [line for text in _notes(answer) for line in wrap(f"  note: {text}", columns, 4)]
    return lines + _designs(answer, columns)


_HEADINGS = ("parent", "compute", "seeds", "difference", "rate", "verdict there")


def _row(one: Asked) -> tuple[str, ...]:
    found, verdict = one.difference, one.comparison.verdict.word.value
    difference = with_error(found) if found else "not known"
    return plain(one.size, 26), f"{one.compute:.1e}", str(len(one.comparison.seeds)), difference, one.rates, verdict


def _notes(answer: Answer) -> list[str]:
    """Returns what the answer does not know: rates that nothing tuned, and sizes that do not count."""
    notes = []
    if untuned := [one.size for one in answer.counted if not one.is_tuned]:
        advice = "`jaxformer tune --experiment=SIZE`"
        notes.append(f"nothing tuned the learning rate of {', '.join(untuned)}: the trend may be one of it; {advice}")
    notes += [f"{one.size} does not count: {printable(one.why_not)}" for one in answer.asked if one.why_not]
    return [*notes, *(f"not read: {line}" for line in answer.unread)]


def _designs(answer: Answer, columns: int | None) -> list[str]:
    """Returns what would decide it; commands are on lines of their own, so that they can be copied."""
    if not (answer.designs and answer.found):
        return []
    sizes, target, hint = answer.designs
    about = f"an effect of {number(answer.effect, 4)} bits per byte that is the same at all sizes"
    lines = wrap(f"  What would show {about}, with a probability of {POWER:.0%}:", columns, 4)
    for name, design in (("at sizes", sizes), ("at the target itself", target)):
        if design is None:
            lines += wrap(f"  - {name}: there are no three below the target from which it is within reach", columns, 4)
        elif design.power >= POWER:
            lines += wrap(f"  - {name}: {_describe(answer, design)}", columns, 4)
            lines += [f"      {line}" for line in answer.commands(design)]
        else:
            text = f"nothing up to {INTERIM_SEEDS[-1]} seeds of each, for these hours; it is {design.power:.0%} with"
            lines += wrap(f"  - {name}: {text} {_describe(answer, design)}", columns, 4)
    if hint:
        lines += wrap(f"  - one size alone decides nothing: its sign is the target's in {hint.power:.0%}", columns, 4)
    return lines


def _describe(answer: Answer, design: Design) -> str:
    pairs = zip(answer.options, design.seeds_N, strict=True)
    seeds = ", ".join(f"{seeds} seeds of {name}" for (name, _), seeds in pairs if seeds)
    return f"{seeds}; {format_duration(3600 * design.hours)} more of a device"


def draw_transfer(answer: Answer):
    """Returns the picture: effects against compute, what is between them and the target, and the interval there."""
    figure = make_figure(6.4, 4.0)
    axes = figure.subplots()
    colour = _COLOURS[answer.word]
    if answer.law:
        compute_L, law = answer.law
        axes.fill_between(compute_L, law.low, law.high, color=colour, alpha=0.14, lw=0)
        axes.plot(compute_L, law.mean, color=colour, lw=1.3)
    for one in answer.counted:
        if difference := one.difference:
            low, high = difference.interval(CONFIDENCE)
            axes.plot([one.compute] * 2, [low, high], color=INK, lw=1.1)
            axes.plot([one.compute], [difference.mean], "o", color=INK, ms=5)
            text = f"{plain(one.size, 20)}\n{len(one.comparison.seeds)} seeds"
            axes.annotate(text, (one.compute, high), (0, 4), textcoords="offset points", ha="center", fontsize=7)
    if answer.found:
        target = answer.found.target
        axes.plot([answer.compute] * 2, [target.low, target.high], color=colour, lw=2.6)
        axes.plot([answer.compute], [target.mean], "D", color=colour, ms=6)
        text = f"{plain(answer.target, 20)}\n{answer.word.value}"
        place = {"textcoords": "offset points", "ha": "right", "bbox": BEHIND, "weight": "bold", "fontsize": 8}
        axes.annotate(text, (answer.compute, target.high), (-8, 2), color=colour, **place)
        if math.isfinite(margin := answer.found.margin):
            axes.axhspan(-margin, margin, color=GREY, alpha=0.1, lw=0)
    axes.axhline(0, color=INK, lw=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:.0e}")
    title = f"{plain(answer.variant, 40)}: measured at sizes, expected at the target ({CONFIDENCE:.0%})"
    axes.set(title=title, xlabel="training compute, floating-point operations")
    axes.set_ylabel("bits per byte, variant minus parent (lower is better)")
    axes.margins(x=0.09, y=0.16)
    return figure
