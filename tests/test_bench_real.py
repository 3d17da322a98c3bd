"""The tables of a real model: which problems, which runs stand together, and what a digit for each problem tells."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from leanthink.entrypoints import cli

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))
import junit_results  # noqa: E402
import one_a_line  # noqa: E402
import real_problems  # noqa: E402
import real_results  # noqa: E402
import real_table  # noqa: E402

BIRTH = {"command": "leanthink eval", "date": "2026-01-01", "commit": "abc", "hardware": "cpu", "python": "3.11",
         "torch": "2.11", "transformers": "5.16"}  # fmt: skip
COLUMNS = ("right", "strict", "capped", "thought_tokens", "answer_tokens", "peak_slots", "kept_slots", "slot_steps",
           "majority")  # fmt: skip
PROBLEMS = 40
ALL, HALF = "1" * PROBLEMS, "10" * (PROBLEMS // 2)
MOST = "0" + "1" * (PROBLEMS - 1)


def cell(policy: str, slots: int | None, right: str, benchmark: str = "gsm8k", thought: int = 128) -> dict[str, Any]:
    """A cell of `result.json`: thoughts of 128 tokens, so that 48 + 16 slots are a ratio of 2."""
    budget = None if slots is None else {"slots": slots, "window": 16, "interval": 16, "answer": 64}
    columns = {name: [0] * PROBLEMS for name in COLUMNS} | {"thought_tokens": [thought] * PROBLEMS}
    columns |= {"right": [int(digit) for digit in right]}
    about = {"benchmark": benchmark, "policy": policy, "budget": budget, "samples": 1, "columns": columns}
    return {**about, "most_slots": 99, "bytes_per_slot": 1.0, "seconds": None}


FIRST = [
    cell("full", None, ALL), cell("r-kv", 48, HALF), cell("r-kv", 16, HALF), cell("sinks", 48, HALF),
    cell("sinks", 16, MOST), cell("random", 48, "0" * PROBLEMS), cell("random", 16, "0" * PROBLEMS),
    cell("horizon", 48, ALL), cell("horizon", 16, MOST),
]  # fmt: skip


def write(folder: Path, cells: list[dict[str, Any]], digest: str = "d", **settings: Any) -> str:
    """A finished run; returns its folder."""
    folder.mkdir(parents=True)
    about = {"source": "s", "problems": PROBLEMS, "digest": digest, "ids": [f"p-{n}" for n in range(1, PROBLEMS + 1)]}
    slots = {"window": 16, "interval": 16, "answer": 64}
    given = {"model": "m", "fingerprint": "f", "sampling": {"seed": 0}, "dtype": "float32", "samples": 1,
             "slots": slots, "predictors": {"horizon": folder.name}}  # fmt: skip
    document = {
        "eval": 1,
        "settings": given | settings,
        "benchmarks": {name: about for name in dict.fromkeys(one["benchmark"] for one in cells)},
        "births": [BIRTH],
        "cells": cells,
    }
    (folder / "result.json").write_text(json.dumps(document))
    return str(folder)


def packed(tmp_path: Path, *runs: str) -> list[real_table.Results]:
    real_results.main(["--model-name", "M, Q4", "--out", str(tmp_path / "real"), *runs])
    return real_table.read(tmp_path / "real")


def rows(table: str) -> dict[str, list[str]]:
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in found}


# -- results ---------------------------------------------------------------------------------------------------------


def test_results_of_several_predictors_stand_in_one_table(tmp_path: Path) -> None:
    layer = write(tmp_path / "b", [cell("full", None, ALL), cell("horizon", 48, HALF), cell("horizon", 16, HALF)])
    (found,) = packed(tmp_path, write(tmp_path / "a", FIRST), f"layer={layer}")
    assert found.policies == ["horizon", "horizon:layer", "r-kv", "sinks", "random"]
    assert found.slots == [64, 32]
    document = found.document
    assert document["problems"] == {"count": PROBLEMS, "first": "p-1", "last": "p-40", "digest": "d"}
    assert [one["policy"] for one in document["cells"]].count("full") == 1
    layers = [one for one in document["cells"] if one["policy"] == "horizon:layer"]
    assert [real_results.digits(document, one) for one in layers] == [HALF, HALF]
    assert {name: run["predictors"] for name, run in document["runs"].items()} == {
        "first": {"horizon": "a"},
        "layer": {"horizon": "b"},
    }
    assert [run["full_differs"] for run in document["runs"].values()] == [0, 0]
    ahead = found.above("horizon", "horizon:layer", 64)
    assert ahead is not None
    assert ahead.value == 0.5
    assert found.above("horizon", "vase", 64) is None


def test_runs_without_names_add_their_policies(tmp_path: Path) -> None:
    peers = write(tmp_path / "peers", [cell("vase", 48, HALF), cell("full", None, MOST)], predictors={})
    layer = write(tmp_path / "b", [cell("horizon", 48, HALF)])
    (found,) = packed(tmp_path, write(tmp_path / "a", FIRST), peers, f"layer={layer}")
    assert found.policies == ["horizon", "horizon:layer", "r-kv", "sinks", "random", "vase"]
    assert float(found.full.mean()) == 1.0  # the first run's
    told = found.document["runs"]
    assert {name: run["full_differs"] for name, run in told.items()} == {"first": 0, "peers": 1, "layer": None}


def test_a_full_cache_that_answers_otherwise_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = [cell("full", None, MOST), cell("horizon", 48, HALF)]
    found = packed(tmp_path, write(tmp_path / "a", FIRST), f"layer={write(tmp_path / 'b', other)}")
    assert "full caches differ: {'layer': 1}" in capsys.readouterr().out
    assert "another run: 1 of gsm8k (layer)." in " ".join(real_table.whole_tables(found).split())
    alone = packed(tmp_path, write(tmp_path / "c", FIRST), f"x={write(tmp_path / 'd', [cell('horizon', 48, HALF)])}")
    assert alone[0].document["runs"]["x"]["full_differs"] is None
    assert "another run" not in real_table.short_table(alone)


@pytest.mark.parametrize(
    ("cells", "changes", "said"),
    [
        (FIRST, {"digest": "other"}, "asked different problems under the name gsm8k"),
        (FIRST, {"fingerprint": "other"}, "has fingerprint other"),
        (FIRST, {"dtype": "bfloat16"}, "has dtype bfloat16"),
        (FIRST, {"sampling": {"seed": 1}}, "has sampling"),
        ([cell("horizon", 47, ALL)], {}, r"holds at most \[63\] slots"),
    ],
)
def test_runs_that_cannot_be_paired_are_refused(
    tmp_path: Path, cells: list[dict[str, Any]], changes: dict[str, Any], said: str
) -> None:
    first, other = write(tmp_path / "a", FIRST), write(tmp_path / "b", cells, **changes)
    with pytest.raises(real_results.UsageError, match=said):
        real_results.together([first, f"layer={other}"], "M")


def test_bad_arguments_are_refused_with_the_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write(tmp_path / "a", FIRST), write(tmp_path / "b", FIRST[1:])
    for given, said in (
        ([first, second], "two runs have r-kv with the same budget: give one of them as NAME=RUN"),
        ([f"x={first}"], "give the first run as a folder, without a name"),
        ([first, f"x={first}", f"x={second}"], "two runs are called 'x'"),
        ([second], "no full cache on gsm8k"),
        ([write(tmp_path / "c", FIRST, samples=10)], "at most 9 have room"),
    ):
        with pytest.raises(SystemExit, match="2"):
            real_results.main(["--model-name", "M", "--out", str(tmp_path / "real"), *given])
        assert said in capsys.readouterr().err
    assert not (tmp_path / "real").exists()


@pytest.mark.parametrize(("text", "samples"), [("0010", 1), ("0" * 9, 1), ("03120" * 9, 3), ("9081", 9)])
def test_packed_digits_come_back(text: str, samples: int) -> None:
    document = {"problems": {"count": len(text)}, "settings": {"samples": samples}}
    assert real_results.digits(document, {"right": real_results.packed(text, samples)}) == text


def test_long_lists_have_an_entry_a_line_and_five_digits(tmp_path: Path) -> None:
    document = {"a": 1 / 3, "rows": [{"x": [1 / 7, 2, None]}, {"y": "z"}], "b": {"c": [True]}}
    one_a_line.write(tmp_path / "a.json", document, "rows")
    text = (tmp_path / "a.json").read_text()
    assert text == '{\n"a":0.33333,\n"b":{"c":[true]},\n"rows":[\n{"x":[0.14286,2,null]},\n{"y":"z"}\n]\n}\n'
    assert json.loads(text) == {"a": 0.33333, "b": {"c": [True]}, "rows": [{"x": [0.14286, 2, None]}, {"y": "z"}]}
    document |= {"more": [{"n": {"p": 1, "q": 2}, "m": {"p": 1}}, {"n": None, "m": {}}]}
    one_a_line.write_table(tmp_path / "a.json", document, "rows", "more")
    table = json.loads((tmp_path / "a.json").read_text())
    assert table["rows"] == [["x", "y"], [[0.14286, 2, None], None], [None, "z"]]
    assert table["more"] == [[{"n": ["p", "q"]}, "m"], [[1, 2], {"p": 1}], [None, {}]]
    whole = json.loads(text) | {"rows": [{"x": [0.14286, 2, None], "y": None}, {"x": None, "y": "z"}]}
    assert one_a_line.read_table(tmp_path / "a.json", "rows", "more") == whole | {"more": document["more"]}


REPORT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="1" tests="5" time="9">
<testcase classname="tests.test_a" name="test_x" time="1.504" />
<testcase classname="tests.integrations.test_b" name="test_y" time="2.0"><failure message="m">t</failure></testcase>
<testcase classname="tests.test_a" name="test_z[b.py::c]" time="0.1"><system-out>said</system-out></testcase>
<testcase classname="tests.test_a" name="test_z[d]" time="0.2" />
<testcase classname="tests.test_a" name="test_s" time="0.0"><skipped message="m">t</skipped></testcase>
<testcase classname="tests.test_a" name="test_e" time="0.0"><error message="m">t</error></testcase>
</testsuite></testsuites>
"""


