from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from leanthink.data.tasks import registry
from leanthink.rl import data
from leanthink.rl.model_card import public_name
from leanthink.rl.run import make_data
from leanthink.utils.errors import UsageError
from test_eval_benchmarks import _own_cache, copy_of  # noqa: F401

NAMES = ["prompt", "id", "problem", "answer", "family", "level", "grader", "facts"]


def judged(row: Any, answer: str) -> bool | None:
    return data.grade(row, f"hm</think>\\boxed{{{answer}}}", think_tags=True)


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_tasks_come_back_from_their_columns_with_their_own_grader(family: str) -> None:
    rows = data.from_tasks([family], [1, 2], 3)
    assert rows.column_names == NAMES
    assert len(rows) == 6
    for row in rows:
        assert row["prompt"] == [{"content": row["problem"], "role": "user"}]
        assert judged(row, row["answer"])
        assert not judged(row, row["answer"] + "0")


def test_levels_may_have_counts_of_their_own() -> None:
    rows = make_data({"tasks": ["sums", "bases"], "levels": {1: 2, 3: 1}, "seed": 5})
    assert [(row["family"], row["level"]) for row in rows] == [
        ("sums", 1), ("sums", 1), ("sums", 3), ("bases", 1), ("bases", 1), ("bases", 3),
    ]  # fmt: skip
    assert rows["id"][:2] == data.from_tasks(["sums"], [1], 2, 5)["id"]


def test_another_way_to_the_target_of_a_countdown_is_right() -> None:
    row = data.from_tasks(["countdown"], [2], 1, split="held-out")[0]
    assert row["answer"] == "(68+55)+24"
    assert judged(row, "24+55+68")
    assert not judged(row, "147")


def test_a_thought_that_is_not_closed_is_wrong_and_what_has_no_answer_cannot_be_graded() -> None:
    row = data.from_tasks(["sums"], [1], 1)[0]
    text = f"\\boxed{{{row['answer']}}}"
    assert data.grade(row, text, think_tags=True) is False
    assert data.grade(row, text, think_tags=False) is True
    assert data.grade({**row, "answer": None}, text, think_tags=False) is None


def test_a_file_of_problems_is_graded_as_mathematics_and_takes_an_instruction(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps({"id": "a", "problem": "Half?", "answer": r"\frac{1}{2}"}) + "\n")
    row = data.from_jsonl(path, instruction="Box it.")[0]
    assert row["prompt"][0]["content"] == "Half?\n\nBox it."
    assert judged(row, "0.5")
    assert not judged(row, "0.6")


def test_a_file_may_have_numbers_for_answers_and_no_ids(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"problem": "6 * 7?", "answer": 42}\n{"problem": "37/2?", "answer": 18.50}\n')
    path.write_text(path.read_text() + '{"problem": "3?", "answer": "So\\n#### 3"}')
    rows = data.from_jsonl(path)
    assert (rows["id"], rows["answer"]) == (["1", "2", "3"], ["42", "18.50", "3"])
    assert judged(rows[0], "42")
    assert not judged(rows[0], "43")


def test_columns_of_any_data_set_are_found_by_name() -> None:
    chat = [{"role": "system", "content": "Brief!"}, {"role": "user", "content": "1+1?"}]
    raw = Dataset.from_dict({"chat": [chat], "rm": [{"gold": 2}], "name": ["sum"], "a": ["So 2.\n#### 1,002"]})
    row = data.from_columns(raw, problem="chat", answer="rm.gold", id="name", instruction="Box it.")[0]
    assert row["prompt"] == [chat[0], {"role": "user", "content": "1+1?\n\nBox it."}]
    assert (row["id"], row["answer"], judged(row, "2")) == ("sum", "2", True)
    row = data.from_columns(raw, problem="chat", answer="a")[0]
    assert (row["id"], row["answer"], judged(row, "1002")) == ("row-0", "1,002", True)
    with pytest.raises(UsageError, match=r"unknown column 'rm'.*rm\.gold"):
        data.from_columns(raw, problem="chat", answer="rm")


