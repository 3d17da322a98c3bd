"""What `leanthink bench` measures is consistent, and the states it puts in place are those that requests come to."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from itertools import combinations, count, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from command_line import refused
from leanthink.engine.bench import hf_baseline
from leanthink.engine.bench.eviction import gathered
from leanthink.engine.bench.fixture import NO_TAGS, Fixture
from leanthink.engine.bench.latency import serve
from leanthink.engine.bench.measure import Steps, spread, timed_steps
from leanthink.engine.bench.memory import predicted_bytes
from leanthink.engine.bench.options import LARGE, PARTS, SMALL, Options, options_from
from leanthink.engine.bench.plot import draw, roofline_shares, speeds
from leanthink.engine.bench.prompts import MATRIX, flop
from leanthink.engine.bench.report import lines
from leanthink.engine.bench.roofline import COPY_BYTES
from leanthink.engine.bench.run import run
from leanthink.engine.bench.sets import shares
from leanthink.engine.bench.throughput import places_of
from leanthink.engine.bench.vllm_client import Client
from leanthink.engine.bench.vllm_process import Asked, decode
from leanthink.engine.bench.warm_start import Place, warm_start
from leanthink.engine.bench.weights import all_bytes, build, config_of, never_ending, step_bytes
from leanthink.engine.engine import Engine
from leanthink.engine.model_runner import ModelRunner
from leanthink.engine.request import make_request
from leanthink.engine.sampling import Sampling
from leanthink.importance.fit import _fresh
from leanthink.importance.fit_config import FitConfig
from leanthink.models.loading import kv_shape
from leanthink.models.predictor import usual_width
from leanthink.models.tiny.checkpoint import save_weights
from leanthink.models.tiny.model import build_model, tiny_config
from leanthink.policies import Policy, make_policy
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError
from models import RandomPredictor, make_model, make_tokenizer

TOKENIZER = make_tokenizer()


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COPY_BYTES, "cpu", 2**20)
    monkeypatch.setitem(MATRIX, "cpu", 32)


def small(folder: Path, *parts: str, **changes: Any) -> Options:
    """Options that take no time."""
    settings: dict[str, Any] = SMALL | {
        "cells": ((3, 40), (2, 24)),
        "steps": 5,
        "prompt": 8,
        "prompts": ((5, 20), (1, 2)),
        "prefill_tokens": 48,
        "output": 90,
        "kv_gib": 0.001,
        "budgets": (24, 12),
        "interval": 6,
        "requests": 5,
        "latency_output": 6,
        "warm_up": 2,
        "repeats": 2,
        "cpu_batches": (1, 2),
        "cpu_output": 5,
    }
    return Options(shape=None, model=str(folder), device="cpu", parts=parts, **(settings | changes))


def measured(folder: Path, part: str, **changes: Any) -> dict[str, Any]:
    return run(small(folder, part, **changes))["parts"][part]


@cache
def weights_of(shape: str) -> Any:
    return build(config_of(shape), "meta", torch.bfloat16)


# -- shapes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "weights", "per_slot"),
    [
        ("llama-3.1-8b", 8_030_261_248, 131072),
        ("qwen2.5-7b", 7_615_616_512, 57344),
        ("qwen3-8b", 8_190_735_360, 147456),
        ("qwen2.5-1.5b", 1_543_714_304 + 151936 * 1536, 28672),  # as published, and a head of its own
        ("qwen3-4b", 4_022_468_096 + 151936 * 2560, 147456),
        ("qwen3-30b-a3b", 30_532_122_624, 98304),
    ],
)
def test_shapes_have_the_published_sizes(shape: str, weights: int, per_slot: int) -> None:
    model, config = weights_of(shape), config_of(shape)
    assert sum(parameter.nbytes for parameter in model.parameters()) == 2 * weights
    assert kv_shape(config).bytes_per_slot(torch.bfloat16) == per_slot
    idle = 48 * 120 * 3 * 2048 * 768 if shape == "qwen3-30b-a3b" else 0  # of one row, in whose layers 8 of 128 work
    assert step_bytes(model) == pytest.approx(2 * (weights - config.vocab_size * config.hidden_size - idle), abs=1)


def test_a_table_that_is_also_the_head_is_read_once() -> None:
    tied, untied = (make_model(tie_word_embeddings=tie) for tie in (True, False))
    assert step_bytes(tied) == step_bytes(untied) == sum(p.nbytes for p in tied.parameters())


def test_memory_is_told_before_anything_is_allocated() -> None:
    found = predicted_bytes(config_of("llama-3.1-8b"), torch.bfloat16, slots=10**6, rows=64)
    assert found["weights"] == all_bytes(weights_of("llama-3.1-8b")) == pytest.approx(16.06e9, rel=1e-3)
    assert found["keys_and_values"] == (10**6 + 1) * 131072
    config, half = config_of("llama-3.1-8b"), {"slots": 10**6, "rows": 64, "kv_cache_dtype": "fp8"}
    assert predicted_bytes(config, torch.bfloat16, **half)["keys_and_values"] == (10**6 + 1) * 65536
    states = (
        28 * 2 * 4096 * 2
    )  # of a row: the twelve tokens that a token's scores wait for, and sixteen that are scored together
    assert found["tables"] == (8 + 6 * 2) * (10**6 + 1) + 65 * (states + 120)


# -- warm starts -----------------------------------------------------------------------------------------------------


def small_policies() -> list[tuple[Policy, Budget | None]]:
    torch.manual_seed(3)
    horizon = RandomPredictor(64, "horizon", (4, 8, 16), offsets=(0, 1, 3))
    budget = Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=8)
    return [
        (make_policy("full"), None),
        (make_policy("window"), budget),
        (make_policy("random-heads"), budget),
        (make_policy("horizon", horizon), budget),
    ]


@pytest.mark.parametrize("choice", range(4))
@pytest.mark.parametrize("steps", [1, 20, 31, 290])  # the last is longer than the host's record of tokens is at first
def test_a_request_put_in_place_goes_on_as_one_that_really_got_there(choice: int, steps: int) -> None:
    model = never_ending(make_model())
    policy, budget = small_policies()[choice]
    requests = [
        make_request(i, [i + 1] * (5 + i), policy=policy, budget=budget, sampling=sampling(i), context=4096)
        for i in range(3)
    ]
    real, placed = (Engine(model, TOKENIZER, slots=1200, rows=4, tags=NO_TAGS, ends=()) for _ in range(2))
    for request in requests:
        real.add_request(request)
    for _ in range(steps):
        real.step()
    held = real.cache.host_lengths.tolist()
    warm_start(placed, [Place(request=r, held=h, generated=steps) for r, h in zip(requests, held[:3], strict=True)])
    placed.check_integrity()
    for name in ("table", "host_lengths", "host_pinned"):
        assert torch.equal(getattr(real.cache, name), getattr(placed.cache, name)), name
    assert torch.equal(real.running_batch.generated, placed.running_batch.generated)
    assert torch.equal(real.running_batch.max_thought_slots, placed.running_batch.max_thought_slots)
    for name in ("kv_LPHTD", "positions", "token_scores", "hidden_states"):
        getattr(placed.cache, name).copy_(getattr(real.cache, name))
    placed.model_runner.last_ids.copy_(real.model_runner.last_ids)
    for step in range(steps, steps + 40):
        for engine in (real, placed):
            engine.step()
            engine.check_integrity()
        for row in range(3):
            assert real.running_batch.tokens(row)[steps:] == placed.running_batch.tokens(row)[steps:], (step, row)
    assert torch.equal(real.cache.host_lengths, placed.cache.host_lengths)


def sampling(seed: int) -> Sampling:
    return Sampling(max_new_tokens=380, temperature=0.8 * (seed > 0), seed=seed)


def test_what_is_put_in_place_is_random_and_leaves_when_it_is_done() -> None:
    model = never_ending(make_model())
    request = make_request(
        0, [1, 2], policy=make_policy("full"), budget=None, sampling=Sampling(max_new_tokens=50), context=4096
    )
    engine = Engine(model, TOKENIZER, slots=60, rows=2, tags=NO_TAGS, ends=())
    warm_start(engine, [Place(request=request, held=40, generated=39)])
    assert float(engine.cache.kv_LPHTD.std()) == pytest.approx(1, abs=0.05)
    finished: dict[int, Any] = {}
    while engine.unfinished:
        finished |= engine.step().finished
    assert len(finished[0].token_ids) == 50
    assert finished[0].peak_slots == 51
    assert engine.cache.allocator.used == 0


@pytest.mark.parametrize("batch", [1, 3, 20, 64, 65, 200])
@pytest.mark.parametrize("interval", [2, 7, 128])
def test_evictions_are_spread_evenly_and_leave_steps_without_any(batch: int, interval: int) -> None:
    extras = gathered(batch, interval)
    assert len(extras) == batch
    assert all(0 <= extra < interval for extra in extras)
    assert max(extras) == interval - 1, "the first step evicts"
    per_step = [extras.count(extra) for extra in set(extras)]
    assert max(per_step) - min(per_step) <= 1
    assert len(set(extras)) <= max(1, interval // 2)


# -- parts -------------------------------------------------------------------------------------------------------------


def test_spread_is_that_of_the_numbers() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 10.0]) == pytest.approx({"n": 5, "median": 3, "p10": 1.4, "p90": 7.6, "mean": 4})


def consistent(cell: dict[str, Any]) -> None:
    """A cell's numbers follow from each other."""
    step = cell["step_ms"]
    assert 0 < step["p10"] <= step["median"] <= step["p90"]
    assert cell["share_of_floor"] == pytest.approx(cell["floor_ms"] / step["median"])
    assert cell["tokens_per_second"] == pytest.approx(1e3 * cell["rows"] / step["mean"])


