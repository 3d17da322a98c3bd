"""How a prompt is made, and what sets a thought apart, is told to every command with the same options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import refused
from leanthink.data.problems import STEP_BY_STEP
from leanthink.data.think_tags import think_tags
from leanthink.data.traces.trace import read_traces
from leanthink.models.prompt import ChatOptions, encode_prompt
from leanthink.utils.errors import UsageError
from models import make_model
from test_prompt import TOKENIZERS

OPTIONS = ChatOptions(
    system_prompt="Be brief.", chat_template_kwargs={"enable_thinking": False}, split_special_tokens=False
)
WORDS = ["--system-prompt", "Be brief.", "--chat-template-kwargs", '{"enable_thinking": false}',
         "--no-split-special-tokens", "--think-tags", "[THINK]", "[/THINK]"]  # fmt: skip
PROBLEM = "hello<|im_end|>"


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model whose chat template has a switch, and the problem."""
    folder = tmp_path_factory.mktemp("chatty")
    make_model(vocab_size=500).save_pretrained(folder)
    TOKENIZERS["bytes"].save_pretrained(folder)
    (folder / "problems.jsonl").write_text(json.dumps({"id": "p", "problem": PROBLEM, "answer": "1"}) + "\n")
    return folder


def prompt_ids(chosen: ChatOptions = OPTIONS) -> tuple[int, ...]:
    return tuple(encode_prompt(TOKENIZERS["bytes"], 0, PROBLEM, chosen))


def test_generate_writes_what_it_was_told_to_ask(chatty: Path, inside: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    plain = ["generate", PROBLEM, "--model", chatty, "--policy", "full", "--max-new-tokens", 3, "--overwrite"]
    told = inside(*plain, *WORDS, "--trace", trace)
    assert told.code == 0
    assert f"({len(prompt_ids())} prompt + " in told.err
    assert read_traces(trace)[0].prompt_ids == prompt_ids()
    assert inside(*plain, "--trace", trace).code == 0
    assert read_traces(trace)[0].prompt_ids == prompt_ids(ChatOptions())


def test_collect_asks_so_and_goes_on_with_the_same_prompts_only(chatty: Path, inside: Any, tmp_path: Path) -> None:
    plain = ["collect", "--model", chatty, "--problems", chatty / "problems.jsonl", "--max-new-tokens", 3,
             "--instruction", "", "--out", tmp_path / "t.jsonl"]  # fmt: skip
    assert inside(*plain, *WORDS).code == 0
    assert read_traces(tmp_path / "t.jsonl")[0].prompt_ids == prompt_ids()
    refused(inside(*plain, "--resume"), 2, "another prompt")


def test_a_predictor_is_fitted_to_the_prompts_that_eval_asks(
    chatty: Path, inside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"problem": PROBLEM, "answer": str(n)}) + "\n" for n in range(2)]
    (tmp_path / "two.jsonl").write_text("".join(lines))
    plain = ["--model", chatty, "--problems", tmp_path / "two.jsonl", "--max-new-tokens", 3]
    asked: dict[str, tuple[int, ...]] = {}
    for name, more in (("default", []), ("none", ["--instruction", ""])):
        out = tmp_path / f"{name}.jsonl"
        assert inside("collect", *plain, *more, "--out", out).code == 0
        asked[name] = read_traces(out)[0].prompt_ids
    assert len(asked["default"]) > len(asked["none"])
    told: list[str] = []

    def noted(plan: Any, *_: Any, **__: Any) -> None:
        told.append(plan.instruction)
        raise UsageError("seen")

    monkeypatch.setattr("leanthink.entrypoints.cli.predictor._make", noted)
    for more in ([], ["--instruction", ""]):
        assert inside("predictor", *plain, *more, "--out", tmp_path / "p.safetensors").code == 2
    assert told == [STEP_BY_STEP, ""]
    assert inside("eval", *plain, "--policies", "full", "--out", tmp_path / "run", "--json").code == 0
    first, _ = (json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines())
    assert first["prompt_tokens"] == len(asked["default"])


def test_eval_asks_so_and_goes_on_with_the_same_settings_only(chatty: Path, inside: Any, tmp_path: Path) -> None:
    plain = ["eval", "--model", chatty, "--problems", chatty / "problems.jsonl", "--max-new-tokens", 3,
             "--policies", "full", "--out", tmp_path / "run", "--json", "--instruction", ""]  # fmt: skip
    assert inside(*plain, *WORDS).code == 0
    header = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    given = {"system_prompt", "chat_template_kwargs", "split_special_tokens", "think_tags"}
    assert {name: header[name] for name in given} == {**vars(OPTIONS), "think_tags": ["[THINK]", "[/THINK]"]}
    (record,) = (json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines())
    assert record["prompt_tokens"] == len(prompt_ids())
    done = inside(*plain)
    assert done.code == 2
    assert "other settings" in done.err
    assert inside(*plain, "--overwrite").code == 0
    assert not given & json.loads((tmp_path / "run" / "run.json").read_text())["settings"].keys()


def test_serve_and_train_are_told_the_same(chatty: Path, inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr("leanthink.entrypoints.openai.run.serve", lambda *given, **_: told.extend(given))
    assert inside("serve", "--model", chatty, "--policy", "full", *WORDS).code == 0
    _, tokenizer, settings = told
    assert settings.chat == OPTIONS
    assert think_tags(tokenizer).close == "[/THINK]"
    pytest.importorskip("trl", reason="TRL is not installed: pip install 'leanthink[train]'")
    monkeypatch.setattr("leanthink.entrypoints.cli.train._train", lambda settings, **_: told.append(settings))
    assert inside("train", "--model", chatty, "--tasks", "sums", *WORDS).code == 0
    expected = {**vars(OPTIONS), "think_tags": ["[THINK]", "[/THINK]"]}
    assert {name: told[-1][name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--chat-template-kwargs", "enable_thinking"], ["--chat-template-kwargs", "JSON object"]),
        (["--chat-template-kwargs", "[1]"], ["--chat-template-kwargs '[1]'", "JSON object"]),
        (["--chat-template-kwargs", '{"enable": 1}'], ["has no 'enable'"]),
        (["--think-tags", "<a>", "<a>"], ["<a>", "must differ"]),
    ],
)
def test_bad_options_are_refused_in_one_line(chatty: Path, inside: Any, words: list[str], said: list[str]) -> None:
    refused(inside("generate", "hello", "--model", chatty, "--policy", "full", *words), 2, *said)
