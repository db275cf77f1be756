"""Pages of HTML from templates, which load nothing and run nothing; texts are escaped."""

import base64
import functools
import unicodedata
from pathlib import Path

from jaxformer.host.console import printable


def render(folder: Path, template: str, **values) -> str:
    """Returns a page. Texts that are not markup are escaped, on one line, and without control characters.

    Args:
        folder: of the template, and of its includes unless they lie beside this module.
        template: name of its file.
        values: by their names in the template.
    """
    return _environment(folder).get_template(template).render(**values)


@functools.cache
def _environment(folder: Path):
    import jinja2  # The import takes longer than a page.
    from markupsafe import escape

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        # Values that are not markup are untrusted texts.
        finalize=lambda value: value if hasattr(value, "__html__") else _shown(" ".join(str(value).split())),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda file: base64.b64encode(file).decode()
    environment.filters["lines"] = lambda text: escape(_shown(text))  # It keeps its lines.
    return environment


def _shown(text: str) -> str:
    """Returns a text as a page shows it: spaces of all kinds and joiners stay, controls and bidi overrides do not."""
    if text.isprintable():
        return text
    kept = {each for each in set(text) if each in "\n\t\u200c\u200d" or unicodedata.category(each) == "Zs"}
    return "".join(each if each in kept else printable(each) for each in text)