def test_the_roofline_is_the_bytes_over_the_bandwidth(folder: Path) -> None:
    fixture = Fixture(small(folder))
    assert step_bytes(fixture.model) == sum(p.nbytes for p in fixture.model.parameters()), "its head is its table"
    fixture.bandwidth["median"] = 1e9
    assert fixture.roofline_ms(2, 50) == pytest.approx((step_bytes(fixture.model) + 50 * 2 * 2 * 64 * 4) / 1e6)
    found = measured(folder, "roofline")
    assert [cell["batch"] for cell in found["cells"]] == [3, 2]
    assert found["copy_bytes_per_second"]["n"] == 10
    assert all(cell["floor_ms"] > 0 for cell in found["cells"])


def of_other_layers(architecture: str, folder: Path, *parts: str, **changes: Any) -> Options:
    model = make_model(architecture)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return small(folder, *parts, **changes)


@pytest.mark.parametrize("architecture", ["gpt_oss", "gemma3_text", "qwen3_5_moe_text", "nemotron_h", "lfm2"])
def test_the_roofline_counts_experts_rings_and_states(architecture: str, tmp_path: Path) -> None:
    fixture = Fixture(of_other_layers(architecture, tmp_path))
    fixture.bandwidth["median"] = 1e3  # a byte a millisecond
    cache = fixture.engine([20] * 3).cache
    every = list(product(combinations(range(4), 2), repeat=3))  # three rows take two of four experts each
    used = sum(len(set().union(*chosen)) for chosen in every) / len(every) / 4
    weights = sum(
        weight.nbytes * (used if ".experts." in name else 1)
        for name, weight in fixture.model.named_parameters()
        if "embed" not in name or fixture.model.config.tie_word_embeddings
    )
    states = [] if cache.recurrent is None else cache.recurrent.tensors
    windows = 0 if cache.windows is None else cache.windows.kv_LPHTD.nbytes / 4  # of a row: one is nobody's
    moved = weights + 30 * cache.bytes_per_slot + 3 * windows + 2 * 3 * sum(state.nbytes for state in states) / 4
    assert fixture.roofline_ms(3, 30) == pytest.approx(moved)
    assert fixture.roofline_ms(3, 12) == pytest.approx(moved - 18 * cache.bytes_per_slot - 3 * windows / 2)


