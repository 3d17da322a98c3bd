"""Tokens of two engines side by side, and why those differ that do: near choices of the model, or of its predictor."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vllm_real
from vllm_parts import request_seeds

NEAR = 0.6  # nats: a choice of the model's that rounding in bfloat16 may turn
PAIRS = {
    "plugin without a budget, vLLM alone": ("plugin-full", "alone-full"),
    "vLLM alone, vLLM alone in another order": ("alone-again", "alone-full"),
    "vLLM alone, ours": ("alone-full", "ours-full"),
}


class Scores:
    """What policies say of slots at every eviction, by the request's seed and the position that is next."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int], tuple[list[int], list[float]]] = {}

    def watch(self, policies: Sequence[str]) -> None:
        """From now on, in this process."""
        from leanthink.policies import POLICIES

        for kind in {POLICIES[name] for name in policies}:
            kind.score = self._noted(kind.score)  # type: ignore[method-assign]

    def take(self, path: Path) -> None:
        """Write what was noted since the last time."""
        import torch

        torch.save(self.found, path)
        self.found = {}

    def _noted(self, score: Any) -> Any:
        def noted(policy: Any, slots: Any) -> Any:
            scores = score(policy, slots)
            import torch

            if not (scores.is_cuda and torch.cuda.is_current_stream_capturing()):
                rows = zip(slots.seeds.tolist(), slots.next_position.tolist(), slots.positions.tolist(),
                           scores.float().tolist(), strict=True)  # fmt: skip
                self.found |= {(seed, after): (positions, values) for seed, after, positions, values in rows}
            return scores

        return noted


