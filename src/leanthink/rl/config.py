"""The settings of a DeepCompress run: TRL's, with the published values as defaults, and the method's own."""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from trl import GRPOConfig

from leanthink.data.think_tags import check_pair
from leanthink.models.prompt import ChatOptions
from leanthink.models.transformers_versions import old_names
from leanthink.policies.budget import Budget, check_parts
from leanthink.policies.policy_spec import canonical
from leanthink.rl.field_kinds import of_kind, refused_settings
from leanthink.rl.rewards import (
    ALL_CORRECT_WEIGHT,
    PUBLISHED_ALL_CORRECT_WEIGHT,
    PUBLISHED_BUFFER,
    check_target_length,
    soft_overlong,
)
from leanthink.rl.trl_reward import check_settings
from leanthink.utils.errors import UsageError, unknown
from leanthink.utils.file_reading import said

ROLLOUTS = ("engine", "transformers", "vllm")
COUNTS = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "steps_per_generation",
    "generation_batch_size", "num_iterations",
)  # fmt: skip
RANGES = {  # of what torch or TRL would refuse in the middle of a run, or take for something else
    "learning_rate": (0, math.inf), "adam_beta1": (0, 1), "adam_beta2": (0, 1), "adam_epsilon": (0, math.inf),
    "beta": (0, math.inf), "seed": (0, 2**32), "dataloader_num_workers": (0, math.inf),
}  # fmt: skip
CHOICES = {  # TRL's, which it checks when it has a batch to learn from
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
}


