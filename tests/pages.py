"""What a browser makes of a page."""

import shutil
import subprocess
from html.parser import HTMLParser

import pytest

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


class Page(HTMLParser):
    """The elements of a page, and its text outside of them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data

    def assert_nothing_is_loaded_or_run(self):
        assert not {"script", "iframe", "object", "link"} & set(self.tags[self.tags.index("body") :])
        assert not [name for name, _ in self.attributes if name.startswith("on")]
        links = [value for name, value in self.attributes if name in ("href", "src", "xlink:href")]
        assert all(value.startswith(("#", "data:,", "data:image/svg+xml;base64,")) for value in links)
        policy = next(value for name, value in self.attributes if value and "default-src" in value)
        assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def shown_by_chromium(page, tmp_path):
    """Returns the elements that Chromium makes of a page, as text, once it has shown it without a complaint."""
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout
