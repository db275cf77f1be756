"""The style of pictures: their colours, the spacing of labels, and their output as PNG and SVG.

They are drawn by matplotlib, which is imported when needed. Colour-blind readers can distinguish the colours (Okabe and
Ito 2008), and every colour comes with its word. The same picture gives the same bytes.
"""

import contextlib
import io
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from jaxformer.ablation.verdict import Word
from jaxformer.config import UserError

COLOURS = {
    Word.KEEP: "#0072B2",
    Word.REVERT: "#C24E00",
    Word.UNDECIDED: "#8F6400",
    Word.CHEAPER: "#00795A",
    Word.EQUIVALENT: "#5F6368",
    Word.NOT_COMPARED: "#8A8D91",
}
INK, GREY, _PALE = "#1A1A1A", "#6B6E73", "#E3E5E8"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.parse_math": False,  # A name may contain a dollar.
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": _PALE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "jaxformer",
    "path.simplify": True,
}

# Keeps text readable on top of lines.
BEHIND = {"fc": "white", "ec": "none", "pad": 0.6}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Sets the style of the pictures, independent of the user's own.

    Raises:
        UserError: matplotlib cannot be imported.
    """
    matplotlib = _import_matplotlib()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _import_matplotlib() -> ModuleType:
    """Returns matplotlib, without a window backend: none is needed, and a missing one would fail the import."""
    backend = os.environ.pop("MPLBACKEND", "")  # A notebook passes its own to child processes.
    is_new = "matplotlib" not in sys.modules
    try:
        import matplotlib
    except Exception as error:  # Its settings in the folder or of the user may be damaged.
        raise UserError(f"matplotlib cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        if backend:
            os.environ["MPLBACKEND"] = backend
    if backend and is_new:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # For other drawings of the process.
    return matplotlib


def save_png(figure, path: Path) -> None:
    """Writes a picture as PNG, 130 dots per inch."""
    figure.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})
    figure.set_layout_engine("none")  # Laid out once; the SVG keeps it.


def to_svg(figure) -> bytes:
    """Returns a picture as an SVG file, without a date."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return file.getvalue()


def make_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained"):
    """Returns an empty picture of so many inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), layout=layout)


def spread(values: Sequence[float], apart: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Returns ascending values moved apart with the smallest sum of squares, and between two ends if there is room."""
    from scipy.optimize import isotonic_regression

    steps = apart * np.arange(len(values))
    places = isotonic_regression(np.asarray(values) - steps).x
    return (np.clip(places, low, max(low, high - steps[-1])) + steps).tolist()
