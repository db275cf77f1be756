"""Whether the output that a page shows is what was printed, but for what differs from run to run."""

import re

from jaxformer.ablation.verdict import Word

_VERDICTS = "|".join(sorted((word.value for word in Word), key=len, reverse=True))
# What differs, and what stands for it: spaces, verdicts, digests, numbers with their signs and units, a plural.
_DIFFERENT = (
    (r"\s+", " "),
    (rf"\b({_VERDICTS})\b", "VERDICT"),
    (r"\b(?=[a-f]*\d)[0-9a-f]{6,}\b", "0"),
    (r"[-+\u2212]?\d([\d,.:]*\d)?(e[-+]\d+)?( ?([kMGT]?B|[kM])\b|%)?", "0"),
    (r"(0 \w+?)s?\b", r"\1"),
)


def missing_line(shown: str, printed: str) -> str:
    """Returns the first line of a shown output that was not printed after the lines before it, or nothing.

    More may be printed than is shown, and in lines of another length. `...` in a line stands for any text.
    """
    text, end = " ".join(map(_common, printed.splitlines())), 0
    for line in shown.splitlines():
        if line.strip() in ("", "..."):
            continue
        pattern = ".*?".join(map(re.escape, _common(line).split("...")))
        match = re.compile(rf"(?<!\S){pattern}(?!\S)").search(text, end)
        if not match:
            return line
        end = match.end()
    return ""


def _common(line: str) -> str:
    line = line.strip()
    for pattern, common in _DIFFERENT:
        line = re.sub(pattern, common, line)
    return line
