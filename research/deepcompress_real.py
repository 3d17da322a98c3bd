r"""DeepCompress on a real model: Qwen2.5-Coder-1.5B-Instruct with LoRA on GSM8K, five ways to reward length.

- grpo: GRPO with dynamic sampling and no length reward, what the others are compared with
- penalty: a fixed length penalty (β = 1)
- published: DeepCompress as published, its batches filled by dynamic sampling
- ours: in groups with right and wrong answers, short right ones gain by their share of right answers (P_b stays 0, so
  β = P_g), down to a target length
- cap: what is longer than a limit is wrong; advantages over the deviation of the batch (DLER, arXiv 2510.15110)

All arms learn from as many groups: a run ends when --groups groups have taught it, or at --seconds. The problems are
rows 1 to 7000 of GSM8K's training set; settings are chosen on rows 7001 to 7400 (choose-gsm8k.jsonl):

    python bench/real_problems.py --out problems
    python research/deepcompress_real.py train ours --seed 1 --model qwen-1.5b.gguf \
        --problems problems/fit-gsm8k.jsonl --out results --work work
    python research/deepcompress_real.py evaluate ours --seed 1 --model qwen-1.5b.gguf \
        --problems problems/gsm8k.jsonl,problems/math-500.jsonl --out results --work work
    python research/deepcompress_real.py budgets ours --seed 1 --model qwen-1.5b.gguf \
        --problems problems/gsm8k.jsonl --predictor-problems problems/fit-gsm8k.jsonl --out results --work work
    python research/deepcompress_real.py table --out results

A run that was cut goes on from its last checkpoint, which --save-steps asks for, by the same command and --resume.
`evaluate start` and `budgets start` ask the model as it is. --set changes a setting of the arm (as `leanthink train
--set` does), and --as gives the run another name. What stays of a run is one JSON in --out, and in --work its adapters;
after `budgets` also the merged model, NAME.merged, and its predictor, NAME.safetensors, with traces, labels and answers
from which --resume goes on. `merge` writes the merged model alone, with --half as it was when half of its groups had
taught, and with --model a second training begins there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from deepcompress_real_budgets import answered, fitted
from deepcompress_real_budgets import summary as budgets_summary
from deepcompress_real_table import START, summary
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from leanthink.data.grading.grading import is_solved
from leanthink.data.problems import STEP_BY_STEP, read_problems
from leanthink.engine.generation import generate
from leanthink.engine.sampling import Sampling
from leanthink.importance.fit_config import FitConfig
from leanthink.models.loading import load
from leanthink.models.prompt import encode_prompt
from leanthink.rl.run import train
from leanthink.utils.file_writing import write_json
from leanthink.utils.provenance import provenance_record

FILLED: dict[str, Any] = {"all_correct_weight": 0, "oversample": 2, "max_num_gen_batches": 2}
ARMS: dict[str, dict[str, Any]] = {
    "grpo": FILLED | {"length_reward_mode": "none"},
    "penalty": FILLED | {"length_reward_mode": "penalty"},
    "published": FILLED | {"ema_initial_value": 1.0},
    "ours": FILLED | {"alpha": 6, "target_length": 140, "ema_initial_value": 0.0, "ema_decay": 1},
    "cap": FILLED | {"length_reward_mode": "none", "max_completion_length": 200, "overlong_buffer": 0,
                     "scale_rewards": "batch"},
}  # fmt: skip
GROUPS, ROLLOUTS = 32, 8  # groups of a generation batch, and responses of each
UPDATES = 2  # of a generation batch
MICRO = 16  # responses of a forward: fewer leave a GPU waiting for the host, and 16 keep 31 GiB of a 1.5B model
SETTINGS: dict[str, Any] = {
    "dtype": "bfloat16",
    "lora": {"r": 16, "alpha": 32},
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5,
    "weight_decay": 0.0,
    "num_generations": ROLLOUTS,
    "per_device_train_batch_size": MICRO,
    "gradient_accumulation_steps": GROUPS * ROLLOUTS // MICRO // UPDATES,
    "steps_per_generation": GROUPS * ROLLOUTS // MICRO,
    "max_completion_length": 768,
    "overlong_buffer": 128,
    "ema_decay": 0.904,  # half in 7 of 60 generation batches, as 0.99 does in 69 of 600
    "think_tags": False,
    "rollout_rows": 512,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "max_steps": 10_000,
}
TOKENS = 2048  # of a response in the evaluation
CURVE = ("accuracy", "thought_tokens", "groups/all_right", "groups/all_wrong", "dynamic_sampling/kept",
         "dynamic_sampling/filled", "entropy", "rollouts/seconds", "step_time")  # fmt: skip


class Enough(ExportableState, TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Ends a run when so many groups have taught it, or when its time is up.

    Its counts are in each checkpoint, and a run that goes on from one counts on from there.

    Args:
        groups: that teach.
        seconds: of all starts together, each counted up to the checkpoint that the next went on from.
        saves: the end is a checkpoint, too, from which a longer run can go on.
    """

    def __init__(self, groups: int, seconds: float, *, saves: bool = False) -> None:
        self.groups, self.limit, self.saves, self.began = groups, seconds, saves, time.time()
        self.taught, self.before, self.resumed = 0.0, 0.0, 0

    @property
    def seconds(self) -> float:
        """Spent so far."""
        return self.before + time.time() - self.began

    def state(self) -> dict[str, Any]:
        """What transformers writes into a checkpoint."""
        return {"args": {}, "attributes": {"taught": self.taught, "before": self.seconds, "resumed": self.resumed}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Count on from the checkpoint, if this run goes on from one."""
        if state.global_step:
            vars(self).update(state.stateful_callbacks["Enough"]["attributes"])
            self.resumed += 1

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        """Count the groups of a generation batch that were not put there to fill it."""
        filled = (logs or {}).get("dynamic_sampling/filled")
        self.taught += 0 if filled is None else GROUPS * (1 - filled)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """A generation batch is used up before the run ends."""
        whole = state.global_step % UPDATES == 0
        if whole and (self.taught >= self.groups or self.seconds > self.limit):
            control.should_training_stop = True
            if self.saves:
                control.should_save = True


class Adapters(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Keeps what LoRA has learned when half of the groups have taught and at the end."""

    def __init__(self, path: Path, enough: Enough) -> None:
        self.path, self.enough = path, enough

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """The first whole generation batch with half of the groups."""
        half = half_of(self.path)
        if state.global_step % UPDATES == 0 and 2 * self.enough.taught >= self.enough.groups and not half.exists():
            keep(model, half)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """What was learned."""
        keep(model, self.path)


def keep(model: Any, adapters: Path) -> None:
    """Write them in bfloat16, under the names that peft gives them; the file is there when it is whole."""
    found = {name: weight.to(torch.bfloat16).cpu() for name, weight in model.state_dict().items() if "lora_" in name}
    unfinished = adapters.with_suffix(".tmp")
    torch.save(found, unfinished)
    unfinished.replace(adapters)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Of `leanthink.rl.run.train`."""
    data = {"problems": str(options.problems[0]), "instruction": STEP_BY_STEP}
    own = {"model": options.model, "data": data, "seed": options.seed, "out": str(options.work / options.name)}
    given = dict(pair.split("=", 1) for pair in options.set)
    if options.save_steps:
        own |= {"save_strategy": "steps", "save_steps": options.save_steps, "save_total_limit": 1}
    return SETTINGS | ARMS[options.arm] | own | {name: yaml.safe_load(value) for name, value in given.items()}


def run(options: argparse.Namespace) -> None:
    """Train one arm, or go on with it; what came of it is written."""
    settings = settings_of(options)
    enough = Enough(options.groups, options.seconds, saves=options.save_steps is not None)
    options.work.mkdir(parents=True, exist_ok=True)
    adapters = options.work / f"{options.name}.pt"
    if not options.resume:
        half_of(adapters).unlink(missing_ok=True)
    callbacks = [enough, Adapters(adapters, enough)]
    how = {"resume": options.resume, "overwrite": not options.resume}
    done = train(settings, **how, tell=lambda line: print(line, flush=True), callbacks=callbacks)
    assert done is not None
    records = [json.loads(line) for line in (Path(done["out"]) / "log.jsonl").read_text().splitlines()]
    curve = [[record.get(name) for name in CURVE] for record in records if "accuracy" in record]
    told = {name: value for name, value in settings.items() if name not in ("out", "model", "data")}
    result = {
        "arm": options.arm, "name": options.name, "seed": options.seed, "settings": told, "taught": enough.taught,
        "steps": done["steps"], "seconds": round(enough.seconds), "resumed": enough.resumed, "names": CURVE,
        "curve": curve, "birth": provenance_record(),
    }  # fmt: skip
    write_json(result_of(options), result)


def evaluate(options: argparse.Namespace) -> None:
    """Greedy and `--samples` samples at temperature 1 of each problem; the result joins that of the training."""
    model, tokenizer, found = merged(options)
    for file in options.problems:
        found.setdefault("evaluation", {})[file.stem] = asked(model, tokenizer, file, options)
        write_json(result_of(options), found)


def budgets(options: argparse.Namespace) -> None:
    """Greedy with the full cache and under `horizon`, whose predictor is fitted to this model first."""
    model, tokenizer, found = merged(options)
    if options.arm != START:
        save(model, tokenizer, options)
    predictor = options.work / f"{options.name}.safetensors"
    made = asdict(fitted(model, tokenizer, predictor, options, TOKENS))
    found["predictor"] = {name: value for name, value in made.items() if name not in ("out", "work")}
    for file in options.problems:
        answers = answered(model, tokenizer, predictor, file, options, TOKENS)
        found.setdefault("budgets", {})[file.stem] = answers
        write_json(result_of(options), found)


def merge_alone(options: argparse.Namespace) -> None:
    """Write the model with the run's adapters in its weights: a second training can begin with it."""
    model, tokenizer, _ = merged(options)
    if options.half:
        options.name += ".half"
    save(model, tokenizer, options)


def save(model: Any, tokenizer: Any, options: argparse.Namespace) -> None:
    """As a folder in --work."""
    for part in (model, tokenizer):
        part.save_pretrained(options.work / f"{options.name}.merged")


def merged(options: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """The model with the run's adapters in its weights, its tokenizer, and what is known of the run."""
    model, tokenizer = load(options.model, device=options.device, dtype=torch.bfloat16)
    path = result_of(options)
    found = json.loads(path.read_text()) if path.exists() else {"arm": options.arm, "name": options.name}
    adapters = options.work / f"{options.name}.pt"
    if options.half:  # while the run goes on its file is not there
        merge(model, half_of(adapters), settings_of(options)["lora"])
    elif options.arm != START:
        merge(model, adapters, found["settings"]["lora"])
    return model, tokenizer, found


def asked(model: Any, tokenizer: Any, file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Of each problem of the file: right and tokens of the greedy answer, and sums of both over the samples."""
    problems = read_problems(file)[: options.count]
    texts = [f"{problem.problem}\n\n{STEP_BY_STEP}" for problem in problems]
    prompts = [list(encode_prompt(tokenizer, index, text)) for index, text in enumerate(texts)]
    samplings = [
        Sampling(temperature=float(sample > 0), seed=len(problems) * sample + index, max_new_tokens=TOKENS)
        for index in range(len(problems))
        for sample in range(options.samples + 1)
    ]
    each = options.samples + 1
    repeated = [prompt for prompt in prompts for _ in range(each)]
    began = time.time()
    done = generate(model, tokenizer, repeated, policy="full", sampling=samplings, max_rows=options.rows)
    right = [
        int(
            is_solved(
                problems[index // each], tokenizer.decode(one.token_ids, skip_special_tokens=True), think_tags=False
            )
        )
        for index, one in enumerate(done)
    ]
    tokens = [len(one.token_ids) for one in done]
    groups = range(0, len(done), each)
    return {
        "ids": [problem.id for problem in problems],
        "samples": options.samples,
        "greedy_right": [right[first] for first in groups],
        "greedy_tokens": [tokens[first] for first in groups],
        "right": [sum(right[first + 1 : first + each]) for first in groups],
        "tokens": [sum(tokens[first + 1 : first + each]) for first in groups],
        "unfinished": sum(one.finish_reason == "length" for one in done),
        "seconds": round(time.time() - began),
        "birth": provenance_record(),
    }


def merge(model: Any, path: Path, lora: dict[str, Any]) -> None:
    """Fold the adapters of a run into the model's weights; `lora` are those settings of it."""
    scale = lora["alpha"] / lora["r"]
    found = torch.load(path, weights_only=True)
    for name in [name for name in found if "lora_A" in name]:
        module = name.removeprefix("base_model.model.").split(".lora_A")[0]
        weight = model.get_submodule(module).weight
        down, up = (found[key].to(weight.device, torch.float32) for key in (name, name.replace("lora_A", "lora_B")))
        weight.data.copy_(weight.float() + scale * up @ down)


def half_of(adapters: Path) -> Path:
    """The file of the adapters when half of the groups had taught."""
    return adapters.with_suffix(".half.pt")


def result_of(options: argparse.Namespace) -> Path:
    """The file of a run."""
    return Path(options.out) / f"{options.name}.json"


def files(text: str) -> list[Path]:
    """With commas between them."""
    return [Path(name) for name in text.split(",")]


def numbers(text: str) -> list[float]:
    """With commas between them."""
    return [float(number) for number in text.split(",")]


def whole_batches(text: str) -> int:
    """Updates. In the middle of a generation batch a checkpoint lacks its responses: others would be generated."""
    if int(text) < 1 or int(text) % UPDATES:
        raise argparse.ArgumentTypeError(f"{text}: must be a multiple of {UPDATES}, the updates of a generation batch")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", choices=("train", "evaluate", "budgets", "merge", "table"))
    add("arm", nargs="?", choices=(START, *ARMS), default=START)
    add("--seed", type=int, default=1)
    add("--as", dest="name", help="of the run; default: ARM-SEED")
    add("--model", default="qwen-1.5b.gguf")
    add("--device", default="cuda")
    add(
        "--problems",
        type=files,
        default="problems/fit-gsm8k.jsonl",
        help="a file to train on, or several to ask, with commas",
    )
    add("--out", type=Path, default=Path("results"))
    add("--work", type=Path, default=Path("work"))
    add("--groups", type=int, default=1920, help="that teach")
    add("--seconds", type=float, default=3600, help="of training, at most")
    add("--samples", type=int, default=4)
    add("--count", type=int, help="of problems of each file to ask; default: all")
    add("--rows", type=int, default=512, help="responses at a time in the evaluation")
    add("--predictor-problems", type=files, default="problems/fit-gsm8k.jsonl", help="what a predictor is fitted to")
    add("--predictor-limit", type=int, help="of problems of each of these files; default: all")
    add("--predictor-steps", type=int, default=FitConfig.steps)
    add("--ratios", type=numbers, default="2,4", help="mean thought by the most thought slots")
    add("--half", action="store_true", help="merge: the run as it was when half of its groups had taught")
    add("--save-steps", type=whole_batches, help="updates from checkpoint to checkpoint; default: none is written")
    add("--resume", action="store_true", help="go on from the last checkpoint")
    add("--set", action="append", default=[], metavar="NAME=VALUE")
    return parser


def main(arguments: list[str]) -> None:
    """The command line."""
    options = make_parser().parse_args(arguments)
    options.name = options.name or (START if options.arm == START else f"{options.arm}-{options.seed}")
    if options.what == "table":
        print(summary(options.out), budgets_summary(options.out), sep="\n", end="")
    else:
        {"train": run, "evaluate": evaluate, "budgets": budgets, "merge": merge_alone}[options.what](options)


if __name__ == "__main__":
    main(sys.argv[1:])
