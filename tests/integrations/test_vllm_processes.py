"""The plugin over vLLM's processes: server, tensor-parallel workers, other architectures, bad starts, kernels."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-vllm` runs this in an environment of its own")

from vllm._custom_ops import cpu_attn_reshape_and_cache
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from leanthink import Budget, Sampling, generate, load
from leanthink.data.tasks import registry
from leanthink.data.think_tags import set_think_tags
from leanthink.engine.bench.options import options_from
from leanthink.engine.bench.run import run
from leanthink.integrations.vllm.layout import Layout
from leanthink.integrations.vllm.v2.version import CHECKS, SCHEDULERS
from leanthink.integrations.vllm.version import ROWS
from leanthink.models.fingerprint import fingerprint
from leanthink.models.predictor import Predictor, save_predictor
from leanthink.models.prompt import encode_prompt
from leanthink.models.tiny import predictors_path, weights_path
from models import make_model, make_tokenizer
from quantised import take_rounded

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "bench"))
from quantised_checkpoint import write

BUDGET = Budget(slots=96, recent_window=32, eviction_interval=32)
ASKED = {"leanthink_budget": 96, "leanthink_recent_window": 32, "leanthink_eviction_interval": 32}
FLAGS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1536", "--block-size", "32"]
CHILD = Path(__file__).parent / "vllm_child.py"


def environment(settings: Mapping[str, Any], **more: str) -> dict[str, str]:
    variables = {"LEANTHINK_VLLM": json.dumps(settings), "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    return os.environ | variables | more


def in_a_child(
    options: dict[str, Any], prompts: Sequence[Sequence[int]], params: Sequence[dict[str, Any]], out: Path,
    variables: dict[str, str],
) -> list[tuple[int, ...]]:  # fmt: skip
    """The tokens of each answer, from a vLLM of its own."""
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "block_size": 32,
               "logits_processors": [ROWS], **options}  # fmt: skip
    given = json.dumps([options, prompts, params])
    done = subprocess.run([sys.executable, str(CHILD), str(out)], input=given, env=variables, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0, "\n".join(
        line for line in (done.stdout + done.stderr).splitlines() if "Error" in line
    )[-3000:]
    return [tuple(ids) for ids in json.loads(out.read_text())]


# -- the server ------------------------------------------------------------------------------------------------------


def command(port: int, *flags: str) -> list[str]:
    """`vllm serve` itself does not start in vllm-cpu 0.32.0, which looks for a distribution of another name."""
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights_path())]
    return [*server, "--served-model-name", "tiny", "--port", str(port), *FLAGS, *flags]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port()
    server = subprocess.Popen(
        command(port, "--logits-processors", ROWS, "--enable-prompt-tokens-details"),
        env=environment({"policies": ["horizon", "random"], "max_thought_slots": 256}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert server.poll() is None, "the server has ended"
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps({"model": "tiny", "temperature": 0, "max_tokens": 700, **body}).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def test_a_server_answers_as_our_engine_does(url: str) -> None:
    model, tokenizer = load("tiny", device="cpu")
    texts = [registry.sample(family, 2, 1, 1)[0].prompt for family in list(registry.FAMILIES)[:2]]
    for policy in ("horizon", "random"):
        expected = generate(model, tokenizer, texts, policy=policy, budget=BUDGET,
                            sampling=Sampling(max_new_tokens=700))  # fmt: skip
        for text, done in zip(texts, expected, strict=True):
            asked = ASKED | {"leanthink_policy": policy}
            body = {"messages": [{"role": "user", "content": text}], "vllm_xargs": asked, "return_token_ids": True}
            (choice,) = post(url, "/v1/chat/completions", body)["choices"]
            assert tuple(choice["token_ids"]) == done.token_ids
            assert done.evictions > 2
            prompt = encode_prompt(tokenizer, 0, text)
            plain = post(url, "/v1/completions", {"prompt": prompt, "vllm_xargs": asked, "return_token_ids": True})
            assert tuple(plain["choices"][0]["token_ids"]) == done.token_ids


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"leanthink_budgt": 64}, "Did you mean 'leanthink_budget'"),
        ({"leanthink_budget": 225}, "at most 256 are allowed"),
        ({"leanthink_budget": 64, "leanthink_policy": "snapkv"}, "choose one of horizon, random, full"),
    ],
)
def test_a_wrong_request_is_answered_with_400_and_the_reason(url: str, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(url, "/v1/completions", {"prompt": "1", "vllm_xargs": asked})
    assert refused.value.code == 400
    assert message in json.loads(refused.value.read())["error"]["message"]


def test_the_servers_metrics_count_what_is_held(url: str) -> None:
    post(url, "/v1/completions", {"prompt": "<|user|>What is 12 times 13?", "vllm_xargs": ASKED, "max_tokens": 200})
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    (usage,) = [float(line.split()[-1]) for line in lines if line.startswith("vllm:kv_cache_usage_perc{")]
    assert usage == 0


@pytest.mark.parametrize(
    ("flags", "settings", "message"),
    [
        ((), {}, "--logits-processors"),
        (("--logits-processors", ROWS, "--no-enable-prefix-caching"), {}, "enable_prefix_caching"),
        (("--logits-processors", ROWS), {"budgt": 3}, "Did you mean 'budget'"),
    ],
)
def test_a_server_that_could_not_keep_its_word_does_not_start(
    flags: tuple[str, ...], settings: dict[str, Any], message: str
) -> None:
    done = subprocess.run(command(free_port(), *flags), env=environment(settings), capture_output=True, text=True,
                          timeout=200, check=False)  # fmt: skip
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


# -- workers, models, kernels ----------------------------------------------------------------------------------------


def test_two_tensor_parallel_workers_keep_the_same_slots(tmp_path: Path) -> None:
    """Else their halves of the heads would attend to different tokens, and the answer would not be the engine's."""
    model, tokenizer = load("tiny", device="cpu")
    prompts = [encode_prompt(tokenizer, 0, registry.sample(family, 2, 1, 1)[0].prompt) for family in registry.FAMILIES]
    policies = ["random", "horizon"] * 3
    params = [{"temperature": 0, "max_tokens": 300, "extra_args": ASKED | {"leanthink_policy": policy}}
              for policy in policies]  # fmt: skip
    options = {"model": str(weights_path()), "tensor_parallel_size": 2}
    variables = environment({"policies": ["horizon", "random"]}, VLLM_CPU_OMP_THREADS_BIND="0|1")
    expected = generate(
        model, tokenizer, prompts, policy=policies, budget=BUDGET, sampling=Sampling(max_new_tokens=300)
    )
    found = in_a_child(options, prompts, params, tmp_path / "out.json", variables)
    assert found == [done.token_ids for done in expected]