@pytest.mark.parametrize(
    ("column", "given"),
    [
        *(
            ("answer", it)
            for it in (None, " ", "1\n2", '["2"]', "[{'a': 2}]", ["2"], True, math.nan, 1.2345678901234568e22)
        ),
        *(("problem", it) for it in ([{"role": "assistant", "content": "2"}], [], " ", 3)),
        *(("problem", [one, {"role": "user", "content": "2"}]) for one in ({"content": "1"}, {"role": "system"})),
    ],
)
def test_what_is_no_problem_or_gold_is_refused(column: str, given: Any) -> None:
    raw = Dataset.from_dict({"problem": ["1+1?"], "answer": ["[1, 2]"], column: [given]})
    with pytest.raises(UsageError, match=f"row 0: the column '{column}' is"):
        data.from_columns(raw)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "disk"])
def test_files_and_saved_folders_load_by_their_path(kind: str, tmp_path: Path) -> None:
    raw, path = Dataset.from_dict({"q": ["6*7?"], "gold": [42]}), tmp_path / f"rows.{kind}"
    getattr(raw, f"to_{kind.removesuffix('l')}", raw.save_to_disk)(path)
    DatasetDict(dev=raw).save_to_disk(tmp_path / "splits")
    for source in ({"dataset": path}, {"dataset": tmp_path / "splits", "split": "dev"}):
        row = make_data({**source, "problem": "q", "answer": "gold"})[0]
        assert (row["id"], row["problem"], row["answer"]) == ("row-0", "6*7?", "42")


def test_a_configuration_is_named(tmp_path: Path) -> None:
    source = {"dataset": str(copy_of("gsm8k-train", tmp_path / "copy")), "problem": "question"}
    assert make_data({**source, "name": "main"})[0]["answer"] == "3"
    with pytest.raises(UsageError, match=r"'b' not found.*main"):
        make_data({**source, "name": "b"})


@pytest.mark.parametrize(
    ("public", "right"),
    [
        ("gsm8k-train", "3"),
        ("math-train", "1/2"),
        ("deepmath-103k", "\\infty"),
        ("dapo-17k", "34"),
        ("minerva", "1.61"),
    ],
)
def test_public_sets_have_names(public: str, right: str, tmp_path: Path) -> None:
    source = f"{public.removesuffix('-train')}={copy_of(public, tmp_path / 'copy')}"
    row = make_data({"dataset": source})[0]
    assert (judged(row, right), judged(row, "7"), row["problem"][-8:]) == (True, False, "boxed{}.")
    assert public_name(source) in public


def test_a_public_set_is_found_in_any_case_and_with_any_split(tmp_path: Path) -> None:
    for name, public in (("GSM8K", "gsm8k-train"), ("DeepMath-103K", "deepmath-103k"), ("DAPO-17k", "dapo-17k")):
        assert make_data({"dataset": f"{name}={copy_of(public, tmp_path / public)}"})[0]["id"].startswith(
            name[:4].lower()
        )
    rows = tmp_path / "math.jsonl"
    rows.write_text("".join(json.dumps({"problem": f"{n}?", "solution": rf"\\boxed{{{n}}}"}) + "\n" for n in range(3)))
    for split, left in (("test", 3), ("test[1:]", 2), ("test[:1]+test[2:]", 2), ("train[:1]", 1)):
        assert len(make_data({"dataset": f"MATH={rows}", "split": split})) == left
    Dataset.from_dict({"problem": ["1?"], "answer": ["1"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match=r"split='train\[:1\]'.*whole"):
        make_data({"dataset": str(tmp_path / "saved"), "split": "train[:1]"})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            {"dataset": "GSM8K"},
            r"^openai/gsm8k cannot be loaded .*give gsm8k=FOLDER.*no network.*columns question, answer",
        ),
        ({"dataset": "math", "split": "test"}, r"^DigitalLearningGmbH/MATH-lighteval .*math=FOLDER.*split test"),
        ({"dataset": "deepmath-103k"}, r"^zwhe99/DeepMath-103K .*deepmath-103k=FOLDER"),
        ({"dataset": "dapo-17k"}, r"^open-r1/DAPO-Math-17k-Processed .*dapo-17k=FOLDER"),
        ({"dataset": "gsmk8"}, r"^gsmk8 cannot be loaded .*public sets by name are .*gsm8k"),
        ({"dataset": "some/set"}, r"^some/set cannot be loaded .*network"),
        ({"dataset": "gsmk8=."}, r"unknown public set 'gsmk8'.*Did you mean 'gsm8k'"),
        ({"dataset": "gsm8k="}, r"no file or folder ''.*gsm8k alone"),
        ({"dataset": "gsm8k=.", "name": "main"}, r"with name: .*dataset='\.'"),
    ],
)
def test_without_network_it_is_said_what_to_give(source: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=said):
        make_data(source)


