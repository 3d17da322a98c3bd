"""The demonstration: one thought streamed beside its memory, then the policies compared at one budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from leanthink.data.problems import Problem, from_tasks
from leanthink.data.tasks import registry as tasks
from leanthink.data.think_tags import OPEN_TAG
from leanthink.data.traces.trace import Trace, read_traces
from leanthink.engine.generation import stream
from leanthink.engine.outputs import Completion, Step
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints.demo_plot import draw_kept
from leanthink.entrypoints.marked_text import EVICTED, MarkedText, marks
from leanthink.importance.collect import collect
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError

Progress = Callable[[str, int, int], None]
TAIL_LINES = 12  # of the thought, shown while it streams
BAR_WIDTH = 48


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the demonstration runs. The defaults fit into two minutes on two cores.

    Attributes:
        tasks: families and levels of the held-out problems; the first problem of the first one is streamed.
        count: problems of each of them.
        policies: what is compared, in this order; all but "full" get `budget`.
        max_new_tokens: where a request that has lost its thread is cut off.
    """

    tasks: tuple[tuple[str, int], ...] = (("multiply", 3), ("sums", 3), ("ledger", 2))
    count: int = 4
    seed: int = 0
    policies: tuple[str, ...] = ("full", "horizon", "dynts", "sinks", "random")
    budget: Budget = Budget(slots=160, recent_window=32, eviction_interval=32)  # noqa: RUF009 (frozen)
    max_new_tokens: int = 1280

    @property
    def problems(self) -> int:
        """How many each policy answers."""
        return len(self.tasks) * self.count


@dataclass(frozen=True, kw_only=True)
class Row:
    """One policy on all problems.

    Attributes:
        accuracy: share of right answers; `low` and `high` bound its 95 % Wilson interval.
        thought_tokens: mean over the problems, as are the next two.
        peak_slots: the most that a request held, prompt included.
        peak_kv_bytes: the size of those slots' keys and values.
        tokens_per_second: generated tokens of all requests, which run as one batch, per second of wall time.
    """

    policy: str
    problems: int
    accuracy: float
    low: float
    high: float
    thought_tokens: float
    peak_slots: float
    peak_kv_bytes: float
    tokens_per_second: float


def output_files(out: Path, plan: Plan) -> dict[str, Path]:
    """What the demonstration writes: traces by policy, and the picture."""
    return {policy: out / f"traces-{policy}.jsonl" for policy in plan.policies} | {"picture": out / "kept.png"}


def show_thought(model: Any, tokenizer: Any, plan: Plan, console: Console, predictors: Mapping[str, Any]) -> Completion:
    """Stream the first problem's thought under `horizon`, below a line of the slots it holds."""
    problem = sample_problems(plan)[0]
    settings: dict[str, Any] = {
        "policy": "horizon",
        "budget": plan.budget,
        "predictor": predictors.get("horizon"),
        "sampling": Sampling(max_new_tokens=plan.max_new_tokens),
    }
    console.print(Text(problem.problem, style="bold"))
    text = MarkedText(tag=OPEN_TAG, marked=marks(console))
    with Live(console=console, refresh_per_second=10) as live:
        for step in stream(model, tokenizer, problem.problem, record=True, **settings):
            text.push(step)
            shown = text.tail(console, TAIL_LINES) if step.completion is None else text.show()
            live.update(_frame(shown, step, plan.max_new_tokens))
    if marks(console):
        console.print(Text.assemble(("struck through", EVICTED), ": evicted from the cache before the end"))
    console.print()
    assert step.completion is not None
    return step.completion


def _frame(text: Text, step: Step, widest: int) -> Group:
    """Two bars to one scale, which a low window must not cut off, above the end of the text so far."""

    def bar(slots: int) -> str:
        return "█" * max(1, round(BAR_WIDTH * min(1.0, slots / widest)))

    return Group(
        Text(f"slots held {step.slots:>6} {bar(step.slots)}", style="green"),
        Text(f"full cache {step.full_slots:>6} {bar(step.full_slots)}", style="red"),
        text,
    )


