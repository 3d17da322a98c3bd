"""The slow twin of the bounded cache: per row, layer and head a plain list of slots, each a dict."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Slot = dict[str, Any]


class SlowCache:
    """`rows[row][layer][head]` is the list of slots that this head of this layer holds, oldest first."""

    def __init__(self, layers: int, kv_heads: int) -> None:
        self.layers, self.kv_heads = layers, kv_heads
        self.rows: list[list[list[list[Slot]]]] = []
        self.prompts: list[int] = []
        self.fed: list[int] = []

    def admit(self, keys_LHPD: Tensor, values_LHPD: Tensor) -> None:
        """A new row with a prompt of P tokens."""
        self.rows.append([[[] for _ in range(self.kv_heads)] for _ in range(self.layers)])
        self.prompts.append(keys_LHPD.shape[2])
        self.fed.append(0)
        for token in range(keys_LHPD.shape[2]):
            self.append(len(self.rows) - 1, keys_LHPD[:, :, token], values_LHPD[:, :, token], stamp=None)

    def append(self, row: int, keys_LHD: Tensor, values_LHD: Tensor, stamp: list[float] | None) -> None:
        """One more token in every layer and head of a row."""
        for layer in range(self.layers):
            for head in range(self.kv_heads):
                slot = {"position": self.fed[row], "key": keys_LHD[layer, head].tolist(), "stamp": stamp}
                self.rows[row][layer][head].append({**slot, "value": values_LHD[layer, head].tolist()})
        self.fed[row] += 1

    def evict(self, row: int, layer: int, head: int, kept: list[int]) -> None:
        """Keep the prompt and these thought slots of one head."""
        slots, prompt = self.rows[row][layer][head], self.prompts[row]
        self.rows[row][layer][head] = slots[:prompt] + [slots[prompt + index] for index in kept]

    def retire(self, row: int) -> None:
        """The last row takes the place of this one."""
        for table in (self.rows, self.prompts, self.fed):
            table[row] = table[-1]
            table.pop()
