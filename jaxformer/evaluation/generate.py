"""Texts that a model generates after prompts, whole or while they are generated."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxformer.config import require_unicode
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.evaluation.decoding import decode
from jaxformer.evaluation.sampling import Sampling
from jaxformer.host.console import progress_bar
from jaxformer.model import Transformer

# Tokens between searches for stop sequences.
_STOP_TOKENS = 16


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of a text that begins a document: BOS, then the text's.

    Raises:
        UserError: it is not Unicode.
    """
    require_unicode(text)
    return [tokenizer.bos_id, *tokenizer.encode(text)]


def stream_text(model: Transformer, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:
    """Yields the text that follows the ids of a prompt while it is generated, in whole characters, up to EOS.

    Raises:
        UserError: as of `decode`.
    """
    steps = decode(model, [prompt], sampling, eos_id=tokenizer.eos_id)
    return decode_text(tokenizer, prompt, (int(tokens_B[0]) for tokens_B in steps))


def generate_texts(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    first_row: int = 0,
    stops: Sequence[Sequence[str]] | None = None,
    label: str | None = None,
) -> list[str]:
    """Returns the text that follows the ids of each prompt, up to EOS; all are generated at once.

    Args:
        first_row: as of `decode`.
        stops: stop sequences of each text, which is cut before the first one; generation ends soon after all these
            texts have ended. Further prompts only fill the batch: their texts are not returned.
        label: of a progress bar; None shows none.

    Raises:
        UserError: as of `decode`.
    """
    steps, going_on = [], set(range(len(stops or ())))
    with progress_bar(desc=label, unit=" tokens", total=sampling.tokens, disable=label is None) as bar:
        for tokens_B in decode(model, prompts, sampling, eos_id=tokenizer.eos_id, first_row=first_row):
            steps.append(tokens_B)
            bar.update()
            if stops and len(steps) % _STOP_TOKENS == 0:
                rows = np.stack(steps, axis=1).tolist()
                going_on = {i for i in going_on if not _has_ended(tokenizer, prompts[i], rows[i], stops[i])}
                if not going_on:
                    break
    rows = np.stack(steps, axis=1).tolist()
    texts = ["".join(decode_text(tokenizer, prompt, ids)) for prompt, ids in zip(prompts, rows, strict=True)]
    return texts if stops is None else [_cut(text, of_text) for text, of_text in zip(texts, stops, strict=False)]


def _has_ended(tokenizer: Tokenizer, prompt: Sequence[int], ids: list[int], stops: Sequence[str]) -> bool:
    """Returns whether EOS or a stop sequence follows a prompt."""
    text = _text_after(tokenizer, _whole_end(tokenizer, list(prompt)), ids)
    return tokenizer.eos_id in ids or _cut(text, stops) != text


def _cut(text: str, stops: Sequence[str]) -> str:
    """Returns a text up to the first of some stop sequences."""
    return text[: min((text.index(stop) for stop in stops if stop and stop in text), default=len(text))]


def sample_text(model: Transformer, tokenizer: Tokenizer, *, tokens: int, seed: int) -> str:
    """Returns a new text of at most so many tokens, drawn with the defaults of `Sampling`."""
    return "".join(stream_text(model, tokenizer, [tokenizer.bos_id], Sampling(tokens=tokens, seed=seed)))


def decode_text(tokenizer: Tokenizer, before: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
    """Yields the text of ids, up to EOS, in pieces of whole characters, whose bytes may come from several ids.

    Args:
        before: ids of the prompt; the last may decide about a space. Their text is not yielded.
    """
    shown, waiting = _whole_end(tokenizer, list(before)), []
    for i in ids:
        if i == tokenizer.eos_id:
            break
        waiting.append(i)
        text = _text_after(tokenizer, shown, waiting)
        if text and not text.endswith("\ufffd"):
            yield text
            shown, waiting = _whole_end(tokenizer, [*shown, *waiting]), []
    if waiting and (text := _text_after(tokenizer, shown, waiting)):
        yield text


def _whole_end(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Returns the fewest last ids whose text does not begin within a character, of at most four bytes.

    If bytes begin within a character, a decoder with byte fallback turns all following ones into U+FFFD.
    """
    ends = (ids[-n:] for n in range(1, 5))
    return next((end for end in ends if (text := tokenizer.decode(end)) and text[0] != "\ufffd"), ids)


def _text_after(tokenizer: Tokenizer, last: list[int], ids: list[int]) -> str:
    return tokenizer.decode([*last, *ids])[len(tokenizer.decode(last)) :]
