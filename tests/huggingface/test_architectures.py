"""Which architecture of transformers a model is, or that it is none."""

import dataclasses

import pytest
from huggingface_models import BASE

from jaxformer.config import UserError
from jaxformer.huggingface.architectures import architecture_of

pytestmark = pytest.mark.device_free


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"logit_soft_cap": 30.0}, "ArceeForCausalLM, except for model.logit_soft_cap = 30.0"),
        (
            {"qk_norm": True},
            "Qwen3ForCausalLM, except for model.activation = gelu; ArceeForCausalLM, except for model.qk_norm = True",
        ),
        ({"sliding_window": 8}, "ArceeForCausalLM, except for model.sliding_window = 8"),
        ({"learned_positions": 64}, "GPT2LMHeadModel, except for model.norm = rmsnorm"),
        ({"norm": "layernorm", "qk_norm": True}, "Starcoder2ForCausalLM, except for model.qk_norm = True"),
        (
            {"norm": "layernorm", "activation": "swiglu", "sliding_window": 8},
            "StableLmForCausalLM, except for model.sliding_window = 8",
        ),
        ({"norm": "layernorm", "head_width": 10}, "Starcoder2ForCausalLM, except for model.head_width = 10"),
        (
            {"norm": "layernorm", "learned_positions": 64, "key_value_heads": 2, "logit_soft_cap": 2.0},
            "GPT2LMHeadModel, except for model.key_value_heads = 2 and model.logit_soft_cap = 2.0",
        ),
        ({"width": 26, "head_width": 10}, "ArceeForCausalLM, except for model.head_width = 10"),
    ],
)
def test_model_without_an_architecture_is_refused_with_the_option(changes, options):
    with pytest.raises(UserError, match=options):
        architecture_of(dataclasses.replace(BASE, **changes))