@pytest.mark.parametrize("close", ["</think>", "</think>\nA"], ids=["a token", "a text"])
def test_model_runner_v2_answers_as_our_engine(close: str, tmp_path: Path) -> None:
    """What runs on a GPU, with its kernels interpreted; the tag is found on the device, or by the host in the text."""
    model, tokenizer = load("tiny", device="cpu")
    set_think_tags(tokenizer, "<think>", close)
    folder = tmp_path / "model"
    shutil.copytree(weights_path(), folder)
    tokenizer.save_pretrained(folder)
    problems = registry.sample("sums", 2, 3, 1)  # whose answers begin with "After"
    prompts, policies = [encode_prompt(tokenizer, 0, one.prompt) for one in problems], ["horizon", "random", "sinks"]
    params = [{"temperature": 0, "max_tokens": 500, "extra_args": ASKED | {"leanthink_policy": policy}}
              for policy in policies]  # fmt: skip
    options = {"model": str(folder), "logits_processors": [CHECKS], "scheduler_cls": SCHEDULERS[False],
               "async_scheduling": False, "max_num_seqs": 4}  # fmt: skip
    variables = environment({"policies": policies}, VLLM_USE_V2_MODEL_RUNNER="1", TRITON_INTERPRET="1")
    expected = generate(
        model, tokenizer, prompts, policy=policies, budget=BUDGET, sampling=Sampling(max_new_tokens=500)
    )
    assert all(one.evictions and one.answer for one in expected), "thoughts that lose something and end"
    assert in_a_child(options, prompts, params, tmp_path / "out.json", variables) == [one.token_ids for one in expected]


