"""Parameters as tensors of transformers and back, and what a folder with others is told."""

import json

import ml_dtypes
import numpy as np
import pytest
from huggingface_models import MODELS, random_parameters
from safetensors.numpy import load_file, save_file

from jaxformer.config import UserError
from jaxformer.huggingface.architectures import architecture_of
from jaxformer.huggingface.config_json import config_json
from jaxformer.huggingface.reading import INDEX, TENSORS, read_model, read_pretrained
from jaxformer.huggingface.tensors import flat_parameters, to_tensors, with_vocabulary

pytestmark = pytest.mark.device_free


def write(folder, name, params, **changes):
    """Writes a folder by a model's name, with changed keys or tensors; returns the folder."""
    model = MODELS[name]
    config = config_json(model, row_length=64, bos_id=1, eos_id=2, dtype="float32")
    tensors = to_tensors(architecture_of(model), model, params)
    for key, value in changes.items():
        target = tensors if "." in key else config
        if value is None:
            target.pop(key)
        else:
            target[key] = value
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / TENSORS)
    return folder


@pytest.fixture(scope="module")
def parameters():
    return {name: flat_parameters(random_parameters(model)[1]) for name, model in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_come_back_bit_for_bit(name, parameters, tmp_path):
    params = parameters[name]
    folder = write(tmp_path, name, params)
    back = read_pretrained(folder)
    assert back.keys() == params.keys() and read_model(folder) == MODELS[name].effective()
    for path, value in params.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)
        assert back[path].dtype == np.float32 and back[path].flags.c_contiguous


def test_tables_have_as_many_rows_as_are_wanted(parameters):
    params = parameters["llama"]
    for rows in (90, 97, 100):
        cut = with_vocabulary(params, rows)
        for name, value in params.items():
            kept = min(rows, 97) if name in ("embedding", "unembedding") else len(value)
            np.testing.assert_array_equal(cut[name][:kept], value[:kept], err_msg=name)
            assert not cut[name][kept:].any() and len(cut[name]) == (rows if len(value) == 97 else len(value))


def test_tensors_are_laid_out_as_in_transformers(parameters):
    """By hand, for Llama: (out, in), heads in order, gate before value."""
    params, model = parameters["llama"], MODELS["llama"]
    tensors = to_tensors(architecture_of(model), model, params)
    H, G, K, F = 4, 2, 10, 20
    qkv = params["blocks.attention.qkv"][1]
    last = "model.layers.1."
    np.testing.assert_array_equal(tensors[last + "self_attn.q_proj.weight"], qkv[:, : H * K].T)
    np.testing.assert_array_equal(tensors[last + "self_attn.k_proj.weight"], qkv[:, H * K : (H + G) * K].T)
    np.testing.assert_array_equal(tensors[last + "self_attn.v_proj.weight"], qkv[:, (H + G) * K :].T)
    np.testing.assert_array_equal(tensors[last + "mlp.gate_proj.weight"], params["blocks.feed_forward.up"][1, :, :F].T)
    np.testing.assert_array_equal(tensors[last + "mlp.up_proj.weight"], params["blocks.feed_forward.up"][1, :, F:].T)
    np.testing.assert_array_equal(tensors["lm_head.weight"], params["unembedding"])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_read_as_float32(dtype, parameters, tmp_path):
    halves = {name: value.astype(dtype) for name, value in parameters["qwen3"].items()}
    back = read_pretrained(write(tmp_path, "qwen3", halves))
    for name, value in halves.items():
        np.testing.assert_array_equal(back[name], value.astype(np.float32))


@pytest.fixture
def in_two_files(parameters, tmp_path):
    """A folder whose tensors lie in two files with an index."""
    folder = write(tmp_path / "parts", "arcee", parameters["arcee"])
    tensors = load_file(folder / TENSORS)
    (folder / TENSORS).unlink()
    files = {}
    for i, name in enumerate(tensors):
        files.setdefault(f"model-0000{1 + i % 2}-of-00002.safetensors", []).append(name)
    for file, names in files.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_tensors_in_several_files_are_read(in_two_files, parameters):
    back = read_pretrained(in_two_files)
    np.testing.assert_array_equal(back["blocks.feed_forward.up"], parameters["arcee"]["blocks.feed_forward.up"])