def test_decode_tells_how_many_experts_were_used(tmp_path: Path) -> None:
    options = of_other_layers("qwen3_moe", tmp_path, "decode", cells=((1, 24), (3, 24)))
    alone, many = run(options)["parts"]["decode"]["cells"]
    for cell in (alone, many):
        consistent(cell)
    assert (alone["experts_used"], alone["experts_expected"]) == (2, 2)
    assert 2 <= many["experts_used"] <= 4
    assert many["experts_expected"] == 3.5


def test_decode_measures_rows_that_hold_what_was_asked_for(folder: Path) -> None:
    for cell in measured(folder, "decode")["cells"]:
        consistent(cell)
        assert cell["rows"] == cell["batch"]
        assert cell["step_ms"]["n"] == 5
        assert cell["slots_read_per_row"] == pytest.approx(cell["slots"], abs=2)


def test_breakdown_explains_the_measured_step(folder: Path) -> None:
    result = run(small(folder, "decode", "breakdown"))["parts"]
    for cell, decoded in zip(result["breakdown"]["cells"], result["decode"]["cells"], strict=True):
        assert cell["step_ms"] == decoded["step_ms"], "measured once"
        kinds = [cell[f"{name}_ms"] for name in ("products", "attention", "between", "sampler")]
        assert all(kind["median"] > 0 for kind in kinds)
        assert cell["rest_ms"] == pytest.approx(cell["step_ms"]["median"] - sum(kind["median"] for kind in kinds))


