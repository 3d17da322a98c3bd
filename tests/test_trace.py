from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leanthink.data.problems import read_problems
from leanthink.data.traces.token_scores import Scores
from leanthink.data.traces.trace import Trace, TraceWriter, from_line, iter_traces, read_traces, to_line
from leanthink.utils.errors import DamagedFile, UsageError


def trace(**changes: Any) -> Trace:
    plain: dict[str, Any] = {
        "id": "p1",
        "sample": 0,
        "problem": "1 + 1 = ?",
        "gold": "2",
        "model": "tiny",
        "policy": "full",
        "budget": None,
        "seed": 7,
        "temperature": 0.8,
        "prompt_ids": (1, 2, 3),
        "token_ids": (4, 5, 6, 7),
        "text": "two\n</think>\n\u2028\u00e92",
        "thought_tokens": 2,
        "answer_tokens": 2,
        "finish_reason": "stop",
        "correct": True,
        "peak_slots": 7,
        "kept_slots": 7,
        "evictions": 0,
        "peak_kv_bytes": 70,
        "full_kv_bytes": 70,
        "evicted_at": None,
    }
    return Trace(**(plain | changes))


VARIANTS = [
    trace(),
    trace(fingerprint="0f"),
    trace(gold=None, correct=None, finish_reason="length"),
    trace(policy="horizon", budget={"slots": 8, "window": 2}, evicted_at=(None, 3, None, None), evictions=1),
    trace(text="a lone surrogate \ud800 and a NUL \0", id="with # and \u2028"),
    trace(token_ids=(), thought_tokens=0, answer_tokens=0),
    trace(token_chars=(3, 1, 8, 4), scores=Scores(horizons=(), float16="ADwAPAA8AH4=")),
    trace(scores=Scores(horizons=(4, 16), float16="ADwAPAA8AH4APAA8ADwAfg==")),
]


@pytest.mark.parametrize("before", VARIANTS)
def test_a_trace_survives_its_line(before: Trace) -> None:
    line = to_line(before)
    assert "\n" not in line
    assert json.loads(line)["trace"] == 3
    assert from_line(line) == before


@pytest.mark.parametrize(("version", "lacking"), [(1, ("token_chars", "scores", "fingerprint")), (2, ("fingerprint",))])
def test_a_trace_of_an_earlier_version_is_read_and_written_again_as_this_one(
    version: int, lacking: tuple[str, ...]
) -> None:
    old = json.loads(to_line(trace())) | {"trace": version}
    for name in lacking:
        del old[name]
    again = from_line(json.dumps(old))
    assert again == trace()
    assert from_line(to_line(again)) == again


def test_a_file_of_traces_reads_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "traces.jsonl"
    with TraceWriter(path) as writer:
        for index, variant in enumerate(VARIANTS):
            writer.write(variant)
            assert len(list(iter_traces(path))) == index + 1  # on disk while the writer is still open
    assert read_traces(path) == VARIANTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "7"}, "seed must be an integer"),
        ({"sample": -1}, "sample must be an integer >= 0"),
        ({"sample": True}, "sample must be an integer >= 0"),
        ({"token_ids": (1, "2")}, "token_ids must be a list of integers"),
        ({"finish_reason": "eos"}, "finish_reason must be 'stop' or 'length'"),
        ({"budget": {"slots": 1.5}}, "budget must be"),
        ({"correct": 1}, "correct must be"),
        ({"evicted_at": (None,)}, "evicted_at has 1 entries"),
        ({"evicted_at": (None, None, None, 2.0)}, "evicted_at must be"),
        ({"thought_tokens": 3}, "must add up"),
        ({"text": None}, "text must be a string"),
        ({"temperature": -0.1}, "temperature must be a number >= 0"),
        ({"token_chars": (1, 2, 3)}, "token_chars has 3 entries"),
        ({"token_chars": (3, 1, 8, 3)}, "add up to 15"),
        ({"token_chars": (4, -1, 8, 4)}, "token_chars must be"),
        ({"scores": Scores(horizons=(), float16="ADw=")}, "numbers of 1 tokens"),
        ({"scores": "ADw="}, "scores must be"),
        ({"fingerprint": 3}, "fingerprint must be"),
    ],
)
def test_a_trace_checks_itself(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trace(**change)


def record(**changes: Any) -> str:
    return json.dumps(json.loads(to_line(trace())) | changes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a line of JSON"),
        ("[]", "not a trace"),
        ("{}", "not a trace"),
        (record(trace=4), "trace version 4"),
        (record(trace=True), "trace version True"),
        (record(trace=1), "unknown trace field 'token_chars'"),
        (record(scores=[1]), "scores must be an object"),
        (record(scores={"horizons": 4, "float16": ""}), "scores must be an object"),
        (record(scores={"horizons": [4], "float16": "?"}), "float16 must be base64"),
        (record(polcy="full"), "Did you mean 'policy'"),
        (record(prompt_ids="abc"), "prompt_ids must be"),
        (json.dumps({"trace": 1, "id": "x"}), "lacks the field 'sample'"),
        (record(trace=3).replace(', "scores": null', ""), "lacks the field 'scores'"),
        (record(trace=2), "unknown trace field 'fingerprint'"),
    ],
)
def test_a_bad_line_in_the_middle_names_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f"{to_line(trace())}\n\n{line}\n{to_line(trace())}\n")
    with pytest.raises(DamagedFile, match=f"t.jsonl, line 3: .*{message}"):
        read_traces(path)
    before = path.read_bytes()
    with pytest.raises(DamagedFile, match="line 3"):
        TraceWriter(path, resume=True)
    assert path.read_bytes() == before


