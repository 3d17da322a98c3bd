"""FP8 keys and values: what is written, that attention is exact but for it, and what a request sees of it."""

from __future__ import annotations

import json
import os
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor

import leanthink
from command_line import refused
from leanthink.engine.cache import SlotCache
from leanthink.engine.engine import Engine
from leanthink.engine.generation import rows_that_fit
from leanthink.engine.kv_calibration import PIECE, _token_ids
from leanthink.engine.outputs import Completion
from leanthink.engine.quantized_kv import E4M3, KVQuantization
from leanthink.engine.sampling import Sampling
from leanthink.models.loading import kv_shape, load
from leanthink.policies import Policy, make_policy
from leanthink.policies.budget import Budget
from leanthink.policies.h2o import H2O
from leanthink.utils.errors import UsageError
from models import RandomPredictor, make_model, make_tokenizer, mix_prompts
from reference.fp8_slow import e4m3_slow, rounded_slow

TOKENIZER = make_tokenizer()
ALL_BYTES = torch.arange(256, dtype=torch.uint8)
NAMES = ("full", "window", "random-heads", "snapkv", "h2o", "r-kv", "tova", "keydiff", "vase")


def policies() -> list[Policy]:
    torch.manual_seed(3)
    horizon = RandomPredictor(64, "horizon", (4, 8, 16), offsets=(0, 1, 3)).double()
    return [*map(make_policy, NAMES), make_policy("horizon", horizon), H2O(waiting=3, pins_prompt=False)]


def budget_of(policy: Policy) -> Budget | None:
    if policy.name == "full":
        return None
    slots = 16 if policy.pins_prompt else 50
    return Budget(slots=slots, recent_window=3, eviction_interval=5, max_answer_slots=20)


def run(engine: Engine, prompts: dict[int, list[int]], made: list[Policy]) -> dict[int, Completion]:
    """The completions of these prompts, each under the policy of its number."""
    names = {
        engine.add(
            prompt,
            policy=made[number],
            budget=budget_of(made[number]),
            sampling=Sampling(max_new_tokens=60, temperature=0.7, seed=number),
            record=True,
        ): number
        for number, prompt in prompts.items()
    }
    finished: dict[int, Completion] = {}
    while engine.unfinished:
        progress = engine.step()
        assert not progress.failed
        finished |= progress.finished
        engine.check_integrity()
    return {names[request]: completion for request, completion in finished.items()}


def what(done: dict[int, Completion]) -> dict[int, Any]:
    return {number: (one.token_ids, one.evicted_at, one.evictions) for number, one in sorted(done.items())}


def rounding(quantization: KVQuantization) -> Any:
    """`SlotCache.append` that holds what FP8 would, in the model's dtype."""

    def append(cache: SlotCache, layer: int, batch: Any, keys_NHD: Tensor, values_NHD: Tensor) -> None:
        SlotCache.append(cache, layer, batch, *rounded_slow(quantization, layer, torch.stack([keys_NHD, values_NHD])))

    return append


def test_scales_offsets_and_bytes_are_those_worked_out_by_hand() -> None:
    keys, values = torch.tensor([[100.0, 1], [104, -1]]), torch.tensor([[224.0, 0], [-56, 3]])
    found = KVQuantization.of(torch.stack([keys, values])[None, :, None])
    assert found.offsets_LPHD.tolist() == [[[[102, 0]], [[0, 0]]]]
    assert found.scales_LPH.tolist() == [[[2**-6], [1]]]  # 2 * 2 / 448 lies above 2^-7; 2 * 224 / 448 is 1
    kv_PNHD = torch.tensor([[[103.1, -9.0]], [[300.0, 1e4]]])[:, :, None]
    stored = found.layer(0).stored(kv_PNHD)
    assert stored.view(E4M3).double().flatten().tolist() == [72, -448, 288, 448]  # of 70.4, -576, 300 and 10000
    restored = [found.numbers(stored.transpose(1, 2)[None, part : part + 1], range(1), part, torch.float32)
                for part in (0, 1)]  # fmt: skip
    assert torch.cat(restored).flatten().tolist() == [103.125, -7, 288, 448]


def test_the_reference_rounds_as_torch_casts() -> None:
    numbers = ALL_BYTES.view(E4M3).double()
    numbers = numbers[numbers.isfinite()].sort().values.unique()
    middle = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, middle, middle * (1 + 1e-6), middle * (1 - 1e-6)])
    assert torch.equal(e4m3_slow(x), x.to(E4M3).double())