def test_a_junit_report_becomes_a_result_with_its_provenance(tmp_path: Path) -> None:
    (tmp_path / "gpu.xml").write_text(REPORT)
    junit_results.main([str(tmp_path / "gpu.xml"), "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["birth"].keys() >= {"command", "commit", "hardware", "torch"}
    assert (found["passed"], found["not_passed"]) == (3, 3)
    assert found["tests"] == [
        {
            "file": "tests/test_a.py",
            "passed": {"test_x": [1, 1.5], "test_z": [2, 0.3]},
            "others": {"test_s": "skipped", "test_e": "error"},
        },
        {"file": "tests/integrations/test_b.py", "passed": {}, "others": {"test_y": "failure"}},
    ]


# -- tables ----------------------------------------------------------------------------------------------------------


def test_the_short_table_has_ours_and_the_best_of_the_others(tmp_path: Path) -> None:
    layer = write(tmp_path / "b", [cell("horizon", 48, HALF), cell("horizon", 16, HALF)])
    found = packed(tmp_path, write(tmp_path / "a", FIRST), f"layer={layer}")
    table = real_table.short_table(found)
    assert table.splitlines()[0] == "| policy | gsm8k 2x | 4x |"
    shown = rows(table)
    assert list(shown) == ["policy", "---", "full", "horizon", "r-kv", "sinks"], "r-kv and sinks lead in a column each"
    assert shown["full"] == ["100.0", "100.0"]
    assert shown["horizon"] == ["100.0", "97.5"], "neither below the full cache beyond chance"
    assert shown["r-kv"][0] == "50.0▼"
    assert shown["sinks"][1] == shown["horizon"][1]
    told = " ".join(table.split())
    for fact in ("M, Q4, cpu.", "docs/measurements.md#on-a-real-model"):
        assert fact in told, fact


def test_a_policy_that_is_better_is_marked_too(tmp_path: Path) -> None:
    cells = [cell("full", None, HALF), cell("horizon", 48, HALF), cell("r-kv", 48, ALL)]
    (found,) = packed(tmp_path, write(tmp_path / "a", cells))
    assert rows(real_table.short_table([found]))["r-kv"] == ["100.0▲"]


def test_the_whole_tables_have_every_policy_of_each_benchmark_against_full_and_ours(tmp_path: Path) -> None:
    both = [*FIRST, *(one | {"benchmark": "math-500"} for one in FIRST if one["policy"] != "random")]
    found = packed(tmp_path, write(tmp_path / "a", both))
    table = real_table.whole_tables(found)
    assert [one.name for one in found] == ["gsm8k", "math-500"]
    first, second = table.split("**math-500**")
    assert list(rows(first)) == ["policy", "---", "full", "horizon", "r-kv", "sinks", "random"]
    assert "random" not in rows(second)
    assert rows(first)["policy"] == ["2x: 64 slots", "`horizon` above it", "4x: 32 slots", "`horizon` above it"]
    assert rows(first)["full"] == ["100.0", "–", "100.0", "–"]
    assert rows(first)["horizon"][1] == "–"
    assert "`horizon` keeps 100 / 98 % on gsm8k" in " ".join(table.split())
    assert re.fullmatch(r"\+50\.0 \[\+3\d\.\d, \+6\d\.\d\]", rows(first)["r-kv"][1])
    assert rows(first)["random"][1] == "+100.0 [+100.0, +100.0]"


def test_without_results_there_is_nothing_to_write(tmp_path: Path) -> None:
    assert real_table.read(tmp_path) == []


def test_what_eval_writes_becomes_a_table(inside: Any, folder: Path, tmp_path: Path) -> None:
    problems = [{"id": n, "problem": f"What is {n} plus 2?", "answer": n + 2} for n in range(3)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))
    asked = ["--model", folder, "--problems", tmp_path / "gsm8k.jsonl", "--max-new-tokens", 40, "--recent-window", 4,
             "--eviction-interval", 4, "--ratios", "2,4", "--together",
             "--predictor", folder / "own.safetensors"]  # fmt: skip
    for name, policies in (("all", "full,horizon,sinks"), ("again", "full,horizon")):
        done = inside("eval", *asked, "--policies", policies, "--out", tmp_path / name)
        assert done.code == 0, done.err
    found = packed(tmp_path, str(tmp_path / "all"), f"again={tmp_path / 'again'}")
    for name, run in found[0].document["runs"].items():
        assert run["full_differs"] == 0, name
    shown = rows(real_table.whole_tables(found).split("Right answers")[0])
    assert list(shown) == ["policy", "---", "full", "horizon", "horizon:again", "sinks"]
    assert shown["policy"] == ["2x: 20 slots", "`horizon` above it", "4x: 10 slots", "`horizon` above it"]
    assert shown["horizon:again"][1] == "+0.0 [+0.0, +0.0]"


# -- problems --------------------------------------------------------------------------------------------------------


def sets(folder: Path, test: int = 1319, same: bool = False) -> Path:
    folder.mkdir()
    for name, file, count in (
        ("t", "gsm8k_train.jsonl", 7400),
        ("g", "gaokao2023en.jsonl", 235),
        ("o", "olympiadbench.jsonl", 674),
        ("i", "minerva_math.jsonl", 272),
        ("e", "gsm8k_test.jsonl", test),
        ("m", "math500.jsonl", 500),
    ):
        texts = [f"{name} {number}" for number in range(count)]
        if same and name == "e":
            texts[7] = "T  9"  # as t 9, but for case and spaces
        lines = [json.dumps({"id": f"{name}{n}", "problem": text, "answer": n}) for n, text in enumerate(texts)]
        (folder / file).write_text("\n".join(lines) + "\n")
    return folder


def test_problems_to_fit_to_and_to_measure_on_are_written_apart(tmp_path: Path) -> None:
    out = tmp_path / "out"
    real_problems.main(["--data", str(sets(tmp_path / "data")), "--out", str(out)])
    found = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in out.iterdir()}
    ids = {name: [problem["id"] for problem in problems] for name, problems in found.items()}
    assert {name: (len(known), known[0], known[-1]) for name, known in ids.items()} == {
        "fit-gsm8k": (7000, "gsm8k-train-1", "gsm8k-train-7000"),
        "fit-gaokao": (235, "gaokao-2023-en-1", "gaokao-2023-en-235"),
        "fit-olympiad": (674, "olympiadbench-1", "olympiadbench-674"),
        "fit-minerva": (272, "minerva-1", "minerva-272"),
        "choose-gsm8k": (400, "gsm8k-train-7001", "gsm8k-train-7400"),
        "gsm8k": (1319, "gsm8k-1", "gsm8k-1319"),
        "math-500": (500, "math-500-1", "math-500-500"),
        "long": (300, "gsm8k-1", "gsm8k-300"),
    }
    assert found["math-500"][0] == {"id": "math-500-1", "problem": "m 0", "answer": "0"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"same": True}, "gsm8k-8 of gsm8k is the same problem as gsm8k-train-10, which predictors are fitted to"),
        ({"test": 1318}, "gsm8k has 1318 problems, rows 1 to 1319 are needed"),
    ],
)
def test_problems_in_both_halves_and_too_few_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        real_problems.main(["--data", str(sets(tmp_path / "data", **changes)), "--out", str(tmp_path / "out")])
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


