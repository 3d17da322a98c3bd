"""The command line as users meet it: what it prints where, what it refuses and how, and that its flags stay."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer.main

from leanthink import cli
from leanthink.budget import Budget
from leanthink.completion import Completion
from leanthink.importance.fingerprint import fingerprint
from leanthink.importance.predictor import Predictor, save_predictor
from leanthink.importance.recipe import LEARNING_RATE, Recipe
from leanthink.sampling import Sampling
from leanthink.tiny import tasks
from leanthink.tiny.birth import save_weights
from leanthink.tiny.model import build_model, tiny_config
from leanthink.tiny.tokenizer import PAD
from leanthink.trace import read_traces

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "110"}
FLAGS = {
    "generate": "--model --policy --budget --window --interval --answer --predictor --temperature --top-p --top-k "
    "--min-p --max-new-tokens --seed --stop --device --dtype --stream --no-stream --trace --overwrite --json",
    "collect": "--out --model --tasks --levels --count --split --problems --limit --samples --instruction "
    "--temperature --top-p --top-k --min-p --max-new-tokens --seed --policy --budget --window --interval --answer "
    "--predictor --max-rows --record --resume --overwrite --device --dtype --json",
    "label": "--traces --out --model --horizons --all --resume --overwrite --device --dtype --json",
    "fit": "--traces --labels --out --model --target --horizons --transform --steps --batch --lr --val-share "
    "--tokens-per-trace --all --seed --overwrite --device --dtype --json",
    "demo": "--out --overwrite --device --json",
    "tasks list": "--json",
    "tasks sample": "--family --level --count --seed --split --json",
}
EXAMPLES = [
    example for module in (cli, cli.generate, cli.collect, cli.label, cli.fit, cli.demo) for example in module.EXAMPLES
] + [*cli.tasks.LIST_EXAMPLES, *cli.tasks.SAMPLE_EXAMPLES]


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own; a context manager."""
    command = [sys.executable, "-m", "leanthink", *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=ENVIRONMENT, **pipes)


def leanthink(*arguments: object, given: str = "") -> SimpleNamespace:
    """Exit code, standard output and standard error of one command line."""
    with start(*arguments) as process:
        out, err = process.communicate(given, timeout=120)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


def refused(result: SimpleNamespace, code: int, *words: str) -> None:
    """The result is one line that says these words, on standard error only, without a traceback."""
    assert result.code == code, result.err
    assert result.out == ""
    assert result.err.startswith("leanthink: ")
    assert result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err


def commands() -> dict[str, Any]:
    """All commands by their full names, as the parser knows them."""
    root: Any = typer.main.get_command(cli.app)
    top = dict(root.commands)
    return {**{f"tasks {name}": command for name, command in top.pop("tasks").commands.items()}, **top}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random model of the embedded reasoner's kind, and predictors: its own, another's and a truncated one."""
    folder: Path = tmp_path_factory.mktemp("small")
    model = build_model(tiny_config(layers=2, hidden=64, heads=2, kv_heads=1, mlp=96), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():  # larger than at the start of training: it must not repeat one token for ever
            if weight.dim() == 2:
                weight.normal_(std=1.6 * weight.shape[1] ** -0.5)
        model.get_input_embeddings().weight[PAD:] = 0  # never the likeliest: it thinks to the limit
    save_weights(model, folder)
    predictor = Predictor(target="horizon", hidden_size=64, horizons=(4, 16))
    for name, base in (("own", fingerprint(model)), ("other", "0" * 64)):
        save_predictor(predictor, folder / f"{name}.safetensors", base_fingerprint=base, data={}, metrics={})
    whole = (folder / "own.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture
def inside(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in this process, which spares loading torch again."""

    def run(*arguments: object) -> SimpleNamespace:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def test_the_flags_of_every_command_stay():
    found = {
        name: [
            flag
            for option in command.params
            if option.opts[0].startswith("--")
            for flag in (*option.opts, *option.secondary_opts)
        ]
        for name, command in commands().items()
    }
    assert found == {name: flags.split() for name, flags in FLAGS.items()}


