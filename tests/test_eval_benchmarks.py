"""Where benchmarks come from: copies of the public sets made on the spot, the embedded tasks, reasoning-gym."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from leanthink.data import gym
from leanthink.data.grading.answer_normalisation import Tolerance
from leanthink.data.grading.grading import is_solved
from leanthink.eval import benchmarks
from leanthink.eval.benchmarks import PUBLIC, public
from leanthink.utils.errors import UsageError

ROWS: dict[str, list[dict[str, Any]]] = {
    "math-500": [
        {"problem": "Half?", "solution": "...", "answer": r"\frac{1}{2}", "subject": "Algebra", "level": 1,
         "unique_id": "test/algebra/1.json"},
    ],
    "aime-2024": [{"id": 60, "problem": "How many?", "solution": "...", "answer": "025"}],
    "aime-2025": [{"problem": "How many?", "answer": "70", "id": "0"}],
    "amc-2023": [{"id": 0, "answer": 27.0, "question": "How far?"}],
    "gsm8k": [{"question": "How much?", "answer": "9 * 2 = <<9*2=18>>18\n#### 1,018"}],
    "gsm8k-train": [{"question": "How many?", "answer": "6 / 2 = <<6/2=3>>3\n#### 3"}],
    "math-train": [{"problem": "Half?", "solution": r"No $\boxed{1}$: $\boxed{\frac{1}{2}}$."}],
    "deepmath-103k": [{"question": "Limit?", "final_answer": r"\infty"}],
    "dapo-17k": [{"prompt": "How many?", "solution": "34"}],
    "gaokao-2023-en": [{"question": "Which?", "answer": "$x=2$"}, {"question": "Which?", "answer": "C"}],
    "olympiadbench": [
        {"id": 1606, "question": "Both?", "final_answer": ["$2$,$-2$"], "error": None},
        {"id": 2592, "question": "Share?", "final_answer": ["56.1"], "error": "1e-1"},
        {"id": 1, "question": "Prove it.", "final_answer": [], "error": None},
    ],
    "minerva": [{"question": "How wide?", "answer": "1.6"}, {"question": "Energy?", "answer": "4.5e33"}],
    "gpqa-diamond": [
        {"Record ID": f"rec{at}", "Question": "Which particle?\n", "Correct Answer": f"right {at}\n",
         "Incorrect Answer 1": "w1", "Incorrect Answer 2": "w2", "Incorrect Answer 3": "w3", "Subdomain": "physics"}
        for at in range(8)
    ],
}  # fmt: skip


def copy_of(name: str, folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """A repository of the hub as a clone has it: rows, and a card that names configuration and split."""
    known = PUBLIC[name]
    (folder / "data").mkdir(parents=True)
    lines = [json.dumps(row) for row in rows or ROWS[name]]
    (folder / "data" / "rows.jsonl").write_text("\n".join(lines) + "\n")
    config = known.config or "default"
    card = f"configs:\n- config_name: {config}\n  data_files:\n  - split: {known.split}\n    path: data/rows.jsonl\n"
    (folder / "README.md").write_text(f"---\n{card}---\n")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_set_is_read_from_a_copy_and_graded_by_its_own_golds(name: str, tmp_path: Path) -> None:
    found = public(name, copy_of(name, tmp_path / name))
    graded = [row for row in ROWS[name] if row.get("final_answer") != []]
    assert len(found.problems) == len(graded)
    assert found.prompt(found.problems[0]).endswith(PUBLIC[name].instruction)
    for problem in found.problems:
        assert is_solved(problem, f"</think>so \\boxed{{{problem.answer}}}", think_tags=True)
        assert not is_solved(problem, "</think>so \\boxed{12345}", think_tags=True)


@pytest.mark.parametrize(
    ("name", "golds"),
    [
        ("math-500", [r"\frac{1}{2}"]),
        ("aime-2024", ["25"]),
        ("amc-2023", ["27"]),
        ("gsm8k", ["1018"]),
        ("gsm8k-train", ["3"]),
        ("gaokao-2023-en", ["x=2", "C"]),
        ("olympiadbench", ["2$,$-2", "56.1"]),
        ("minerva", ["1.6", "4.5e33"]),
    ],
)
def test_golds_are_what_the_set_means_by_its_column(name: str, golds: list[str], tmp_path: Path) -> None:
    found = public(name, copy_of(name, tmp_path / name))
    assert [problem.answer for problem in found.problems] == golds


def test_rounded_sets_allow_what_they_say(tmp_path: Path) -> None:
    minerva = public("minerva", copy_of("minerva", tmp_path / "minerva")).problems
    assert is_solved(minerva[0], r"\boxed{1.61}", think_tags=False)
    assert not is_solved(minerva[0], r"\boxed{1.7}", think_tags=False)
    olympiad = public("olympiadbench", copy_of("olympiadbench", tmp_path / "olympiad")).problems
    assert [problem.tolerance for problem in olympiad] == [Tolerance(), Tolerance(absolute=0.1)]
    assert is_solved(olympiad[0], r"\boxed{-2, 2}", think_tags=False)
    assert not is_solved(olympiad[0], r"\boxed{2}", think_tags=False)


def test_options_are_in_an_order_of_their_own_question_and_the_gold_is_where_the_right_one_went(tmp_path: Path) -> None:
    found = public("gpqa-diamond", copy_of("gpqa-diamond", tmp_path / "gpqa")).problems
    for at, problem in enumerate(found):
        assert f"({problem.answer}) right {at}\n" in problem.problem + "\n"
        assert all(f"({letter}) " in problem.problem for letter in "ABCD")
        assert is_solved(problem, f"</think>The answer is ({problem.answer}).", think_tags=True)
    assert len({problem.answer for problem in found}) > 1
    assert found == public("gpqa-diamond", tmp_path / "gpqa").problems


@pytest.mark.parametrize("part", ["", "train.jsonl"])
def test_the_rows_of_a_set_alone_are_a_copy_too(part: str, tmp_path: Path) -> None:
    copied = copy_of("gsm8k-train", tmp_path / "gsm8k")
    (copied / "README.md").unlink()  # which names the configuration
    (copied / "data" / "rows.jsonl").rename(copied / "train.jsonl")
    shutil.rmtree(copied / "data")
    assert [problem.answer for problem in public("gsm8k-train", copied / part).problems] == ["3"]


def test_a_copy_with_other_columns_is_refused(tmp_path: Path) -> None:
    other = copy_of("gsm8k", tmp_path / "gsm8k", [{"question": "?", "solution": "4"}])
    with pytest.raises(
        UsageError, match=r"no copy of openai/gsm8k: it has no column 'answer', only question, solution"
    ):
        public("gsm8k", other)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gsm8k", {"question": "?", "answer": None}),
        ("dapo-17k", {"prompt": [{"role": "user", "content": "?"}], "solution": "4"}),
        ("aime-2024", {"id": 1, "problem": "?", "answer": "four"}),
        ("olympiadbench", {"id": 1, "question": "?", "final_answer": [None], "error": None}),
    ],
)
def test_a_row_of_another_kind_is_refused(name: str, row: dict[str, Any], tmp_path: Path) -> None:
    other = copy_of(name, tmp_path / name, [*ROWS[name], row])
    with pytest.raises(UsageError, match=f"^row {len(ROWS[name])} of .* is none of {PUBLIC[name].hub_id}"):
        public(name, other)


def test_a_copy_without_the_split_is_refused_and_says_what_datasets_said(tmp_path: Path) -> None:
    other = copy_of("aime-2024", tmp_path / "aime")  # its split is train
    with pytest.raises(
        UsageError, match=r"aime cannot be loaded .*test.*give math-500=FOLDER.*split test with the columns problem"
    ):
        public("math-500", other)


def test_a_benchmark_is_found_in_any_case_and_a_copy_must_be_named(tmp_path: Path) -> None:
    found = public("GSM8K-train", copy_of("gsm8k-train", tmp_path / "copy"))
    assert (found.name, found.problems[0].answer) == ("gsm8k-train", "3")
    with pytest.raises(UsageError, match=r"no file or folder ''.*gsm8k alone"):
        public("gsm8k", "")


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"needs datasets: pip install 'leanthink\[eval\]'"):
        public("math-500")


def test_embedded_tasks_are_one_benchmark_without_an_instruction() -> None:
    found = benchmarks.from_families(["sums", "bases"], [1, 2], 3, seed=1)
    assert (found.name, len(found.problems), found.instruction) == ("tasks", 12, "")
    assert found.about == benchmarks.from_families(["sums", "bases"], [1, 2], 3, seed=1).about
    assert found.about["digest"] != benchmarks.from_families(["sums", "bases"], [1, 2], 3, seed=2).about["digest"]


def test_a_family_of_reasoning_gym_scores_its_own_answers() -> None:
    found = benchmarks.from_gym("chain_sum", 3, seed=1)
    assert (found.name, len(found.problems)) == ("gym-chain_sum", 3)
    for problem in found.problems:
        assert is_solved(problem, rf"</think>\boxed{{{problem.answer}}}", think_tags=True)
        assert not is_solved(problem, r"</think>\boxed{nonsense}", think_tags=True)


def test_without_reasoning_gym_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gym.environment.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UsageError, match=r"reasoning-gym: pip install 'leanthink\[gym\]'"):
        benchmarks.from_gym("chain_sum", 3, seed=1)