def test_attention_without_the_offsets_is_attention_with_them() -> None:
    torch.manual_seed(0)
    kv_LPHSD = torch.randn(1, 2, 3, 50, 16, dtype=torch.float64)
    kv_LPHSD[:, 0, :, :, 5] += 300
    found, q_HGD = KVQuantization.of(kv_LPHSD), torch.randn(3, 2, 16, dtype=torch.float64)
    stored = found.layer(0).stored(kv_LPHSD[0].transpose(1, 2)).transpose(1, 2)
    shifted = found.layer(0).shifted(stored, torch.float64)
    restored_HSD = found.numbers(stored[None, :1], range(1), 0, torch.float64)[0, 0]
    assert not torch.allclose(restored_HSD, shifted[0])
    weights = [(q_HGD @ keys_HSD.mT).softmax(-1) for keys_HSD in (restored_HSD, shifted[0])]
    torch.testing.assert_close(*weights, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("architecture", "row_slots"), [("llama", None), ("qwen2", 150), ("gemma3_text", None), ("bamba", None)]
)
def test_requests_get_what_a_cache_of_rounded_numbers_gives_alone_or_together(
    architecture: str, row_slots: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policies of every kind, prompts in pieces or whole, and equal prompts, in float64."""
    model, made, tokens = make_model(architecture).double(), policies(), torch.randint(250, (40,)).tolist()
    prompts = {number: tokens[: 30 if number % 3 else 5 + number] for number in range(len(made))}

    def engine(kv_cache_dtype: str = "fp8", prefill_tokens: int = 7) -> Engine:
        how: dict[str, Any] = {"row_slots": row_slots, "kv_cache_dtype": kv_cache_dtype}
        return Engine(model, TOKENIZER, slots=600, rows=4, prefill_tokens=prefill_tokens, ends=(), **how)

    together, reference = engine(), engine("auto")
    found = what(run(together, prompts, made))
    assert together.cache.quantization is not None
    reference.cache.append = MethodType(rounding(together.cache.quantization), reference.cache)  # type: ignore[method-assign]
    assert found == what(run(reference, prompts, made))
    assert found == what(run(engine(prefill_tokens=500), prompts, made))
    for number, prompt in prompts.items():
        assert what(run(engine(), {number: prompt}, made)) == {number: found[number]}
    mix_prompts(monkeypatch)
    assert found == what(run(engine(), prompts, made))
    assert sum(evictions > 0 for *_, evictions in found.values()) >= len(made) - 3, "the others close their thoughts"
    assert found != what(run(engine("auto"), prompts, made)), "rounding is seen"


def test_large_constant_keys_cost_what_varies_little() -> None:
    """As in Qwen2.5, whose biases of keys are hundreds in channels that rotate slowly; far from the beginning too."""
    model, head_dim = make_model("qwen2", rope_parameters={"rope_type": "default", "rope_theta": 1e9}).double(), 16
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.view(-1, head_dim)[:, [head_dim // 2 - 1, head_dim - 1]] = 300.0
    kept: list[Tensor] = []
    for name in ("auto", "fp8"):
        engine = Engine(model, TOKENIZER, slots=900, rows=1, kv_cache_dtype=name)
        engine.add([7 * i % 250 for i in range(800)], policy="full", sampling=Sampling(max_new_tokens=2))
        engine.step()
        keys = engine.cache.kv_LPHTD[:, 0, :, :799]
        if (quantization := engine.cache.quantization) is not None:
            keys = quantization.numbers(keys[None], range(2), 0, torch.float64)[0]
        kept.append(keys[0, :, :, [head_dim // 2 - 1, head_dim - 1]])  # of the layer that sees tokens alone
    wanted, got = kept
    assert float(wanted.abs().mean()) > 200
    assert float((got - wanted).abs().max()) < 300 / 16 / 8  # 300 itself is rounded to a multiple of 32 or 16


def test_offsets_and_scales_are_of_the_model_alone() -> None:
    model = make_model()
    one, other = (Engine(model, TOKENIZER, slots=50, kv_cache_dtype=name).cache for name in ("fp8", "fp8_e4m3"))
    assert one.quantization is not None
    assert other.quantization is not None
    assert torch.equal(one.quantization.offsets_LPHD, other.quantization.offsets_LPHD)
    assert torch.equal(one.quantization.scales_LPH, other.quantization.scales_LPH)
    for tokenizer in (None, lambda *_, **__: type("Encoded", (), {"input_ids": [1] * (PIECE - 1)})):
        ids = _token_ids(tokenizer, 300, 384)
        assert len(ids) == 384
        assert len(set(ids)) > 200
        assert 0 <= min(ids) < max(ids) < 300


def test_a_slot_takes_half_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model().to(torch.bfloat16)
    kv_bytes = kv_shape(model.config).bytes_per_slot(torch.bfloat16)
    memory = {"SC_PHYS_PAGES": 2 * 10 * 100 * (kv_bytes + 8), "SC_PAGE_SIZE": 1}  # half of it for 10 requests
    monkeypatch.setattr(os, "sysconf", memory.get)
    assert rows_that_fit(model, [100] * 64, [], "auto") == 10
    assert rows_that_fit(model, [100] * 64, [], "fp8") == 10 * (kv_bytes + 8) // (kv_bytes // 2 + 8)
    cache = Engine(model, TOKENIZER, slots=50, kv_cache_dtype="fp8").cache
    assert cache.kv_LPHTD.nbytes == 51 * kv_bytes // 2
    assert cache.bytes_per_slot == kv_bytes // 2


def test_tiny_writes_the_tokens_of_float32_for_a_while() -> None:
    """64 tokens of a vocabulary of 264 are not met by chance; without a budget, and under one that evicts."""
    model, tokenizer = load("tiny", device="cpu")
    choices: dict[str, Any] = {"policy": ["full", "horizon"], "budget": [None, Budget(slots=32, recent_window=8)]}
    choices["sampling"] = Sampling(max_new_tokens=64)
    prompts = ["What is 4821 times 377?"] * 2
    wanted, got = (
        leanthink.generate(model, tokenizer, prompts, kv_cache_dtype=name, **choices) for name in ("auto", "fp8")
    )
    assert [one.token_ids for one in got] == [one.token_ids for one in wanted]
    assert [4 * one.peak_kv_bytes for one in got] == [one.peak_kv_bytes for one in wanted]


def test_what_cannot_be_had_is_refused(inside: Any) -> None:
    model = make_model()
    for call in (lambda: Engine(model, TOKENIZER, slots=9, kv_cache_dtype="fp4"),
                 lambda: leanthink.generate(model, TOKENIZER, [[1]], policy="full", kv_cache_dtype="fp4")):  # fmt: skip
        with pytest.raises(UsageError, match=r"unknown kv_cache_dtype 'fp4': choose one of auto, fp8, fp8_e4m3"):
            call()
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0] = torch.nan
    with pytest.raises(UsageError, match="not finite: give 'auto'"):
        Engine(model, TOKENIZER, slots=9, kv_cache_dtype="fp8")
    with pytest.raises(UsageError, match=r"attention sinks.* give 'auto'"):
        Engine(make_model("gpt_oss"), TOKENIZER, slots=9, kv_cache_dtype="fp8")
    for command in (["generate", "1"], ["serve"], ["eval", "--tasks", "sums", "--out", "x"]):
        refused(inside(*command, "--kv-cache-dtype", "fp4"), 2, "kv_cache_dtype 'fp4'")
    ray = inside("eval", "--tasks", "sums", "--out", "x", "--ray", "local", "--kv-cache-dtype", "fp8")
    refused(ray, 2, "--kv-cache-dtype fp8", "--ray")


def test_options_of_the_command_line_reach_the_engine(inside: Any, tmp_path: Any) -> None:
    shared = ["--max-new-tokens", 8, "--device", "cpu", "--json"]
    done = [inside("generate", "What is 1 plus 2?", "--policy", "full", *shared, "--kv-cache-dtype", name)
            for name in ("auto", "fp8")]  # fmt: skip
    auto, fp8 = (json.loads(one.out)["peak_kv_bytes"] for one in done)
    assert auto == 4 * fp8
    evaluated = inside("eval", "--tasks", "sums", "--levels", "1", "--count", 1, "--policies", "full", *shared,
                       "--out", tmp_path / "run", "--kv-cache-dtype", "fp8")  # fmt: skip
    found = json.loads(evaluated.out)
    assert found["settings"]["kv_cache_dtype"] == "fp8"
    model, _ = load("tiny", device="cpu")
    assert found["cells"][0]["peak_kv_bytes"] == (
        found["cells"][0]["peak_slots"] * kv_shape(model.config).bytes_per_slot(E4M3)
    )


def test_a_server_has_its_slots_in_fp8(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="the server is not installed: pip install 'leanthink[serve]'")
    from leanthink.entrypoints.openai import run as server

    made: list[Engine] = []
    monkeypatch.setattr(server, "serve", lambda *given, **_: made.append(server.make_engine(*given)))
    for name in ("auto", "fp8"):
        result = inside("serve", "--policy", "window", "--device", "cpu", "--kv-gib", 0.01, "--kv-cache-dtype", name)
        assert result.code == 0, result.err
    kv_bytes, size = made[0].cache.bytes_per_slot, int(0.01 * 2**30)
    assert [engine.cache.slots for engine in made] == [size // (kv_bytes + 8), size // (kv_bytes // 4 + 8)]
    assert made[1].cache.quantization is not None
