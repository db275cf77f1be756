"""How pictures look: their style and colours, what keeps labels apart, and how they become PNG and SVG.

Drawn by matplotlib, which is imported when it is needed; the colour-blind can distinguish the colours (Okabe and Ito
2008), and no colour stands without its word. The same picture gives the same bytes.
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
    "text.parse_math": False,  # A name may hold a dollar.
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

# What keeps a text legible on lines.
BEHIND = {"fc": "white", "ec": "none", "pad": 0.6}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """The style of the pictures, whatever the user's own is.

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
    """Returns matplotlib. Pictures need none of its windows, and a backend that is not installed fails the import."""
    backend = os.environ.pop("MPLBACKEND", "")  # A notebook leaves its own to all that it starts.
    is_new = "matplotlib" not in sys.modules
    try:
        import matplotlib
    except Exception as error:  # What it reads in the folder and for the user may be damaged.
        raise UserError(f"matplotlib cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        if backend:
            os.environ["MPLBACKEND"] = backend
    if backend and is_new:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # For what else the process draws.
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
    """Returns ascending values moved apart, by the least sum of squares, and between two ends where there is room."""
    from scipy.optimize import isotonic_regression

    steps = apart * np.arange(len(values))
    places = isotonic_regression(np.asarray(values) - steps).x
    return (np.clip(places, low, max(low, high - steps[-1])) + steps).tolist()
