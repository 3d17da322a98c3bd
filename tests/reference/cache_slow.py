"""The reference implementation of the bounded cache: per request, layer and head a plain list of slots, each a dict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Slot = dict[str, Any]


@dataclass(eq=False)
class SlowRequest:
    """What one request holds.

    Attributes:
        heads: `heads[layer][head]` is the list of slots that this head of this layer holds, oldest first.
        prompt: tokens of its prompt, the last of which is fed by decoding.
        pinned: of its slots, those in front that are never evicted.
        watched: since when the attention that its slots get is added up: "never", "row" or "start".
        fed: tokens fed so far; the next one has this position.
        token_scores: for each slot, its scores, by column.
        queries: of the latest tokens that were decoded, by layer and position; empty before it takes a row.
        hidden_states: of the latest tokens that were decoded, by position.
    """

    heads: list[list[list[Slot]]]
    prompt: int
    pinned: int = 0
    watched: str = "never"
    fed: int = 0
    token_scores: list[dict[int, float]] = field(default_factory=list)
    queries: list[dict[int, list[Any]]] = field(default_factory=list)
    hidden_states: dict[int, list[float]] = field(default_factory=dict)


class SlowCache:
    """Requests whose prompts are fed, in `waiting`, and those that decode, in `rows`; requirements may grow."""

    def __init__(self, layers: int, kv_heads: int, scaling: float) -> None:
        self.layers, self.kv_heads, self.scaling = layers, kv_heads, scaling
        self.num_queries, self.num_hidden_states = 0, 0
        self.waiting: list[SlowRequest] = []
        self.rows: list[SlowRequest] = []

    def allocate(self, prompt: int) -> SlowRequest:
        """A new request, of which nothing is fed."""
        heads: list[list[list[Slot]]] = [[[] for _ in range(self.kv_heads)] for _ in range(self.layers)]
        self.waiting.append(SlowRequest(heads, prompt))
        return self.waiting[-1]

    def feed(self, request: SlowRequest, keys_LHD: Tensor, values_LHD: Tensor, queries_LHGD: Tensor) -> None:
        """One more token in every layer and head of a request."""
        position = request.fed
        for layer in range(self.layers):
            for head in range(self.kv_heads):
                key, value = keys_LHD[layer, head].tolist(), values_LHD[layer, head].tolist()
                slot = {"position": position, "key": key, "value": value, "accumulated_attention": 0.0}
                request.heads[layer][head].append(slot)
                if request.watched == "start" or (request.watched == "row" and request in self.rows):
                    _attend(request.heads[layer][head], queries_LHGD[layer, head].tolist(), self.scaling)
            if self.num_queries and request.queries:
                _keep_youngest(request.queries[layer], position, queries_LHGD[layer].tolist(), self.num_queries)
        request.token_scores.append({})
        request.fed += 1

    def copy_prompt(self, source: SlowRequest, target: SlowRequest) -> None:
        """An equal prompt, all but its last token, which is not fed a second time."""
        tokens = target.prompt - 1
        target.heads = [[[dict(slot) for slot in slots[:tokens]] for slots in heads] for heads in source.heads]
        target.token_scores, target.fed = [{} for _ in range(tokens)], tokens

    def assign_row(self, request: SlowRequest, pinned: bool) -> None:
        """The next row is this request's."""
        self.waiting.remove(request)
        request.pinned = request.prompt if pinned else 0
        request.queries = [{} for _ in range(self.layers)]
        self.rows.append(request)

    def store_hidden_state(self, row: int, state: list[float]) -> None:
        """Keep the state of the token fed last."""
        if self.num_hidden_states:
            _keep_youngest(self.rows[row].hidden_states, self.rows[row].fed - 1, state, self.num_hidden_states)

    def score(self, row: int, first: int, numbers: Sequence[float], late: int) -> None:
        """Attach numbers to the slot `late` slots before the last, if there is one."""
        token_scores = self.rows[row].token_scores
        if late < len(token_scores):
            token_scores[len(token_scores) - 1 - late] |= dict(enumerate(numbers, start=first))

    def evict(self, row: int, kept: list[Any]) -> None:
        """Keep what is pinned and these other slots: indices for all heads, or a list for each layer and head."""
        request = self.rows[row]
        shared = isinstance(kept[0], int)
        for layer, heads in enumerate(request.heads):
            for head, slots in enumerate(heads):
                chosen = kept if shared else kept[layer][head]
                heads[head] = slots[: request.pinned] + [slots[request.pinned + index] for index in chosen]
        thought = (
            [request.token_scores[request.pinned + index] for index in kept] if shared else [{} for _ in kept[0][0]]
        )
        request.token_scores = request.token_scores[: request.pinned] + thought

    def free_rows(self, rows: Sequence[int]) -> None:
        """The last rows, in their order, take the lowest numbers that these leave free."""
        left = len(self.rows) - len(rows)
        stay = [request for row, request in enumerate(self.rows) if row >= left and row not in rows]
        for row in sorted(row for row in rows if row < left):
            self.rows[row] = stay.pop(0)
        del self.rows[left:]


def _attend(slots: list[Slot], queries: list[list[float]], scaling: float) -> None:
    """Each query's softmax over the slots is added to what they got."""
    for query in queries:
        products = [sum(a * b for a, b in zip(query, slot["key"], strict=True)) for slot in slots]
        weights = [math.exp(scaling * product) for product in products]
        for slot, weight in zip(slots, weights, strict=True):
            slot["accumulated_attention"] += weight / sum(weights)


def _keep_youngest(kept: dict[int, Any], position: int, entry: Any, most: int) -> None:
    kept[position] = entry
    for old in [at for at in kept if at <= position - most]:
        del kept[old]
