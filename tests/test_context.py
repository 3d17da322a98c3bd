"""The context of a model: what its config states, or what YaRN makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from leanthink.engine.generation import generate
from leanthink.engine.sampling import Sampling
from leanthink.models.context import context_of
from leanthink.models.loading import check_supported
from models import make_model, make_tokenizer

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


FACTORS = {"short_factor": [1.0] * 64, "long_factor": [4.0] * 64}


def config_of(stated: int, rotation: dict[str, Any] | None, *, name: str = "rope_parameters") -> Any:
    given = {} if rotation is None else {name: {"rope_theta": 1e6, **rotation}}
    return CONFIG_MAPPING["qwen3"](max_position_embeddings=stated, **given)


@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    ("stated", "rotation", "context"),
    [
        (40960, None, 40960),
        (32768, YARN, 131072),
        (40960, YARN, 131072),  # as Qwen documents it: 32768 for the output and 8192 for a prompt
        (131072, YARN, 131072),
        (262144, YARN, 262144),
        (32768, {"type": "yarn", "factor": 2.0}, 65536),
        (8192, {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 4096}, 10240),
        (131072, {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32768}, 131072),
        (16384, {"rope_type": "linear", "factor": 4.0}, 16384),
        (16384, {"rope_type": "dynamic", "factor": 4.0}, 16384),
        (131072, {"rope_type": "longrope", "original_max_position_embeddings": 4096, **FACTORS}, 4096),
        (
            131072,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            131072,
        ),
    ],
)
def test_yarn_multiplies_a_context_that_was_left_as_it_was(
    stated: int, rotation: dict[str, Any] | None, context: int, name: str
) -> None:
    assert context_of(config_of(stated, rotation, name=name)) == context


def test_of_rotations_for_each_type_of_layer_that_of_full_attention_counts() -> None:
    rotations = {
        "full_attention": {"rope_theta": 1e6, **YARN},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    assert context_of(CONFIG_MAPPING["gemma3_text"](rope_parameters=rotations, max_position_embeddings=32768)) == 131072


def test_a_sliding_window_within_the_context_that_yarn_gives_is_a_window() -> None:
    reaches = CONFIG_MAPPING["phi3"](sliding_window=4096, max_position_embeddings=4096)
    check_supported(reaches)
    config = CONFIG_MAPPING["mistral"](
        sliding_window=4096,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0},
    )
    with pytest.raises(Exception, match="sliding window of 4096"):
        check_supported(config)


def test_a_request_may_grow_to_the_context_that_yarn_gives() -> None:
    rotation = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    model = make_model("qwen3", max_position_embeddings=16, rope_parameters=rotation)
    model.generation_config.eos_token_id = None
    (completion,) = generate(model, make_tokenizer(), [[1] * 20], policy="full", sampling=Sampling())
    assert completion.prompt_tokens + len(completion.token_ids) == 64


@pytest.mark.parametrize(
    ("model_type", "stated", "rotation"),
    [
        ("phi3", 256, {"rope_type": "longrope", "short_factor": [1.0, 1.1] * 4, "long_factor": [1.5, 4.0] * 4}),
        ("llama", 64, {"rope_type": "dynamic", "factor": 4.0}),
    ],
)  # fmt: skip
def test_a_rotation_that_changes_with_the_length_is_served_up_to_where_it_changes(
    model_type: str, stated: int, rotation: dict[str, Any]
) -> None:
    rotation = {"rope_theta": 1e4, **rotation}
    before = {"original_max_position_embeddings": 64} if model_type == "phi3" else {}
    model = make_model(model_type, max_position_embeddings=stated, rope_parameters=rotation, **before).double()
    model.generation_config.eos_token_id = None
    prompts = [[1, 2, 3], list(range(4, 30)), [7] * 41]
    found = generate(model, make_tokenizer(), prompts, policy="full", sampling=Sampling())
    for prompt, completion in zip(prompts, found, strict=True):
        stock = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=64 - len(prompt))
        assert [*prompt, *completion.token_ids] == stock[0].tolist()