def test_a_forward_of_transformers_is_not_taken_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanthink.engine.decoder.FAMILIES", ())
    assert all("not taken apart" in cell["error"] for cell in measured(folder, "breakdown")["cells"])


def test_the_predictor_that_is_measured_is_as_wide_as_one_that_is_fitted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [usual_width(hidden_size) for hidden_size in (64, 1536, 4096)] == [128, 1024, 1024]
    monkeypatch.setattr("leanthink.models.predictor.MOST_WIDTH", 48)
    config = FitConfig(granularity="model", horizons=(4,), offsets=(0,))
    fitted = _fresh(config, 64, 1, torch.randn(10, 128))
    assert Fixture(small(folder)).horizon.predictor.head.own.out_features == fitted.head.own.out_features == 48


def test_eviction_measures_whole_intervals_and_as_much_of_full(folder: Path) -> None:
    for cell in measured(folder, "eviction")["cells"]:
        bounded, full = cell["horizon"], cell["full"]
        consistent(bounded)
        consistent(full)
        assert bounded["evictions"] == cell["batch"], "every row once an interval"
        with_any, without = bounded["step_ms_with_eviction"], bounded["step_ms_without"]
        assert with_any["n"] + without["n"] == bounded["step_ms"]["n"] == 6
        share = 1 - without["mean"] / bounded["step_ms"]["mean"]
        assert bounded["eviction_share"] == pytest.approx(share)
        assert full["slots_read_per_row"] == pytest.approx(bounded["slots_read_per_row"], abs=2)
        assert cell["budget"] + 8 < bounded["slots_read_per_row"] <= cell["budget"] + 8 + 6


def test_sets_are_measured_beside_full_at_as_many_slots(tmp_path: Path) -> None:
    save_weights(build_model(tiny_config(layers=2, hidden=64, heads=4, kv_heads=2, mlp=96), seed=0), tmp_path)
    found = measured(tmp_path, "sets", interval=8)
    for cell in found["cells"]:
        consistent(cell["full"])
        for granularity, num_sets in (("model", 1), ("layer", 2), ("head", 4)):
            ours, slots = cell[granularity], cell["batch"] * (8 + cell["budget"] + 8 + 1) + 1
            consistent(ours)
            assert ours["num_sets"] == num_sets
            assert ours["evictions"] == cell["batch"], "every row once an interval"
            assert ours["scorings"] == 8 / ours["stride"] == 2
            assert ours["eviction_ms_alone"]["n"] <= cell["batch"], "rows that are due together are evicted together"
            assert ours["scoring_ms_alone"]["n"] == 2
            spent = ours["scoring_share_alone"] * 8 * ours["step_ms"]["mean"]
            assert spent == pytest.approx(2 * ours["scoring_ms_alone"]["mean"])
            assert ours["token_scores_bytes"] == slots * num_sets * 7 * 4
            assert ours["positions_bytes"] == slots * 8 * (1 if num_sets == 1 else 4)
            assert cell["full"]["slots_read_per_row"] == pytest.approx(ours["slots_read_per_row"], abs=2)
            assert ours["mean_to_full"] == pytest.approx(ours["step_ms"]["mean"] / cell["full"]["step_ms"]["mean"])


