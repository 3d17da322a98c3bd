"""The picture of one trace: which of its tokens were held at each step, and how many slots that took."""

from __future__ import annotations

import importlib.util
from itertools import accumulate
from pathlib import Path
from typing import Any

from leanthink.data.traces.trace import Trace
from leanthink.utils.errors import UsageError

HELD, FULL, GONE = "#1f6f5c", "#b9b4a8", "#eee9e0"


def check_matplotlib() -> None:
    """Raise UsageError unless matplotlib, which is an extra, is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("the picture needs matplotlib: pip install 'leanthink[eval]'")


def held_steps(trace: Trace) -> list[tuple[int, int]]:
    """For each token that got a slot the steps [first, end) at which it held it; at step n n tokens were generated.

    The last generated token never gets a slot: nothing reads it.

    Raises:
        UsageError: the trace does not say when its tokens were evicted.
    """
    if trace.evicted_at is None:
        raise UsageError(f"the trace {trace.key} does not say when its tokens were evicted: collect it with --record")
    last = len(trace.token_ids)
    # An eviction comes after the slot of its own step was written: at that step all were held still.
    ends = [last if evicted is None else evicted + 1 for evicted in trace.evicted_at[:-1]]
    return [(token + 1, end) for token, end in enumerate(ends)]


def held_slots(trace: Trace) -> list[int]:
    """Slots held at each step from 1 on, prompt included; raises like `held_steps`."""
    change = [0] * (len(trace.token_ids) + 1)
    for first, end in held_steps(trace):
        change[first] += 1
        change[end] -= 1
    return [len(trace.prompt_ids) + held for held in accumulate(change)][1:-1]


def draw_kept(trace: Trace, path: Path) -> None:
    """Write a PNG: left, token (x) held at step (y) is shaded; right, the slots held at each step beside a full cache.

    Raises:
        UsageError: matplotlib is missing, or the trace does not say when its tokens were evicted.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    held, prompt = held_slots(trace), len(trace.prompt_ids)
    steps = range(1, len(held) + 1)
    figure = Figure(figsize=(11, 7), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    _draw_tokens(left, trace)
    right.fill_betweenx(steps, held, color=HELD, linewidth=0, label=f"slots held, {max(held)} at most")
    right.plot(
        [prompt + step for step in steps], steps, color=FULL, label=f"slots of a full cache, {prompt + len(held)}"
    )
    right.set(title="Slots held at each step", xlabel="slots, prompt included", xlim=(0, None))
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    kept = "" if trace.budget is None else f", {trace.budget['slots']} + {trace.budget['interval']} thought slots"
    figure.suptitle(f"What the cache kept: policy {trace.policy}{kept}\n{trace.problem}", fontsize="medium", wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_tokens(axes: Any, trace: Trace) -> None:
    """One column a token, from the step that wrote it down to the one that evicted it."""
    firsts, ends = zip(*held_steps(trace), strict=True)
    heights = [end - first for first, end in zip(firsts, ends, strict=True)]
    tokens = range(len(firsts))
    axes.bar(tokens, heights, bottom=firsts, width=1.0, color=HELD, linewidth=0, label="in the cache")
    gone = [len(firsts) + 1 - end for end in ends]
    axes.bar(tokens, gone, bottom=ends, width=1.0, color=GONE, linewidth=0, label="evicted")
    if trace.answer_tokens:
        axes.axhline(trace.thought_tokens + 1, color="black", linewidth=0.8, linestyle=":")
        axes.annotate(
            "</think>: the answer begins",
            (len(firsts), trace.thought_tokens + 1),
            ha="right",
            va="bottom",
            fontsize="small",
        )
    axes.set(
        title="Each column is a token: written where it begins, evicted where its colour ends",
        xlabel="token, in the order of writing",
        ylabel="step: tokens generated so far",
        xlim=(0, len(firsts)),
        ylim=(len(firsts), 1),
    )
