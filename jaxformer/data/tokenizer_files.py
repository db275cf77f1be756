"""The place of a given tokenizer: here, or on the Hugging Face Hub, from which it is fetched once."""

import hashlib
import os
import re
from pathlib import Path

from jaxformer.config import require
from jaxformer.data.hub import parse_hub_url
from jaxformer.data.remote import WAITS, find, is_remote
from jaxformer.data.source_files import open_file, pinned
from jaxformer.host.cache import make_once
from jaxformer.host.paths import expanded

# In a folder or a model of the Hub, the first usable one counts. A tokenizer.json beside a SentencePiece model was made
# from it: if the model loses no text, its run and one from its export have the same tokenizer digest.
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")

# NAME or OWNER/NAME; a name with the suffix of a file is one.
_HUB_NAME = re.compile(r"(?!.*\.(?:model|json)$)[\w-][\w.-]{0,95}(?:/[\w-][\w.-]{0,95})?")


def local_tokenizer(path: str, cache: Path, *, newest: bool = False) -> Path:
    """Returns the local file or folder of a tokenizer; one on the Hub is fetched into the cache once.

    Args:
        path: of a file or folder, or `hf://OWNER/NAME@REVISION`, or the name of a model of the Hub.
        cache: folder for those of the Hub, by their commits.
        newest: looks up the commit of a branch again.

    Raises:
        UserError: the Hub has no such tokenizer, or cannot be reached.
    """
    target, what, waits = expanded(path), "tokenizer.path", WAITS
    if not is_remote(path):
        if os.path.exists(target) or not _HUB_NAME.fullmatch(path):
            return target
        path, what, waits = f"hf://{path}", f"tokenizer.path {path}, which is no file or folder here:", ()
    require(path.startswith("hf://"), f"{what} {path}: give a file or folder of this machine, or hf://OWNER/NAME")
    url, _ = pinned(path, what, kind="models", newest=newest, waits=waits)  # A name may be mistyped.

    def fetch(folder: Path) -> None:
        place = parse_hub_url(url, what, kind="models")
        if place.path.endswith((".json", ".model")):
            place, wanted = place._replace(path=place.path.rpartition("/")[0]), [Path(place.path).name]
        else:
            wanted = list(TOKENIZER_FILES)
        found = {each.name: each.url for each in find(str(place), what)[0]}
        names = [each for each in wanted if each in found]
        require(bool(names), f"{what} {path}: it has no {' or '.join(wanted)}")
        folder.mkdir()
        for each in (*names, "tokenizer_config.json"):
            if each in found:
                with open_file(found[each], what) as file:
                    (folder / each).write_bytes(file.read())

    short = hashlib.sha256(url.encode()).hexdigest()[:16]
    return make_once(cache / "tokenizers" / short, fetch, f"fetching {path}")