def test_shares_are_those_of_the_causes() -> None:
    evictions, scorings = [1, 0, 2, 0, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0, 1, 0]
    ms = [10 + 3 * evicted + 5 * scored for evicted, scored in zip(evictions, scorings, strict=True)]
    found = shares(Steps(ms=ms, evictions=evictions, scorings=scorings))
    assert (found["plain_step_ms"], found["eviction_ms"], found["scoring_ms"]) == pytest.approx((10, 3, 5))
    assert (found["eviction_share"], found["scoring_share"]) == pytest.approx((12 / 107, 15 / 107))
    never = shares(Steps(ms=[2.0, 4.0, 2.0], evictions=[0, 1, 0], scorings=[0, 0, 0]))
    assert (never["eviction_ms"], never["scoring_share"]) == pytest.approx((2, 0))


def test_throughput_fills_the_memory_and_says_what_is_extrapolated(folder: Path) -> None:
    found = measured(folder, "throughput", requests=1000)
    kv_slots = int(0.001 * 2**30) // (2 * 2 * 64 * 4)
    assert [row["budget"] for row in found["policies"]] == [None, 24, 12]
    full = found["policies"][0]["tokens_per_second"]
    for row, bound in zip(found["policies"], (8 + 90, 8 + 24 + 6 + 1, 8 + 12 + 6 + 1), strict=True):
        consistent(row)
        assert (row["bound_slots"], row["rows"]) == (bound, kv_slots // bound)
        assert row["ratio_to_full"] == pytest.approx(row["tokens_per_second"] / full)
        assert row["seconds_for_all_requests_extrapolated"] == pytest.approx(1000 * 90 / row["tokens_per_second"])
    assert "extrapolated" in found["extrapolation"]
    assert measured(folder, "throughput")["policies"][2]["rows"] == 5, "no more than there are requests"


def test_throughput_spreads_rows_over_their_lives(folder: Path) -> None:
    fixture = Fixture(small(folder))
    full, bounded = (places_of(fixture, 8, slots, steps=10) for slots in (None, 24))
    helds = [place.held for place in full]
    assert helds == sorted(helds)
    assert helds[0] < 8 + 10
    assert helds[-1] >= 8 + 90 - 10 - 10
    assert {place.held for place in bounded} <= set(range(8 + 24, 8 + 24 + 6))
    assert len({place.generated for place in bounded}) == 8


def test_in_fp8_the_same_memory_holds_four_times_the_requests_of_float32(folder: Path) -> None:
    rows = [
        measured(folder, "throughput", kv_gib=0.0002, requests=99, kv_cache_dtype=dtype) for dtype in ("auto", "fp8")
    ]
    for one, other in zip(*(found["policies"] for found in rows), strict=True):
        assert one["bounds_that_fit"] > 0
        assert other["bounds_that_fit"] // 4 == one["bounds_that_fit"]
        assert other["tokens_per_second"] > 0


def test_throughput_records_a_memory_that_holds_nobody(folder: Path) -> None:
    rows = measured(folder, "throughput", kv_gib=0.00005, budgets=(12, 80))["policies"]
    assert "98 slots" in rows[0]["error"]
    assert "--kv-gib" in rows[0]["error"]
    assert "tokens_per_second" in rows[1]
    assert "ratio_to_full" not in rows[1]
    assert "error" in rows[2]


def test_the_generate_of_transformers_is_compared_at_the_same_rows_and_slots(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("not on this device")

    monkeypatch.setattr("transformers.Qwen3ForCausalLM.generate_batch", refuse)
    result = run(small(folder, "decode", "hf-baseline"))["parts"]
    for cell, ours in zip(result["hf-baseline"]["cells"], result["decode"]["cells"], strict=True):
        assert cell["our_step_ms"] == ours["step_ms"], "measured once"
        steps = cell["generate"]["step_ms"]
        assert steps["n"] == 5
        assert cell["generate"]["ratio_to_ours"] == pytest.approx(steps["mean"] / ours["step_ms"]["mean"])
        assert cell["continuous_batching"] == {"error": "RuntimeError: not on this device"}


@pytest.mark.slow
def test_continuous_batching_runs_on_this_machine(folder: Path) -> None:
    (cell,) = measured(folder, "hf-baseline", cells=((2, 20),))["cells"]
    assert cell["continuous_batching"]["step_ms"]["n"] >= 3


def test_steps_of_continuous_batching_are_those_with_every_request() -> None:
    late = [3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5]
    early = [float(second) for second in range(9)]
    assert hf_baseline.between_all([early, late]) == [1e3]  # 4 to 8, less three
    with pytest.raises(RuntimeError, match="--steps"):
        hf_baseline.between_all([[1.0, 2.0], [3.0, 4.0]])


def test_without_vllm_one_line_says_so_and_the_rest_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    found = run(small(folder, "decode", "vllm-baseline"))["parts"]
    assert "step_ms" in found["decode"]["cells"][0]
    (line,) = lines("vllm-baseline", found["vllm-baseline"])
    assert "vLLM is not installed" in line


class Scheduled(Client):
    """Serves in vLLM's order: a token of each that decodes, then prompts, `feed` tokens a step in all."""

    def __init__(self, feed: int) -> None:
        self.feed, self.results = feed, []
        self.unfed, self.unwritten = list[int](), list[int]()

    def send(self, prompt_ids: Any, tokens: int, extra_args: Any = None) -> None:
        self.unfed.append(len(prompt_ids))
        self.unwritten.append(tokens)

    def finish(self) -> None:
        while any(self.unwritten):
            rows = [row for row, tokens in enumerate(self.unwritten) if tokens and not self.unfed[row]]
            room = self.feed - len(rows)
            for row, unfed in enumerate(self.unfed):
                fed = min(room, unfed)
                room, self.unfed[row] = room - fed, unfed - fed
                rows += [row] if 0 < fed == unfed else []
            for row in rows:
                self.unwritten[row] -= 1
            self.results.append((float(len(self.results)), [str(row) for row in rows]))


@pytest.mark.parametrize("cell", [(30, 400), (4, 900), (60, 60)])
@pytest.mark.parametrize("feed", [100, 512])
def test_rows_of_vllm_hold_what_was_asked_for(folder: Path, cell: tuple[int, int], feed: int) -> None:
    options = small(folder, prefill_tokens=feed, cells=(cell,))
    asked = Asked(options=options, parts=(), model="", dtype="", vocabulary=9, random_weights=True, kv_slots=0)
    (found,) = decode(Scheduled(feed), asked)
    assert found["step_ms"]["n"] == 5
    assert found["slots_read_per_row"] == pytest.approx(cell[1], rel=0.05)


def test_throughput_goes_on_with_those_who_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=count(0, 0.001).__next__)  # one look at it a step
    monkeypatch.setattr("leanthink.engine.bench.measure.time", clock)
    for row in measured(folder, "throughput", kv_gib=0.00045, requests=99, seconds=0.2)["policies"]:
        assert row["step_ms"]["n"] == pytest.approx(200, abs=2), "twice as long as any request"
        assert 0.95 * row["bounds_that_fit"] < row["rows"] <= row["bounds_that_fit"] < 99
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["rows"])