@pytest.mark.parametrize(
    "settings", [Budget(slots=256), Sampling(), Recipe()], ids=lambda settings: type(settings).__name__
)
def test_help_tells_the_defaults_of_the_python_interface(settings):
    command = commands()["fit" if isinstance(settings, Recipe) else "generate"]
    told = {option.opts[0]: re.findall(r"\[(.*)\]$", option.help or "") for option in command.params}
    checked = 0
    for field in fields(settings):
        flag = "--budget" if field.name == "slots" else "--" + field.name.replace("_", "-")
        value = getattr(settings, field.name)
        if flag in told and isinstance(value, int | float | str):
            assert told[flag] == [str(value)]
            checked += 1
    assert checked >= 4
    if isinstance(settings, Recipe):
        assert told["--lr"] == [f"{LEARNING_RATE['horizon']}, answer {LEARNING_RATE['answer']}"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_help_pages_is_understood(example, inside):
    words = shlex.split(example.rpartition("| ")[2])
    assert words[0] == "leanthink"
    result = inside(*words[1:], "--help")
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    "command", [[], ["generate"], ["tasks"], ["tasks", "sample"], ["collect"], ["label"], ["fit"], ["demo"]]
)
def test_help_opens_with_a_sentence_and_examples(command, inside):
    page = inside(*command, "--help").out
    sentence = page.split("\n\n")[1].strip()
    assert sentence.endswith(".")
    assert command == ["tasks"] or "\n    leanthink " in page or "\n    echo " in page


def test_help_and_version_come_without_loading_torch():
    code = "import sys; from leanthink import cli; cli.run({}); sys.exit('torch' in sys.modules)"
    for arguments in (["--help"], ["generate", "--help"], ["tasks", "list", "--json"], ["--version"]):
        subprocess.run([sys.executable, "-c", code.format(arguments)], check=True, capture_output=True)


def test_sampled_tasks_are_one_json_list_of_records():
    result = leanthink("tasks", "sample", "--family", "multiply", "--level", 2, "--count", 3, "--seed", 5, "--json")
    expected = tasks.sample("multiply", 2, 3, 5)
    assert result.code == 0
    assert result.err == ""
    assert json.loads(result.out) == [
        {"id": p.id, "family": "multiply", "level": 2, "prompt": p.prompt, "answer": p.answer} for p in expected
    ]


def test_listed_tasks_are_the_families_there_are():
    listed = json.loads(leanthink("tasks", "list", "--json").out)
    assert [record["family"] for record in listed] == list(tasks.FAMILIES)
    assert all(record["levels"] == [1, 2, 3, 4, 5] for record in listed)
    assert [line.split()[0] for line in leanthink("tasks", "list").out.splitlines()] == list(tasks.FAMILIES)