def sample_problems(plan: Plan) -> list[Problem]:
    """The held-out problems of a plan."""
    chosen = [task for family, level in plan.tasks for task in tasks.sample(family, level, plan.count, plan.seed)]
    return from_tasks(chosen)


def compare(
    model: Any,
    tokenizer: Any,
    plan: Plan,
    out: Path,
    *,
    model_name: str,
    predictors: Mapping[str, Any],
    progress: Progress | None = None,
) -> list[Row]:
    """Run every policy on the same problems, greedily; writes the traces of each."""
    problems, files = sample_problems(plan), output_files(out, plan)
    rows = []
    for policy in plan.policies:
        start = time.perf_counter()
        if progress is not None:
            progress(policy, 0, len(problems))
        collect(
            model,
            tokenizer,
            problems,
            files[policy],
            samples=1,
            sampling=Sampling(max_new_tokens=plan.max_new_tokens),
            policy=policy,
            budget=None if policy == "full" else plan.budget,
            predictor=predictors.get(policy),
            model_name=model_name,
            record=True,
            overwrite=True,
            progress=None if progress is None else partial(progress, policy),
        )
        rows.append(summarize(policy, read_traces(files[policy]), time.perf_counter() - start))
    return rows


def summarize(policy: str, traces: Sequence[Trace], seconds: float) -> Row:
    """One row of the table."""
    correct = sum(bool(trace.correct) for trace in traces)
    low, high = wilson_interval(correct, len(traces))
    return Row(
        policy=policy,
        problems=len(traces),
        accuracy=correct / len(traces),
        low=low,
        high=high,
        thought_tokens=fmean(trace.thought_tokens for trace in traces),
        peak_slots=fmean(trace.peak_slots for trace in traces),
        peak_kv_bytes=fmean(trace.peak_kv_bytes for trace in traces),
        tokens_per_second=sum(len(trace.token_ids) for trace in traces) / seconds,
    )


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Bounds of a share, 95 % by default (Wilson, 1927): sound for few trials and for shares of 0 and 1."""
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def as_table(rows: Sequence[Row], plan: Plan) -> Table:
    """The rows as people read them."""
    budget = plan.budget
    slots = f"{budget.slots} + {budget.eviction_interval}"
    table = Table(title=f"Means of {rows[0].problems} held-out problems, greedy; budget {slots}")
    for heading in ("policy", "accuracy", "95 %", "thought", "peak slots", "peak KV", "tokens/s"):
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.policy,
            f"{row.accuracy:.1%}",
            f"{row.low:.0%}-{row.high:.0%}",
            f"{row.thought_tokens:.0f}",
            f"{row.peak_slots:.0f}",
            f"{row.peak_kv_bytes / 1e6:.2f} MB",
            f"{row.tokens_per_second:.0f}",
        )
    return table


def demo(
    model: Any,
    tokenizer: Any,
    out: Path,
    *,
    plan: Plan = Plan(),
    model_name: str = "tiny",
    predictors: Mapping[str, Any] | None = None,
    console: Console,
    progress: Progress | None = None,
) -> list[Row]:
    """Stream a thought to `console`, compare the policies, and write traces and picture into `out`.

    `predictors` are those of policies whose predictor is not shipped with the model. Files of an earlier run are
    replaced. `progress(policy, done, total)` is called before each policy's first trace and after each trace.

    Raises:
        UsageError: matplotlib is missing, or `horizon`, which is what the picture shows, is not in the plan.
    """
    if "horizon" not in plan.policies:
        raise UsageError(f"the picture shows horizon, and the plan compares {', '.join(plan.policies)}: add it")
    given = predictors or {}
    files = output_files(out, plan)
    show_thought(model, tokenizer, plan, console, given)
    rows = compare(model, tokenizer, plan, out, model_name=model_name, predictors=given, progress=progress)
    first = sample_problems(plan)[0].id
    shown = next(trace for trace in read_traces(files["horizon"]) if trace.id == first)
    draw_kept(shown, files["picture"])
    return rows
