"""What the options of `leanthink serve` make of a server, those included that vLLM's users know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import refused
from leanthink.entrypoints.openai.error_responses import APIError
from leanthink.entrypoints.openai.protocol import TextBody
from leanthink.entrypoints.openai.request_parsing import RequestParser
from leanthink.entrypoints.openai.run import GIB, kv_bytes, make_engine
from leanthink.entrypoints.openai.settings import Settings
from leanthink.models.loading import as_dtype, load
from leanthink.utils.errors import UsageError
from models import CONTEXT, make_model, make_tokenizer

CUDA = torch.device("cuda")


@pytest.fixture
def settings_of(inside: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings that these options start a server with."""
    pytest.importorskip("fastapi", reason="the server is not installed: pip install 'leanthink[serve]'")
    started: list[Settings] = []
    monkeypatch.setattr(
        "leanthink.entrypoints.openai.run.serve", lambda _, __, settings, **___: started.append(settings)
    )

    def start(*arguments: object) -> Settings:
        result = inside("serve", "--model", folder, *arguments)
        assert result.code == 0, result.err
        return started.pop()

    return start


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["--served-model-name", "mine"], ["--name", "mine"]),
        (["--dtype", "auto"], []),
    ],
)
def test_options_of_vllm_mean_what_ours_mean(theirs: list[Any], ours: list[Any], settings_of: Any) -> None:
    assert settings_of(*theirs) == settings_of(*ours)


def test_options_of_vllm_without_one_of_ours_reach_the_settings(settings_of: Any) -> None:
    found = settings_of("--gpu-memory-utilization", 0.5, "--max-model-len", 500, "--generation-config", "vllm")
    assert (found.gpu_memory_utilization, found.max_model_len, found.generation_config) == (0.5, 500, "vllm")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--name", "a", "--served-model-name", "a"], ["--name and --served-model-name are one thing"]),
        (["--kv-gib", 1, "--gpu-memory-utilization", 0.9], ["kv_gib and gpu_memory_utilization"]),
        (["--gpu-memory-utilization", 90], ["gpu_memory_utilization=90.0", "at most 1"]),
        (["--gpu-memory-utilization", 0], ["gpu_memory_utilization=0.0"]),
        (["--max-model-len", 1], ["max_model_len=1", "2 or more"]),
        (["--max-num-seqs", 0], ["rows=0"]),
        (["--dtype", "half"], ["'half'", "auto"]),
        (["--generation-config", "here"], ["'here'", "auto, vllm"]),
    ],
)
def test_both_spellings_and_what_is_out_of_range_are_refused(
    arguments: list[Any], words: list[str], inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "leanthink.entrypoints.openai.run.serve", lambda *_, **__: None
    )  # what is not refused would serve for ever
    refused(inside("serve", *arguments), 2, *words)


def test_a_share_of_a_gpus_memory_leaves_what_is_on_it_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * GIB, 80 * GIB))
    assert kv_bytes(CUDA, Settings(name="m", gpu_memory_utilization=0.9)) == pytest.approx(62 * GIB)
    assert kv_bytes(CUDA, Settings(name="m", gpu_memory_utilization=0.1)) == 0
    assert kv_bytes(CUDA, Settings(name="m")) == pytest.approx(56 * GIB)
    assert kv_bytes(CUDA, Settings(name="m", kv_gib=3)) == 3 * GIB


def test_the_memory_holds_what_the_policy_remembers_too() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    kv, heads = 2 * 2 * 2 * 16 * 4, 2 * 2  # bytes of keys and values; heads of all layers
    for policy, beside in (("sinks", 8), ("h2o", 12 * heads)):  # a position, or one for each head and its attention
        settings = Settings(name="m", policy=policy, kv_gib=1000 * (kv + beside) / GIB)
        assert make_engine(model, tokenizer, settings).cache.slots == 1000


def test_a_share_of_a_gpus_memory_is_refused_without_a_gpu() -> None:
    with pytest.raises(UsageError, match=r"gpu_memory_utilization=0\.9 .* this is cpu: give kv_gib"):
        kv_bytes(torch.device("cpu"), Settings(name="m", gpu_memory_utilization=0.9))


def test_prompt_and_output_together_stay_below_the_length_that_is_set() -> None:
    def parser(most: int | None) -> RequestParser:
        about = Settings(name="m", policy="full", budget=None, max_model_len=most)
        return RequestParser(make_model(), make_tokenizer(), about, largest=10**6)

    (request,) = parser(100).parse(TextBody(model="m", prompt="x" * 30))
    assert request.max_new_tokens == 70
    (request,) = parser(None).parse(TextBody(model="m", prompt="x" * 30))
    assert request.max_new_tokens == CONTEXT - 30
    with pytest.raises(APIError, match="has 100 tokens, and at most 99 are allowed"):
        parser(100).parse(TextBody(model="m", prompt="x" * 100))
    with pytest.raises(UsageError, match=f"max_model_len={CONTEXT + 1} is above this model's context of {CONTEXT}"):
        parser(CONTEXT + 1)


@pytest.mark.parametrize("written", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_auto_is_float32_on_a_cpu(written: torch.dtype, tmp_path: Path) -> None:
    make_model("qwen3").to(written).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(written).removeprefix("torch.")
    assert load(tmp_path, device="cpu", dtype=as_dtype("auto"))[0].dtype == torch.float32


def test_the_dtype_auto_keeps_a_half_precision_checkpoint_on_a_gpu() -> None:
    from leanthink.models.loading import dtype_for

    def chosen(dtype: Any, written: torch.dtype | None, device: str = "cuda:0") -> torch.dtype:
        config = make_model("qwen3").config
        config.dtype = written
        return dtype_for(dtype, device, config)

    assert chosen("auto", torch.float16) == torch.float16
    assert chosen("auto", torch.float32) == chosen("auto", torch.bfloat16) == chosen("auto", None) == torch.bfloat16
    assert chosen(None, torch.float16) == torch.bfloat16
    assert chosen(torch.float32, torch.float16) == torch.float32
    assert [as_dtype(name) for name in (None, "auto", "float16")] == [None, "auto", torch.float16]
