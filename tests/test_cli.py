"""The command line as users meet it: what it prints where, what it refuses and how, and that its flags stay."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields
from typing import Any

import pytest
import typer.main

from command_line import leanthink, refused, start
from leanthink.data.tasks import registry
from leanthink.data.traces.trace import read_traces
from leanthink.engine.outputs import Completion
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints import cli
from leanthink.importance.fit_config import LEARNING_RATE, FitConfig
from leanthink.policies.budget import Budget

CHAT = " --system-prompt --chat-template-kwargs --split-special-tokens --no-split-special-tokens --think-tags "
BUDGET = "--budget --recent-window --eviction-interval --max-answer-slots "
SAMPLING = "--temperature --top-p --top-k --min-p --max-new-tokens --seed "
CACHING = "--enable-prefix-caching --no-enable-prefix-caching"
FLAGS = {
    "generate": f"--model --policy {BUDGET} --predictor --ignore-predictor-mismatch {SAMPLING} --stop {CHAT} --device "
    "--dtype --kv-cache-dtype --stream --no-stream --trace --overwrite --json",
    "predictor": f"--out --model --problems --limit --tasks --levels --count --samples --instruction {CHAT} {SAMPLING} "
    "--max-num-seqs --correct-only --all --answer-from --target --horizons --granularity --width --steps --batch "
    "--tokens-per-trace --resume --overwrite --device --dtype --json",
    "plan": "--gpu-gib --model --concurrent --prompt --max-model-len --budgets --eviction-interval --max-answer-slots "
    "--dtype --json",
    "collect": f"--out --model --tasks --levels --count --split --problems --limit --samples --instruction {CHAT} "
    f"{SAMPLING} --policy {BUDGET} --predictor --ignore-predictor-mismatch --max-num-seqs --record --resume "
    "--overwrite --device --dtype --ray --ray-workers --json",
    "label": "--traces --out --model --horizons --granularity --answer-from --all --resume --overwrite --device "
    "--dtype --ray --ray-workers --json",
    "fit": "--traces --labels --out --model --target --horizons --granularity --width --steps --batch "
    "--tokens-per-trace --offsets --transform --lr --val-share --all --compare --seed --overwrite --device --dtype "
    "--json",
    "demo": "--out --overwrite --device --json",
    "bench": "--shape --model --parts --batch --slots --cells --steps --prompt --prompts --prefill-tokens --output "
    "--kv-cache-dtype --kv-gib --budgets --eviction-interval --requests --seconds --out --overwrite --device --json",
    "train": "--report --config --model --out --lora-r --set --resume --overwrite --tasks --levels --count --problems "
    f"--dataset --instruction {CHAT} --max-steps --num-generations --per-device-train-batch-size "
    "--gradient-accumulation-steps --max-completion-length --temperature --learning-rate --length-reward-mode --alpha "
    f"--ema-decay --ema-initial-value --all-correct-weight --rollouts --policy --seed {BUDGET} --predictor "
    "--ignore-predictor-mismatch --json",
    "eval": "--out --model --benchmarks --problems --tolerance --tasks --levels --gym --count --split --limit "
    f"--instruction {CHAT} --policies --budgets --ratios {BUDGET.partition(' ')[2]} --predictor "
    f"--ignore-predictor-mismatch --samples --max-num-seqs --together {CACHING} --kv-cache-dtype {SAMPLING} "
    "--overwrite --device --dtype --ray --ray-workers --json",
    "compare": "--out --overwrite --json",
    "serve": "--model --name --served-model-name --host --port --keys --cache-salt-per-key --allowed-origins "
    f"--allowed-hosts --policy {BUDGET} --predictor --ignore-predictor-mismatch {CHAT} --max-num-seqs --kv-gib "
    "--max-slots --kv-cache-dtype --max-budget --generation-config --max-new-tokens --max-prompt --max-choices "
    f"--max-body --queue --limit-concurrency --read-timeout --timeout --grace --log-text {CACHING} "
    "--async-scheduling --no-async-scheduling --gpu-memory-utilization "
    "--max-model-len --device --dtype --json",
    "view": "--host --port --allowed-hosts --open --no-open --json",
    "tasks list": "--json",
    "tasks sample": "--family --level --count --seed --split --json",
}
MODULES = (
    cli,
    cli.generate,
    cli.serve,
    cli.plan,
    cli.predictor,
    cli.collect,
    cli.label,
    cli.fit,
    cli.train,
    cli.demo,
    cli.bench,
    cli.evaluate,
    cli.compare,
    cli.view,
)
EXAMPLES = [example for module in MODULES for example in module.EXAMPLES] + [
    *cli.tasks.LIST_EXAMPLES,
    *cli.tasks.SAMPLE_EXAMPLES,
]


def commands() -> dict[str, Any]:
    """All commands by their full names, as the parser knows them."""
    root: Any = typer.main.get_command(cli.app)
    top = dict(root.commands)
    return {**{f"tasks {name}": command for name, command in top.pop("tasks").commands.items()}, **top}


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
    "settings", [Budget(slots=256), Sampling(), FitConfig()], ids=lambda settings: type(settings).__name__
)
def test_help_tells_the_defaults_of_the_python_interface(settings):
    names = {"Budget": "generate", "Sampling": "collect", "FitConfig": "fit"}
    command = commands()[names[type(settings).__name__]]
    told = {option.opts[0]: re.findall(r"\[(.*)\]$", option.help or "") for option in command.params}
    checked = 0
    for field in fields(settings):
        flag = "--budget" if field.name == "slots" else "--" + field.name.replace("_", "-")
        value = getattr(settings, field.name)
        if flag in told and isinstance(value, int | float | str):
            assert told[flag] == [str(value)]
            checked += 1
    assert checked >= 4
    if isinstance(settings, FitConfig):
        assert told["--lr"] == [f"{LEARNING_RATE['horizon']}, answer {LEARNING_RATE['answer']}"]


def test_help_of_train_tells_the_defaults_of_the_trainer(tmp_path):
    config = pytest.importorskip("leanthink.rl.config", reason="TRL is not installed: pip install 'leanthink[train]'")
    defaults = config.DeepCompressConfig(str(tmp_path), use_cpu=True, bf16=False)
    names = {
        "--num-generations": "num_generations", "--per-device-train-batch-size": "per_device_train_batch_size",
        "--max-completion-length": "max_completion_length", "--learning-rate": "learning_rate",
        "--policy": "rollout_policy",
    }  # fmt: skip
    same = ("temperature", "length_reward_mode", "alpha", "ema_decay", "ema_initial_value", "rollouts")
    names |= {"--" + name.replace("_", "-"): name for name in same}
    told = {option.opts[0]: option.help or "" for option in commands()["train"].params}
    for flag, name in names.items():
        assert told[flag].endswith(f"[{getattr(defaults, name)}]"), flag
    assert told["--all-correct-weight"].endswith(f"[{defaults.all_correct_weight} with the mode dual]")


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_help_pages_is_understood(example, inside):
    words = shlex.split(example.rpartition("| ")[2])
    assert words[0] == "leanthink"
    result = inside(*words[1:], "--help")
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["generate"],
        ["tasks"],
        ["tasks", "sample"],
        ["predictor"],
        ["collect"],
        ["label"],
        ["fit"],
        ["demo"],
        ["bench"],
        ["train"],
        ["view"],
    ],
)
def test_help_opens_with_a_sentence_and_examples(command, inside):
    page = inside(*command, "--help").out
    sentence = page.split("\n\n")[1].strip()
    assert sentence.endswith(".")
    assert command == ["tasks"] or "\n    leanthink " in page or "\n    echo " in page


def test_help_and_version_come_without_loading_torch():
    code = "import sys; from leanthink.entrypoints import cli; cli.run({}); sys.exit('torch' in sys.modules)"
    for arguments in (["--help"], ["generate", "--help"], ["tasks", "list", "--json"], ["--version"]):
        subprocess.run([sys.executable, "-c", code.format(arguments)], check=True, capture_output=True)


def test_sampled_tasks_are_one_json_list_of_records():
    result = leanthink("tasks", "sample", "--family", "multiply", "--level", 2, "--count", 3, "--seed", 5, "--json")
    expected = registry.sample("multiply", 2, 3, 5)
    assert result.code == 0
    assert result.err == ""
    assert json.loads(result.out) == [
        {"id": p.id, "family": "multiply", "level": 2, "prompt": p.prompt, "answer": p.answer} for p in expected
    ]


def test_listed_tasks_are_the_families_there_are():
    listed = json.loads(leanthink("tasks", "list", "--json").out)
    assert [record["family"] for record in listed] == list(registry.FAMILIES)
    assert all(record["levels"] == [1, 2, 3, 4, 5] for record in listed)
    assert [line.split()[0] for line in leanthink("tasks", "list").out.splitlines()] == list(registry.FAMILIES)


def test_generate_prints_one_json_document_with_the_fields_of_a_completion(folder):
    arguments = [
        "hi",
        "--model",
        folder,
        "--policy",
        "sinks",
        "--budget",
        12,
        "--recent-window",
        4,
        "--eviction-interval",
        6,
    ]
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


def test_a_dash_reads_the_prompt_from_standard_input(folder, inside, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 2 + 2?\n"))
    plain = ["--model", folder, "--policy", "full", "--max-new-tokens", 5, "--json"]
    piped = inside("generate", "-", *plain)
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
        "--recent-window",
        4,
        "--eviction-interval",
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
    recipe = ["--all", "--steps", 20, "--batch", 64, "--val-share", 0.5]
    result = inside("fit", "--traces", traces, "--labels", labels, *recipe, "--out", out, *common)
    fitted = json.loads(result.out)
    assert fitted["data"]["recipe"]["horizons"] == [4, 16]
    assert fitted["metrics"]["held_out_traces"] == 4
    budget = ["--predictor", out, "--budget", 12, "--recent-window", 4, "--max-new-tokens", 30]
    assert inside("generate", "hi", "--model", folder, *budget).code == 0
    for command, path in (("label", labels), ("fit", out)):
        given = ["--traces", traces, *(["--labels", labels] if command == "fit" else [])]
        refused(inside(command, *given, "--out", path, *common), 2, f"{path} exists", "--overwrite")


def test_collect_goes_on_where_it_was_interrupted(folder, inside, tmp_path):
    out = tmp_path / "traces.jsonl"
    slow = [
        "--tasks",
        "all",
        "--levels",
        1,
        "--count",
        2,
        "--max-new-tokens",
        300,
        "--max-num-seqs",
        1,
        "--model",
        folder,
    ]
    with start("collect", *slow, "--out", out) as process:
        deadline = time.monotonic() + 120
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
    resumed = inside("collect", *slow, "--out", out, "--resume", "--json")
    assert json.loads(resumed.out)["done_before"] == len(finished)
    assert read_traces(out)[: len(finished)] == finished
    assert len({trace.key for trace in read_traces(out)}) == 12


def test_a_reader_that_stops_early_ends_the_command_without_a_word():
    with start("tasks", "sample", "--family", "multiply", "--level", 5, "--count", 3000) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("multiply-5-")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1
