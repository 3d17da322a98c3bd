"""`leanthink plan`: what fits into a GPU, told from a config alone, against numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import refused
from leanthink.engine.memory_plan import GIB, MemoryPlan, Workload, config_for, plan
from leanthink.importance.labels import HORIZONS
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError
from models import make_model

USUAL = Workload(prompt_tokens=512, max_tokens=16384, concurrent=16)
BUDGETS = [Budget(slots=slots) for slots in (512, 1024, 2048, 4096)]


def planned(config: Any, *, gib: float = 24, workload: Workload = USUAL, budgets: list[Budget] = BUDGETS) -> MemoryPlan:
    return plan(
        config, dtype=torch.bfloat16, gpu_bytes=gib * GIB, workload=workload, budgets=budgets, horizons=HORIZONS
    )


def test_a_known_shape_by_hand() -> None:
    found = planned(config_for("llama-3.1-8b"))
    assert found.context == 131072
    # 2 (keys, values) x 32 layers x 8 heads x 128 numbers x 2 bytes
    assert found.bytes_per_token == 131072
    # of each of 256 sets a position (8 bytes) and a number (2 bytes) for each of 7 horizons
    assert found.bytes_per_slot == 131072 + 256 * (8 + 7 * 2) == 136704
    assert 2 * 8_030_261_248 < found.weight_bytes < 16.5e9, "the published weights, and a predictor"
    assert found.kv_bytes == int(0.8 * (24 * 2**30 - found.weight_bytes))
    assert 7.39e9 < found.kv_bytes < 7.78e9, "what follows holds for each value between"
    # prompt 512 + budget + interval 64 + answer 1024; a full cache has no table but one position
    assert [row.budget for row in found.rows] == [None, 512, 1024, 2048, 4096]
    assert [row.slots_per_request for row in found.rows] == [16384, 2112, 2624, 3648, 5696]
    assert [row.bytes_per_request for row in found.rows] == [
        16384 * 131080,
        2112 * 136704,
        2624 * 136704,
        3648 * 136704,
        5696 * 136704,
    ]
    assert [row.requests for row in found.rows] == [3, 25, 20, 14, 9]
    assert not found.full_fits
    # 54 thousand slots / 16 = 3412, less 512 + 64 + 1024, in steps of 64
    assert found.suggested == 1792


def test_the_suggestion_is_the_largest_multiple_of_64_with_which_all_fit() -> None:
    config = config_for("llama-3.1-8b")
    for concurrent in (4, 7, 16, 30):
        workload = replace(USUAL, concurrent=concurrent)
        suggested = planned(config, workload=workload).suggested
        assert suggested is not None
        tried = [Budget(slots=suggested), Budget(slots=suggested + 64)]
        (_, fits, larger) = planned(config, workload=workload, budgets=tried).rows
        assert fits.requests >= concurrent > larger.requests


def test_no_budget_lets_too_many_fit_and_none_is_needed_where_full_does() -> None:
    config = config_for("llama-3.1-8b")
    assert planned(config, workload=replace(USUAL, concurrent=60)).suggested is None
    assert planned(config, workload=replace(USUAL, concurrent=3)).full_fits
    assert not planned(config, workload=replace(USUAL, concurrent=4)).full_fits


def test_a_budget_above_the_thought_reserves_no_more_than_the_tokens() -> None:
    found = planned(config_for("tiny"), workload=Workload(prompt_tokens=100, max_tokens=1000, concurrent=2))
    assert [row.slots_per_request for row in found.rows] == [1000] * 5
    assert found.suggested == 896, "of 900 tokens that can be written"


def test_weights_are_those_that_a_loaded_model_has() -> None:
    model = make_model("qwen2").to(torch.bfloat16)
    one, two = (planned(model.config, gib=gib, workload=replace(USUAL, max_tokens=4096)) for gib in (1, 2))
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    predictor = one.weight_bytes - held
    assert 0 < predictor < 2_000_000
    assert one.weight_bytes == two.weight_bytes
    assert two.kv_bytes - one.kv_bytes == pytest.approx(0.8 * 2**30, abs=1)


def test_a_folder_without_weights_is_enough(tmp_path: Path, inside: Any) -> None:
    make_model("qwen3").config.save_pretrained(tmp_path)
    done = inside("plan", "--model", tmp_path, "--gpu-gib", 1, "--max-model-len", 2000, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    # 2 x 2 layers x 2 heads x 24 numbers x 2 bytes
    assert (found["bytes_per_token"], found["context"], found["dtype"]) == (384, 4096, "bfloat16")
    assert [row["slots_per_request"] for row in found["rows"]] == [2000, 2000, 2000, 2000, 2000]
    assert found["full_fits"]


def test_the_header_of_a_gguf_file_is_enough(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_block_count(3)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(300)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = planned(config_for(str(path)), workload=Workload(prompt_tokens=8, max_tokens=2048, concurrent=1))
    # 2 x 3 layers x 2 heads x 16 numbers x 2 bytes
    assert (found.bytes_per_token, found.context) == (384, 2048)


def test_the_command_says_what_to_type_next(inside: Any) -> None:
    done = inside("plan", "--model", "llama-3.1-8b", "--gpu-gib", 24)
    assert done.code == 0, done.err
    assert "a token: 131072 bytes of keys and values" in done.out
    assert [line.split()[-1] for line in done.out.splitlines()[5:10]] == ["3", "25", "20", "14", "9"]
    assert "leanthink serve --model llama-3.1-8b --budget 1792 --max-num-seqs 16" in done.out
    assert "--policy full" in inside("plan", "--gpu-gib", 1).out
    crowded = inside("plan", "--model", "llama-3.1-8b", "--gpu-gib", 24, "--concurrent", 60)
    assert "60 requests do not fit with any budget" in crowded.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--model llama-3.1 --gpu-gib 24", ["'llama-3.1'", "qwen2.5-7b", "Did you mean 'llama-3.1-8b'?"]),
        ("--model ./none --gpu-gib 24", ["there is no folder './none'"]),
        ("--model no/such --gpu-gib 24", ["cannot load a model from 'no/such'"]),
        ("--model llama-3.1-8b --gpu-gib 14", ["the weights take 15.3 GiB in bfloat16", "has 14", "larger GPU"]),
        ("--gpu-gib 0", ["--gpu-gib 0", "above 0"]),
        ("--gpu-gib nan", ["--gpu-gib nan", "above 0"]),
        ("--gpu-gib inf", ["--gpu-gib inf"]),
        ("--gpu-gib 1 --concurrent 0", ["concurrent must be 1 or more, got 0"]),
        ("--gpu-gib 1 --prompt 16384", ["a prompt of 16384 tokens leaves no room"]),
        ("--gpu-gib 1 --max-model-len 9999", ["9999 tokens", "context of 4608"]),
        ("--gpu-gib 1 --budgets 5,x", ["--budgets"]),
        ("--gpu-gib 1 --budgets 0", ["slots must be an integer of at least 1"]),
        ("--gpu-gib 1 --dtype int8", ["'int8'", "bfloat16"]),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_fix(options: str, words: list[str], inside: Any) -> None:
    refused(inside("plan", *options.split()), 2, *words)


def test_a_plan_needs_a_budget() -> None:
    with pytest.raises(UsageError, match="no budget"):
        planned(config_for("tiny"), budgets=[])


def test_states_of_linear_layers_count_for_each_request_and_are_those_of_the_docs() -> None:
    budget = [Budget(slots=4096, recent_window=0)]
    found: dict[str, list[MemoryPlan]] = {}
    for shape in ("qwen3.5-27b", "qwen3.5-35b-a3b"):
        found[shape] = [
            planned(config_for(shape), gib=80, workload=replace(USUAL, max_tokens=tokens), budgets=budget)
            for tokens in (32768, 131072)
        ]
    short, _ = found["qwen3.5-27b"]
    # 2 x 16 layers x 4 heads x 256 numbers x 2 bytes; of 48 layers 2 x 16 x 128 + 48 x 128 channels and 48 matrices
    assert short.bytes_per_token == 65536
    assert short.bytes_per_state == 48 * (4 * 10240 * 2 + 48 * 128 * 128 * 4)
    assert short.rows[0].bytes_per_request == 32768 * (65536 + 8) + short.bytes_per_state
    told = (Path(__file__).parent.parent / "docs" / "python.md").read_text()
    for shape, (short, long) in found.items():
        full, with_budget = zip(short.rows, long.rows, strict=True)
        assert with_budget[0] == with_budget[1]
        slots = [f"{(row.bytes_per_request - short.bytes_per_state) / GIB:.2f}" for row in (*full, with_budget[0])]
        cells = [
            f"`{shape}`",
            f"{short.weight_bytes / GIB:.1f} GiB",
            f"{short.bytes_per_state / 2**20:.0f} MiB",
            f"{slots[0]} / {slots[1]} GiB",
            f"{slots[2]} GiB",
            f"{full[0].requests} / {full[1].requests}",
            str(with_budget[0].requests),
        ]
        assert f"| {' | '.join(cells)} |" in told, cells
