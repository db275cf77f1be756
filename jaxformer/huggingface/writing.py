"""A folder with a model for Hugging Face transformers, written whole or not at all."""

import contextlib
import dataclasses
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxformer.config import UserError, require
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.host.files import sync_tree
from jaxformer.huggingface.architectures import architecture_of
from jaxformer.huggingface.config_json import config_json
from jaxformer.huggingface.reading import CONFIG, TENSORS, read_pretrained
from jaxformer.huggingface.tensors import to_tensors, with_vocabulary
from jaxformer.huggingface.tokenizer_json import tokenizer_files
from jaxformer.model import ModelConfig

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@contextlib.contextmanager
def errors_of_writing(out: Path) -> Iterator[None]:
    """Raises write errors of the system or safetensors below a folder as `UserError` that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"folder {out}: {getattr(error, 'strerror', None) or error}; choose another") from error


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields an empty folder that is renamed to `out` at the end of its block, once it is on the disk.

    A block that ends early leaves nothing.

    Raises:
        UserError: it exists and is not empty, or cannot be written.
    """
    target = out.resolve()
    created = [folder for folder in target.parents if not folder.exists()]
    unfinished = target.with_name(f"{target.name}.{secrets.token_hex(4)}.unfinished")
    try:
        with errors_of_writing(out):
            is_free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
            require(is_free, f"folder {out}: it exists and is not an empty folder; choose another, or remove it")
            unfinished.mkdir(parents=True)
        yield unfinished
        with errors_of_writing(out):
            sync_tree(unfinished)
            unfinished.replace(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in created:
                folder.rmdir()
        raise


def write_model(
    folder: Path,
    model: ModelConfig,
    params: Mapping[str, np.ndarray],
    tokenizer: Tokenizer,
    *,
    row_length: int,
    keep_padding: bool = False,
    dtype: str = "float32",
) -> int:
    """Writes config.json, the tensors, generation_config.json and the tokenizer's files, and reads the tensors back.

    Returns how many parameters were written.

    Args:
        folder: an empty one.
        model: the configuration.
        params: float32, by dotted path.
        tokenizer: of the model; the tables have rows for its ids.
        row_length: tokens of a row in training.
        keep_padding: keep the rows of the tables beyond the tokenizer's ids; else only those ids have logits.
        dtype: of the tensors.

    Raises:
        UserError: transformers has no such model or tokenizer, or a parameter is too large for the dtype.
    """
    architecture, count = architecture_of(model), tokenizer.vocabulary_size
    if not keep_padding:
        model, params = dataclasses.replace(model, vocabulary_size=count), with_vocabulary(params, count)
    ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
    config = config_json(model, row_length=row_length, dtype=dtype, **ids)
    files = tokenizer_files(tokenizer, row_length)  # Errors come before anything large is written.
    params = {name: _cast(name, value, dtype) for name, value in params.items()}
    tensors = to_tensors(architecture, model, params)
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    generation: dict[str, Any] = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    generation["pad_token_id"] = tokenizer.eos_id  # For rows of several lengths; masked, so that any id would do.
    if padding := list(range(count, model.vocabulary_size)):
        generation["suppress_tokens"] = padding
    _write_json(folder / CONFIG, config)
    _write_json(folder / "generation_config.json", generation)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / TENSORS).chmod((folder / CONFIG).stat().st_mode)  # safetensors makes it unreadable for other users.
    back = read_pretrained(folder)
    for name, value in params.items():
        is_same = np.array_equal(back[name], value.astype(np.float32, copy=False))
        require(is_same, f"{folder / TENSORS}: {name} differs from what was written; is the disk damaged?")
    return sum(value.size for value in params.values())


def _cast(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = value.astype(DTYPES[dtype], copy=False)
    is_finite = bool(np.isfinite(cast).all())
    require(is_finite, f"{name} has values beyond {dtype}, or that are not finite; choose another dtype")
    return cast


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
