"""The report of a study, or of all: a page to read, pictures to show, and a Markdown file to keep.

The same outcome gives the same bytes: the only dates are those of the runs.
"""

import contextlib
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from jaxformer.ablation.outcome import Outcome
from jaxformer.config import UserError, require
from jaxformer.host.files import write_whole
from jaxformer.report.figures import HISTORY_PLOTS, draw_pictures
from jaxformer.report.forecasts import Forecasts, draw_forecasts, forecasts_page
from jaxformer.report.history import History
from jaxformer.report.html import make_history_page, make_page
from jaxformer.report.markdown import make_markdown

PAGE = "index.html"
MARKDOWN = "report.md"

# Of the extra `report`; the modules of this package import them when they are needed.
LIBRARIES = ("matplotlib", "networkx")


def check_report(folder: Path) -> None:
    """Raises `UserError` if a report could not be written, before anything is read for it.

    That is if a library of the extra `report` is missing, or the folder, which need not exist, cannot be written.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    require(not missing, f"the report needs {' and '.join(missing)}: pip install 'jaxformer[report]'")
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise UserError(f"report {folder}: {error.strerror}; choose another --output") from error
    is_possible = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    require(is_possible, f"report {folder}: {place} is not a writable folder; choose another --output")


def write_report(outcome: Outcome, folder: Path) -> Path:
    """Writes `index.html`, `report.md` and a PNG of each picture to a folder; returns the page.

    Raises:
        UserError: as of `check_report`, or the disk does not take it.
    """
    with _written(folder):
        pictures = draw_pictures(outcome, folder)
        write_whole(folder / MARKDOWN, make_markdown(outcome, pictures).encode())
        write_whole(folder / PAGE, make_page(outcome, pictures).encode())
    return folder / PAGE


def write_history(history: History, folder: Path) -> Path:
    """Writes `index.html` and a PNG of each picture of all studies to a folder; returns the page.

    Raises:
        UserError: as of `write_report`.
    """
    with _written(folder):
        pictures = draw_pictures(history, folder, HISTORY_PLOTS)
        write_whole(folder / PAGE, make_history_page(history, pictures).encode())
    return folder / PAGE


def write_forecasts(forecasts: Forecasts, folder: Path) -> Path:
    """Writes `index.html` and a PNG of each picture of all forecasts to a folder; returns the page.

    Raises:
        UserError: as of `write_report`.
    """
    with _written(folder):
        pictures = draw_forecasts(forecasts, folder)
        write_whole(folder / PAGE, forecasts_page(forecasts, pictures).encode())
    return folder / PAGE


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Creates the folder of a report; raises `UserError` if that, or a write to it, fails."""
    check_report(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"report {folder}: {error.strerror}; choose another --output") from error
