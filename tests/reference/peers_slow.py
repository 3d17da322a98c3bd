"""The reference implementation of a run under a policy: a request's slots as lists, ranked by `policies_slow`.

It is fed what the layers computed (queries, keys, values of one token after the other) and says which positions every
layer and head holds. Everything that a policy is shown is worked out anew, in Python's floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from reference.policies_slow import Key, Row

Slot = dict[str, Any]


class SlowRun:
    """One request: `heads[layer][head]` is what that head of that layer holds, oldest first."""

    def __init__(
        self,
        rank: Callable[[Row], list[Key]],
        *,
        layers: int,
        kv_heads: int,
        scaling: float,
        prompt: int,
        pinned: int,
        slots: int,
        window: int,
        interval: int,
        seed: int,
        num_queries: int,
        shared: bool,
    ) -> None:
        self.rank, self.scaling, self.prompt, self.pinned, self.seed = rank, scaling, prompt, pinned, seed
        self.slots, self.window, self.interval = slots, window, interval
        self.num_queries, self.shared = num_queries, shared
        self.heads: list[list[list[Slot]]] = [[[] for _ in range(kv_heads)] for _ in range(layers)]
        self.queries: list[dict[int, list[list[list[float]]]]] = [{} for _ in range(layers)]
        self.evictions = 0

    def feed(self, layer: int, position: int, token_id: int, keys: Any, values: Any, queries: Any) -> None:
        """One token of one layer: keys and values [H][D], queries [H][G][D]."""
        self.queries[layer][position] = queries
        for head, slots in enumerate(self.heads[layer]):
            slot = {"position": position, "key": keys[head], "value": values[head], "accumulated_attention": 0.0}
            slots.append(slot | {"token_id": token_id})
            for query in queries[head]:
                weights = [self._weight(query, slot) for slot in slots]
                for slot, weight in zip(slots, weights, strict=True):
                    slot["accumulated_attention"] += weight / sum(weights)

    def _weight(self, query: list[float], slot: Slot) -> float:
        return math.exp(self.scaling * sum(a * b for a, b in zip(query, slot["key"], strict=True)))

    def evict_if_due(self, position: int) -> None:
        """After every layer was fed the token at this position."""
        if len(self.heads[0][0]) - self.pinned != self.slots + self.interval:
            return
        self.evictions += 1
        rows = [self._rows(layer, position + 1) for layer in range(len(self.heads))]
        for layer, heads in enumerate(self.heads):
            for head, slots in enumerate(heads):
                ranks = self.rank(rows[0][0] if self.shared else rows[layer][head])
                kept = self._kept(ranks)
                heads[head] = slots[: self.pinned] + [slots[self.pinned + index] for index in kept]

    def _kept(self, ranks: list[Key]) -> list[int]:
        older = range(len(ranks) - self.window)
        best = sorted(older, key=lambda index: (ranks[index], index), reverse=True)[: self.slots - self.window]
        return sorted(best) + list(range(len(ranks) - self.window, len(ranks)))

    def _rows(self, layer: int, next_position: int) -> list[Row]:
        """What the policy is shown of each head of a layer."""
        dim, group = len(self.heads[layer][0][0]["key"]), len(self.queries[layer][0][0])
        zeros = [[0.0] * dim] * group
        asked = range(next_position - self.num_queries, next_position)
        rows: list[Row] = []
        for head, slots in enumerate(self.heads[layer]):
            shown = slots[self.pinned :]
            known = [self.queries[layer][p][head] if p >= self.prompt - 1 else zeros for p in asked]
            queries = [[known[index][g] for index in range(len(known))] for g in range(group)]
            row: Row = {name: [slot[name[:-1]] for slot in shown] for name in ("keys", "values", "token_ids")}
            row |= {
                "accumulated_attention": [slot["accumulated_attention"] for slot in shown],
                "positions": [slot["position"] for slot in shown],
                "ages": [next_position - 1 - slot["position"] for slot in shown],
                "queries": queries,
                "pinned_log_sums": [[self._log_sum(q, slots[: self.pinned]) for q in of_head] for of_head in queries],
                "next_position": next_position,
                "prompt_tokens": self.prompt,
                "seed": self.seed,
                "scaling": self.scaling,
                "layer": layer,
                "head": head,
            }
            rows.append(row)
        whole = {name: [row[name] for row in rows] for name in ("keys", "ages", "queries", "pinned_log_sums")}
        return [row | {"layer's": whole} for row in rows]

    def _log_sum(self, query: list[float], slots: list[Slot]) -> float:
        return math.log(sum(self._weight(query, slot) for slot in slots)) if slots else -math.inf

    def positions(self) -> list[list[list[int]]]:
        """Of every layer and head."""
        return [[[slot["position"] for slot in slots] for slots in heads] for heads in self.heads]
