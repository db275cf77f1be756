"""The pictures of a study, and of all studies, each with its heading and caption."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.report.forest_plot import draw_forest
from jaxformer.report.graph import draw_graph
from jaxformer.report.history import draw_expectations, draw_history
from jaxformer.report.leave_one_out import draw_composition
from jaxformer.report.loss_curves import draw_losses, draw_paired
from jaxformer.report.returns import draw_returns
from jaxformer.report.style import drawing, save_png, to_svg


class Plot(NamedTuple):
    """A plot of a study."""

    name: str
    draw: Callable
    """Returns a matplotlib figure of the findings, or None if there is nothing to draw."""
    heading: str
    caption: str


class Picture(NamedTuple):
    """A drawn plot."""

    name: str
    heading: str
    caption: str
    svg: bytes
    """SVG file."""
    width: float
    """Width in inches."""


PLOTS = (
    Plot(
        "forest",
        draw_forest,
        "Differences and expectations",
        "Each dot is a difference, with its standard error and its interval. The hatched box is the expectation from "
        "before the measurement; differences in the blue band count as equal. Arrows point to values beyond the axis.",
    ),
    Plot(
        "composition",
        draw_composition,
        "Each change, in the end and when it was kept",
        "Filled: the final experiment minus the same without the change, with its interval. Hollow: the difference "
        "when the change was kept, with its standard error. The overlap is the total minus the sum of the parts.",
    ),
    Plot(
        "graph",
        draw_graph,
        "The graph of ablations",
        "Each line leads from an experiment to a change of it, and each difference is against the experiment on the "
        "left. A merge joins several changes, and is compared with the first of them.",
    ),
    Plot(
        "returns",
        draw_returns,
        "What the study returned",
        "Left, in the order of the study: the line is the improvement of the best experiment kept so far over the "
        "study's parent. The dashed line adds up all kept changes except merges, each shrunken, which corrects for "
        "selecting large differences. Each mark is a variant, at the device hours spent once its runs were over. "
        "Right: the improvement of every variant, by the number of settings that it changes.",
    ),
    Plot(
        "losses",
        draw_losses,
        "Loss curves",
        "A thin line for each run, coloured by experiment, and a thick one for the mean over its seeds. Runs have the "
        "experiment's own learning rate or, if it was compared at its best one, the best rate tried, which is then "
        "named. The vertical axes leave out the first eighth of the training and the first quarter of the evaluations.",
    ),
    Plot(
        "paired",
        draw_paired,
        "What pairing saves",
        "Training loss of a variant minus its parent's on the same batches, smoothed, mean over seeds with a band "
        "of one standard error. Grey: minus the loss of the parent's run of another seed, on different batches. "
        "sd: the standard deviation, over the steps of the second half, of the difference that is not smoothed, mean "
        "over seeds; in brackets, unpaired by paired. Both have the parent's learning rate or, if compared so, each "
        "its best rate tried. Variants that change the data share no batches with their parent, and have no panel.",
    ),
)


HISTORY_PLOTS = (
    Plot(
        "graph",
        draw_history,
        "All questions",
        "Each line leads from an experiment to a change of it. A promoted change is the parent of the next generation.",
    ),
    Plot(
        "expectations",
        draw_expectations,
        "Expected and found",
        "Each dot is a difference, with its standard error and its interval. The hatched box is the expectation from "
        "before the measurement. Arrows point to values beyond the axis. The number is the generation.",
    ),
)


def draw_pictures(found: Any, folder: Path, plots: Sequence[Plot] = PLOTS) -> list[Picture]:
    """Writes a PNG of each picture of the findings to a folder; returns the pictures."""
    pictures = []
    with drawing():
        for name, draw, heading, caption in plots:
            path = folder / f"{name}.png"
            path.unlink(missing_ok=True)
            if (figure := draw(found)) is not None:
                save_png(figure, path)
                pictures.append(Picture(name, heading, caption, to_svg(figure), figure.get_figwidth()))
    return pictures