def test_latency_counts_every_token(folder: Path) -> None:
    found = measured(folder, "latency")
    assert found["tokens"] == 5 * 6
    assert found["first_token_ms"]["n"] == 5
    assert found["between_tokens_ms"]["n"] == 5 * 5
    assert found["first_token_ms"]["median"] <= found["first_token_ms"]["p99"]
    assert found["tokens_per_second"] == pytest.approx(30 / found["seconds"])
    assert found["most_at_a_time"] == 5


def test_latency_of_requests_that_wait_for_room(folder: Path) -> None:
    fixture = Fixture(small(folder))
    requests = [fixture.request(i, prompt=4, output=6, slots=None) for i in range(4)]
    found = serve(fixture.engine([10] * 4, slots=20), requests)
    assert found["most_at_a_time"] == 2
    assert found["tokens"] == 24


def test_prompts_are_measured_to_their_first_tokens_beside_transformers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[list[int]] = []
    feed = ModelRunner.prefill

    def noted(self: ModelRunner, ids: Any, chunks: Any) -> None:
        fed.append([chunk.tokens for chunk in chunks])
        feed(self, ids, chunks)

    monkeypatch.setattr(ModelRunner, "prefill", noted)
    found = measured(folder, "prompts")
    assert fed == [[19, 19, 10], [9, 19, 19]] * 3 + [[1]] * 3  # five prompts of 20, then one of 2, each in three rounds
    for cell, (many, tokens) in zip(found["cells"], ((5, 20), (1, 2)), strict=True):
        assert (cell["prompts"], cell["tokens"]) == (many, tokens)
        assert "per-chunk" not in cell
        ours = cell["leanthink"]
        assert ours["first_token_median_ms"]["n"] == 2
        assert ours["first_token_median_ms"]["median"] <= ours["first_token_p99_ms"]["median"] <= ours["ms"]["median"]
        assert cell["share_of_floor"] == pytest.approx(cell["floor_ms"] / ours["ms"]["median"])
        for kind in (ours, cell["transformers"]):
            assert kind["prompts_per_second"] == pytest.approx(1e3 * many / kind["ms"]["median"])
            assert kind["prompt_tokens_per_second"] == pytest.approx(tokens * kind["prompts_per_second"])