@dataclass
class DeepCompressConfig(GRPOConfig):  # type: ignore[misc]  # trl has no types
    """Settings of `DeepCompressTrainer`; every field of TRL's GRPOConfig is one too.

    Defaults are those of the released training scripts (arXiv 2510.27419), but for `ema_initial_value` and
    `all_correct_weight`, where ours are better (docs/training.md; as published: 1.0 and 0), and for batch sizes and the
    schedule of the rate, which depend on machine and length of the run: published are 512 prompts of 16 responses a
    step, chosen from 2048 or more, 16 optimiser updates, and a constant rate after 160 of them. All of it as published:
    examples/deepcompress-published.yaml.

    Attributes:
        gradient_accumulation_steps, per_device_eval_batch_size: None: as whole groups need it.
        length_reward_mode: "dual", or to compare with "penalty" (β = 1), "bonus" (β = -1), "none".
        alpha: the largest length reward.
        ema_decay: λ of the exponential moving average (EMA) of the pass ratio. Its initial value is half forgotten
            after ln 0.5 / ln λ steps, 69 at 0.99: for a short run of T steps give 0.5 ** (1 / (0.115 * T)).
        ema_initial_value: the average before the first batch, 1.0 as published, or "observed" for the first batch's
            own ratio.
        all_correct_weight: ours: groups that are all right fill what those with right and wrong responses leave of the
            batch, with a length reward of β = 1 and this share of their advantages, which are of the size of 1, as in
            every group; 0: they are dropped, as published. None: 0.15 in the mode "dual", 0 in the others.
        target_length: ours: tokens below which nothing is gained by being shorter; None: shorter always pays.
        overlong_buffer: tokens before max_completion_length over which a penalty grows; None: a fifth of it; 0: none.
        overlong_factor: that penalty at max_completion_length.
        think_tags: whether a response must close its thought to be right; or the opening and the closing tag, where the
            model's are not found by themselves, and then it must.
        system_prompt: put before every prompt that has no system message of its own; None: none.
        split_special_tokens: whether control tokens that stand in a problem, such as <|im_end|>, stay text.
        dynamic_sampling: generate until the batch is full of groups that teach something.
        max_num_gen_batches: most rounds of that; what is then missing is filled with groups of advantage 0, which
            change nothing.
        oversample: prompts that a round of dynamic sampling generates for each one that the batch holds: more of them
            fill the batch in fewer rounds, and a round lasts as long as its longest response.
        rollouts: "engine" (ours), "transformers" or "vllm" (TRL's, in the mode that `vllm_mode` says).
        rollout_policy: of the engine, with or without settings (`snapkv:observation=16`); "full" keeps everything.
        rollout_budget: of that policy: slots, recent_window, eviction_interval, max_answer_slots.
        rollout_predictor: file of the predictor for the policies dynts and horizon; None: the one shipped.
        ignore_predictor_mismatch: let that file be one of another model, of which the starting one is a relative.
        rollout_ratio_cap: with a budget, the largest weight of a token: how much likelier the whole cache makes it than
            the bounded one that it was sampled under. TRL has 3.0 for the same purpose with vLLM.
        rollout_rows: most responses that the engine generates at a time on one device.
        rollout_enable_sleep_mode: whether the engine gives its slots and CUDA graphs back before each update and makes
            them anew for the next rollouts: less memory, and on a GPU seconds of each generation batch.

    Raises:
        UsageError: a value out of range, or values that do not go together; the message names the fix.
    """

    learning_rate: float = 1e-6
    warmup_steps: float = 10
    weight_decay: float = 0.1
    num_generations: int = 16
    max_completion_length: int = 10240
    gradient_accumulation_steps: int | None = None
    per_device_eval_batch_size: int | None = None
    epsilon_high: float | None = 0.28

    length_reward_mode: str = "dual"
    alpha: float = 0.2
    ema_decay: float = 0.99
    ema_initial_value: Any = "observed"  # or a float, which TrainingArguments cannot spell
    all_correct_weight: float | None = None
    target_length: int | None = None
    overlong_buffer: int | None = None
    overlong_factor: float = 1.0
    think_tags: Any = True  # or a pair of tags, which TrainingArguments cannot spell
    system_prompt: str | None = None
    split_special_tokens: bool = True
    dynamic_sampling: bool = True
    max_num_gen_batches: int = 10
    oversample: int = 1
    rollouts: str = "engine"
    rollout_policy: str = "full"
    rollout_budget: dict[str, int] | None = None
    rollout_predictor: str | None = None
    ignore_predictor_mismatch: bool = False
    rollout_ratio_cap: float = 3.0
    rollout_rows: int = 64
    rollout_enable_sleep_mode: bool = False

    def __post_init__(self) -> None:
        """Check our fields first: TRL's own check would otherwise report the same fault in other words."""
        for field in fields(self):
            if field.init:
                setattr(self, field.name, of_kind(field, getattr(self, field.name)))
        self._check_group()
        if self.all_correct_weight is None:
            self.all_correct_weight = (
                ALL_CORRECT_WEIGHT if self.length_reward_mode == "dual" else PUBLISHED_ALL_CORRECT_WEIGHT
            )
        self._check_method()
        self._check_rollouts()
        with refused_settings():
            self._check_by_trl()
        self._check_schedule()
        self._check_updates()
        self._check_checkpoints()

    @property
    def buffer(self) -> int | None:
        """Tokens over which the overlong penalty grows; None for no penalty."""
        if self.overlong_buffer is None:
            return max(1, self.max_completion_length // PUBLISHED_BUFFER)
        return self.overlong_buffer or None

    @property
    def budget(self) -> Budget | None:
        """Of the engine's rollouts; None for policy full."""
        return None if self.rollout_budget is None else Budget(**self.rollout_budget)

    @property
    def chat_options(self) -> ChatOptions:
        """How prompts are encoded."""
        return ChatOptions(
            system_prompt=self.system_prompt,
            chat_template_kwargs=self.chat_template_kwargs or {},
            split_special_tokens=self.split_special_tokens,
        )

    def _check_group(self) -> None:
        for name in ("num_generations", "num_generations_eval"):
            size = getattr(self, name)
            if size is not None and size < 2:
                raise UsageError(
                    f"{name}={size}: a group of one has nothing to be compared with; give 2 or more (published: 16)"
                )
        processes = int(os.environ.get("WORLD_SIZE", "1"))  # TRL counts them later
        rows, group = processes * self.per_device_train_batch_size, self.num_generations
        if self.gradient_accumulation_steps is None:
            given = rows < 1 or self.steps_per_generation or self.generation_batch_size
            self.gradient_accumulation_steps = 1 if given else math.lcm(rows, group) // rows
        if self.per_device_eval_batch_size is None:
            self.per_device_eval_batch_size = math.lcm(8 * processes, self.num_generations_eval or group) // processes
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value!r}: a number, at least 1")
        for name, (least, below) in RANGES.items():
            value = getattr(self, name)
            if not least <= value < below:
                to = "" if below == math.inf else f" and below {below}"
                raise UsageError(f"{name}={value!r}: a number, at least {least}{to}")

    def _check_method(self) -> None:
        check_settings(
            length_reward_mode=self.length_reward_mode,
            ema_decay=self.ema_decay,
            ema_initial_value=self.ema_initial_value,
        )
        if self.model_init_kwargs:
            raise UsageError("model_init_kwargs are not read: give the trainer a model made with them")
        if not isinstance(self.think_tags, bool):
            check_pair(self.think_tags)
        self.chat_options  # noqa: B018 (checks itself)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), allowed)
        if self.remove_unused_columns:
            raise UsageError("remove_unused_columns=True: answers are graded by these columns; leave it out")
        if not isinstance(self.all_correct_weight, int | float) or not 0 <= self.all_correct_weight <= 1:
            raise UsageError(
                f"all_correct_weight={self.all_correct_weight!r}: a number from 0, as published, to 1, as correctness "
                "counts"
            )
        if self.all_correct_weight and str(self.scale_rewards) not in ("group", "True"):
            raise UsageError(
                f"all_correct_weight={self.all_correct_weight} with scale_rewards={self.scale_rewards!r}: it is a "
                'share of advantages that are divided by the deviation of their group; give scale_rewards="group", or '
                "all_correct_weight=0"
            )
        check_target_length(self.target_length, self.length_reward_mode, self.max_completion_length)
        if self.buffer is not None:
            soft_overlong([[1]], self.max_completion_length, self.buffer, self.overlong_factor)
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise UsageError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r}: normalised by itself, the length "
                'reward would count as much as correctness; leave it at "sum_then_normalize"'
            )
        if self.max_num_gen_batches < 1:
            raise UsageError(
                f"max_num_gen_batches={self.max_num_gen_batches}: at least 1; dynamic_sampling=False for no filtering"
            )
        if self.oversample < 1 or (self.oversample > 1 and not self.dynamic_sampling):
            raise UsageError(
                f"oversample={self.oversample} with dynamic_sampling={self.dynamic_sampling}: at least 1, and just 1 "
                "without dynamic sampling, as nothing is dropped then"
            )

    def _check_rollouts(self) -> None:
        if self.rollouts not in ROLLOUTS:
            raise unknown("kind of rollouts", self.rollouts, ROLLOUTS)
        self.rollout_policy = canonical(self.rollout_policy)
        if (self.rollout_policy == "full") != (self.rollout_budget is None):
            raise UsageError(
                f"rollout_policy={self.rollout_policy!r} with rollout_budget={self.rollout_budget!r}: "
                "policy full takes no budget, every other one needs one such as {slots: 512}"
            )
        self._check_budget()
        if self.ignore_predictor_mismatch and self.rollout_predictor is None:
            raise UsageError("ignore_predictor_mismatch is of rollout_predictor: give its file, or leave it out")
        if self.rollouts != "engine" and self.rollout_policy != "full":
            raise UsageError(f"rollout_policy={self.rollout_policy!r} needs rollouts='engine', not {self.rollouts!r}")
        if self.rollouts == "engine" and (self.repetition_penalty != 1 or self.generation_kwargs):
            raise UsageError(
                "rollouts='engine' knows temperature, top_p, top_k and min_p: leave repetition_penalty and "
                "generation_kwargs out, or give rollouts='transformers'"
            )
        plain = (self.temperature, self.top_p, self.top_k or 0, self.min_p or 0) == (1, 1, 0, 0)
        if self.rollout_policy != "full" and not plain:
            raise UsageError(
                f"rollout_policy={self.rollout_policy!r} with temperature={self.temperature:g}, top_p={self.top_p:g}, "
                f"top_k={self.top_k}, min_p={self.min_p}: what a bounded cache samples is weighed by its probability, "
                "which is known for plain sampling alone; give temperature=1 and leave the others out"
            )
        if self.rollout_ratio_cap < 1:
            raise UsageError(f"rollout_ratio_cap={self.rollout_ratio_cap}: 1 or more, or every token would weigh less")
        if self.rollout_rows < 1:
            raise UsageError(f"rollout_rows={self.rollout_rows}: at least 1 response at a time")
        for name, needed in (("rollout_enable_sleep_mode", "engine"), ("vllm_enable_sleep_mode", "vllm")):
            if getattr(self, name) and self.rollouts != needed:
                raise UsageError(f"{name} with rollouts={self.rollouts!r}: it is of rollouts={needed!r}")
        if self.rollouts == "vllm":
            self.use_vllm = True

    def _check_budget(self) -> None:
        if self.rollout_budget is None:
            return
        check_parts("rollout_budget", self.rollout_budget)
        if "slots" not in self.rollout_budget:
            raise UsageError("rollout_budget has no slots: say how many thought slots stay, such as {slots: 512}")
        Budget(**self.rollout_budget)

    def _check_by_trl(self) -> None:
        try:
            with old_names():
                super().__post_init__()
        except ValueError as error:
            batch, group = self.generation_batch_size, self.num_generations
            if isinstance(batch, int) and batch % group:
                raise UsageError(
                    f"a generation batch of {batch} responses is no whole number of groups of num_generations={group}: "
                    f"leave gradient_accumulation_steps out, or take a multiple, such as {-(-batch // group) * group}"
                ) from error
            raise UsageError(str(error)) from error

    def _check_schedule(self) -> None:
        """What the rate's schedule refuses is told before a model is loaded."""
        weight = torch.zeros(1, requires_grad=True)
        kind, more = self.lr_scheduler_type, self.lr_scheduler_kwargs or {}
        try:
            get_scheduler(kind, torch.optim.SGD([weight]), 0, 1, scheduler_specific_kwargs=dict(more))
        except Exception as error:  # some is checked there, and some is tripped over
            name = getattr(kind, "value", kind)
            raise UsageError(f"lr_scheduler_type={name!r} with lr_scheduler_kwargs={more}: {said(error)}") from error

    def _check_updates(self) -> None:
        """What transformers, torch and TRL would trip over at the first update."""
        multiple = self.pad_to_multiple_of
        if multiple not in (None, "auto") and not (isinstance(multiple, int) and multiple >= 1):
            raise UsageError(f"pad_to_multiple_of={multiple!r}: a number, at least 1, or auto")
        if self.optim_args and any(part.count("=") != 1 for part in self.optim_args.split(",")):
            raise UsageError(f"optim_args={self.optim_args!r}: of the form name=value,name=value")
        if self.torch_compile_mode is not None:
            try:
                torch.compile(torch.nn.Identity(), mode=self.torch_compile_mode)
            except RuntimeError as error:
                raise UsageError(f"torch_compile_mode={self.torch_compile_mode!r}: {said(error)}") from error

    def _check_checkpoints(self) -> None:
        """A run goes on as it was only from where a generation batch ends: TRL does not save the rest of one."""
        updates = self.steps_per_generation * self.num_iterations / self.gradient_accumulation_steps
        if self.save_strategy == "steps" and self.save_steps >= 1 and self.save_steps % max(1, updates):
            raise UsageError(
                f"save_steps={self.save_steps:g} falls in the middle of a generation batch, which lasts {updates:g} "
                f"optimiser steps and is not saved: give a multiple of {updates:g}"
            )


def check_installed(args: DeepCompressConfig) -> None:
    """Raise UsageError where vLLM, a logger or Liger is needed and not installed: not where settings are only read."""
    for name in args.report_to:
        try:
            get_reporting_integration_callbacks([name])[0]()
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"report_to={name!r}: {error}") from error
    if args.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None:
        raise UsageError("use_liger_kernel needs liger-kernel, and it is not installed: pip install liger-kernel")
    if args.use_vllm and importlib.util.find_spec("vllm") is None:
        raise UsageError(
            "rollouts='vllm' needs vLLM, and it is not installed: pip install 'trl[vllm]'; or give "
            "rollouts='engine', which needs nothing more"
        )
