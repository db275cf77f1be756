"""Text to ids and back with a `tokenizer.json` of Hugging Face `tokenizers`: GPT-2, Llama 3, Qwen, BERT, ...

A text is encoded as plain text: nothing is added around it, a text that spells a special token is not one, and
truncation, padding, dropout and the clean-up of spaces in the file are ignored. Whether `decode(encode(text))` is the
text depends on the file: a normalizer, unknown characters or a pre-tokenizer that drops spaces change it.

BOS and EOS are found by one rule (`find_marks`). A single mark for both, as GPT-2's `<|endoftext|>`, stands at either
end of a document.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxformer.config import UserError, require

# Letters that BOS and EOS spell, the surest first: `<|begin_of_text|>` is "beginoftext", `</s>` is "/s".
_BOS_NAMES = ("s", "bos", "beginoftext", "startoftext", "beginofsentence", "startofsentence", "sos", "cls")
_EOS_NAMES = ("/s", "eos", "endoftext", "endofsentence", "eot", "sep")

# Texts that a thread encodes at a time: enough to be worth a call, few enough that threads finish together.
_BATCH_TEXTS = 32


class JsonTokenizer:
    """A `tokenizer.json`, as a `Tokenizer`.

    Raises:
        UserError: it is invalid, or has neither BOS nor EOS; or `tokenizers` is not installed.
    """

    kind = "tokenizer.json"
    is_lossless = False

    def __init__(self, model: bytes, config: Mapping[str, Any]):
        """Opens a tokenizer.

        Args:
            model: the content of the file.
            config: the content of `tokenizer_config.json` beside it; only BOS and EOS are read.
        """
        definition = _definition(model)
        self._tokenizer = tokenizer = _open(definition)
        self.model = model
        self.bos, self.eos = find_marks(definition, config)
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        for name, mark in (("bos_token", self.bos), ("eos_token", self.eos)):
            require(mark in vocabulary, f"{name} {mark!r} is no token of it; name one in tokenizer_config.json")
        # Also if the file does not mark them as special.
        tokenizer.add_special_tokens([self.bos, self.eos])
        self.bos_id, self.eos_id = vocabulary[self.bos], vocabulary[self.eos]
        self.vocabulary_size = max(vocabulary.values()) + 1
        self.digest = hashlib.sha256(model + json.dumps([self.bos_id, self.eos_id]).encode()).hexdigest()
        self._spelling = {i: each.content for i, each in tokenizer.get_added_tokens_decoder().items() if each.special}
        self._is_special = np.zeros(self.vocabulary_size, bool)
        self._is_special[list(self._spelling)] = True

    def __reduce__(self):
        return type(self), (self.model, self._config())

    def files(self) -> dict[str, bytes]:
        """Returns the files of a folder that `load_tokenizer` takes, by name."""
        return {"tokenizer.json": self.model, "tokenizer_config.json": json.dumps(self._config(), indent=2).encode()}

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without BOS and EOS."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str], *, threads: int = 1) -> list[np.ndarray]:
        """Returns the ids of each text, int32 (tokens,), computed by some threads outside of Python's lock."""
        batches = [texts[first : first + _BATCH_TEXTS] for first in range(0, len(texts), _BATCH_TEXTS)]
        if min(threads, len(batches)) < 2:
            return [ids for batch in batches for ids in self._encode(batch)]
        with ThreadPoolExecutor(min(threads, len(batches))) as executor:
            return [ids for encoded in executor.map(self._encode, batches) for ids in encoded]

    def pieces(self) -> list[bytes]:
        """Returns the UTF-8 bytes that each id stands for; none for marks such as BOS, and for an id without a token.

        A word's bytes are those that it has in the middle of a text.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        to_bytes = _piece_reader(json.loads(self._tokenizer.to_str()))
        found = [b""] * self.vocabulary_size
        for token, i in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if not self._is_special[i]:
                found[i] = token.encode() if i in added else to_bytes(token)
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; special tokens are left out, and bytes that form no character become U+FFFD."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def _config(self) -> dict[str, str]:
        return {"bos_token": self.bos, "eos_token": self.eos}

    def _ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # It has no exception type of its own: usually a character has no token.
            raise UserError(f"the tokenizer cannot encode a text ({_reason(error)})") from error
        return [np.array(each.ids, np.int32) for each in encoded]

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = self._ids(texts)
        for i, ids in enumerate(found):
            if self._is_special[ids].any():
                found[i] = self._encode_apart(texts[i], ids)
        return found

    def _encode_apart(self, text: str, ids: np.ndarray) -> np.ndarray:
        """Returns the ids of a text whose encoding has special tokens, without those that the text spells.

        `tokenizers` finds none in a text, but a model with their spelling in its vocabulary does, such as Unigram. The
        text is cut within such a spelling. Special tokens that no text spells stay, as for an unknown character. BOS
        and EOS never stay, even if a normalizer spells them.
        """
        found = {self._spelling[i] for i in ids[self._is_special[ids]].tolist()}
        spelled = [each for each in found if each[1:] and each in text]
        borders = [f"(?<={re.escape(each[0])})(?={re.escape(each[1:])})" for each in spelled]
        if borders:
            parts = [part for part in re.split("|".join(borders), text) if part]
            ids = np.concatenate(self._ids(parts))
        return ids[(ids != self.bos_id) & (ids != self.eos_id)]


def find_marks(definition: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the spellings of BOS and EOS.

    Each is the first one found of: `bos_token` or `eos_token` of `tokenizer_config.json`; the token that the
    post-processor puts before or after a text; a special token with such a name (`<s>`, `<|begin_of_text|>`, `[CLS]`,
    ...; `</s>`, `<|endoftext|>`, `[SEP]`, ...). If only one of the two is found, it serves as both.

    Args:
        definition: the content of `tokenizer.json`.
        config: the content of `tokenizer_config.json`.

    Raises:
        UserError: there is neither.
    """
    before, behind = _around_a_text(definition.get("post_processor"))
    special = [token["content"] for token in definition.get("added_tokens") or [] if token.get("special")]
    bos = _stated(config.get("bos_token")) or before or _named(special, _BOS_NAMES)
    eos = _stated(config.get("eos_token")) or behind or _named(special, _EOS_NAMES)
    require(
        bool(bos or eos),
        "it has no BOS and no EOS; name them in a file tokenizer_config.json beside it, as "
        '{"bos_token": "...", "eos_token": "..."}',
    )
    return bos or eos, eos or bos