def test_resuming_drops_a_line_that_was_cut_off_anywhere(tmp_path: Path) -> None:
    whole = [to_line(trace(text="\u00e9\u4e2d")), to_line(trace(sample=1))]
    data = ("\n".join(whole) + "\n").encode()
    path = tmp_path / "t.jsonl"
    for end in range(0, len(data) + 1, 7):
        path.write_bytes(data[:end])
        with TraceWriter(path, resume=True) as writer:
            kept = len(writer.done)
            assert kept == data[: end + 1].count(b"\n")
            writer.write(trace(sample=9))
        assert [t.sample for t in read_traces(path)] == [*range(kept), 9]


def test_a_cut_off_last_line_is_an_error_that_names_the_cure_when_only_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(to_line(trace()) + "\n" + to_line(trace(sample=1))[:40])
    with pytest.raises(DamagedFile, match=r"line 2: .*cut off.*--resume"):
        read_traces(path)


def test_an_existing_file_is_refused_unless_told_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with TraceWriter(path) as writer:
        writer.write(trace())
    with pytest.raises(UsageError, match="resume goes on"):
        TraceWriter(path)
    with pytest.raises(UsageError, match="exclude each other"):
        TraceWriter(path, resume=True, overwrite=True)
    with TraceWriter(path, overwrite=True) as writer:
        assert writer.done == []
        writer.write(trace(sample=1))
        writer.write(trace(sample=2))
    assert [t.sample for t in read_traces(path)] == [1, 2]


def test_a_run_that_fails_before_its_first_trace_leaves_things_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with pytest.raises(ZeroDivisionError), TraceWriter(path):
        _ = 1 / 0
    assert not path.exists()
    path.write_text("mine\n")
    with pytest.raises(ZeroDivisionError), TraceWriter(path, overwrite=True):
        _ = 1 / 0
    assert path.read_text() == "mine\n"


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file of traces"):
        read_traces(tmp_path / "none.jsonl")


def test_reading_traces_imports_neither_torch_nor_transformers() -> None:
    heavy = {"torch", "transformers", "math_verify"}
    modules = "leanthink.data.traces.trace, leanthink.data.grading.grading, leanthink.data.problems"
    code = f"import sys, {modules}; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_key_names_problem_and_sample() -> None:
    assert replace(trace(), sample=3).key == "p1#3"


def test_problems_are_read_with_the_fields_of_the_data_set_ignored(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"id": "a", "problem": "x?", "answer": "1", "level": 3}\n\n{"id":"b","problem":"y","answer":"2"}\n'
    )
    assert [(p.id, p.problem, p.answer, p.check) for p in read_problems(path)] == [
        ("a", "x?", "1", None),
        ("b", "y", "2", None),
    ]


def test_numbers_are_taken_as_they_are_written_and_problems_without_an_id_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    digits = "1" * 5000
    lines = [
        '{"problem": "x", "answer": 42}',
        '{"id": 7, "problem": "x", "answer": 18.50}',
        "",
        '{"id": null, "problem": "x", "answer": -1e3}',
        f'{{"id": 1.5, "problem": "x", "answer": {digits}}}',
    ]
    path.write_text("\n".join(lines))
    read = read_problems(path)
    assert [(p.id, p.answer) for p in read] == [("1", "42"), ("7", "18.50"), ("4", "-1e3"), ("1.5", digits)]
    assert {type(text) for p in read for text in (p.id, p.answer)} == {str}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "problem": "x"}', "'answer' is missing"),
        ('{"id": "b", "problem": "x", "answer": true}', "'answer' is True"),
        ('{"id": "b", "problem": "x", "answer": null}', "'answer' is None"),
        ('{"id": "b", "problem": "x", "answer": [3]}', r"'answer' is \[3\]"),
        ('{"id": "b", "problem": "x", "answer": NaN}', "NaN is no JSON"),
        ('{"id": "b", "problem": "x", "answer": " "}', "'answer' is ' '"),
        ('{"id": "b", "problem": 3, "answer": "3"}', "'problem' is 3; it must be a text"),
        ('{"id": ["b"], "problem": "x", "answer": "3"}', r"'id' is \['b'\]"),
        ('{"id": "", "problem": "x", "answer": "3"}', "'id' is ''"),
        ('{"id": "a", "problem": "x", "answer": "3"}', "id 'a' was used in line 1"),
        ("nonsense", "not a line of JSON"),
        ("[1]", "a JSON object was expected, got list"),
    ],
)
def test_a_bad_problem_names_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"id": "a", "problem": "x", "answer": "1"}}\n{line}\n')
    with pytest.raises(UsageError, match=f"p.jsonl, line 2: .*{message}"):
        read_problems(path)


def test_a_file_without_problems_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="holds no problem"):
        read_problems(tmp_path / "p.jsonl")
    with pytest.raises(UsageError, match="no file of problems"):
        read_problems(tmp_path / "q.jsonl")