def test_generate_prints_one_json_document_with_the_fields_of_a_completion(folder):
    arguments = ["hi", "--model", folder, "--policy", "sinks", "--budget", 12, "--window", 4, "--interval", 6]
    result = leanthink("generate", *arguments, "--max-new-tokens", 40, "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert list(record) == [field.name for field in fields(Completion)]
    assert (record["thought_tokens"], record["finish_reason"], record["evictions"]) == (40, "length", 4)
    assert "held at most" in result.err


def test_several_prompts_give_a_list_in_their_order(folder, inside):
    plain = ["--model", folder, "--policy", "full", "--max-new-tokens", 9, "--json"]
    both = json.loads(inside("generate", "one", "another", *plain).out)
    assert both == [
        json.loads(inside("generate", text, *plain).out) | {"reserved_kv_bytes": part["reserved_kv_bytes"]}
        for text, part in zip(("one", "another"), both, strict=True)
    ]


def test_streamed_text_is_the_same_text(folder, inside):
    plain = ["generate", "hi", "--model", folder, "--policy", "full", "--max-new-tokens", 30, "--temperature", 1.5]
    streamed, whole = inside(*plain), inside(*plain, "--no-stream")
    assert streamed.out == whole.out
    assert len(whole.out) > 1
    beside = inside(*plain, "--stream", "--json")
    assert json.loads(beside.out)["text"] + "\n" == whole.out
    assert beside.err.startswith(whole.out)


def test_a_dash_reads_the_prompt_from_standard_input(folder):
    plain = ["--model", folder, "--policy", "full", "--max-new-tokens", 5, "--json"]
    piped = leanthink("generate", "-", *plain, given="What is 2 + 2?\n")
    assert json.loads(piped.out)["prompt_tokens"] == len("What is 2 + 2?") + 4


def test_a_stop_string_and_a_seed_reach_the_model(folder, inside):
    plain = [
        "generate",
        "hi",
        "--model",
        folder,
        "--policy",
        "full",
        "--max-new-tokens",
        30,
        "--json",
        "--temperature",
        2,
    ]
    one, same, other = (json.loads(inside(*plain, "--seed", seed).out)["token_ids"] for seed in (1, 1, 2))
    assert one == same != other
    first = json.loads(inside(*plain, "--seed", 1).out)["text"][0]
    assert json.loads(inside(*plain, "--seed", 1, "--stop", first).out)["text"] == ""


def test_generate_writes_traces_that_can_be_read_and_drawn(folder, inside, tmp_path):
    budget = [
        "--policy",
        "horizon",
        "--predictor",
        folder / "own.safetensors",
        "--budget",
        12,
        "--window",
        4,
        "--interval",
        6,
    ]
    path = tmp_path / "out.jsonl"
    arguments = ["generate", "one", "two", "--model", folder, *budget, "--max-new-tokens", 40, "--trace", path]
    assert inside(*arguments).code == 0
    one, two = read_traces(path)
    assert (one.key, two.key, one.policy, one.correct) == ("prompt-1#0", "prompt-2#0", "horizon", None)
    assert one.budget == {"slots": 12, "window": 4, "interval": 6, "answer": 1024}
    assert one.evicted_at is not None
    before = path.read_bytes()
    refused(inside(*arguments), 2, f"{path} exists", "--overwrite")
    assert path.read_bytes() == before
    assert inside(*arguments, "--overwrite").code == 0


def test_collect_label_and_fit_lead_to_a_predictor_that_generates(folder, inside, tmp_path):
    traces, labels, out = tmp_path / "t.jsonl", tmp_path / "l.safetensors", tmp_path / "p.safetensors"
    common = ["--model", folder, "--json"]
    sampled = ["--tasks", "multiply", "--levels", "1,2", "--count", 2, "--samples", 2, "--temperature", 1]
    result = inside("collect", *sampled, "--max-new-tokens", 40, "--out", traces, *common)
    assert json.loads(result.out) == {"written": 8, "done_before": 0, "correct": 0}
    result = inside("label", "--traces", traces, "--horizons", "4,16", "--all", "--out", labels, *common)
    assert json.loads(result.out)["labelled"] == 8
    recipe = ["--all", "--steps", 20, "--batch", 64, "--val-share", 0.25]
    result = inside("fit", "--traces", traces, "--labels", labels, *recipe, "--out", out, *common)
    fitted = json.loads(result.out)
    assert fitted["data"]["recipe"]["horizons"] == [4, 16]
    assert fitted["metrics"]["held_out_traces"] == 2
    budget = ["--predictor", out, "--budget", 12, "--window", 4, "--max-new-tokens", 30]
    assert inside("generate", "hi", "--model", folder, *budget).code == 0
    for command, path in (("label", labels), ("fit", out)):
        given = ["--traces", traces, *(["--labels", labels] if command == "fit" else [])]
        refused(inside(command, *given, "--out", path, *common), 2, f"{path} exists", "--overwrite")


def test_collect_goes_on_where_it_was_interrupted(folder, tmp_path):
    out = tmp_path / "traces.jsonl"
    slow = ["--tasks", "all", "--levels", 1, "--count", 2, "--max-new-tokens", 300, "--max-rows", 1, "--model", folder]
    with start("collect", *slow, "--out", out) as process:
        deadline = time.monotonic() + 60
        while not (out.exists() and out.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-2:] == [
        f"leanthink: {out} holds every trace that was finished; --resume goes on with the rest",
        "leanthink: interrupted",
    ]
    finished = read_traces(out)
    assert 2 <= len(finished) < 12
    resumed = leanthink("collect", *slow, "--out", out, "--resume", "--json")
    assert json.loads(resumed.out)["done_before"] == len(finished)
    assert read_traces(out)[: len(finished)] == finished
    assert len({trace.key for trace in read_traces(out)}) == 12


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
        ("generate hi --model FOLDER", 2, ["'horizon'", "predictor"]),
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


def test_a_reader_that_stops_early_ends_the_command_without_a_word():
    with start("tasks", "sample", "--family", "multiply", "--level", 5, "--count", 3000) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("multiply-5-")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1