def _stated(token: Any) -> str:
    """Returns a token of `tokenizer_config.json`, given as a text or an object with its content."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else ""


def _around_a_text(processor: Mapping[str, Any] | None) -> tuple[str, str]:
    """Returns the special tokens that a post-processor puts directly before and after a text; '' for none."""
    for each in _steps(processor):
        if each["type"] == "TemplateProcessing":
            template = each["single"]
            text = next((i for i, piece in enumerate(template) if "Sequence" in piece), 0)
            before, behind = (
                next((piece["SpecialToken"]["id"] for piece in some if "SpecialToken" in piece), "")
                for some in (template[:text][::-1], template[text + 1 :])
            )
            if before or behind:
                return before, behind
        elif each["type"] in ("RobertaProcessing", "BertProcessing"):
            return each["cls"][0], each["sep"][0]
    return "", ""


def _named(tokens: Iterable[str], names: Sequence[str]) -> str:
    """Returns the token whose letters spell the first possible of some names; '' for none."""
    by_letters = {re.sub(r"[^a-z/]", "", token.lower()): token for token in tokens}
    return next((by_letters[name] for name in names if name in by_letters), "")


def _steps(component: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yields the steps of a component of a tokenizer that may be a sequence of others, or absent."""
    if component and component["type"] == "Sequence":
        for each in component.get("processors") or component.get("decoders") or []:
            yield from _steps(each)
    elif component:
        yield dict(component)


def _definition(model: bytes) -> dict[str, Any]:
    """Returns the content of a `tokenizer.json`, without settings that change a text beyond its tokens."""
    try:
        definition = json.loads(model)
        definition |= {"truncation": None, "padding": None}
        if definition["model"].get("dropout"):
            definition["model"]["dropout"] = None
        decoder = definition.get("decoder") or {}
        for each in [decoder, *(decoder.get("decoders") or [])]:
            if "cleanup" in each:
                each["cleanup"] = False
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"not a tokenizer.json of Hugging Face tokenizers ({_reason(error)})") from error
    return definition


def _open(definition: Mapping[str, Any]) -> Any:
    """Returns the tokenizer of a definition."""
    # Our threads are used: its own are as many as there are processors, and hang after a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("a tokenizer.json needs the package tokenizers; pip install 'jaxformer[hub]'") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # It has no exception type of its own.
        raise UserError(f"not a tokenizer.json of Hugging Face tokenizers ({_reason(error)})") from error
    tokenizer.encode_special_tokens = True  # Spelled special tokens are plain text.
    return tokenizer


def _reason(error: Exception) -> str:
    """Returns an error's message as one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.120}"


def _piece_reader(definition: Mapping[str, Any]):
    """Returns a function from a token of the model to the UTF-8 bytes that it stands for, by the kind of decoder."""
    decoders = {each["type"]: each for each in _steps(definition.get("decoder"))}
    replaced = {
        each["pattern"]["String"]: each["content"]
        for each in _steps(definition.get("decoder"))
        if each["type"] == "Replace" and "String" in each["pattern"]
    }
    if "Metaspace" in decoders:
        replaced[decoders["Metaspace"]["replacement"]] = " "
    prefix = decoders.get("WordPiece", {}).get("prefix")
    suffix = decoders.get("BPEDecoder", {}).get("suffix")
    byte_of = _bytes_of_byte_level()

    def to_bytes(token: str) -> bytes:
        if "ByteLevel" in decoders:
            return b"".join(byte_of.get(character, character.encode()) for character in token)
        if "ByteFallback" in decoders and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            return bytes([int(token[3:5], 16)])
        for mark, text in replaced.items():
            token = token.replace(mark, text)
        if prefix:
            token = token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
        return (token.replace(suffix, " ") if suffix else token).encode()

    return to_bytes


def _bytes_of_byte_level() -> dict[str, bytes]:
    """Returns the byte that each character stands for in GPT-2's byte-level BPE (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    found = {chr(byte): bytes([byte]) for byte in printable}
    return found | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}
