"""DeepCompress on TRL's GRPOTrainer: its reward, dynamic sampling, weights of all-correct groups, our rollouts.

Everything else is TRL's: clip-higher, the token-level loss and no KL term are settings of `DeepCompressConfig`.

What it relies on, in TRL 1.16 (the tested range is `TRL` of `trainer_checks`, other versions are refused):
- `GRPOTrainer._generate_and_score_completions(inputs)`, which `_prepare_inputs` calls once for a generation batch in
  training mode and once for each batch in evaluation; it returns a dict of tensors, one row a response of this rank,
  but for the scalar `num_items_in_batch`, which divides the loss. Overridden, as it is the smallest place that sees
  what a batch became before it is cut into steps.
- `GRPOTrainer._prepare_inputs(batch)`, which shuffles a generation batch and cuts it into the micro-batches of
  `_buffered_inputs`, each as wide as the longest response of all. Overridden to cut them anew, by length.
- `GRPOTrainer._get_train_sampler(dataset)` and `_run_epoch(...)`, overridden for runs that go on
  (`leanthink.rl.resume.Resumable`).
- `GRPOTrainer._get_per_token_logps_and_entropies(model, ids, mask, tokens_to_keep, batch_size)`, and that a model
  called with `labels` and `fused_lm_head=True` returns `log_probs` and `entropy` of what they name. Overridden, as rows
  without a mask are faster and safer (`leanthink.rl.log_probs`), and those that TRL wants of a round are found later
  (`leanthink.rl.batch_log_probs`). The loss takes advantages [N, T] too.
- `GRPOTrainer._tokenize_prompts(prompts)`, which gives ids, images and other inputs of chats. Overridden, as it takes
  control tokens in a problem for those of the template, and puts no system prompt before it.
- `GRPOTrainer._save_checkpoint(model, trial)`, which writes `checkpoint-N`, and `_send_telemetry()`, which tells a
  hub that a trainer was made. Overridden: the one to tell of a full disk, the other to tell nobody.
- `_metrics` (what is logged).

B groups of G responses   N responses of this rank   T tokens of the longest of them
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from leanthink.data.think_tags import set_think_tags
from leanthink.engine.sdpa import for_any_length
from leanthink.models.prompt import encode_chat
from leanthink.rl.batch_log_probs import weighed, with_old_log_probs
from leanthink.rl.config import DeepCompressConfig, check_installed
from leanthink.rl.fused_lora import fuse_lora
from leanthink.rl.length_bucketing import bucket_by_length, is_text, stacked_rows
from leanthink.rl.log_probs import left_aligned
from leanthink.rl.model_card import CARD, Origin, model_card, public_name
from leanthink.rl.resume import Resumable
from leanthink.rl.rewards import group_weights
from leanthink.rl.rollouts import check_whole, rollouts_of
from leanthink.rl.round_prompts import RoundPrompts
from leanthink.rl.trainer_checks import check_data, check_template, check_version
from leanthink.rl.trl_reward import DeepCompressReward, Grader, Scored, warn
from leanthink.utils.errors import UsageError
from leanthink.utils.file_writing import writing

TELEMETRY = "HF_HUB_DISABLE_TELEMETRY"
BY_TOKENS = ("dapo", "cispo", "vespo")  # losses that are divided by the tokens of the whole update
Row = dict[str, Tensor]
OnScored = Callable[[int, int, Scored], None]


class DeepCompressTrainer(Resumable, GRPOTrainer):  # type: ignore[misc]  # trl has no types
    """GRPO with the DeepCompress reward and dynamic sampling.

    Dynamic sampling: a generation batch is scored, its groups that are all right or all wrong are dropped, and whole
    batches of other prompts, drawn from the whole data set (`leanthink.rl.round_prompts`), are generated until as many
    groups as the batch holds are left, in at most `max_num_gen_batches` rounds, each of `oversample` times as many
    prompts.
    Statistics are of all prompts of a round, before any is dropped. With `all_correct_weight` all-correct groups fill
    what the mixed ones, which have right and wrong responses, leave of the batch. What is then still missing is filled
    up with dropped groups whose advantages are 0 and whose tokens do not count in the loss: the update is that of a
    smaller batch.

    Args:
        model: a causal language model of transformers or a PeftModel.
        args: the settings.
        train_dataset: columns as of `leanthink.rl.data`; at least `prompt` (chat messages) and `answer`.
        eval_dataset: the same.
        processing_class: the tokenizer.
        reward_funcs: further rewards of TRL, added to that of DeepCompress.
        grader: tells right from wrong; None: `leanthink.rl.data.grade`.
        origin: what the model card says of base and data; None: the base by the model's own name.
        on_scored: called on every rank with step, round and what was scored, for each generation batch in training.
        others: everything else that GRPOTrainer takes, such as peft_config, callbacks and optimizers.

    Raises:
        UsageError: another version of TRL, a model's name instead of a model, data without answers, fewer problems
            than a batch has, or a chat template without think tags.
        UnsupportedModel: rollouts="engine" with a model that the bounded cache cannot serve.
    """

    def __init__(
        self,
        model: Any,
        args: DeepCompressConfig,
        train_dataset: Any,
        *,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_funcs: Sequence[Any] = (),
        grader: Grader | None = None,
        on_scored: OnScored | None = None,
        origin: Origin | None = None,
        **others: Any,
    ) -> None:
        check_version()
        check_installed(args)
        if isinstance(model, str):
            raise UsageError(
                f"model={model!r} is a name: give what leanthink.load({model!r}) returns, and its tokenizer"
            )
        check_data(train_dataset, args)
        self.reward = _reward(args, grader)
        self.on_scored = on_scored
        self._teaches = True  # whether the latest generation batch does
        self._in_round = False
        base = str(getattr(model.config, "_name_or_path", "")) or type(model).__name__
        self.origin = origin or Origin(base=public_name(base))
        rollouts = rollouts_of(model, args)  # before adapters are put in: predictors know their model by plain weights
        # TRL takes no reference model for beta: it asks a hub for the name, and prepares what comes back for all ranks.
        with patch.object(grpo_trainer, "create_model_from_path", lambda *_, **__: deepcopy(model)):
            super().__init__(
                model=model,
                reward_funcs=[self.reward, *reward_funcs],
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **others,
            )
        fuse_lora(self.model)
        if rollouts is not None:
            check_whole(self)
            self.rollout_func = rollouts
        if not isinstance(args.think_tags, bool):
            set_think_tags(self.processing_class, *args.think_tags)
        self._round_prompts = RoundPrompts(self.train_dataset, args.seed)
        self.reward.attach(self, bounded=True)
        check_template(self.processing_class, train_dataset[0]["prompt"], args)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """TRL's, into an empty folder, and with one error where there is no room."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            # What is left of an earlier attempt would make a mixture of both look whole.
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with writing(folder), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Could not find a config file", module="peft")  # of a GGUF file
            super()._save_checkpoint(model, trial)

    def _send_telemetry(self) -> None:
        """TRL's, only where HF_HUB_DISABLE_TELEMETRY=0 asks for it."""
        if os.environ.get(TELEMETRY) == "0":
            super()._send_telemetry()

    def create_model_card(self, *_given: Any, **_more: Any) -> None:
        """Beside each checkpoint, in place of TRL's card, whose example would load a model named None."""
        self.write_card(Path(self.args.output_dir))

    def write_card(self, folder: Path) -> None:
        """The model card of what was trained so far into this folder, on the main process."""
        if not self.is_world_process_zero():
            return
        text = model_card(
            self.origin,
            settings=self.args,
            problems=len(self.train_dataset),
            steps=self.state.global_step,
            history=self.state.log_history,
            title=Path(self.args.output_dir).resolve().name,
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).write_text(text, encoding="utf-8")

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """TRL's, with the system prompt, and with control tokens in messages as text; tools and images go TRL's way."""
        options = self.args.chat_options
        chats = [prompt if isinstance(prompt, str) else options.messages(prompt) for prompt in prompts]
        prompt_ids, images, fields = super()._tokenize_prompts(chats)
        if images is None and not self.tools and self.environment_factories is None:
            encode = partial(encode_chat, self.processing_class, split_special_tokens=options.split_special_tokens)
            prompt_ids = [
                ids if isinstance(chat, str) else encode(chat, self.chat_template_kwargs)
                for ids, chat in zip(prompt_ids, chats, strict=True)
            ]
        return prompt_ids, images, fields

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before: Any = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        made: Any = self._buffered_inputs
        if not self.model.training or made is before or not is_text(made[0]):
            return inputs
        if self.loss_type != "bnpo":  # a mean of each micro-batch: which responses are together decides the update
            even = self.loss_type not in BY_TOKENS
            window, ranks = self.args.gradient_accumulation_steps, self.accelerator
            made = bucket_by_length(made, window, even=even, largest=lambda own_N: ranks.gather(own_N[None]).amax(0))
        self._buffered_inputs: Any = with_old_log_probs(self, made) if self._scores_later else made
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def training_step(self, *arguments: Any) -> Tensor:
        """Forward and backward pass of a micro-batch, whose length is its own."""
        with for_any_length():
            loss: Tensor = super().training_step(*arguments)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **others: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """TRL's, of rows moved to the left; images and routed experts, which need the mask, go TRL's own way."""
        if compute_aux_loss or any(value is not None for value in others.values()):
            settings = {"compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss, **others}
            found: tuple[Tensor, Tensor | None, Tensor | None] = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, **settings
            )
            return found
        if self._in_round and self._scores_later:
            return None, None, None
        size = batch_size or len(input_ids)
        log_probs: list[Tensor] = []
        entropies: list[Tensor] = []
        for first in range(0, len(input_ids), size):
            chunk = slice(first, first + size)
            rows = left_aligned(input_ids[chunk], attention_mask[chunk], logits_to_keep)
            with self.accelerator.autocast():
                output = model(input_ids=rows.ids_NW, labels=rows.labels_NW, fused_lm_head=True)
            # What is returned of a token stands one column before it; the first one is never scored.
            log_probs.append(rows.back(pad(output.log_probs, (1, 0)))[:, -logits_to_keep:])
            if compute_entropy:  # the reference model returns none
                entropies.append(rows.back(pad(output.entropy, (1, 0)))[:, -logits_to_keep:])
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    @property
    def _scores_later(self) -> bool:
        """Whether a round goes without log-probabilities: nothing else reads them than updates of what stays of it."""
        return not self.use_vllm and not self.beta

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """The full batch, and how long it took to generate and judge it."""
        start = time.perf_counter()
        batch = self._full_batch(inputs)
        if self.model.training:
            self._metrics["train"]["rollouts/seconds"].append(time.perf_counter() - start)
        return batch

    def _full_batch(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's, until the batch is full; on every rank equally often, as all ranks look at the same verdicts."""
        args, size = self.args, len(inputs)
        if not self.model.training or not (args.dynamic_sampling or args.all_correct_weight):
            plain = self._round(inputs)
            self._report(0)
            self._note(any(gather_object([bool(plain["advantages"].any())])))
            return self._weighed(plain)
        wanted = args.generation_batch_size
        mixed: list[Row] = []  # of all ranks, group after group
        all_correct: list[Row] = []
        for number in range(args.max_num_gen_batches if args.dynamic_sampling else 1):
            output = self._round(self._round_inputs(number, inputs))
            self._report(number)
            own_mixed, own_all_correct, others = self._sorted_rows(output)
            mixed += gather_object(own_mixed)
            all_correct += gather_object(own_all_correct)
            kept = [*mixed, *all_correct]  # all-correct groups take no place from mixed ones
            if len(kept) >= wanted:
                break
        fillers = [] if len(kept) >= wanted else gather_object(others)[: wanted - len(kept)]
        logged = self._metrics["train"]
        logged["dynamic_sampling/rounds"].append(number + 1)
        logged["dynamic_sampling/kept"].append(len(kept) / (wanted * args.oversample * (number + 1)))
        teaches = [bool(row["advantages"].any()) for row in kept[:wanted]]  # not where all are right and rewarded alike
        group = self.num_generations
        taught = sum(any(teaches[first : first + group]) for first in range(0, len(teaches), group)) * group
        logged["dynamic_sampling/filled"].append(1 - taught / wanted)
        self._note(any(teaches))
        return self._weighed(self._batch(kept[:wanted], fillers, size))

    def _round(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's: responses and what they are worth."""
        self._in_round = True
        try:
            scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self._in_round = False
        return scored

    def _weighed(self, batch: dict[str, Any]) -> dict[str, Any]:
        bounded = self.args.rollout_policy != "full" and self.model.training and self._teaches
        return weighed(self, batch) if bounded else batch

    def _report(self, number: int) -> None:
        if self.on_scored is not None and self.model.training and self.reward.scored is not None:
            self.on_scored(self.state.global_step, number, self.reward.scored)
        self._note(teaches=True)

    def _note(self, teaches: bool) -> None:
        if self.model.training:
            self._teaches = teaches
            if self.is_world_process_zero() and self.reward.scored is not None:
                warn(self.reward.scored, self.args, teaches=teaches)

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **others: Any) -> Tensor:
        """TRL's; 0 without a forward for a batch that teaches nothing, where all ranks can leave it out alike."""
        args, ranks = self.args, self.accelerator
        whole = ranks.num_processes == 1 or args.steps_per_generation % args.gradient_accumulation_steps == 0
        more = self.beta or self._entropy_bonus_enabled or self.aux_loss_enabled or ranks.scaler
        more = more or self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.model.training and not self._teaches and whole and not more:
            return torch.zeros((), device=ranks.device, requires_grad=True)
        if args.rollout_enable_sleep_mode and self.model.training:
            self.rollout_func.sleep()
        loss: Tensor = super().compute_loss(model, inputs, *arguments, **others)
        return loss

    def _round_inputs(self, number: int, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """This rank's part of the prompts of a round; those of the first one begin with the batch itself."""
        args, group, rank = self.args, self.num_generations, self.accelerator.process_index
        if not args.dynamic_sampling:
            return inputs
        if number == 0:
            begun = -rank * len(inputs) % group  # the first group that begins on this rank
            self._round_prompts.begin(self.state.global_step, gather_object(inputs[begun::group]))
        prompts = self._round_prompts.take(args.oversample * args.generation_batch_size // group)
        size = args.oversample * len(inputs)
        return [prompts[row // group] for row in range(rank * size, (rank + 1) * size)]

    def _sorted_rows(self, output: dict[str, Any]) -> tuple[list[Row], list[Row], list[Row]]:
        """This rank's responses on the host: of mixed groups, of all-correct ones if they count, and of others.

        Without dynamic sampling there are no others: they count as mixed.
        """
        for name, value in output.items():
            if not isinstance(value, Tensor):
                raise UsageError(f"dynamic sampling serves text alone, and this batch has {name!r}: switch it off")
        scored, weight = self.reward.scored, self.args.all_correct_weight
        assert scored is not None
        keeps_others = not self.args.dynamic_sampling
        kind_B = torch.where(scored.mixed_B | keeps_others, 0, 2)
        kind_B[scored.all_correct_B & (weight > 0)] = 1
        weight_B = group_weights(scored.correct_BG, weight, others=float(keeps_others)).float()
        columns = {name: value.cpu() for name, value in output.items() if value.dim()}
        size = len(columns["advantages"])
        first = self.accelerator.process_index * size
        group_N = torch.arange(first, first + size) // self.num_generations
        columns["advantages"] = columns["advantages"] * weight_B[group_N]
        sorted_rows: tuple[list[Row], list[Row], list[Row]] = ([], [], [])
        for i, kind in enumerate(kind_B[group_N].tolist()):
            row = {name: column[i].clone() for name, column in columns.items()}  # a view would travel as the whole
            sorted_rows[kind].append(row)
        return sorted_rows

    def _batch(self, kept: list[Row], fillers: list[Row], size: int) -> dict[str, Any]:
        """This rank's part of the full batch, as TRL's method returns it."""
        device = self.accelerator.device
        tokens = sum(int(row["completion_mask"].sum()) for row in kept)
        silent = [{**row, "advantages": torch.zeros_like(row["advantages"])} for row in fillers]
        first = self.accelerator.process_index * size
        own = [*kept, *silent][first : first + size]
        pad_id = self.processing_class.pad_token_id
        batch = {name: stacked_rows(name, [row[name] for row in own], pad_id).to(device) for name in own[0]}
        return {**batch, "num_items_in_batch": torch.tensor(tokens, device=device)}


def _reward(args: DeepCompressConfig, grader: Grader | None) -> DeepCompressReward:
    chosen = {} if grader is None else {"grader": grader}
    return DeepCompressReward(
        max_length=args.max_completion_length,
        length_reward_mode=args.length_reward_mode,  # type: ignore[arg-type]  # checked by the config
        alpha=args.alpha,
        ema_decay=args.ema_decay,
        ema_initial_value=args.ema_initial_value,
        keep_all_correct=bool(args.all_correct_weight),
        target_length=args.target_length,
        buffer=args.buffer,
        factor=args.overlong_factor,
        think_tags=bool(args.think_tags),
        **chosen,
    )
