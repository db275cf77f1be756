"""How numbers, intervals and texts are written for a reader, in pictures as in tables."""

import math
import textwrap
from collections.abc import Sequence

from jaxformer.host.console import plain
from jaxformer.statistics.paired_difference import Difference

# In place of a hyphen before a number, and in place of a missing number.
MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EN DASH}"


# The largest ratio shown.
_MOST_SHOWN = 100


def signed(value: float, digits: int = 4) -> str:
    """Returns a number with its sign, or a dash without a number."""
    return f"{value:+.{digits}f}".replace("-", MINUS) if math.isfinite(value) else NOTHING


def number(value: float, digits: int) -> str:
    """Returns a number without a plus sign, or a dash without a number."""
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def ratio(value: float, digits: int) -> str:
    """Returns a ratio as a multiple, or a dash without one."""
    if value > _MOST_SHOWN:
        return f"> {_MOST_SHOWN} x"
    return f"{value:.{digits}f} x" if math.isfinite(value) else NOTHING


def percent(share: float) -> str:
    """Returns a share in %."""
    return number(100 * share, 1)


def probability(p: float) -> str:
    """Returns a probability with as many digits as are useful."""
    return "< 0.0001" if p < 1e-4 else number(p, 4 if p < 0.1 else 2)


def with_error(difference: Difference, digits: int = 4) -> str:
    """Returns a difference ± its standard error."""
    return f"{signed(difference.mean, digits)} ± {number(difference.standard_error, digits)}"


def interval_of(difference: Difference, alpha: float) -> str:
    """Returns the interval of a difference at a two-sided level."""
    low, high = difference.interval(1 - alpha)
    return f"[{signed(low)}, {signed(high)}]"


def expectation(ends: Sequence[float]) -> str:
    """Returns an expected interval, with the digits that it was given."""
    return f"[{', '.join(f'{x:+g}'.replace('-', MINUS) if x else '0' for x in ends)}]"


def two_lines(text: object, width: int) -> list[str]:
    """Returns a text on at most two lines of so many characters; none for an empty one."""
    first, *others = textwrap.wrap(plain(text), width) or [""]
    return [line for line in (first, plain(" ".join(others), width)) if line]
