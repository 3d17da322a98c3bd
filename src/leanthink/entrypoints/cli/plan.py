"""`leanthink plan`: how many requests fit into a GPU, and which budget to begin with, from a model's config alone."""

from __future__ import annotations

from dataclasses import asdict
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.collect import whole_numbers
from leanthink.entrypoints.cli.help import help_text, option
from leanthink.entrypoints.cli.output import print_json
from leanthink.utils.errors import UsageError, unknown

if TYPE_CHECKING:
    from leanthink.engine.memory_plan import MemoryPlan, Row

EXAMPLES = (
    "leanthink plan --model llama-3.1-8b --gpu-gib 24",
    "leanthink plan --model MODEL --gpu-gib 80 --concurrent 64 --max-model-len 32768 --json",
)
USUAL_TOKENS = 16384
Model = Annotated[
    str,
    option(
        "--model",
        about="tiny, a folder, a .gguf file, a hub id, or a known shape such as llama-3.1-8b.",
        default="tiny",
        metavar="NAME",
    ),
]
GPUGib = Annotated[float, option("--gpu-gib", about="Memory of the GPU.", metavar="GIB")]
Concurrent = Annotated[int, option("--concurrent", about="Requests that shall run at the same time.", default=16)]
Prompt = Annotated[int, option("--prompt", about="Tokens of each prompt.", default=512, metavar="TOKENS")]
MaxModelLen = Annotated[
    int | None,
    option(
        "--max-model-len",
        about="Most tokens of prompt and output.",
        default=f"{USUAL_TOKENS}, or the context where that is less",
        metavar="TOKENS",
    ),
]
Budgets = Annotated[
    str, option("--budgets", about="Thought slots that stay.", default="512,1024,2048,4096", metavar="N,...")
]
DType = Annotated[str | None, option("--dtype", about=f"{', '.join(options.DTYPES)}.", default="bfloat16, as on a GPU")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    sentence = "Tell how many requests fit into a GPU and a budget to begin with, without reading weights."
    app.command("plan", help=help_text(sentence, EXAMPLES))(command)


def command(
    gpu_gib: GPUGib,
    model: Model = "tiny",
    concurrent: Concurrent = 16,
    prompt: Prompt = 512,
    max_model_len: MaxModelLen = None,
    budgets: Budgets = "512,1024,2048,4096",
    eviction_interval: options.EvictionInterval = None,
    max_answer_slots: options.MaxAnswerSlots = None,
    dtype: DType = None,
    as_json: options.Json = False,
) -> None:
    """Read the config, and print what fits."""
    if dtype is not None and dtype not in options.DTYPES:
        raise unknown("dtype", dtype, options.DTYPES)
    if not 0 < gpu_gib < inf:
        raise UsageError(f"--gpu-gib {gpu_gib:g}: must be a number above 0")
    slots = whole_numbers("--budgets", budgets)
    from leanthink.engine.memory_plan import GIB, Workload, config_for, plan
    from leanthink.importance.labels import HORIZONS
    from leanthink.models.context import context_of
    from leanthink.models.loading import as_dtype, dtype_for
    from leanthink.policies.budget import Budget

    others = {"eviction_interval": eviction_interval, "max_answer_slots": max_answer_slots}
    given = {name: value for name, value in others.items() if value is not None}
    config = config_for(model)
    tokens = min(USUAL_TOKENS, context_of(config)) if max_model_len is None else max_model_len
    found = plan(
        config,
        dtype=dtype_for(as_dtype(dtype), "cuda", config),
        gpu_bytes=gpu_gib * GIB,
        workload=Workload(prompt_tokens=prompt, max_tokens=tokens, concurrent=concurrent),
        budgets=[Budget(slots=count, recent_window=0, **given) for count in slots],
        horizons=HORIZONS,
    )
    if as_json:
        print_json({"model": model, "gpu_gib": gpu_gib, "concurrent": concurrent, **_record(found)})
        return
    print("\n".join(_told(found, model, gpu_gib, concurrent)))


def _record(found: MemoryPlan) -> dict[str, Any]:
    return {**asdict(found), "dtype": str(found.dtype).removeprefix("torch.")}


def _told(found: MemoryPlan, model: str, gpu_gib: float, concurrent: int) -> list[str]:
    """The plan in words, with a table of what fits."""
    gib, shape = 2**30, found.shape
    states = f"; windows and states of a request: {found.bytes_per_state}" if found.bytes_per_state else ""
    head = f"{'budget':>10}  {'slots a request':>15}  {'GiB a request':>13}  {'requests at once':>16}"
    return [
        f"{model}: {shape.layers} layers x {shape.kv_heads} kv heads x {shape.head_dim}, context {found.context}, "
        f"{str(found.dtype).removeprefix('torch.')}",
        f"a token: {found.bytes_per_token} bytes of keys and values; a slot with what a policy remembers: "
        f"{found.bytes_per_slot}{states}",
        f"of {gpu_gib:g} GiB: weights {found.weight_bytes / gib:.2f}, slots {found.kv_bytes / gib:.2f}",
        "",
        head,
        *map(_line, found.rows),
        "",
        _advice(found, model, concurrent),
    ]


def _line(row: Row) -> str:
    name = "full cache" if row.budget is None else str(row.budget)
    return f"{name:>10}  {row.slots_per_request:>15}  {row.bytes_per_request / 2**30:>13.3f}  {row.requests:>16}"


def _advice(found: MemoryPlan, model: str, concurrent: int) -> str:
    """What to type next."""
    if found.full_fits:
        return f"{concurrent} requests fit with a full cache: no budget is needed (--policy full)"
    if found.suggested is None:
        return f"{concurrent} requests do not fit with any budget: ask for fewer, or shorter prompts and answers"
    return (
        f"for {concurrent} requests at once: leanthink serve --model {model} --budget {found.suggested} "
        f"--max-num-seqs {concurrent}\n"
        f"whether it is enough to think in: leanthink eval --model {model} --problems FILE.jsonl --ratios 2,4,6 "
        "--out FOLDER"
    )