def damage_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "00002.safetensors: missing"),
        (
            lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"<html>not found</html>"),
            "00002.safetensors: incomplete",
        ),
        (lambda folder: damage_index(folder, lambda m: m.update({"model.norm.weight": "../x"})), "is no file of the"),
        (lambda folder: damage_index(folder, lambda m: m.clear()), "it has no weight_map"),
        (
            lambda folder: damage_index(folder, lambda m: m.update({"new.weight": sorted(m.values())[0]})),
            "it has no tensor new.weight, which",
        ),
        (lambda folder: (folder / INDEX).write_text("{"), "unreadable"),
        (lambda folder: (folder / INDEX).unlink(), "no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json; give a folder with a model"),
        (lambda folder: (folder / "config.json").write_text("[]"), "unreadable"),
    ],
)
def test_incomplete_folder_is_refused_with_the_file(damage, message, in_two_files):
    damage(in_two_files)
    with pytest.raises(UserError) as refusal:
        read_pretrained(in_two_files)
    assert message in str(refusal.value) and str(in_two_files) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model.norm.weight": None}, "it has no tensor model.norm.weight"),
        ("llama", {"lm_head.weight": None}, "it has no tensor lm_head.weight"),
        ("llama", {"vocab_size": 2_000_000_000}, "weight has shape 97 x 24, not 2000000000 x 24 as its config"),
        ("llama", {"hidden_size": 10_000_000}, "weight has shape 97 x 24, not 97 x 10000000 as"),
        ("llama", {"num_hidden_layers": 2_000_000_000}, r"it has no tensor model\.layers\.2\."),
        (
            "llama",
            {"hidden_size": 2**31 - 1, "intermediate_size": 2**31 - 1},
            "describes blocks.feed_forward.up of 18,446,",
        ),
        ("llama", {"model.layers.2.mlp.up_proj.weight": np.ones(2)}, "no parameter for model.layers.2.mlp.up_proj"),
        ("llama", {"model.layers.0.self_attn.q_norm.weight": np.ones(10)}, "no parameter for .*q_norm.weight"),
        ("llama", {"model.norm.weight": np.ones(23, np.float32)}, "norm.weight has shape 23, not 24 as its config"),
        ("llama", {"model.norm.weight": np.array(1, np.float32)}, r"norm.weight has shape \(\), not 24"),
        ("llama", {"lm_head.weight": np.ones((91, 24), np.float32)}, "lm_head.weight has shape 91 x 24, not 97 x 24"),
        ("llama", {"model.norm.weight": np.full(24, np.nan, np.float32)}, "norm.weight has values that are not finite"),
        ("llama", {"model.norm.weight": np.ones(24, np.int8)}, "norm.weight is of dtype I8"),
        (
            "llama",
            {"model.layers.1.self_attn.v_proj.bias": np.ones(20, np.float32)},
            "model.layers.1.self_attn.v_proj.bias is not 0: jaxformer has no biases",
        ),
        ("gpt2", {"transformer.h.0.attn.c_attn.bias": np.ones(72, np.float32)}, "c_attn.bias is not 0"),
        ("arcee", {"lm_head.weight": np.ones((97, 24), np.float32)}, "lm_head.weight is not the embedding"),
    ],
)
def test_foreign_tensor_is_refused_by_its_name(name, changes, message, parameters, tmp_path):
    folder = write(tmp_path, name, parameters[name], **changes)
    with pytest.raises(UserError, match=message) as refusal:
        read_pretrained(folder)
    assert str(folder) in str(refusal.value)


def without_prefix(folder):
    """Names the tensors of GPT-2 as a model without its head does; returns the folder."""
    tensors = load_file(folder / TENSORS)
    save_file({name.removeprefix("transformer."): value for name, value in tensors.items()}, folder / TENSORS)
    return folder


def test_tensors_of_a_model_without_its_head_are_read(parameters, tmp_path):
    """As the Hub's GPT-2 names them, whose biases are what jaxformer lacks."""
    buffer = {"transformer.h.0.attn.bias": np.ones((64, 64), np.float32)}
    back = read_pretrained(without_prefix(write(tmp_path, "gpt2", parameters["gpt2"], **buffer)))
    for name, value in parameters["gpt2"].items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    bias = {"transformer.h.1.mlp.c_fc.bias": np.ones(20, np.float32)}
    with pytest.raises(UserError, match=r"h\.1\.mlp\.c_fc\.bias is not 0: jaxformer has no biases"):
        read_pretrained(without_prefix(write(tmp_path, "gpt2", parameters["gpt2"], **bias)))


def test_what_transformers_may_add_changes_nothing(parameters, tmp_path):
    """Zero biases, a tied head that is written out, and buffers."""
    extra = {
        "model.layers.0.self_attn.q_proj.bias": np.zeros(24, np.float32),
        "lm_head.weight": parameters["arcee"]["embedding"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32),
    }
    back = read_pretrained(write(tmp_path, "arcee", parameters["arcee"], **extra))
    np.testing.assert_array_equal(back["blocks.attention.qkv"], parameters["arcee"]["blocks.attention.qkv"])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_refused(share, parameters, tmp_path):
    folder = write(tmp_path, "arcee", parameters["arcee"])
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"model\.safetensors: incomplete, or no safetensors file"):
        read_pretrained(folder)


def test_pickled_model_is_refused(parameters, tmp_path):
    folder = write(tmp_path, "arcee", parameters["arcee"])
    (folder / TENSORS).rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no model\.safetensors \(pytorch_model\.bin is a pickle"):
        read_pretrained(folder)
