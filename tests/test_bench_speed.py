"""What `leanthink bench` measured, put together and in tables: a small run on the CPU, and numbers by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from leanthink.entrypoints import cli

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))
import one_a_line  # noqa: E402
import speed_results  # noqa: E402
import speed_table  # noqa: E402

BIRTH = {"command": "leanthink bench --shape s --out runs/a --steps 9", "date": "2026-01-02", "commit": "abc",
         "hardware": "a GPU", "python": "3.12", "torch": "2.11", "transformers": "5.17"}  # fmt: skip


def spread(median: float) -> dict[str, float]:
    return {"n": 3, "median": median, "p10": median - 1, "p90": median + 1, "mean": median + 0.5}


def first_tokens(all_of_them: float) -> dict[str, Any]:
    return {"ms": spread(all_of_them), "first_token_median_ms": spread(all_of_them / 2),
            "first_token_p99_ms": spread(all_of_them - 1)}  # fmt: skip


PARTS: dict[str, Any] = {
    "roofline": {"copy_bytes_per_second": spread(3e12)},
    "prompts": {
        "matrix_flop_per_second": spread(7e14),
        "cells": [
            {"prompts": 8, "tokens": 16, "floor_ms": 50.0, "leanthink": first_tokens(60),
             "transformers": {"ms": spread(90)}},
        ],
    },
    "decode": {
        "cells": [
            {"batch": 4, "slots": 100, "floor_ms": 8.0, "step_ms": spread(10)},
            {"batch": 900, "slots": 100, "error": "OutOfMemoryError: too large"},
        ]
    },
    "eviction": {
        "cells": [
            {"batch": 4, "budget": 100, "full": {"step_ms": spread(20)},
             "horizon": {"step_ms": spread(21), "evictions": 4, "eviction_share": 0.01}},
        ]
    },
    "throughput": {
        "policies": [
            {"policy": "full", "budget": None, "rows": 4.0, "step_ms": spread(10), "tokens_per_second": 400.0},
            {"policy": "horizon", "budget": 64, "rows": 9.0, "step_ms": spread(9), "tokens_per_second": 1000.0},
        ]
    },
    "vllm-baseline": {
        "version": "0.32",
        "cells": [
            {"part": "prompts", "prompts": 8, "tokens": 16, **first_tokens(70)},
            {"part": "decode", "batch": 4, "slots": 100, "step_ms": spread(12)},
            {"part": "throughput", "rows": 5.2, "step_ms": spread(11), "tokens_per_second": 500.0},
        ],
    },
}  # fmt: skip


def write(folder: Path, parts: dict[str, Any], **birth: str) -> str:
    """A run as `leanthink bench` leaves it; returns its folder."""
    folder.mkdir()
    options = {"shape": "s", "kv_cache_dtype": "auto", "kv_gib": 2.0}
    (folder / "bench.json").write_text(json.dumps({"birth": BIRTH | birth, "options": options, "parts": parts}))
    return str(folder)


def test_numbers_of_several_runs_stand_in_tables(tmp_path):
    of_vllm = {name: part for name, part in PARTS.items() if name != "eviction"}
    runs = [write(tmp_path / "a", of_vllm), write(tmp_path / "b", {"eviction": PARTS["eviction"]}, commit="def")]
    speed_results.main([*runs, "--out", str(tmp_path / "speed.json")])

    document = one_a_line.read_table(tmp_path / "speed.json", *speed_results.TABLES)
    assert document["runs"][0]["command"] == "leanthink bench --shape s --steps 9"  # where it wrote is left out
    assert (document["hardware"], document["vllm"]) == ("a GPU", "0.32")
    assert [row["run"] for row in document["decode"]] == ["a"]  # what there was no room for is no number

    found = speed_table.read(tmp_path / "speed.json")
    assert "| s | 4 x 100 | 8.00 | 10.00 [9.00, 11.00] | 1.25 | 12.00 [11.00, 13.00] | +5.0 % | +4.9 % |" in (
        speed_table.steps_table(found)
    )
    assert "| s | 8 x 16 | 50 | 60 (30, 59) | 70 (35, 69) | 90 |" in speed_table.prompts_table(found)
    assert "| s, 2 GiB in bfloat16 | 400 (4) | 1000 (2.5x, 9) | 500 (5) |" in speed_table.throughput_table(found)
    assert "| s, 2 GiB in bfloat16 | 400 | 1000 (2.5x) | 500 |" in speed_table.short_table(found)
    assert "commit abc, def" in speed_table.whole_tables(found)


def test_what_vllm_or_horizon_did_not_measure_is_a_dash(tmp_path):
    parts = {name: part for name, part in PARTS.items() if name not in ("eviction", "vllm-baseline")}
    speed_results.main([write(tmp_path / "a", parts), "--out", str(tmp_path / "speed.json")])
    found = speed_table.read(tmp_path / "speed.json")
    assert "| 1.25 | – | – | – |" in speed_table.steps_table(found)
    assert "| 60 (30, 59) | – | 90 |" in speed_table.prompts_table(found)
    assert "| 1000 (2.5x) | – |" in speed_table.short_table(found)


def test_runs_of_other_budgets_and_without_room_for_full_keep_their_columns(tmp_path):
    ours = {"policy": "horizon", "budget": 32, "rows": 3.0, "step_ms": spread(9), "tokens_per_second": 300.0}
    bounded = [{"policy": "full", "error": "UsageError: no room"}, ours]
    runs = [write(tmp_path / "a", PARTS), write(tmp_path / "b", {"throughput": {"policies": bounded}})]
    speed_results.main([*runs, "--out", str(tmp_path / "speed.json")])
    first, second = speed_table.throughput_table(speed_table.read(tmp_path / "speed.json")).splitlines()[-2:]
    assert first.endswith("| 400 (4) | 1000 (2.5x, 9) | – | 500 (5) |")
    assert second.endswith("| – | – | 300 (3) | – |")
    speed_results.main([write(tmp_path / "c", {}), "--out", str(tmp_path / "none.json")])
    assert len(speed_table.throughput_table(speed_table.read(tmp_path / "none.json")).splitlines()) == 2


def test_runs_that_are_not_there_or_have_one_name_are_refused(tmp_path, capsys):
    (tmp_path / "more").mkdir()
    runs = [write(tmp_path / "a", PARTS), write(tmp_path / "more" / "a", PARTS)]
    for given, said in ((runs, "folders of the same name"), ([str(tmp_path / "none")], "no run of `leanthink bench`")):
        with pytest.raises(SystemExit):
            speed_results.main([*given, "--out", str(tmp_path / "speed.json")])
        assert said in " ".join(capsys.readouterr().err.split())


def test_runs_of_two_cards_are_two_files(tmp_path, capsys):
    runs = [write(tmp_path / "a", PARTS), write(tmp_path / "b", PARTS, hardware="another GPU")]
    with pytest.raises(SystemExit):
        speed_results.main([*runs, "--out", str(tmp_path / "speed.json")])
    assert "runs with different hardware: a GPU, another GPU; a file for each" in capsys.readouterr().err
    assert not (tmp_path / "speed.json").exists()


@pytest.mark.slow
def test_it_reads_what_bench_writes(tmp_path):
    options = ["--shape", "tiny", "--device", "cpu", "--parts", "roofline,prompts,decode,eviction,throughput"]
    small = ["--cells", "2x40", "--prompts", "2x8", "--steps", "3", "--eviction-interval", "4", "--prompt", "8",
             "--output", "80", "--budgets", "16", "--requests", "2"]  # fmt: skip
    assert cli.run(["bench", *options, *small, "--out", str(tmp_path / "run")]) == 0
    speed_results.main([str(tmp_path / "run"), "--out", str(tmp_path / "speed.json")])
    found = speed_table.read(tmp_path / "speed.json")
    assert [(row["shape"], row["rows"], row["slots"]) for row in found["decode"]] == [("tiny", 2, 40)]
    assert [row["policy"] for row in found["throughput"]] == ["full", "horizon"]
    assert "| tiny | 2 x 40 |" in speed_table.steps_table(found)
    assert found["runs"][0]["copy_bytes_per_second"] > 0