@pytest.mark.parametrize("answer", [None, "", "  "])
def test_a_row_without_an_answer_is_refused(answer: str | None) -> None:
    with pytest.raises(UsageError, match="row 1 of the data has answer"):
        data.check_answers(Dataset.from_dict({"problem": ["1+1?", "1+2?"], "answer": ["2", answer]}))


def test_environments_of_reasoning_gym_score_their_own_entries() -> None:
    rows = data.from_gym({"chain_sum": {"max_terms": 3}, "spell_backward": {}}, 3, seed=1)
    assert len(rows) == 6
    for row in rows:
        assert row["prompt"][0]["content"].endswith(data.BOXED)
        assert judged(row, row["answer"])
        assert not judged(row, "nonsense")
        assert data.grade(row, f"</think>{row['answer']}", think_tags=True) is False  # no box
    assert rows["id"] == data.from_gym({"chain_sum": {"max_terms": 3}, "spell_backward": {}}, 3, seed=1)["id"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({}, "exactly one of tasks, problems, dataset, gym"),
        ({"tasks": "all", "gym": "chain_sum"}, "tasks and gym"),
        ({"tasks": ["sums"], "level": [1]}, "unknown key of data with tasks 'level'.*Did you mean 'levels'"),
        ({"tasks": ["sum"]}, "unknown family 'sum'"),
        ({"gym": "chain_sun"}, "unknown reasoning-gym environment 'chain_sun'.*chain_sum"),
        ({"gym": {"chain_sum": {"min_terms": -1}}}, "refuses chain_sum"),
        ({"gym": {"chain_sum": {"terms": 1}}}, "refuses chain_sum"),
        ({"problems": "nowhere.jsonl"}, "no file of problems"),
        ("tasks", "give a mapping"),
        ({"tasks": [], "levels": [1]}, "no problem to train on"),
        ({"tasks": None}, "tasks must be all, or a list of families, got 'None'"),
        ({"tasks": "sums", "levels": 3}, "levels must be a list"),
        ({"tasks": "sums", "levels": {1: "2"}}, "levels must be a list.*counts"),
        ({"tasks": "sums", "count": "4"}, "count must be an integer"),
        ({"gym": {"chain_sum": None}}, "gym must be a name, or a mapping"),
        ({"problems": ["a.jsonl"]}, "problems must be a path"),
        ({"dataset": "gsm8k", "split": 3}, "split must be a string"),
    ],
)
def test_bad_sources_are_refused_with_the_fix(source: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_data(source)


def test_what_is_null_in_a_source_is_left_out() -> None:
    source = {"tasks": "sums", "levels": [1], "count": 2}
    assert make_data({**source, "seed": None, "split": None})["id"] == make_data(source)["id"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl", '{"problem": "é", "answer": "1"}'.encode("latin-1"), "not UTF-8"),
        ("a.tsv", b"problem\tanswer", "by its name.*parquet, .jsonl"),
        ("rows", b"{}", "by its name.*parquet, .jsonl"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        make_data({"dataset": tmp_path / name})


@pytest.mark.parametrize("name", ["A.JSONL", "a.jsonl.gz"])
def test_endings_are_read_in_any_case_and_through_gzip(name: str, tmp_path: Path) -> None:
    line = b'{"problem": "6*7?", "answer": 42}\n'
    (tmp_path / name).write_bytes(gzip.compress(line) if name.endswith("gz") else line)
    assert make_data({"dataset": tmp_path / name})["answer"] == ["42"]


@pytest.mark.parametrize(
    ("answer", "right"),
    [(0, "0"), (42, "42"), (0.5, "1/2"), ("so\n#### 1,018", "1018"), (" 7 ", "7")],
)
def test_rows_of_a_data_set_of_your_own_are_graded_by_what_their_answer_states(answer: Any, right: str) -> None:
    row = {"answer": answer, "facts": "a column that means something else"}
    assert (judged(row, right), judged(row, "12345")) == (True, False)


@pytest.mark.parametrize("answer", [["3"], True, "1\n2"])
def test_an_answer_of_your_own_that_is_none_is_refused(answer: Any) -> None:
    with pytest.raises(UsageError, match="the column 'answer' is"):
        judged({"answer": answer}, "3")


def test_an_unknown_grader_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown grader 'judge'"):
        data.problem_of({"answer": "1", "grader": "judge"})
