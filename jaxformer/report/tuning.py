"""The result of tuning a learning rate, as text, as a picture, and as the file of the tuned experiment."""

import math
import textwrap

import numpy as np

from jaxformer.ablation.tuning import Tuning
from jaxformer.ablation.verdict import Word
from jaxformer.experiment.best_rate import RATE
from jaxformer.host.console import format_table
from jaxformer.report.style import BEHIND, COLOURS, GREY, INK, make_figure


def rate_table(tuning: Tuning) -> list[str]:
    """Returns the lines of a table with each rate that was tried, the mean over its seeds, and each seed's."""
    rows = [["learning rate", "bits per byte", "each seed"]]
    for octave in sorted({octave for octave, _ in tuning.trials}):
        bits = [value for (o, _), value in sorted(tuning.trials.items()) if o == octave]
        mark = "*" if octave == 0 else ""
        rows.append(
            [f"{tuning.learning_rate * 2.0**octave:g}{mark}", _bits(float(np.mean(bits))), " ".join(map(_bits, bits))]
        )
    return format_table(rows, left=(2,))


def _bits(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "diverged"


def describe(tuning: Tuning) -> list[str]:
    """Returns lines: where the best rate is, what the experiment's own costs, and which to use."""
    if tuning.mean is None:
        middle = tuning.learning_rate * 2.0 ** tuning.bracket[1]
        return [f"Best of the rates tried: {middle:g}; a neighbouring rate diverged, so no curve can be fitted."]
    low, _, high = tuning.bracket
    error = f" ± {tuning.excess_error:.4f}" if math.isfinite(tuning.excess_error) else ""
    lowest = tuning.learning_rate * 2.0 ** float(np.clip(tuning.mean.place, low, high))
    costs = f"costs {tuning.excess:.4f}{error} bits per byte" if math.isfinite(tuning.excess) else "diverges"
    why = ": there the mean plus one standard deviation over seeds is lowest" if tuning.cautious else ""
    return [
        f"Best learning rate: {lowest:.2g}; twice or half of it costs {tuning.mean.curvature:.3f} bits per byte.",
        f"The experiment's own, {tuning.learning_rate:g}, {costs}.",
        f"Use {tuning.recommended:g}{why}.",
    ]


def draw_tuning(tuning: Tuning):
    """Returns the picture: bits per byte of each run over the learning rate, and the parabola through the means."""
    figure = make_figure(5.6, 3.8)
    axes = figure.subplots()
    rates = {octave: tuning.learning_rate * 2.0**octave for octave in sorted({octave for octave, _ in tuning.trials})}
    finite = [(octave, bits) for (octave, _), bits in tuning.trials.items() if math.isfinite(bits)]
    axes.plot([rates[octave] for octave, _ in finite], [bits for _, bits in finite], "o", color=INK, ms=4, alpha=0.7)

    def label(text: str, rate: float, height: float, colour: str) -> None:
        place = {"xycoords": ("data", "axes fraction"), "fontsize": 7.5}
        axes.annotate(f" {text}", (rate, height), color=colour, bbox=BEHIND, **place)

    for octave in {octave for (octave, _), bits in tuning.trials.items() if math.isinf(bits)}:
        label("diverged", rates[octave], 0.95, GREY)
    near = [bits for octave, bits in finite if octave in tuning.bracket]
    if tuning.mean:
        places = np.linspace(tuning.bracket[0], tuning.bracket[2], 100)
        curve = [tuning.mean.at(place) for place in places]
        axes.plot(tuning.learning_rate * 2**places, curve, color=COLOURS[Word.KEEP], lw=1.6)
        near.append(tuning.mean.value)
    for text, rate, height, colour in (
        ("its own", tuning.learning_rate, 0.02, GREY),
        (f"use {tuning.recommended:g}", tuning.recommended, 0.09, COLOURS[Word.KEEP]),
    ):
        axes.axvline(rate, color=colour, lw=0.9, ls=(0, (2, 1.5)))
        label(text, rate, height, colour)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(rates.values()), [f"{rate:g}" for rate in rates.values()])
    axes.minorticks_off()
    reach = max(near) - min(near) or 1e-3
    axes.set_ylim(min(near) - 0.25 * reach, max(near) + 0.35 * reach)
    axes.set(title=tuning.experiment, xlabel="peak learning rate", ylabel="validation bits per byte")
    return figure


def tuned_file(tuning: Tuning, command: str) -> str:
    """Returns the file of a variant that is the experiment at its best rate."""
    excess = tuning.excess if math.isfinite(tuning.excess) else 0.1  # Its own rate diverges.
    expected = (round(-2 * abs(excess) - 0.001, 4), 0.001)
    question = f"What does the best learning rate give {tuning.experiment}?"
    text = f'''
"""{tuning.experiment} at its best learning rate, found by `{command}`."""

from jaxformer import Variant

EXPERIMENT = Variant(
    parent={tuning.experiment!r},
    question={question!r},
    change={{{RATE!r}: {tuning.recommended!r}}},
    expected={expected!r},
    source={command!r},
)
'''
    return textwrap.dedent(text).lstrip()
