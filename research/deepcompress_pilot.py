"""The pilot of `research/deepcompress.py`: what a start does with training problems, before anything is trained."""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from deepcompress_run import completed, judged, told, write

from leanthink.data.tasks import registry
from leanthink.data.tasks.scratchpad import STYLES
from leanthink.engine.bench.measure import spread
from leanthink.models.loading import load
from leanthink.utils.provenance import provenance_record


def pilot(options: argparse.Namespace) -> str:
    """What the start does with training problems, group by group: written, and told as Markdown."""
    model, tokenizer = load(options.start)
    cells = [(family, level) for level in reversed(registry.LEVELS) for family in options.families]
    problems = [p for cell in cells for p in registry.sample(*cell, options.asked, options.seeds[0], "train")]
    asked = [p for p in problems for _ in range(options.group)]
    how = {"temperature": options.temperature, "max_new_tokens": options.max_tokens}
    started = time.time()
    completions = completed(model, tokenizer, asked, max_rows=options.eval_rows, **how)
    found = judged(asked, completions)
    families = (None, *options.families)
    rows = [_pilot_row(found, options.group, level, family) for level in registry.LEVELS for family in families]
    names = [_style(done.thought) for done in completions]
    styles = [row for level in registry.LEVELS for row in _style_rows(found, names, level)]
    seconds = time.time() - started
    result = {
        "settings": told(options),
        "birth": provenance_record(),
        "seconds": seconds,
        "rows": rows,
        "styles": styles,
    }
    write(options.out / "pilot.json", result)
    head = "| level | family | problems | pass ratio | p10 | median | p90 | all right | all wrong | tokens | p90 "
    lines = [f"{head}| unfinished |", "|---" * 12 + "|", *map(_pilot_line, rows), ""]
    lines += ["| level | style | share | right | tokens |", "|---" * 5 + "|", *map(_style_line, styles)]
    return "\n".join(lines) + "\n"


def _style(thought: str) -> str:
    """The teacher's style that a thought begins like."""
    return next((style.name for style in STYLES if thought.startswith(style.opening)), "other")


def _style_rows(found: dict[str, list[Any]], names: list[str], level: int) -> list[dict[str, Any]]:
    """Of one level: how often each style was chosen, how often it was right, how long it was."""
    of_level = [i for i, own in enumerate(found["level"]) if own == level]
    rows = []
    for name in (*(style.name for style in STYLES), "other"):
        chosen = [i for i in of_level if names[i] == name]
        if chosen:
            right, tokens = ([found[column][i] for i in chosen] for column in ("right", "thought_tokens"))
            means = {"right": sum(right) / len(chosen), "thought_tokens": sum(tokens) / len(chosen)}
            rows.append({"level": level, "style": name, "share": len(chosen) / len(of_level), **means})
    return rows


def _style_line(row: dict[str, Any]) -> str:
    return (
        f"| {row['level']} | {row['style']} | {row['share']:.2f} | {row['right']:.3f} | {row['thought_tokens']:.0f} |"
    )


def _pilot_row(found: dict[str, list[Any]], group: int, level: int, family: str | None) -> dict[str, Any]:
    """Of one level, and of one family or all: pass ratios of its groups, thought tokens of its responses."""
    of_cell = [i for i, own in enumerate(found["level"]) if own == level and family in (None, found["family"][i])]
    right_BG = torch.tensor([found["right"][i] for i in of_cell]).double().view(-1, group)
    ratio_B = right_BG.mean(dim=1)
    return {
        "level": level,
        "family": family,
        "pass_ratios": ratio_B.tolist(),
        "pass_ratio": spread(ratio_B.tolist()),
        "all_right": float((ratio_B == 1).double().mean()),
        "all_wrong": float((ratio_B == 0).double().mean()),
        "thought_tokens": spread([float(found["thought_tokens"][i]) for i in of_cell]),
        "unfinished": sum(found["unfinished"][i] for i in of_cell) / len(of_cell),
    }


def _pilot_line(row: dict[str, Any]) -> str:
    ratio, tokens = row["pass_ratio"], row["thought_tokens"]
    cells = [str(row["level"]), row["family"] or "all", str(ratio["n"])]
    cells += [f"{ratio[name]:.2f}" for name in ("mean", "p10", "median", "p90")]
    cells += [f"{row[name]:.2f}" for name in ("all_right", "all_wrong")]
    cells += [f"{tokens[name]:.0f}" for name in ("mean", "p90")] + [f"{row['unfinished']:.2f}"]
    return f"| {' | '.join(cells)} |"
