"""The folder of an exported model: whole or absent, and what stands in it."""

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from huggingface_models import MODELS, random_parameters
from safetensors.numpy import load_file

from jaxformer.config import UserError
from jaxformer.huggingface.reading import read_model, read_pretrained
from jaxformer.huggingface.tensors import flat_parameters
from jaxformer.huggingface.writing import errors_of_writing, new_folder, write_model

pytestmark = pytest.mark.device_free
MODEL = dataclasses.replace(MODELS["arcee"], vocabulary_size=416)  # The tokenizer has 400 ids.


@pytest.fixture(scope="module")
def params():
    return flat_parameters(random_parameters(MODEL)[1])


def write(folder, params, tokenizer, **options):
    with new_folder(folder) as unfinished:
        return write_model(unfinished, MODEL, params, tokenizer, row_length=64, **options)


def test_tables_have_rows_for_the_tokenizers_ids_and_no_more(params, tokenizer, tmp_path):
    count = write(tmp_path / "out", params, tokenizer)
    assert read_model(tmp_path / "out").vocabulary_size == 400
    assert count == sum(value.size for value in params.values()) - 16 * 24
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # Who may read one file may read all.


def test_padding_that_is_kept_comes_back_and_is_never_sampled(params, tokenizer, tmp_path):
    write(tmp_path / "out", params, tokenizer, keep_padding=True)
    back = read_pretrained(tmp_path / "out")
    assert all(np.array_equal(back[name], value) for name, value in params.items())
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == list(range(400, 416))


def test_other_dtype_is_that_of_all_tensors(params, tokenizer, tmp_path):
    write(tmp_path / "out", params, tokenizer, dtype="bfloat16", keep_padding=True)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        np.dtype(ml_dtypes.bfloat16)
    }
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    rounded = params["blocks.feed_forward.up"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(read_pretrained(tmp_path / "out")["blocks.feed_forward.up"], rounded)


@pytest.mark.parametrize("value", [7e4, np.inf, np.nan])
def test_parameter_beyond_the_dtype_is_refused_and_leaves_nothing(value, params, tokenizer, tmp_path):
    bad = params | {"final_norm.scale": np.full(24, value, np.float32)}
    with pytest.raises(UserError, match=r"final_norm\.scale has values beyond float16, or that are not finite"):
        write(tmp_path / "deep" / "out", bad, tokenizer, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_what_ends_the_writing_leaves_nothing(tmp_path):
    for error in (KeyboardInterrupt, RuntimeError, OSError):  # Not of writing: another's, as of a library.
        with pytest.raises(error), new_folder(tmp_path / "new" / "out") as folder:
            (folder / "file").write_text("")
            raise error
        assert list(tmp_path.iterdir()) == []


def test_empty_folder_is_filled_and_any_other_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    with new_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    for taken in ("out", "link", "out/file"):
        with pytest.raises(UserError, match="it exists and is not an empty folder"), new_folder(tmp_path / taken):
            raise AssertionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


def test_error_of_writing_names_the_folder():
    with pytest.raises(UserError, match="folder out: No space left; choose another"), errors_of_writing(Path("out")):
        raise OSError(28, "No space left")


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory; choose another"), new_folder(tmp_path / "file" / "out"):
        raise AssertionError