def compared(work: Path, policies: Sequence[str], budget: dict[str, int]) -> dict[str, Any]:
    """How many answers are the same, and of the others how near a choice the first token was that is not.

    Args:
        work: where the parts wrote their tokens and scores.
        policies: those that the embedded reasoner was asked under.
        budget: what its requests asked for.
    """
    pairs = PAIRS | {f"plugin, ours: {policy}": (f"plugin-{policy}", f"ours-{policy}") for policy in policies}
    pairs |= {f"plugin with {policy}, without a budget": (f"plugin-{policy}", "plugin-full") for policy in policies}
    pairs |= {f"two ranks, one: {policy}": (f"ranks-{policy}", f"plugin-{policy}") for policy in policies}
    asked = ["full", *(f"{policy}-{slots}" for policy in vllm_real.POLICIES for slots in vllm_real.BUDGETS)]
    pairs |= {f"real plugin, ours: {name}": (f"real-plugin-{name}", f"real-ours-{name}") for name in asked}
    pairs |= {f"real FP8, bfloat16: {name}": (f"real-fp8-{name}", f"real-plugin-{name}") for name in asked}
    pairs["real plugin without a budget, vLLM alone"] = ("real-plugin-full", "real-alone-full")
    pairs["real FP8 without a budget, vLLM alone"] = ("real-fp8-full", "real-fp8-alone-full")
    found: dict[str, Any] = {}
    for name, (left, right) in pairs.items():
        one, other = (_read(work / f"tokens-{side}.json") for side in (left, right))
        if one is None or other is None:
            continue
        differ = [_difference(index, a, b) for index, (a, b) in enumerate(zip(one, other, strict=True))]
        rows = [row for row in differ if row is not None]
        tokens = sum(len(answer["ids"]) for answer in other)
        before = tokens - sum(row["of"] - row["token"] for row in rows)
        found[name] = {
            "same": len(one) - len(rows), "of": len(one), "tokens": tokens, "before_differences": before,
            "near": sum(row["gap"] is not None and row["gap"] <= NEAR for row in rows),
            "evictions": sum(answer.get("evictions", 0) for answer in other),
        }  # fmt: skip
        if "right" in one[0]:
            found[name] |= _paired([[answer["right"] for answer in side] for side in (one, other)])
            gaps = [row["gap"] for row in rows if row["gap"] is not None]
            found[name]["largest_gap"] = max(gaps, default=None)
        if name.startswith("plugin, ours"):
            rows = _explained(rows, work / f"scores-{left}.pt", work / f"scores-{right}.pt", one, budget)
            found[name] |= _summary(rows) | {"first_differences": rows}
    return found


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many differences come after other slots were kept, by how much at most, and how near the others are."""
    swapped = [row for row in rows if "noise" in row]
    most = {f"{name}_most": max((row[name] for row in swapped), default=None) for name in ("swapped", "swap", "noise")}
    gaps = [row["gap"] for row in rows if "swap" not in row and row["gap"] is not None]
    return {"after_other_slots": len(swapped), **most, "largest_gap_else": max(gaps, default=None)}


def _paired(right: list[list[bool]]) -> dict[str, Any]:
    """Right answers of both sides, and the difference in points with its paired 95 % interval."""
    import torch

    from leanthink.eval.statistics import estimate, mean

    ours_P, theirs_P = torch.tensor(right, dtype=torch.float64)
    found = estimate(mean(100 * (ours_P - theirs_P)), len(ours_P))
    return {"right": [sum(side) for side in right], "points": [x and round(x, 2) for x in found.bounds]}


def _read(path: Path) -> list[dict[str, Any]] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _difference(index: int, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any] | None:
    if a["ids"] == b["ids"]:
        return None
    shorter = min(len(a["ids"]), len(b["ids"]))
    at = next((i for i in range(shorter) if a["ids"][i] != b["ids"][i]), shorter)
    gaps = a.get("gaps") or []
    return {"problem": index, "token": at, "of": len(b["ids"]), "gap": gaps[at] if at < len(gaps) else None}


def _explained(
    rows: list[dict[str, Any]], left: Path, right: Path, answers: list[dict[str, Any]], budget: dict[str, int]
) -> list[dict[str, Any]]:
    """For each difference the first eviction before it at which the two kept other slots, if there is one.

    `swap` is by how much, at most, either preferred what it kept to what it dropped; `noise` by how much the two differ
    about any slot; both as shares of the spread of that eviction's scores.
    """
    import torch

    from leanthink.policies.policy import OUTRANKS

    if not (left.exists() and right.exists()):
        return rows
    ours, theirs, seeds = torch.load(left), torch.load(right), request_seeds(len(answers))
    for row in rows:
        prompt, seed = answers[row["problem"]].get("prompt", 0), seeds[row["problem"]]
        times = sorted(after for who, after in ours if who == seed and after <= prompt + row["token"])
        for after in times:
            if (seed, after) not in theirs:
                row["swap"] = "other evictions"
                break
            (places, one), (same_places, other) = ours[seed, after], theirs[seed, after]
            if places != same_places:
                row["swap"] = "other slots"
                break
            kept, kept_there = _kept(one, budget), _kept(other, budget)
            if kept == kept_there:
                continue
            mine, its = kept - kept_there, kept_there - kept
            ranked = [i for i in range(len(one)) if one[i] < OUTRANKS / 2]  # not too young to have its scores
            spread = statistics.pstdev([one[i] for i in ranked]) or 1.0
            margins = [
                max(one[i] for i in mine) - min(one[i] for i in its),
                max(other[i] for i in its) - min(other[i] for i in mine),
            ]
            noise = max(abs(one[i] - other[i]) for i in ranked)
            row |= {"eviction": times.index(after), "swapped": len(mine), "swap": round(max(margins) / spread, 4),
                    "noise": round(noise / spread, 4), "tied": len(one) - len(set(one))}  # fmt: skip
            break
    return rows


def _kept(scores: list[float], budget: dict[str, int]) -> set[int]:
    import torch

    from leanthink.policies.budget import top_k_oldest_first

    return set(top_k_oldest_first(torch.tensor(scores), budget["budget"], budget["recent_window"]).tolist())
