"""Reading a folder with a model of Hugging Face transformers: our configuration of it, and its parameters."""

import contextlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxformer.config import UserError, require
from jaxformer.host.files import read_json, require_json
from jaxformer.huggingface.architectures import Architecture
from jaxformer.huggingface.config_json import read_config_json
from jaxformer.huggingface.tensors import StoredTensor, from_tensors
from jaxformer.model import ModelConfig

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def read_model(folder: Path) -> ModelConfig:
    """Returns the model that a folder's config.json describes; other fields (z-loss, execution) have their defaults.

    Raises:
        UserError: there is none, or it is none of ours.
    """
    return _read_config(folder)[1]


def read_pretrained(folder: Path) -> dict[str, np.ndarray]:
    """Returns the float32 parameters of a folder by dotted path.

    Args:
        folder: with config.json and model.safetensors, or its parts and their index; float32, bfloat16 or float16.

    Raises:
        UserError: the folder is no model of ours, or is damaged.
    """
    architecture, model = _read_config(folder)
    with contextlib.ExitStack() as stack:
        files = {name: _open_file(stack, folder / name) for name in _file_names(folder)}
        places = {name: file for file in files.values() for name in file.keys()}  # noqa: SIM118  It is no dict.
        for name, file in _weight_map(folder).items():
            is_there = files[file] is places.get(name)
            require(is_there, f"{folder / file}: it has no tensor {name}, which {INDEX} says it has; download it again")
        tensors = {name: _stored_tensor(folder, file, name) for name, file in places.items()}
        return from_tensors(architecture, model, tensors, folder)


def _read_config(folder: Path) -> tuple[Architecture, ModelConfig]:
    path = folder / CONFIG
    config = require_json(path, f"{folder}: no {CONFIG}; give a folder with a model of Hugging Face transformers")
    try:
        return read_config_json(config, path)
    except UserError as error:
        # Errors of `ModelConfig` itself do not name the file.
        raise error if str(error).startswith(str(path)) else UserError(f"{path}: {error}") from error


def _stored_tensor(folder: Path, file, name: str) -> StoredTensor:
    """Returns a tensor of an open file, read on demand."""
    header = file.get_slice(name)

    def read() -> np.ndarray:
        dtype = header.get_dtype()
        is_known = dtype in _DTYPES
        require(is_known, f"{folder}: {name} is of dtype {dtype}; jaxformer reads {', '.join(_DTYPES.values())}")
        return file.get_tensor(name)

    return StoredTensor(tuple(header.get_shape()), read)


def _file_names(folder: Path) -> list[str]:
    """Returns the files with the tensors."""
    if names := sorted(set(_weight_map(folder).values())):
        return names
    others = sorted(path.name for path in folder.glob("*.bin"))
    instead = f" ({others[0]} is a pickle, which could run any code: save the model with safetensors)" if others else ""
    require((folder / TENSORS).is_file(), f"{folder}: no {TENSORS}{instead}")
    return [TENSORS]


def _weight_map(folder: Path) -> dict[str, str]:
    """Returns the file of each tensor from an index; empty for a single file without an index."""
    path = folder / INDEX
    index = None if (folder / TENSORS).is_file() else read_json(path, "download it again")
    if index is None:
        return {}
    places = index.get("weight_map")
    is_map = isinstance(places, dict) and all(isinstance(file, str) and file for file in places.values())
    if not is_map or not places:
        raise UserError(f"{path}: it has no weight_map; download it again")
    for file in places.values():
        require(Path(file).name == file, f"{path}: {file!r} is no file of the folder")
    return places


def _open_file(stack: contextlib.ExitStack, path: Path):
    try:
        return stack.enter_context(safe_open(path, framework="numpy"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; download it again") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: incomplete, or no safetensors file ({error}); download it again") from error
