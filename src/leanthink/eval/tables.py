"""Rows of numbers as text, for the terminal, Markdown and HTML: the same words and digits in all three."""

from __future__ import annotations

from collections.abc import Sequence

from leanthink.eval.configurations import Configuration
from leanthink.eval.metrics import Metrics
from leanthink.eval.statistics import Estimate

MISSING = "–"
Texts = list[str]


def shown(found: Estimate | None, scale: float = 1.0, style: str = ".1f") -> str:
    """Value [lower, upper bound]; a dash for what is not known."""
    if found is None or found.value is None:
        return MISSING
    bounds = [MISSING if bound is None else format(scale * bound, style) for bound in (found.low, found.high)]
    return f"{format(scale * found.value, style)} [{bounds[0]}, {bounds[1]}]"


def percent(found: Estimate | None, style: str = ".1f") -> str:
    """A share as per cent."""
    return shown(found, 100, style)


def number(value: float | None, style: str = ".0f", scale: float = 1.0) -> str:
    """A number, a dash where there is none."""
    return MISSING if value is None else format(scale * value, style)


def slots(configuration: Configuration) -> str:
    """Its budget as kept + interval."""
    return (
        "all"
        if configuration.budget is None
        else f"{configuration.budget.slots}+{configuration.budget.eviction_interval}"
    )


def accuracy_head(samples: Sequence[int]) -> Texts:
    """Column names of the table of accuracies; `samples` of each row."""
    majority = ["Maj@k, %"] if max(samples) > 1 else []
    passes = [f"Pass@{k}, %" for k in _shown_ks(samples)]
    return ["policy", "slots", "Pass@1, %", *passes, *majority, "strict, %", "cut off, %"]


def accuracy_row(name: str, configuration: Configuration, found: Metrics, samples: Sequence[int]) -> Texts:
    """The accuracies of a configuration under `accuracy_head` of the same samples."""
    passes = [percent(found.pass_at.get(k)) for k in _shown_ks(samples)]
    majority = [percent(found.majority)] if max(samples) > 1 else []
    strict, capped = percent(found.strict), number(found.capped, ".1f", 100)
    return [name, slots(configuration), percent(found.accuracy), *passes, *majority, strict, capped]


def _shown_ks(samples: Sequence[int]) -> list[int]:
    """Of the k of Pass@k, beside 1, which is always shown: 4, and all samples."""
    return sorted({k for count in samples for k in (min(4, count), count)} - {1})


COST_HEAD = [
    *("policy", "slots", "thought tokens", "longer than full, %", "answer tokens", "kept slots", "peak slots"),
    *("most slots", "peak KV, MB", "KV × steps, GB", "tokens per right answer", "seconds", "tokens/s"),
]


def cost_row(name: str, configuration: Configuration, found: Metrics) -> Texts:
    """What the answers of a configuration cost, under `COST_HEAD`."""
    return [
        name,
        slots(configuration),
        shown(found.thought_tokens, 1, ".0f"),
        percent(found.growth, "+.1f"),
        number(found.answer_tokens),
        number(found.kept_slots),
        number(found.peak_slots),
        number(found.most_slots),
        number(found.peak_kv_bytes, ".2f", 1e-6),
        number(found.kv_byte_steps, ".2f", 1e-9),
        shown(found.tokens_per_right, 1, ".0f"),
        number(found.seconds, ".0f"),
        number(found.tokens_per_second),
    ]


def matrix(rows: Sequence[tuple[str, Configuration, Metrics]]) -> tuple[Texts, list[Texts]]:
    """Head and rows of Pass@1 by name and slots, the most slots first; the full cache is the same in every column."""
    budgets = [configuration.budget for _, configuration, _ in rows]
    bounded = {budget.slots + budget.eviction_interval for budget in budgets if budget}
    columns = sorted(bounded, reverse=True) or [0]
    found: dict[str, dict[int, str]] = {}
    for name, configuration, row in rows:
        at = (
            columns
            if configuration.budget is None
            else [configuration.budget.slots + configuration.budget.eviction_interval]
        )
        found.setdefault(name, {}).update(dict.fromkeys(at, percent(row.accuracy)))
    head = ["Pass@1, %", *(f"{slots} slots" if slots else "all slots" for slots in columns)]
    return head, [[name, *(cells.get(slots, MISSING) for slots in columns)] for name, cells in found.items()]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Texts:
    """The lines of a Markdown table; the first column is words, the others stand to the right."""
    safe = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = "|---|" + "---:|" * (len(head) - 1)
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in safe)]


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as columns of text; the first two to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(w) if at < 2 else cell.rjust(w) for at, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
