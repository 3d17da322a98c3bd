"""Rollouts of TRL by our engine: its `rollout_func`, on the full cache or within a budget.

All responses to one prompt share its prefill. Each has a sampling seed of its own, made of the run's seed, the
optimiser step, the call within that step, the prompt and the place of the response in that call: equal prompts get
other responses, and a run that is resumed draws the same samples, on any number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from leanthink.data.think_tags import beginning, think_tags
from leanthink.engine.engine import Engine
from leanthink.engine.generation import raise_first
from leanthink.engine.request import Predictor, Request, make_request, resolve_policies
from leanthink.engine.sampling import Sampling
from leanthink.models.context import context_of
from leanthink.models.loading import check_model
from leanthink.policies.budget import Budget
from leanthink.rl.rollout_weight_sync import RolloutModel
from leanthink.utils.errors import UsageError

ROUNDED_TO = 256  # slots: a somewhat longer prompt than any before must not make a new engine


class EngineRollouts:
    """For `rollout_func` of a GRPOTrainer. The engine is made at the first call and kept, with its CUDA graphs, or till
    it is told to `sleep`.

    The log-probabilities that it returns are those of the sampled tokens, where somebody reads them (a bounded cache
    samples from another policy than the one that is trained; TRL's off-policy mask) and the sampling is plain
    (temperature 1, nothing cut off); else None, as they cost time in every step and TRL would want them after the cuts.

    Args:
        model: the starting model, for which a predictor was fitted.
        policy: what ranks thought slots; "full" keeps all.
        budget: how many of them stay; None for "full" only.
        predictor: for the policies dynts and horizon; None: the one shipped. It stays as it is while the model learns.
        rows: most responses at a time.
        ignore_predictor_mismatch: as of `leanthink.generate`.

    Raises:
        UnsupportedModel: the bounded cache cannot serve this model.
        PredictorMismatch: the predictor was fitted for another model.
    """

    def __init__(
        self,
        model: Any,
        *,
        policy: str = "full",
        budget: Budget | None = None,
        predictor: Predictor = None,
        rows: int = 64,
        ignore_predictor_mismatch: bool = False,
    ) -> None:
        check_model(model)
        (self._policy,) = resolve_policies(
            model, None, [policy], predictor, ignore_predictor_mismatch=ignore_predictor_mismatch
        )
        self._budget, self._rows = budget, rows
        self._rollout_model: RolloutModel | None = None
        self._engine: Engine | None = None
        self._room = (0, 0)  # rows, and slots of each, that the engine was made for
        self._calls: dict[bool, tuple[int, int]] = {}  # in training, in evaluation: the latest step, calls in it

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """Token ids of prompts and responses, and log-probabilities, for each of this rank's prompts in turn."""
        requests = self._requests(prompts, trainer)
        engine = self._ready_engine(requests, trainer)
        finished = {}
        try:
            for request in requests:
                engine.add_request(request)
            while engine.unfinished:
                progress = engine.step()
                raise_first(progress.failed, len(requests))
                finished.update(progress.finished)
        except BaseException:
            self._engine = None  # it still holds requests that nobody waits for
            raise
        done = [finished[request.index] for request in requests]
        with_logprobs = requests[0].sampling.logprobs is not None
        return {
            "prompt_ids": [list(request.prompt_ids) for request in requests],
            "completion_ids": [list(completion.token_ids) for completion in done],
            "logprobs": [list(completion.logprobs or ()) for completion in done] if with_logprobs else None,
        }

    def sleep(self) -> None:
        """Give the engine's slots and CUDA graphs back; the next call makes them anew. The copy of the policy stays."""
        if self._engine is not None:
            self._engine = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # graphs keep their memory apart from what others may take

    def _requests(self, prompts: Sequence[Any], trainer: Any) -> list[Request]:
        training = trainer.model.training
        group = trainer.num_generations_eval
        step = trainer.state.global_step
        known_step, calls = self._calls.get(training, (step, 0))
        call = calls if known_step == step else 0
        self._calls[training] = (step, call + 1)
        when = f"{step}/{call}" if training else "evaluation"  # each evaluation draws alike, to be compared with others
        prompt_ids, _, _ = trainer._tokenize_prompts(list(prompts))
        first = trainer.accelerator.process_index * len(prompts)
        # Batches of an evaluation hold other prompts on other numbers of ranks: there a place is one in its group.
        places = [place if training else place % group for place in range(first, first + len(prompts))]
        tokenizer, context = trainer.processing_class, context_of(trainer.model.config)
        tags = think_tags(tokenizer)
        knobs: dict[str, Any] = {"top_p": trainer.top_p, "top_k": trainer.top_k or 0, "min_p": trainer.min_p or 0.0}
        plain = trainer.temperature == 1 and knobs == {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
        read = self._policy.name != "full" or trainer.off_policy_mask_threshold is not None
        return [
            make_request(
                index,
                ids,
                policy=self._policy,
                budget=self._budget,
                sampling=Sampling(
                    temperature=trainer.temperature,
                    max_new_tokens=trainer.max_completion_length,
                    seed=response_seed(trainer.args.seed, when, ids, places[index]),
                    logprobs=0 if plain and read else None,
                    **knobs,
                ),
                context=context,
                **beginning(tokenizer, ids, tags),
            )
            for index, ids in enumerate(prompt_ids)
        ]

    def _ready_engine(self, requests: Sequence[Request], trainer: Any) -> Engine:
        """The engine on current weights; a new one only if these requests do not fit the old one."""
        if self._rollout_model is None:
            policy = trainer.accelerator.unwrap_model(trainer.model)
            self._rollout_model = RolloutModel(policy, rollout_dtype(trainer.args, policy.dtype))
        else:
            self._rollout_model.sync_weights()
            if self._engine is not None:
                self._engine.reset_prefix_cache()
        rows = min(self._rows, len(requests))
        bound = max(request.bound for request in requests)
        if self._engine is None or rows > self._room[0] or bound > self._room[1]:
            self._engine = None  # its memory is free before the next one takes its own
            bound = -(-bound // ROUNDED_TO) * ROUNDED_TO
            self._room = (max(rows, self._room[0]), max(bound, self._room[1]))
            rows, bound = self._room
            self._engine = Engine(
                self._rollout_model.model,
                trainer.processing_class,
                slots=rows * bound,
                rows=rows,
                row_slots=bound if self._rollout_model.model.device.type == "cpu" else None,
                ends=trainer.eos_token_ids,
            )
        return self._engine


def rollouts_of(model: Any, args: Any) -> EngineRollouts | None:
    """Those that the settings ask for; None for TRL's own."""
    if args.rollouts != "engine":
        return None
    return EngineRollouts(
        model.to(args.device),
        policy=args.rollout_policy,
        budget=args.budget,
        predictor=args.rollout_predictor,
        rows=args.rollout_rows,
        ignore_predictor_mismatch=args.ignore_predictor_mismatch,
    )


def response_seed(seed: int, when: str, prompt_ids: Sequence[int], place: int) -> int:
    """The sampling seed of one response, 0 <= seed < 2^48."""
    digest = hashlib.sha256(f"{seed}/{when}/{place}/{','.join(map(str, prompt_ids))}".encode()).digest()
    return int.from_bytes(digest[:6])


def check_whole(trainer: Any, what: str = "rollouts='engine'") -> None:
    """Raise UsageError if the weights are spread over ranks: what is named needs them whole on each."""
    sharded = trainer.is_fsdp_enabled or getattr(trainer.args.deepspeed_plugin, "zero_stage", 0) == 3
    if sharded:
        raise UsageError(
            f"{what} needs the whole model on each device, and FSDP and ZeRO-3 spread it: "
            "give rollouts='transformers' or 'vllm' and no LoRA, or train with DDP"
        )


def rollout_dtype(args: Any, dtype: torch.dtype) -> torch.dtype:
    """Mixed precision generates in its low precision on a GPU, as its forward computes; else as the weights are."""
    on_gpu = args.device.type == "cuda"
    return torch.bfloat16 if on_gpu and args.bf16 else torch.float16 if on_gpu and args.fp16 else dtype