def test_a_quantised_checkpoint_answers_as_our_engine_with_its_rounded_weights(tmp_path: Path) -> None:
    """In four bits, whose inputs stay whole. States in bfloat16 may turn a near choice: in one answer of the eight."""
    folder, file = tmp_path / "model", predictors_path() / "horizon.safetensors"
    write(weights_path(), folder, "gptq")
    model, tokenizer = load("tiny", device="cpu")
    take_rounded(model.named_parameters(), load_file(folder / "model.safetensors"))
    problems = [problem for family in list(registry.FAMILIES)[:2] for problem in registry.sample(family, 2, 2, 1)]
    policies = ["random"] * 4 + ["horizon"] * 4
    prompts = [encode_prompt(tokenizer, 0, one.prompt) for one in problems] * 2
    params = [{"temperature": 0, "max_tokens": 400, "extra_args": ASKED | {"leanthink_policy": policy}}
              for policy in policies]  # fmt: skip
    settings = {"policies": ["random", "horizon"], "predictors": {"horizon": str(file)},
                "ignore_predictor_mismatch": True}  # fmt: skip
    found = in_a_child({"model": str(folder), "dtype": "bfloat16"}, prompts, params, tmp_path / "out.json",
                       environment(settings))  # fmt: skip
    expected = generate(model, tokenizer, prompts, policy=policies, budget=BUDGET, predictor=file,
                        ignore_predictor_mismatch=True, sampling=Sampling(max_new_tokens=400))  # fmt: skip
    assert all(done.evictions for done in expected)
    same = [tokens == done.token_ids for tokens, done in zip(found, expected, strict=True)]
    assert sum(same) >= 7, same


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
def test_other_architectures_answer_as_on_our_engine(architecture: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
    model, tokenizer = make_model(architecture, **sizes), make_tokenizer()
    with torch.no_grad():
        model.lm_head.weight[256:] = 0  # it thinks to the limit
    folder, file = tmp_path / "model", tmp_path / "own.safetensors"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    predictor = Predictor(target="horizon", hidden_size=128, horizons=(4, 16, 64), offsets=(0, 1, 2))
    save_predictor(predictor, file, base_fingerprint=fingerprint(model), data={}, metrics={})
    prompts = [[(7 * i + k) % 256 for i in range(20 + 9 * k)] for k in range(4)]
    policies, budget = ["horizon", "sinks"] * 2, Budget(slots=24, recent_window=4, eviction_interval=8)
    parts = {"leanthink_budget": 24, "leanthink_recent_window": 4, "leanthink_eviction_interval": 8}
    params = [{"temperature": 0, "max_tokens": 90, "extra_args": parts | {"leanthink_policy": policy}}
              for policy in policies]  # fmt: skip
    settings = {"policies": ["horizon", "sinks"], "predictors": {"horizon": str(file)}}
    found = in_a_child({"model": str(folder)}, prompts, params, tmp_path / "out.json", environment(settings))
    expected = generate(model, tokenizer, prompts, policy=policies, budget=budget,
                        predictor=file, sampling=Sampling(max_new_tokens=90))  # fmt: skip
    assert found == [done.token_ids for done in expected]
    assert len(set(found[0])) > 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 80])
def test_slots_are_moved_in_the_order_of_vllms_own_kernel(dtype: torch.dtype, head_dim: int) -> None:
    """bfloat16 is packed otherwise where the processor has matrix units."""
    blocks, heads, size = 4, 2, 32
    isa = _get_attn_isa(dtype, size, head_dim)

    def write(keys: torch.Tensor, values: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
        halves = cache.view(len(cache), heads, size * 2, head_dim).chunk(2, dim=2)
        cpu_attn_reshape_and_cache(keys, values, *halves, slots, isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto")

    shape = (blocks, heads, size, 2 * head_dim)
    layout = Layout(write, shape=shape, block_size=size, head_dim=head_dim, dtype=dtype)
    keys, values = torch.randn(2, 100, heads, head_dim).to(dtype)
    table, kept = torch.tensor([2, 0, 3, 1]), torch.arange(40, 100, 3)
    slots = table[torch.arange(100) // size] * size + torch.arange(100) % size
    cache, expected = torch.zeros(2, *shape, dtype=dtype)
    write(keys, values, cache, slots)
    layout.move(cache, table, kept, torch.arange(20, 20 + len(kept)))
    chosen = torch.tensor([*range(20), *kept.tolist(), *range(20 + len(kept), 100)])
    write(keys[chosen], values[chosen], expected, slots)
    assert torch.equal(cache, expected)


def test_bench_measures_vllm_in_the_cells_of_our_engine() -> None:
    flags = {
        "cells": "4x200,16x400",
        "prompts": "16x64",
        "seconds": "3",
        "parts": "decode,prompts,throughput,vllm-baseline",
    }
    found = run(options_from({"device": "cpu", **flags}))["parts"]
    cells = found["vllm-baseline"]["cells"]
    assert [cell["part"] for cell in cells] == ["prompts", "decode", "decode", "throughput"]
    prompts, *decoded, throughput = cells
    assert prompts["first_token_p99_ms"]["n"] == 3
    for cell, ours in zip(decoded, found["decode"]["cells"], strict=True):
        assert cell["slots_read_per_row"] == pytest.approx(cell["slots"], rel=0.02)
        ratio = cell["step_ms"]["mean"] / ours["step_ms"]["mean"]
        assert cell["ratio_to_ours"] == {"full": pytest.approx(ratio)}
    assert throughput["seconds"] > 2
    assert throughput["tokens_per_second"] == pytest.approx(throughput["tokens"] / throughput["seconds"])
    assert throughput["ratio_to_ours"].keys() == {"full", "horizon 256", "horizon 128", "horizon 64"}
