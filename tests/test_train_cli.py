from __future__ import annotations

import json
import math
import re
import shlex
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.quantizers.base import HfQuantizer

from command_line import refused
from leanthink.entrypoints.cli import train as command
from leanthink.models.loading import load
from leanthink.rl import run, run_model
from leanthink.rl.config import DeepCompressConfig
from leanthink.rl.run_log import RunLog, progress_line, truncate
from leanthink.rl.trl_reward import STATE
from leanthink.utils.provenance import commit
from models import make_model, make_tokenizer
from rl_runs import ENDS, TEMPLATE

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *EXAMPLES.glob("*.*")]
TEXT = "".join(re.sub(r"\\\n#? *", "", page.read_text()) for page in PAGES) + "\n".join(command.EXAMPLES)
WRITTEN = {words.strip() for words in re.findall(r"leanthink train ([^`\n#(]+)", TEXT)}
WRITTEN |= {f"--config {path} --rollouts engine" for path in EXAMPLES.glob("deepcompress-*")}
SMALL = (
    "--tasks", "sums,equations", "--levels", "1", "--count", 8, "--num-generations", 4,
    "--per-device-train-batch-size", 4, "--max-completion-length", 96,
    "--learning-rate", 1e-5, "--ema-initial-value", "observed", "--ema-decay", 0.9,
)  # fmt: skip
EVALUATED = ("--set", "eval_data={tasks: sums, levels: [1], count: 4}")
SETS = ("max_num_gen_batches=1", "warmup_steps=0", "gradient_checkpointing=false", "overlong_buffer=0")


