"""What the command line refuses: one clear line on standard error, the right exit code, and no file touched."""

from __future__ import annotations

import io
import os
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch

from command_line import refused
from leanthink.data.traces.trace import to_line
from leanthink.entrypoints import cli
from leanthink.entrypoints.cli import view
from leanthink.entrypoints.demo import Plan, output_files
from leanthink.utils.device import check_device
from leanthink.utils.errors import LONGEST_LIST, UsageError, unknown
from recorded import trace


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("generate hi --budgt 3", ["--budgt", "--budget"]),
        ("generate hi --window 3", ["No such option: --window"]),
        ("generat hi", ["generat", "'generate'"]),
        ("generate", ["PROMPT", "generate --help"]),
        ("tasks", ["Missing command", "tasks --help"]),
        ("generate ''", ["prompt 1 is empty"]),
        ("generate - -", ["give - once"]),
        ("generate -", ["prompt 1 (standard input) is empty"]),
        ("generate hi there --stream", ["--stream shows one prompt"]),
        ("generate hi --recent-window x", ["--recent-window", "integer"]),
        ("tasks sample --family multipy --level 3", ["'multipy'", "Did you mean 'multiply'?"]),
        ("tasks sample --family multiply --level 6", ["level 6", "1, 2, 3, 4, 5"]),
        ("tasks sample --family multiply --level 3 --split held", ["'held'", "'held-out'"]),
        ("tasks sample --family multiply --level 3 --count -1", ["-1"]),
        ("tasks sample --family multiply", ["--level"]),
    ],
)
def test_a_wrong_command_gets_one_clear_line(arguments, words, inside, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    refused(inside(*shlex.split(arguments)), 2, *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--budget 16", ["window=32", "slots=16"]),
        ("--budget 0", ["slots", "at least 1", "0"]),
        ("--budget -5", ["slots", "-5"]),
        ("--eviction-interval 0", ["interval", "at least 1"]),
        ("--policy horizonn", ["'horizonn'", "Did you mean 'horizon'?"]),
        ("--policy full --budget 64 --recent-window 8", ["'full'", "--budget, --recent-window"]),
        ("--temperature -1", ["temperature"]),
        ("--top-p 0", ["top_p"]),
        ("--max-new-tokens 0", ["max_new_tokens"]),
        ("--dtype float8", ["'float8'", "bfloat16"]),
        ("--device cuda:7", ["'cuda:7'", "cpu"]),
        ("--device gpu", ["'gpu'", "cpu"]),
    ],
)
def test_a_wrong_setting_is_refused_before_the_model_is_loaded(arguments, words, inside, monkeypatch):
    monkeypatch.setattr(import_module("leanthink.models.loading"), "AutoModelForCausalLM", None)
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
        ("generate hi --model tinny", 2, ["'tinny'", "a folder, a .gguf file, a hub id", "Did you mean 'tiny'?"]),
        ("serve --model tinny", 2, ["Did you mean 'tiny'?"]),
        ("train --tasks sums --num-generations 8 --model tinny --out EMPTY/r", 2, ["Did you mean 'tiny'?"]),
        ("train --problems LACKING --out EMPTY/r", 2, ["lacking.jsonl, line 2: the field 'answer' is missing"]),
        ("train --problems EMPTY/none --out EMPTY/r", 2, ["no file of problems at EMPTY/none"]),
        (
            "train --tasks sums --num-generations 8 --rollouts vllm --out EMPTY/r",
            2,
            ["needs vLLM", "pip install 'trl[vllm]'"],
        ),
        ("train --tasks sums --set foo=1 --out EMPTY/r", 2, ["'foo'", "the closest of", "docs/training.md"]),
        ("label --model FOLDER --traces OTHERS --out EMPTY/l", 2, ["'a#0' was written by 'other'"]),
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
    others, lacking = tmp_path / "others.jsonl", tmp_path / "lacking.jsonl"
    others.write_text(to_line(trace("a", model="other", fingerprint="0f")) + "\n")
    lacking.write_text('{"id": "a", "problem": "1 + 1?", "answer": "2"}\n{"id": "b", "problem": "?"}\n')
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "a", "problem": "1 + 1?", "answer": "2"}\n{"id": "b",\n')
    places = {"FOLDER": folder, "EMPTY": tmp_path / "empty", "BARE": tmp_path / "bare", "BAD": bad}
    places |= {"LONG": "x" * 5000, "TAKEN": tmp_path / "taken", "OTHERS": others, "LACKING": lacking}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def filled(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, str(place))
        return text

    refused(inside(*shlex.split(filled(arguments))), code, *map(filled, words))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "command",
    [
        "generate hi",
        "serve",
        "bench",
        "demo --out O",
        "collect --tasks sums --out OUT",
        "eval --tasks sums --out OUT",
    ],
)
def test_every_command_says_why_there_is_no_cuda(command, inside, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    result = inside(*re.sub("O$", str(tmp_path / "out"), command).split(), "--device", "cuda")
    refused(result, 2, "device 'cuda' is not there", "without CUDA" if torch.version.cuda is None else "finds no GPU")
    assert "Did you mean" not in result.err


def test_where_there_are_gpus_another_number_is_refused_by_those_there_are(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UsageError, match="choose one of cpu, cuda, cuda:0, cuda:1"):
        check_device("cuda:7")
    check_device("cuda:1")


def test_a_message_of_several_lines_becomes_one(inside, monkeypatch):
    def fail(*_given, **_options):
        raise OSError("We could not connect\nto the hub\n  at all")

    monkeypatch.setattr(import_module("leanthink.models.loading").AutoConfig, "from_pretrained", fail)
    refused(inside("generate", "hi", "--model", "Qwen/Qwen3-4B"), 2, "We could not connect to the hub at all")


def test_bars_of_libraries_stay_out_of_a_pipe(monkeypatch, capfd):
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setattr("sys.argv", ["leanthink", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert os.environ["TQDM_DISABLE"] == "1"


def test_of_many_names_only_the_closest_are_told():
    names = [f"vllm_setting_{number}" for number in range(100)] + ["fp16", "foot"]
    said = str(unknown("setting", "foo", names, see="see the docs"))
    assert "the closest of 102 are foot" in said
    assert "see the docs" in said
    assert len(said) < LONGEST_LIST
    assert "none of 102 is like it" in str(unknown("setting", "qqq", names))
    assert "choose one of a, b." in str(unknown("letter", "c", "ab"))


def test_the_files_in_the_example_of_view_are_those_that_the_example_of_demo_writes():
    written = {str(path) for path in output_files(Path("demo"), Plan()).values()}
    named = {word for example in view.EXAMPLES for word in example.split() if word.startswith("demo/")}
    assert named
    assert named <= written
