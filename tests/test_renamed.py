"""Names of before: options, keywords, attributes and keys work, and each says once what it is called now."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import typer

from leanthink.entrypoints import cli
from leanthink.entrypoints.cli.renamed_options import NEW_NAMES, by_new_names
from leanthink.policies.budget import FILE_KEYS, Budget, file_keys
from leanthink.utils import deprecated
from leanthink.utils.deprecated import RenamedWarning
from leanthink.utils.errors import UsageError
from leanthink.utils.renamed_fields import new_keys


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[warnings.WarningMessage]]:
    """What is said in a test, as if in a fresh process."""
    monkeypatch.setattr(deprecated, "_told", set())
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def messages(told: list[warnings.WarningMessage]) -> list[str]:
    assert all(issubclass(one.category, RenamedWarning) for one in told)
    return [str(one.message).partition(":")[0] for one in told]


# --- Budget


@pytest.mark.parametrize(("old", "new"), FILE_KEYS.items())
def test_a_budget_takes_its_old_keywords(old: str, new: str, told: Any) -> None:
    for _ in range(2):
        assert Budget(**{"slots": 99, old: 7}) == Budget(**{"slots": 99, new: 7})
    assert messages(told) == [f"Budget({old}=) is called Budget({new}=) now"]
    assert told[0].filename == __file__


@pytest.mark.parametrize(("old", "new"), FILE_KEYS.items())
def test_a_budget_has_its_old_attributes(old: str, new: str, told: Any) -> None:
    budget = Budget(slots=99, recent_window=1, eviction_interval=2, max_answer_slots=3)
    assert [getattr(budget, old), getattr(budget, old)] == 2 * [getattr(budget, new)]
    assert messages(told) == [f"Budget.{old} is called Budget.{new} now"]
    assert told[0].filename == __file__


def test_a_copy_of_a_budget_takes_old_and_new_keywords(told: Any) -> None:
    budget = Budget(slots=99, recent_window=1)
    assert replace(budget, window=7) == replace(budget, recent_window=7) == Budget(slots=99, recent_window=7)
    assert len(told) == 1


def test_positions_and_unknown_keywords_stay_errors() -> None:
    for given in ({"windows": 3}, {}):
        with pytest.raises(TypeError):
            Budget(*(() if given else (99,)), **given)


def test_files_have_the_keys_of_before(told: Any) -> None:
    budget = Budget(slots=99, recent_window=1, eviction_interval=2, max_answer_slots=3)
    assert list(budget.record.items()) == [("slots", 99), ("window", 1), ("interval", 2), ("answer", 3)]
    assert Budget.from_record(budget.record) == Budget.from_record(asdict(budget)) == budget
    assert file_keys({"slots": 9, "recent_window": 2}) == {"slots": 9, "window": 2}
    with pytest.raises(UsageError, match="window is the old name of recent_window: give recent_window alone"):
        file_keys({"window": 1, "recent_window": 2})
    assert not told, "files say nothing"


def test_keys_of_settings_are_told_once_and_not_taken_twice(told: Any) -> None:
    for _ in range(2):
        assert new_keys("rollout_budget", {"slots": 9, "window": 2}, FILE_KEYS) == {"slots": 9, "recent_window": 2}
    assert messages(told) == ["window in rollout_budget is called recent_window there now"]
    with pytest.raises(UsageError, match="rollout_budget: window and recent_window are one thing"):
        new_keys("rollout_budget", {"window": 2, "recent_window": 2}, FILE_KEYS)


# --- the command line

VALUES = {"--recent-window": 1, "--max-num-seqs": 1, "--think-tags": 2, "--json": 0, "--steps": 1, "-n": 1}


@pytest.mark.parametrize(
    ("words", "expected", "said"),
    [
        ("--window 3 --json", "--recent-window 3 --json", ["--window"]),
        ("--window=3 --window 4", "--recent-window=3 --recent-window 4", ["--window"]),
        ("--rows 3 hi", "--max-num-seqs 3 hi", ["--rows"]),
        ("--max-rows 3", "--max-num-seqs 3", ["--max-rows"]),
        ("--steps 3", "--steps 3", []),  # of this command, as --max-steps is not
        ("--group 3", "--group 3", []),  # which this command refuses by itself
        ("--think-tags --window --rows --json", "--think-tags --window --rows --json", []),
        ("-n --window --json --rows 1", "-n --window --json --max-num-seqs 1", ["--rows"]),
        ("--json -- --window 3", "--json -- --window 3", []),
        ("--window", "--recent-window", ["--window"]),
    ],
)
def test_words_of_a_command_line_get_their_new_names(words: str, expected: str, said: list[str], told: Any) -> None:
    assert list(by_new_names(words.split(), VALUES)) == expected.split()
    assert [message.split()[0] for message in messages(told)] == said


@pytest.mark.parametrize(
    "words", ["--window 3 --recent-window 3", "--recent-window=3 --window=3", "--rows 1 --max-rows 1"]
)
def test_both_names_of_an_option_are_refused(words: str) -> None:
    with pytest.raises(UsageError, match="are one thing: give --"):
        list(by_new_names(words.split(), VALUES))


def commands() -> dict[str, Any]:
    root: Any = typer.main.get_command(cli.app)
    return dict(root.commands)


OLD_NAMES = {
    **{key: ["--window", "--interval", "--answer"] for key in ("generate", "collect", "serve", "train", "eval")},
    "bench": ["--interval"],
    "predictor": [],
}
OLD_NAMES |= {name: [*OLD_NAMES[name], "--max-rows"] for name in ("collect", "eval", "predictor")}
OLD_NAMES["serve"] = [*OLD_NAMES["serve"], "--rows"]
OLD_NAMES["train"] = [*OLD_NAMES["train"], "--steps", "--group", "--batch", "--accumulate", "--max-completion", "--lr"]
OLD_NAMES["train"].append("--lora-rank")


@pytest.mark.parametrize("name", OLD_NAMES)
def test_every_command_reads_its_old_names_as_the_new_ones(name: str, told: Any) -> None:
    command, needed = commands()[name], {"generate": ["hi"]}.get(name, [])
    needed = [*needed, *(["--out", "x"] if name in ("collect", "eval", "predictor") else [])]
    for old in OLD_NAMES[name]:
        given = [command.make_context(name, [*needed, flag, "3"]).params for flag in (old, NEW_NAMES[old])]
        assert given[0] == given[1] != command.make_context(name, list(needed)).params
    assert [message.split()[0] for message in messages(told)] == OLD_NAMES[name]


def test_no_help_page_shows_an_old_name(told: Any) -> None:
    for name, command in commands().items():
        if name == "tasks":
            continue
        page = command.get_help(command.make_context(name, [], resilient_parsing=True)).split()
        assert not set(page) & set(OLD_NAMES.get(name, ())), name


def test_an_old_option_is_told_once_in_one_line(inside: Any) -> None:
    result = inside("generate", "hi", "--window", 300, "--window", 400, "--model", "no-such-folder/x")
    lines = result.err.splitlines()
    assert lines[0] == "leanthink: --window is called --recent-window now: use that name"
    assert len(lines) == 2
    assert "recent_window=400 is larger than slots=256" in lines[1]