def test_operations_of_prompts_are_those_of_their_products(folder: Path) -> None:
    fixture = Fixture(small(folder))
    layer = 64 * (2 + 1 + 1) * 64 + 2 * 64 * 64 + 3 * 64 * 96  # queries, keys and values; output; the MLP
    norms, head = 4 * 64, fixture.model.config.vocab_size * 64
    of_one = 2 * 5 * (2 * (layer + norms) + 64) + 2 * head + 2 * 4 * (1 + 2 + 3 + 4 + 5) * 2 * 64
    assert flop(fixture, 3, 5) == 3 * of_one


def test_memory_told_beforehand_is_what_is_allocated(folder: Path) -> None:
    found = measured(folder, "memory")
    assert found["slots"] == 3 * (8 + 40 + 6 + 1)
    assert found["predicted_to_measured"] == pytest.approx(1, abs=0.01)
    assert found["predicted_bytes"]["all"] == sum(v for k, v in found["predicted_bytes"].items() if k != "all")
    assert "can hold 32 slots, 16 of them prompt" in found["refusal"]


def test_on_a_cpu_both_write_the_same_tokens(folder: Path) -> None:
    found = measured(folder, "cpu")
    for batch, row in zip((1, 2), found["batches"], strict=True):
        assert row["requests_with_the_same_tokens"] == row["batch"] == batch
        speeds_of = row["tokens_per_second"]
        assert row["ratio"] == pytest.approx(speeds_of["leanthink"]["median"] / speeds_of["transformers"]["median"])
        assert speeds_of["leanthink"]["n"] == 2


def test_a_cell_without_room_is_recorded_and_the_others_are_measured(folder: Path) -> None:
    cells = measured(folder, "decode", cells=((1, 5000), (2, 24)))["cells"]
    assert "4608" in cells[0]["error"]
    consistent(cells[1])


