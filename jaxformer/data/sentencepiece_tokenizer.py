"""Text to ids and back with SentencePiece (Kudo & Richardson 2018, arXiv 1808.06226), without loss.

`decode(encode(text)) == text` for every Unicode text: no normalisation, whitespace kept, byte fallback for what the
vocabulary lacks. SentencePiece writes a space as U+2581; that character itself is therefore encoded as its bytes.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from jaxformer.config import UserError, require

SPACE_MARK = "\u2581"

# Specials, 256 bytes, and room for characters.
FEWEST_PIECES = 300


class SentencePieceTokenizer:
    """A SentencePiece model that loses nothing; a `Tokenizer`.

    Raises:
        UserError: it is no such model, or unsuitable: jaxformer needs BOS, EOS, byte fallback, no normalisation.
    """

    kind = "sentencepiece"
    is_lossless = True

    def __init__(self, model: bytes):
        try:
            self._processor = processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError("not a SentencePiece model") from error
        self.model = model
        self.digest = hashlib.sha256(model).hexdigest()
        self.vocabulary_size = processor.vocab_size()
        self.bos_id, self.eos_id = processor.bos_id(), processor.eos_id()
        require(self.bos_id >= 0 and self.eos_id >= 0, "it has no BOS or no EOS piece")
        self.bos, self.eos = processor.id_to_piece(self.bos_id), processor.id_to_piece(self.eos_id)
        self._space_mark_ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        probe = "  a\tb\n\n\u0000 ¼ﬁ \u2581\U0001f9ea e\u0301  "
        require(
            self.decode(self.encode(probe)) == probe,
            "it loses text (train it with byte_fallback, normalization_rule_name=identity, add_dummy_prefix=false and "
            "remove_extra_whitespaces=false)",
        )

    def __reduce__(self):
        return type(self), (self.model,)

    def files(self) -> dict[str, bytes]:
        """Returns the files of a folder that `load_tokenizer` takes, by name."""
        return {"tokenizer.model": self.model}

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without BOS and EOS."""
        if SPACE_MARK not in text:
            return self._processor.encode(text)
        first, *rest = text.split(SPACE_MARK)
        ids = self._processor.encode(first)
        for part in rest:
            ids += self._space_mark_ids + self._processor.encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str], *, threads: int = 1) -> list[np.ndarray]:
        """Returns the ids of each text, int32 (tokens,), computed by some threads outside of Python's lock."""
        marked = [i for i, text in enumerate(texts) if SPACE_MARK in text]
        plain = list(texts)
        for i in marked:
            plain[i] = ""
        encoded = self._processor.encode(plain, return_type="numpy", num_threads=threads)
        for i in marked:
            encoded[i] = np.array(self.encode(texts[i]), np.int32)
        return encoded

    def pieces(self) -> list[bytes]:
        """Returns the UTF-8 bytes that each id stands for; none for marks such as BOS."""
        processor, found = self._processor, []
        for i in range(self.vocabulary_size):
            piece = processor.id_to_piece(i)
            if processor.is_byte(i):
                found.append(bytes([int(piece[3:-1], 16)]))
            else:
                is_mark = processor.is_control(i) or processor.is_unknown(i)
                found.append(b"" if is_mark else piece.replace(SPACE_MARK, " ").encode())
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; BOS and EOS are left out, and bytes that form no character become U+FFFD."""
        return self._processor.decode([int(i) for i in ids])


def train_sentencepiece(texts: Iterable[str], *, vocabulary_size: int, model_type: str) -> bytes:
    """Returns the SentencePiece model trained on some texts, as its file's bytes.

    Raises:
        UserError: the text is too little for the vocabulary.
    """
    lines = (line for text in texts for line in text.split("\n"))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_cut(lines, 4000),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocabulary_size,
            # Losslessness.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            user_defined_symbols=["\n"],
            character_coverage=0.9999,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=1 << 20,
            # Constant, because it is written into the model: the digest must not depend on the machine.
            num_threads=16,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the tokenizer could not be trained with tokenizer.vocabulary_size {vocabulary_size}: {_cause(str(error))}"
        ) from error
    return model.getvalue()


def _cause(error: str) -> str:
    """Returns the cause and the remedy of an error of SentencePiece: 'INTERNAL: a.cc(1) [condition] text'."""
    if most := re.search(r"size too high .* value <= (\d+)", error):
        text = f"its text is too little, or too uniform, and gives {most[1]} pieces"
        return f"{text}; {f'set {most[1]} or less, or ' if int(most[1]) >= FEWEST_PIECES else ''}give it more text"
    if fewest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return f"its text has more characters than that; set {fewest[1]} or more, and model.vocabulary_size as large"
    if "!sentences_.empty()" in error:
        return "it has no text"
    return error.strip().splitlines()[-1].rpartition("] ")[2]


def _cut(lines: Iterable[str], length: int) -> Iterable[str]:
    """Yields the non-empty lines, long ones in pieces: the trainer's cost grows with the length of a line."""
    for line in lines:
        for first in range(0, len(line), length):
            yield line[first : first + length]
