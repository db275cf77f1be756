"""The config.json of a model, both ways."""

import dataclasses
from pathlib import Path

import pytest
from huggingface_models import BASE, MODELS

from jaxformer.config import UserError
from jaxformer.huggingface.architectures import architecture_of
from jaxformer.huggingface.config_json import config_json, read_config_json
from jaxformer.layers import ACTIVATIONS

pytestmark = pytest.mark.device_free
SOURCE = Path("folder/config.json")


def write(model, **changes):
    config = config_json(model, row_length=64, bos_id=1, eos_id=2, dtype="float32")
    return {key: value for key, value in (config | changes).items() if value != "absent"}


@pytest.mark.parametrize("name", MODELS)
def test_config_json_comes_back_as_the_same_model(name):
    model = MODELS[name]
    architecture, back = read_config_json(write(model), SOURCE)
    assert architecture.model_type == name.partition(" ")[0]
    assert back == model.effective()


@pytest.mark.parametrize("name", MODELS)
def test_keys_of_version_4_describe_the_same_model(name):
    version_4 = {"rope_parameters": "absent", "dtype": "absent", "rope_scaling": None, "layer_types": "absent"}
    assert read_config_json(write(MODELS[name], **version_4), SOURCE) == read_config_json(write(MODELS[name]), SOURCE)


def test_every_model_has_an_architecture_with_its_options_or_is_refused():
    found = {}
    for norm in ("rmsnorm", "layernorm"):
        for activation in ACTIVATIONS:
            for options in ({}, {"qk_norm": True}, {"sliding_window": 8}, {"learned_positions": 64}):
                model = dataclasses.replace(BASE, norm=norm, activation=activation, **options)
                try:
                    found.setdefault(architecture_of(model).model_type, []).append(model)
                except UserError:
                    continue
                assert read_config_json(write(model), SOURCE)[1].effective().norm == norm
    assert {name: len(models) for name, models in found.items()} == {
        "llama": 1, "mistral": 1, "qwen3": 1, "arcee": 2, "starcoder2": 4, "stablelm": 1, "gpt2": 2,
    }  # fmt: skip


def test_llama_with_a_head_width_that_it_would_refuse_is_mistral_without_a_window():
    model = dataclasses.replace(BASE, width=26, head_width=10, activation="swiglu")
    assert write(model)["model_type"] == "mistral" and write(model)["sliding_window"] is None
    assert read_config_json(write(model), SOURCE)[1].sliding_window == 0


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "absent"}, "model_type = 'None': not a model that jaxformer has; it has llama, "),
        ("llama", {"model_type": "qwen2"}, "'qwen2': not a model that jaxformer has; it has llama, "),
        ("llama", {"model_type": "gemma2"}, "model_type = 'gemma2'"),
        ("llama", {"architectures": ["LlamaModel"]}, "architectures = ['LlamaModel']: must be ['LlamaForCausalLM']"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0: jaxformer has no such option"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu': jaxformer has silu, swish there"),
        ("arcee", {"hidden_act": "silu"}, "hidden_act = 'silu': jaxformer has gelu_pytorch_tanh, gelu_new, relu2"),
        ("gpt2", {"activation_function": "gelu"}, "activation_function = 'gelu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual = True: jaxformer has False only"),
        ("stablelm", {"rope_parameters": "absent", "partial_rotary_factor": "absent"}, "partial_rotary_factor = 0.25"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters.rope_type = 'llama3'"),
        ("llama", {"rope_parameters": "absent", "rope_scaling": {"type": "linear", "factor": 2.0}}, "= 'linear'"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention"),
        ("llama", {"rope_parameters": [1]}, "rope_parameters = [1]: must be an object"),
        ("llama", {"rope_parameters": {"rope_theta": -1.0}}, "rope_theta = -1.0: must be a number above 0"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "one kind of attention, in all 2 layers"),
        ("qwen3", {"layer_types": [["x"], ["x"]]}, "layer_types = [['x'], ['x']]: jaxformer has one kind of attention"),
        ("qwen3", {"layer_types": "absent", "max_window_layers": 1}, "max_window_layers = 1: must be 0, or 2 or more"),
        ("qwen3", {"layer_types": "absent", "max_window_layers": "0"}, "max_window_layers = '0': must be 0, or 2"),
        ("llama", {"rope_parameters": {"rope_theta": 10**400}}, "rope_theta = 1000"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps = nan: must be a number above 0 and below 1e+30"),
        ("llama", {"hidden_size": 10**400}, "must be a number above 0 and below 2,147,483,648"),
        ("llama", {"hidden_size": "absent"}, "config.json: no hidden_size"),
        ("llama", {"hidden_size": "24"}, "hidden_size = '24': must be a number above 0"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers = True"),
        ("gpt2", {"n_head": 5}, "model.heads (5) must divide model.width (24)"),
        ("mistral", {"sliding_window": 0}, "sliding_window = 0: must be a number above 0"),
    ],
)
def test_foreign_config_is_refused_with_its_key_and_value(name, changes, message):
    with pytest.raises(UserError) as refusal:
        read_config_json(write(MODELS[name], **changes), SOURCE)
    assert message in str(refusal.value)


def test_absent_keys_are_read_as_transformers_reads_them():
    # As SmolLM2-135M and Mistral-7B-v0.1 write them.
    sizes = {"hidden_size": 32, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 8}
    sizes |= {"vocab_size": 97, "architectures": ["MistralForCausalLM"]}
    model = read_config_json({"model_type": "mistral", **sizes, "head_dim": 8}, SOURCE)[1]
    assert (model.sliding_window, model.G, model.norm_epsilon, model.tied_embeddings) == (4096, 8, 1e-6, False)
    sizes |= {"architectures": None, "rope_theta": 100_000, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    model = read_config_json({"model_type": "llama", **sizes, "head_dim": None}, SOURCE)[1]
    assert (model.rope_base, model.G, model.K, model.norm_epsilon, model.tied_embeddings) == (1e5, 8, 4, 1e-5, True)