def run_of(out: Path, steps: int, *more: object, sets: tuple[str, ...] = SETS) -> list[object]:
    """The words of a short run on the embedded reasoner."""
    flags = [word for name in sets for word in ("--set", name)]
    return ["train", *SMALL, "--max-steps", steps, "--out", out, *flags, *more]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_twenty_steps_on_the_embedded_reasoner_can_be_resumed(tmp_path: Path, inside: Any) -> None:
    out = tmp_path / "run"
    mixed_up = shlex.split("--tasks equations --temperature 1.5 --max-completion-length 104 --num-generations 2")
    mixed_up += ["--per-device-train-batch-size", "2", "--set", "save_steps=20"]
    done = inside(*run_of(out, 20, *mixed_up, "--json"))
    assert done.code == 0, done.err
    document = json.loads(done.out)
    log, groups = lines(out / "log.jsonl"), lines(out / "rollouts.jsonl")
    steps = [record for record in log if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 21))
    assert all(math.isfinite(record["loss"]) for record in steps)
    assert any(record["grad_norm"] > 0 for record in steps)
    averages = [record["pass_ratio/average"] for record in steps]
    assert len(set(averages)) > 10, "the average did not move"
    assert 0 < document["average"] < 1
    assert document["steps"] == 20
    assert document["metrics"]["step"] == 20
    assert {group["step"] for group in groups} == set(range(1, 21))
    mixed = [group for group in groups if len(set(group["right"])) == 2]
    assert len(mixed) > 2
    assert all(len(group["tokens"]) == 2 and group["level"] == 1 for group in groups)
    told = [line for line in done.err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in told] == [f"{step}/20" for step in range(1, 21)]
    assert all("thought tokens, " in line for line in told)
    state = json.loads((out / "checkpoint-20" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"][STATE]["attributes"]["average"] == document["average"]
    trained, tokenizer = load(out / "final", device="cpu")
    start, _ = load("tiny", device="cpu")
    assert not torch.equal(trained.lm_head.weight, start.lm_head.weight)
    assert tokenizer.chat_template is not None

    again = inside(*run_of(out, 21, *mixed_up, "--json", "--resume"))
    assert again.code == 0, again.err
    assert json.loads(again.out)["steps"] == 21
    assert [record["step"] for record in lines(out / "log.jsonl") if "loss" in record] == list(range(1, 22))
    refused(inside(*run_of(out, 20)), 2, "holds a run already", "resume", "overwrite")


@pytest.fixture(scope="module")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Llama, made on the spot, that ends its responses early."""
    folder: Path = tmp_path_factory.mktemp("llama")
    model = make_model("llama")
    model.generation_config.eos_token_id = ENDS
    model.save_pretrained(folder)
    make_tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


def test_lora_on_a_llama_from_a_file_of_settings_that_flags_win_over(
    tmp_path: Path, inside: Any, random_llama: Path
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(
        f"model: {random_llama}\nout: {tmp_path / 'unused'}\ndata: {{tasks: sums, levels: [1], count: 8}}\n"
        "learning_rate: 1e-3\nnum_generations: 4\nper_device_train_batch_size: 4\nmax_completion_length: 16\n"
        "max_steps: 50\nmax_num_gen_batches: 2\nlora: {r: 4, alpha: 8}\nwarmup_steps: 0\n"
    )
    out = tmp_path / "run"
    done = inside(
        "train", "--config", config, "--max-steps", 3, "--out", out, "--num-generations", 2, "--levels", "1,2"
    )
    assert done.code == 0, done.err
    assert done.out == f"3 steps; the model is in {out / 'final'}\n"
    assert (out / "checkpoint-3" / "adapter_model.safetensors").is_file()
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert (settings["max_steps"], settings["num_generations"], settings["lora"]) == (3, 2, {"r": 4, "alpha": 8})
    assert settings["data"] == {"tasks": "sums", "levels": [1, 2], "count": 8}
    card = (out / "final" / "README.md").read_text()
    for told in (f"`{random_llama.name}`", "16 problems: tasks `sums`, levels `[1, 2]`", "3 optimiser steps",
                 "| learning_rate | `0.001` |", "| lora | `{'r': 4, 'alpha': 8}` |", "| right, share of responses |",
                 "| thought tokens |", f"(commit {commit()})"):  # fmt: skip
        assert told in card
    assert "None" not in card
    assert str(tmp_path) not in card
    assert str(random_llama.parent) not in card
    assert "pipeline(" not in (out / "README.md").read_text(), "TRL writes one at each checkpoint"
    merged, _ = load(out / "final", device="cpu")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert {len(group["right"]) for group in lines(out / "rollouts.jsonl")} == {2}
    assert not (tmp_path / "unused").exists()
    over = inside(
        "train", "--config", config, "--max-steps", 1, "--out", out, "--overwrite", "--budget", 8, "--recent-window", 4
    )
    refused(over, 2, "policy 'full' keeps everything", "leave out --budget, --recent-window")
    once = inside(
        "train", "--config", config, "--max-steps", 1, "--out", out, "--overwrite", "--all-correct-weight", 0.2
    )
    assert once.code == 0, once.err
    assert not (out / "checkpoint-3").exists()
    assert [record["step"] for record in lines(out / "log.jsonl") if "loss" in record] == [1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--set alfa=1", ["unknown setting 'alfa'", "Did you mean 'alpha'"]),
        ("--set output_dir=x", ["unknown setting 'output_dir'"]),
        ("--set decay=0.9", ["unknown setting 'decay'", "ema_decay"]),
        ("--set alpha", ["NAME=VALUE"]),
        ("--resume", ["no checkpoint in", "without resume"]),
        ("--resume --overwrite", ["exclude each other"]),
        ("--num-generations 1", ["num_generations=1", "2 or more"]),
        ("--set generation_batch_size=6", ["generation batch of 6", "such as 8"]),
        ("--set report_to=flyte", ["report_to='flyte'", "pip install flytekit"]),
        ("--set 'lora={r: 4'", ["--set 'lora={r: 4' is no YAML"]),
        ("--ema-decay 2", ["decay=2"]),
        ("--ema-initial-value seen", ["observed"]),
        ("--length-reward-mode longer", ["unknown length_reward_mode", "penalty"]),
        ("--problems p.jsonl", ["--tasks", "--problems"]),
        ("--levels one", ["--levels 'one'"]),
        ("--levels 9", ["unknown level 9"]),
        ("--count 0", ["no problem"]),
        ("--set dtype=int8", ["unknown dtype 'int8'"]),
        ("--set learning_rate=fast", ["learning_rate='fast'"]),
        ("--set max_num_gen_batches=many", ["max_num_gen_batches='many'", "a number"]),
        ("--set overlong_buffer=few", ["overlong_buffer='few'", "a number"]),
        ("--set max_num_gen_batches=true", ["max_num_gen_batches=True", "a number"]),
        ("--set dynamic_sampling=1", ["dynamic_sampling=1", "true or false"]),
        ("--set bf16=no", ["bf16='no'", "true or false"]),
        ("--set max_steps=1.5", ["max_steps=1.5", "a number, whole"]),
        ("--set rollout_rows=1000000000000000000000", ["rollout_rows=1000", "a number, whole"]),
        ("--set temperature=.nan", ["temperature=nan", "a number"]),
        ("--set rollout_policy=null", ["rollout_policy=None", "text"]),
        ("--set metric_for_best_model=[1]", ["metric_for_best_model=[1]", "text"]),
        ("--set fsdp=[1]", ["TRL and transformers refuse", "'int' object"]),
        ("--set 'report_to=[{}]'", ["report_to={}"]),
        ("--set fsdp_config=3", ["fsdp_config=3", "a mapping or text"]),
        ("--set num_iterations=0", ["num_iterations=0", "at least 1"]),
        ("--set adam_beta1=1", ["adam_beta1=1", "at least 0 and below 1"]),
        ("--set seed=-1", ["seed=-1", "at least 0"]),
        ("--set learning_rate=.inf", ["learning_rate=inf", "finite"]),
        ("--set optim_args=x", ["optim_args='x'", "name=value"]),
        ("--set torch_compile_mode=x", ["torch_compile_mode='x'", "max-autotune"]),
        ("--set pad_to_multiple_of=0", ["pad_to_multiple_of=0", "at least 1"]),
        ("--set loss_type=gspo", ["unknown loss_type 'gspo'", "choose one of grpo"]),
        ("--set lr_scheduler_type=cosine_with_min_lr", ["lr_scheduler_kwargs={}", "min_lr"]),
        ("--set eval_strategy=epoch", ["eval_strategy=epoch", "without eval_data"]),
        ("--set 'chat_template_kwargs={thinking: true}' --set think_tags=false", ["has no 'thinking'"]),
        ("--set remove_unused_columns=true", ["remove_unused_columns=True", "leave it out"]),
        ("--set out=null", ["out=None", "text"]),
        ("--set dtype=[bfloat16]", ["dtype=['bfloat16']", "text"]),
        ("--set num_generations_eval=1", ["num_generations_eval=1"]),
        ("--set 'lora={rank: 4}'", ["unknown key of lora 'rank'"]),
        ("--set chat_template=no.jinja", ["no chat template 'no.jinja'"]),
    ],
)
def test_bad_commands_are_refused_with_the_fix(tmp_path: Path, inside: Any, words: str, said: list[str]) -> None:
    out = tmp_path / "run"
    refused(inside("train", *SMALL, "--out", out, *shlex.split(words)), 2, *said)
    assert not (out / "log.jsonl").exists()


def test_what_is_missing_is_told(inside: Any) -> None:
    refused(inside("train", "--out", "run"), 2, "lack 'data'", "tasks")
    refused(inside("train", "--tasks", "sums"), 2, "lack 'out'", "folder")
    refused(inside("train", "--config", "no.yaml"), 2, "no file of settings")
    refused(inside("train", "--dataset", "gsm8k=none", "--out", "run"), 2, "no file or folder 'none'", "openai/gsm8k")


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "is no YAML"), ("- a", "holds no settings"), ("", "no settings"), ("data: sums", "data='sums'")],
)
def test_files_that_hold_no_settings_are_refused(tmp_path: Path, inside: Any, text: str, said: str) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    refused(inside("train", "--config", config), 2, said)


def test_a_model_may_write_its_think_tags_itself(tmp_path: Path, inside: Any, random_llama: Path) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text(TEMPLATE.replace("<think>", ""))
    words = run_of(tmp_path / "run", 1, "--model", random_llama, "--set", f"chat_template={template}")
    assert inside(*words, "--max-completion-length", 8).code == 0


def test_a_refused_template_is_told_before_anything_is_loaded_or_deleted(
    tmp_path: Path, inside: Any, random_llama: Path, monkeypatch: Any
) -> None:
    template = tmp_path / "closed.jinja"
    for content, code, said in ((b"\xff", 1, "UTF-8"), (b"{% for", 2, "refused by the model's chat template")):
        template.write_bytes(content)
        words = ("--set", f"chat_template={template}", "--out", tmp_path / "run")
        refused(inside("train", *SMALL, *words), code, said)
    template.write_text(TEMPLATE.replace("<think>", "<think></think>"))
    words = run_of(tmp_path / "run", 1, "--model", random_llama, "--set", f"chat_template={template}")
    kept = tmp_path / "run" / "checkpoint-9"
    kept.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["leanthink.models.loading"], "load", None)
        refused(inside(*words, "--overwrite"), 2, "closes the thought", "think_tags=False")
    assert kept.is_dir()
    assert inside(*words, "--overwrite", "--set", "think_tags=false", "--max-completion-length", 8).code == 0
    assert not kept.exists()


def test_the_help_says_what_stands_after_a_problem(tmp_path: Path, inside: Any) -> None:
    (tmp_path / "problems.jsonl").write_text('{"problem": "6*7?", "answer": 42}')
    assert run.make_data({"problems": tmp_path / "problems.jsonl"})[0]["problem"] == "6*7?"
    assert "[that of a public set or gym, else none]" in " ".join(inside("train", "--help").out.split())


@pytest.mark.parametrize("words", sorted(WRITTEN))
def test_every_command_that_is_written_down_is_taken(words: str, tmp_path: Path, inside: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(EXAMPLES)
    Path("settings.yaml").write_text("data: {tasks: sums}\nout: runs/some\n")
    for module, name in ((command, "_report"), (run, "_train"), (run, "make_data"), (run, "_checkpoint")):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    assert inside("train", *shlex.split(words)).code == 0


def test_default_batches_are_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    args: Any = SimpleNamespace(**{field.name: field.default for field in fields(DeepCompressConfig)})
    DeepCompressConfig._check_group(args)
    assert (args.gradient_accumulation_steps, args.per_device_eval_batch_size) == (2, 16)


def test_a_run_of_defaults_says_that_nothing_is_learnt(tmp_path: Path, inside: Any, random_llama: Path) -> None:
    out, few = tmp_path / "run", ("--max-steps", 1, "--max-completion-length", 8)
    done = inside("train", "--model", random_llama, "--tasks", "sums", *few, "--set", "save_strategy=no", "--out", out)
    assert (done.code, done.err.count("no thought closed in max_completion_length=8")) == (0, 1), done.err
    assert not list(out.glob("checkpoint-*"))


@pytest.mark.parametrize("model", ["tiny", "random"])
def test_the_tokenizer_is_loaded_once(
    model: str, tmp_path: Path, inside: Any, random_llama: Path, monkeypatch: Any
) -> None:
    from transformers import AutoTokenizer

    load, loaded = AutoTokenizer.from_pretrained, []
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *given, **how: loaded.append(1) or load(*given, **how))
    few = ("--set", "save_strategy=no", "--max-completion-length", 8)
    words = run_of(tmp_path / "run", 1, "--model", "tiny" if model == "tiny" else random_llama, *few)
    assert inside(*words).code == 0
    assert len(loaded) == 1


@pytest.mark.parametrize("word", ["no", "Off", "YES", "on", "y"])
def test_only_true_and_false_are_booleans(word: str) -> None:
    assert command._yaml(f"[{word}, true, False]", "") == [word, True, False]


def test_lora_needs_whole_weights(tmp_path: Path, inside: Any, random_llama: Path, monkeypatch: Any) -> None:
    spread = lambda trainer, _: setattr(trainer, "is_fsdp_enabled", True)  # noqa: E731 (called once it is made)
    monkeypatch.setattr("leanthink.rl.trainer.DeepCompressTrainer.remove_callback", spread)
    done = inside(*run_of(tmp_path, 1, "--model", random_llama, "--lora-r", 4))
    done.err = done.err.splitlines(keepends=True)[-1]  # the others say what the run would have needed
    refused(done, 2, "merging LoRA", "DDP")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("accelerate-*.yaml")), ids=lambda path: path.stem)
def test_the_launch_configurations_in_the_examples_are_what_accelerate_reads(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes in (2, 8)


def test_a_budget_comes_from_flags_over_the_file(tmp_path: Path, inside: Any, random_llama: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("rollout_policy: sinks\nrollout_budget: {slots: 8, recent_window: 4}\n")
    sets = ("max_num_gen_batches=1", "num_generations=2", "max_completion_length=16")
    words = run_of(
        tmp_path / "run", 1, "--config", config, "--model", random_llama, "--eviction-interval", 4, sets=sets
    )
    assert inside(*words).code == 0
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["rollout_budget"] == {"slots": 8, "window": 4, "interval": 4, "answer": 1024}


def test_a_part_of_a_budget_that_there_is_not_is_refused(tmp_path: Path, inside: Any) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("rollout_policy: sinks\nrollout_budget: {slots: 8, window: 4}\n")
    for flags in ((), ("--eviction-interval", 4)):
        done = inside(*run_of(tmp_path / "run", 1, "--config", config, *flags))
        refused(done, 2, "unknown part of rollout_budget 'window'", "recent_window")


def test_weights_of_a_gguf_file_are_trained_as_the_whole_weights_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    model.is_quantized, model.quantization_method = True, "gguf"
    remove = partial(HfQuantizer.remove_quantization_config, None)
    model.hf_quantizer = SimpleNamespace(remove_quantization_config=remove)
    monkeypatch.setattr(sys.modules["leanthink.models.loading"], "load", lambda *_, **__: (model, make_tokenizer()))
    loaded = run_model.load_model({"model": "some.gguf"})
    assert not loaded.is_quantized
    assert not hasattr(loaded, "hf_quantizer")


def test_the_log_is_cut_to_what_the_checkpoint_knows(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    truncate(path, 2)
    assert lines(path) == [{"step": 1}, {"step": 2}]
    truncate(path, 0)
    assert path.read_text() == ""


def test_the_progress_line_leaves_out_what_is_not_known() -> None:
    record = {"step": 3, "reward": 0.5, "accuracy": None, "simple/thought_tokens": 41.6, "beta": -0.25, "loss": 0.1}
    assert progress_line(record, 9) == "step 3/9  reward 0.500  thought tokens, simple 42  β -0.250"


def test_a_step_without_a_generation_tells_loss_and_rate() -> None:
    record = {"step": 4, "loss": 0.0123, "learning_rate": 4e-7, "step_time": 2.34, "entropy": 1.0}
    assert progress_line(record, 9) == "step 4/9  loss 0.0123  rate 4e-07  seconds 2.3"


def test_rounds_that_take_long_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    log, now = RunLog(tmp_path, writes=True, tell=told.append), 1000.0
    monkeypatch.setattr("leanthink.rl.run_log.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("leanthink.rl.run_log.group_records", lambda *_: [])
    log.on_train_begin(None, SimpleNamespace(global_step=0), None)
    scored: Any = SimpleNamespace(mixed_B=torch.tensor([True, False]), observed=0.25)
    for number, now in enumerate((1029.0, 1031.0, 1060.0, 1061.0)):  # noqa: B007 (the clock reads it)
        log.on_scored(0, number, scored)
    assert told == [
        f"step 1: round {number} generated, 1 of 2 groups with right and wrong responses  accuracy 0.250"
        for number in (2, 4)
    ]


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, inside: Any, random_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def interrupt(log: Any, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "on_step_begin", interrupt)
    words = run_of(out, 3, "--model", random_llama, "--max-completion-length", 8)
    done = inside(*words)
    assert (done.code, "run has no checkpoint yet" in done.err) == (130, True), done.err
    done = inside(*words, "--set", "save_steps=1", "--overwrite")
    assert (done.code, f"--resume goes on from {out}/checkpoint-2" in done.err) == (130, True), done.err


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ((), ["learning_rate=1e-06 is the published one", "warmup_steps=10 of max_steps=5"]),
        (("--learning-rate", 1e-4, "--set", "warmup_steps=4"), []),
        (("--learning-rate", 1e-4, *EVALUATED), ["warmup_steps=10 of max_steps=5", "eval_data are never"]),
        (("--learning-rate", 1e-4, *EVALUATED, "--set", "eval_strategy=epoch"), ["warmup_steps=10 of max_steps=5"]),
    ],
)
def test_a_rate_at_which_nothing_is_learnt_is_told_of(
    settings: Any, told: list[str], tmp_path: Path, inside: Any, random_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanthink.rl.trainer.DeepCompressTrainer.train", lambda *_, **__: None)
    words = ("--tasks", "sums", "--lora-r", 4, "--max-steps", 5, "--max-completion-length", 8)
    done = inside("train", "--model", random_llama, *words, *settings, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    for text in ("learning_rate=1e-06 is the published one", "warmup_steps=10 of max_steps=5", "eval_data are never"):
        assert (text in done.err) == (text in told), done.err


def test_training_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch, inside: Any) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    refused(inside("train"), 2, "needs trl: pip install 'leanthink[train]'")


def test_a_run_is_reported_from_what_it_recorded(tmp_path: Path, inside: Any, random_llama: Path) -> None:
    out, held_out = tmp_path / "run", "eval_data={tasks: equations, levels: [1], count: 2}"
    sets = (*SETS, held_out, "eval_strategy=steps", "eval_steps=2", "num_generations_eval=2", "logging_steps=1")
    words = run_of(out, 3, "--model", random_llama, "--max-completion-length", 12, sets=sets)
    assert inside(*words).code == 0
    done = inside("train", "--report", out, "--json")
    assert done.code == 0, done.err
    (report,) = json.loads(done.out)["runs"]
    assert (report["steps"], report["planned"], report["finished"]) == (3, 3, True)
    assert (report["first_steps"], report["last_steps"]) == ([1, 1], [3, 3])
    logged = [record for record in lines(out / "log.jsonl") if "loss" in record]
    assert report["metrics"]["thought_tokens"]["last"] == logged[-1]["thought_tokens"]
    assert report["metrics"]["eval_accuracy"]["last"] is not None
    groups = [group for group in lines(out / "rollouts.jsonl") if group["step"] == 3]
    tokens = [count for group in groups for count in group["thought_tokens"]]
    assert report["rows"][0]["last"]["thought_tokens"]["mean"] == pytest.approx(sum(tokens) / len(tokens))
    page = (out / "report.html").read_text()
    assert "Held-out problems" in page
    assert "3 of 3<" in page
    again = inside(*words, "--overwrite", "--max-steps", 1)
    assert again.code == 0, again.err
    assert not (out / "report.html").exists(), "it told of the run before"
