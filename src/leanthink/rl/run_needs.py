"""What a run's settings need of its device's memory, from the config of its model: before any weight is read."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from leanthink.engine.bench.weights import all_bytes
from leanthink.engine.cache_requirements import bytes_per_slot
from leanthink.engine.memory_plan import Workload
from leanthink.models.context import context_of
from leanthink.models.loading import kv_shape
from leanthink.models.predictor import Predictor, read_metadata
from leanthink.models.prompt import encode_chat
from leanthink.models.tiny import TINY, predictors_path
from leanthink.policies import Policy, make_policy, parse_spec
from leanthink.rl.activations import trace_activations
from leanthink.rl.memory import RunNeeds, StepSize, check_fits, head_bytes, optimizer_bytes, told
from leanthink.rl.rollouts import ROUNDED_TO, rollout_dtype
from leanthink.rl.run_model import shape_of

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig

LONGEST = 16  # prompts of the most characters, of which that of the most tokens is looked for
QUANTIZED_BYTES = {"load_in_4bit": 0.5 + 4 / 64, "load_in_8bit": 1.0}  # of a number, with the scale of each block of 64


def announce(
    settings: Mapping[str, Any],
    args: Any,
    adapters: LoraConfig | None,
    tokenizer: Any,
    dataset: Dataset,
    eval_dataset: Dataset | None,
    *,
    tell: Callable[[str], None] | None,
) -> None:
    """Say in a few lines what a run needs and what a step does.

    Args:
        settings: of the run, checked.
        args: the `DeepCompressConfig` of them.
        adapters: that are trained; None: all weights are.
        tokenizer: of the model.
        dataset: what is trained on.
        eval_dataset: what is evaluated on; None: nothing is.
        tell: is told each line; None for silence.

    Raises:
        UsageError: the run cannot fit into the device's memory, or what `shape_of` raises.
    """
    model = shape_of(settings, adapters, rollouts=args.rollouts)
    device: torch.device = args.device
    memory, where, sharing = _memory(device)
    datasets = [dataset] if eval_dataset is None else [dataset, eval_dataset]
    prompt = max(longest_prompt(one, tokenizer, args) for one in datasets)
    evaluates = eval_dataset is not None
    needs = needs_of(settings, args, model, tokenizer, prompt, evaluates=evaluates, memory=memory or 0)
    step = step_size(args)
    if memory is not None:
        certain = not may_offload(args)
        check_fits(needs.times(sharing), memory, where, _lower(settings, args, needs), certain=certain)
    if tell is not None:
        for line in told(needs, step, memory, where, optim=str(getattr(args.optim, "value", args.optim))):
            tell(line)


def needs_of(
    settings: Mapping[str, Any],
    args: Any,
    model: Any,
    tokenizer: Any,
    prompt_tokens: int,
    *,
    evaluates: bool = False,
    memory: int = 0,
) -> RunNeeds:
    """Those of one process, for prompts of at most so many tokens on a device with so many bytes."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, dtype = base.config, rollout_dtype(args, base.dtype)
    shape = kv_shape(config)
    tokens = min(prompt_tokens + args.max_completion_length, context_of(config))
    sharded, processes = is_sharded(args), args.world_size
    parts = processes if sharded else 1
    weights, trained = _weight_bytes(model, settings), _bytes(p for p in model.parameters() if p.requires_grad)
    has_reference = args.beta and model is base  # with adapters it is the model without them
    copied = sum(weight.numel() for name, weight in base.named_parameters() if "lora_" not in name) * dtype.itemsize
    requests = args.oversample * args.generation_batch_size // processes
    rows = max(requests, args.per_device_eval_batch_size if evaluates else 0)
    shared: dict[str, Any] = {}
    if args.rollouts == "engine":
        rows = min(rows, args.rollout_rows)
        workload = Workload(prompt_tokens=prompt_tokens, max_tokens=tokens, concurrent=rows)
        bound = -(-workload.bound(args.budget) // ROUNDED_TO) * ROUNDED_TO
        policy = _policy(settings, args, tokenizer)
        slot = bytes_per_slot(shape, dtype, [] if policy is None else [policy])
        windows = (rows + 1) * shape.bytes_per_state(dtype)
        shared = {"slots": rows * bound * slot + windows, "slots_of": f"{rows} rows x {bound}", "rollout_copy": copied}
        shared["sleeps"] = args.rollout_enable_sleep_mode
    elif args.rollouts == "transformers":
        shared = {"growing": rows * (tokens * shape.bytes_per_slot(dtype) + shape.bytes_per_state(dtype))}
    elif args.vllm_mode == "colocate":
        share = args.vllm_gpu_memory_utilization
        shared = {"slots": int(share * memory), "slots_of": f"vllm_gpu_memory_utilization={share:g}"}
        shared["sleeps"] = args.vllm_enable_sleep_mode
    return RunNeeds(
        weights=(weights + (weights if has_reference else 0)) // parts,
        gradients=trained * (2 if processes > 1 and not sharded else 1) // parts,
        optimizer=optimizer_bytes(str(getattr(args.optim, "value", args.optim)), trained) // parts,
        update=_update_bytes(args, model, base, tokens),
        **shared,
    )


def step_size(args: Any) -> StepSize:
    """What a step of these settings does."""
    return StepSize(
        responses=args.world_size * args.per_device_train_batch_size * args.gradient_accumulation_steps,
        group=args.num_generations,
        max_tokens=args.max_completion_length,
        generated=args.generation_batch_size,
        rounds=args.oversample * (args.max_num_gen_batches if args.dynamic_sampling else 1),
        steps=args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps,
    )


def longest_prompt(dataset: Dataset, tokenizer: Any, args: Any) -> int:
    """Tokens of the longest prompt, or nearly: of those with the most characters."""
    options = args.chat_options
    chats = [prompt if isinstance(prompt, str) else options.messages(prompt) for prompt in dataset["prompt"]]
    longest = sorted(chats, key=lambda chat: len(str(chat)), reverse=True)[:LONGEST]
    encode = partial(encode_chat, tokenizer, split_special_tokens=options.split_special_tokens)
    return max(
        len(tokenizer(chat).input_ids if isinstance(chat, str) else encode(chat, options.chat_template_kwargs))
        for chat in longest
    )


def is_sharded(args: Any) -> bool:
    """Whether weights, gradients and optimizer are spread over the processes."""
    return _is_on("ACCELERATE_USE_FSDP") or bool(args.fsdp) or getattr(args.deepspeed_plugin, "zero_stage", 0) == 3


def may_offload(args: Any) -> bool:
    """Whether parts of weights, gradients or optimizer may be on the host, or spread in ways that are not counted."""
    config = args.fsdp_config if isinstance(args.fsdp_config, Mapping) else {}  # text where nobody reads it
    offloaded = _is_on("FSDP_OFFLOAD_PARAMS") or bool(config.get("cpu_offload"))
    return offloaded or args.deepspeed_plugin is not None


def _is_on(name: str) -> bool:
    """What `accelerate launch` says by the environment."""
    return os.environ.get(name, "false").lower() in ("true", "1")


def _update_bytes(args: Any, model: Any, base: Any, tokens: int) -> int | None:
    if kv_shape(base.config).states is not None:
        return None  # its layers keep different amounts, and which kernels run is not known
    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    rows, head = args.per_device_train_batch_size, base.get_output_embeddings().weight
    in_torch = args.device.type == "cpu"  # there TRL's head scores prompts too
    of_head = head_bytes(
        tokens=rows * (tokens if in_torch else min(tokens, args.max_completion_length)),
        hidden_size=base.config.hidden_size,
        words=base.config.vocab_size,
        number=(autocast or base.dtype).itemsize,
        trained=head.requires_grad,
        in_torch=in_torch,
    )
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # which tells of each operation that has no trace
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        kept = trace_activations(model, rows=rows, tokens=tokens, autocast=autocast)
    except Exception:  # whatever a model's code cannot do without memory: an estimate ends no run
        return None
    finally:
        logger.setLevel(level)
    return kept.peak(checkpointed=args.gradient_checkpointing) + of_head


def _policy(settings: Mapping[str, Any], args: Any, tokenizer: Any) -> Policy | None:
    """What ranks the rollouts' slots, with a predictor that has no weights; None where its file is not known yet."""
    found = parse_spec(args.rollout_policy)
    if found.kind.target is None:
        return make_policy(args.rollout_policy, tokenizer=tokenizer)
    file = args.rollout_predictor
    if file is None and settings.get("model", TINY) == TINY:
        file = predictors_path() / f"{found.name}.safetensors"
    if file is None or not Path(file).is_file():
        return None
    names = ("target", "hidden_size", "horizons", "offsets", "granularity", "num_sets", "width")
    known = {name: value for name, value in read_metadata(file).items() if name in names}
    with torch.device("meta"):
        predictor = Predictor(**known | {name: tuple(known[name]) for name in ("horizons", "offsets")})
    return make_policy(args.rollout_policy, predictor)


def _bytes(weights: Any) -> int:
    return sum(weight.nbytes for weight in weights)


def _weight_bytes(model: Any, settings: Mapping[str, Any]) -> int:
    """Of the policy, whose layers' products may be quantized."""
    whole = all_bytes(model)
    for name, number in QUANTIZED_BYTES.items():
        if settings.get(name):
            base = model.get_base_model()
            products = [part for part in base.base_model.layers.modules() if isinstance(part, nn.Linear)]
            plain = [part for part in products if not part.weight.requires_grad]
            whole -= int(sum(part.weight.nbytes - part.weight.numel() * number for part in plain))
    return whole


def _memory(device: torch.device) -> tuple[int | None, str, int]:
    """Bytes of the device in all, None where they are not known, its name, and how many processes share them."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, str(device), 1
    if device.type == "cpu":
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return pages, "this machine", int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return None, str(device), 1


def _lower(settings: Mapping[str, Any], args: Any, needs: RunNeeds) -> str:
    """Which settings make a run smaller, those first that make most of the difference."""
    cures = {
        "train adapters alone (lora: {})": (needs.gradients + needs.optimizer) * (settings.get("lora") is None),
        f"lower rollout_rows (now {args.rollout_rows}) or max_completion_length (now {args.max_completion_length})": (
            needs.slots * (args.rollouts == "engine")
        ),
        f"lower vllm_gpu_memory_utilization (now {args.vllm_gpu_memory_utilization:g})": (
            needs.slots * (args.rollouts == "vllm")
        ),
        "give dtype: bfloat16": (
            needs.weights // 2 * (settings.get("lora") is not None and settings.get("dtype", "float32") == "float32")
        ),
        f"lower per_device_train_batch_size (now {args.per_device_train_batch_size})": max(1, needs.update or 0),
        "give gradient_checkpointing: true": (needs.update or 0) * (not args.gradient_checkpointing),
    }
    found = sorted((name for name in cures if cures[name]), key=lambda name: -cures[name])
    return ", ".join(found)