# -- the recipe ------------------------------------------------------------------------------------------------------

RECIPE = (BENCH / "real" / "README.md").read_text()
LINES = [
    shlex.split(line)
    for block in re.findall(r"^```bash\n(.*?)^```", RECIPE, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_the_recipe_tells_the_rows_that_are_taken() -> None:
    for name, part in (real_problems.FITTED | real_problems.MEASURED).items():
        told = re.search(rf"^\| `{name}\.jsonl` \| (.*?) \|", RECIPE, re.MULTILINE)
        assert told, name
        assert told[1].endswith(f"rows {part.first} to {part.last}")


def test_the_commands_of_the_recipe_are_understood(capfd: pytest.CaptureFixture[str]) -> None:
    commands = [words[1:] for words in LINES if words[0] == "leanthink"]
    assert {words[0] for words in commands} == {"collect", "label", "fit", "predictor", "eval", "compare"}
    for words in commands:
        assert cli.run([*words, "--help"]) == 0, f"{words}: {capfd.readouterr().err}"


def test_the_scripts_of_the_recipe_are_there() -> None:
    scripts = [words[1] for words in LINES if words[0] == "python"]
    assert set(scripts) == {"bench/real_problems.py", "bench/real_results.py", "bench/table.py"}
    assert all((BENCH.parent / script).is_file() for script in scripts)
