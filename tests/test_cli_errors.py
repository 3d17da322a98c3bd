"""What the command line refuses: one clear line on standard error, the right exit code, and no file touched."""

from __future__ import annotations

import shlex
from importlib import import_module

import pytest

from command_line import leanthink, refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("generate hi --budgt 3", ["--budgt", "--budget"]),
        ("generat hi", ["generat", "'generate'"]),
        ("generate", ["PROMPT", "generate --help"]),
        ("tasks", ["Missing command", "tasks --help"]),
        ("generate ''", ["prompt 1 is empty"]),
        ("generate - -", ["give - once"]),
        ("generate -", ["prompt 1 (standard input) is empty"]),
        ("generate hi there --stream", ["--stream shows one prompt"]),
        ("generate hi --window x", ["--window", "integer"]),
        ("tasks sample --family multipy --level 3", ["'multipy'", "Did you mean 'multiply'?"]),
        ("tasks sample --family multiply --level 6", ["level 6", "1, 2, 3, 4, 5"]),
        ("tasks sample --family multiply --level 3 --split held", ["'held'", "'held-out'"]),
        ("tasks sample --family multiply --level 3 --count -1", ["-1"]),
        ("tasks sample --family multiply", ["--level"]),
    ],
)
def test_a_wrong_command_gets_one_clear_line(arguments, words):
    refused(leanthink(*shlex.split(arguments)), 2, *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--budget 16", ["window=32", "slots=16"]),
        ("--budget 0", ["slots", "at least 1", "0"]),
        ("--budget -5", ["slots", "-5"]),
        ("--interval 0", ["interval", "at least 1"]),
        ("--policy horizonn", ["'horizonn'", "Did you mean 'horizon'?"]),
        ("--policy full --budget 64 --window 8", ["'full'", "--budget, --window"]),
        ("--temperature -1", ["temperature"]),
        ("--top-p 0", ["top_p"]),
        ("--max-new-tokens 0", ["max_new_tokens"]),
        ("--dtype float8", ["'float8'", "bfloat16"]),
        ("--device cuda:7", ["'cuda:7'", "cpu"]),
    ],
)
def test_a_wrong_setting_is_refused_before_the_model_is_loaded(arguments, words, inside, monkeypatch):
    monkeypatch.setattr(import_module("leanthink.load"), "AutoModelForCausalLM", None)
    refused(inside("generate", "hi", "--model", "no/such/model", *shlex.split(arguments)), 2, *words)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("generate hi --model FOLDER --predictor FOLDER/other.safetensors", 2, ["fitted for", "leanthink fit"]),
        ("generate hi --model FOLDER --predictor FOLDER/cut.safetensors", 1, ["cut.safetensors", "truncated"]),
        ("generate hi --model FOLDER --predictor FOLDER/none.safetensors", 2, ["none.safetensors", "leanthink fit"]),
        ("generate hi --model FOLDER --predictor FOLDER/own.safetensors --policy sinks", 2, ["predictor"]),
        ("generate hi --model FOLDER --policy horizon", 2, ["'horizon'", "predictor", "leave the policy out"]),
        ("generate hi --model EMPTY", 2, ["config.json"]),
        ("generate hi --model BARE", 2, ["no weights"]),
        ("generate hi --model EMPTY/missing/folder", 2, ["EMPTY/missing/folder"]),
        ("generate LONG --model FOLDER --policy full", 2, ["4608", "shorten"]),
        ("collect --model FOLDER --problems BAD --out EMPTY/t.jsonl", 2, ["bad.jsonl, line 2"]),
        ("collect --model FOLDER --problems EMPTY/none --out EMPTY/t.jsonl", 2, ["none"]),
        ("collect --model FOLDER --out EMPTY/t.jsonl", 2, ["--tasks", "--problems"]),
        ("collect --model FOLDER --tasks sumss --out EMPTY/t.jsonl", 2, ["'sumss'", "'sums'"]),
        ("collect --model FOLDER --tasks sums --levels 1,x --out EMPTY/t.jsonl", 2, ["--levels", "1,x"]),
        ("collect --model FOLDER --tasks sums --levels 7 --out EMPTY/t.jsonl", 2, ["level 7"]),
        ("collect --model FOLDER --tasks sums --limit 3 --out EMPTY/t.jsonl", 2, ["--limit"]),
        ("collect --model FOLDER --tasks sums --samples 2 --out EMPTY/t.jsonl", 2, ["--temperature"]),
        ("collect --model FOLDER --tasks sums --out BAD", 2, ["exists", "--resume", "--overwrite"]),
        ("collect --model FOLDER --tasks sums --out BAD --resume --overwrite", 2, ["exclude each other"]),
        ("collect --model FOLDER --tasks sums --out BAD --resume", 1, ["bad.jsonl, line 1"]),
        ("label --model FOLDER --traces BAD --out EMPTY/l", 1, ["bad.jsonl, line 1"]),
        ("label --model FOLDER --traces EMPTY/none --out EMPTY/l", 2, ["none", "leanthink collect"]),
        (
            "fit --model FOLDER --traces BAD --labels BAD --out EMPTY/p --target horizont",
            2,
            ["'horizont'", "'horizon'"],
        ),
        ("collect --model FOLDER --tasks sums --out FOLDER/config.json/t.jsonl", 1, ["config.json"]),
        ("demo --out TAKEN", 2, ["kept.png exists", "--overwrite"]),
    ],
)
def test_a_wrong_file_gets_one_clear_line_and_no_output(arguments, code, words, inside, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "kept.png").write_text("mine")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "a", "problem": "1 + 1?", "answer": "2"}\n{"id": "b",\n')
    places = {"FOLDER": folder, "EMPTY": tmp_path / "empty", "BARE": tmp_path / "bare", "BAD": bad}
    places |= {"LONG": "x" * 5000, "TAKEN": tmp_path / "taken"}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def filled(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, str(place))
        return text

    refused(inside(*shlex.split(filled(arguments))), code, *map(filled, words))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