def test_steps_say_how_many_evicted(folder: Path) -> None:
    fixture = Fixture(small(folder))
    request = fixture.request(0, prompt=4, output=80, slots=10)
    engine = fixture.engine([request.bound])
    warm_start(engine, [Place(request=request, held=4 + 10 + 3, generated=20)])
    assert timed_steps(engine, warm_up=2, steps=7).evictions == [1, 0, 0, 0, 0, 0, 1]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_writes_result_and_picture(folder: Path, tmp_path: Path, inside: Any) -> None:
    out = tmp_path / "out"
    words = ["bench", "--model", folder, "--parts", "decode,throughput", "--batch", "2", "--slots", "24,30", "--steps",
             "4", "--prompt", "8", "--output", "90", "--kv-gib", "0.001", "--budgets", "12", "--eviction-interval", "6",
             "--requests", "4", "--device", "cpu", "--out", out]  # fmt: skip
    done = inside(*words, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result == json.loads((out / "bench.json").read_text())
    assert result["birth"].keys() >= {"command", "commit", "hardware", "torch", "transformers"}
    assert list(result["parts"]) == ["decode", "throughput"]
    assert result["model"]["kv_bytes_per_slot"] == 2 * 2 * 64 * 4
    assert (out / "bench.png").stat().st_size > 1000
    assert "decode: batch 2, slots 24" in done.err
    refused(inside(*words), 2, "bench.json exists", "--overwrite")
    assert roofline_shares(result).keys() == {"full 2 x 24", "full 2 x 30"}
    assert speeds(result).keys() == {"full", "horizon 12"}


def test_the_picture_leaves_out_what_was_not_measured(tmp_path: Path) -> None:
    result = {"model": {"name": "x"}, "birth": {"hardware": "y"}, "parts": {"decode": {"cells": [{"error": "z"}]}}}
    assert not draw(result, tmp_path / "none.png")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"shape": "qwen2.5-7"}, ["'qwen2.5-7'", "Did you mean 'qwen2.5-7b'?"]),
        ({"parts": "roofline,decod"}, ["'decod'", "Did you mean 'decode'?"]),
        ({"parts": "floor"}, ["unknown part 'floor'", "roofline"]),
        ({"shape": "tiny", "model": "x"}, ["exactly one"]),
        ({"batch": "3"}, ["--batch and --slots"]),
        ({"batch": "3,x", "slots": "20"}, ["--batch '3,x'"]),
        ({"batch": "0", "slots": "20"}, ["above 0"]),
        ({"cells": "20x4000,64"}, ["--cells '20x4000,64'", "20x4000,64x3000"]),
        ({"cells": "2x20", "batch": "2", "slots": "20"}, ["--cells and --batch"]),
        ({"steps": "2"}, ["--steps 2", "at least 3"]),
        ({"steps": "3,4"}, ["--steps '3,4'", "one number"]),
        ({"kv-gib": "0"}, ["--kv-gib"]),
        ({"output": "20"}, ["--output 20"]),
        ({"prompts": "256"}, ["--prompts '256'", "256x128,64x2048"]),
        ({"prompts": "4x1"}, ["--prompts ((4, 1),)", "2 tokens"]),
        ({"prefill-tokens": "0"}, ["--prefill-tokens 0", "at least 1"]),
        ({"kv-cache-dtype": "int3"}, ["'int3'", "fp8"]),
        ({"device": "cuda:7"}, ["'cuda:7'"]),
    ],
)
def test_wrong_flags_are_refused(flags: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        options_from({"device": "cpu"} | flags)
    for word in words:
        assert word in str(caught.value)


def test_defaults_depend_on_the_size_of_the_model() -> None:
    found = options_from({"device": "cpu"})
    assert (found.shape, found.parts, found.cells) == ("tiny", PARTS, SMALL["cells"])
    assert LARGE.keys() == SMALL.keys()
    grid = options_from({"device": "cpu", "batch": "1,2", "slots": "8,9", "budgets": "5,6"})
    assert grid.cells == ((1, 8), (1, 9), (2, 8), (2, 9))
    assert grid.budgets == (5, 6)
    assert options_from({"device": "cpu", "cells": "20x40,64x30"}).cells == ((20, 40), (64, 30))
    prompts = options_from({"device": "cpu", "prompts": "4x8", "prefill-tokens": "16"})
    assert (prompts.prompts, prompts.prefill_tokens) == (((4, 8),), 16)
    assert replace(found, steps=33, interval=32).whole_intervals == 64
