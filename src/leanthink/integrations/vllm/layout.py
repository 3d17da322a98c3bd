"""Where a token's numbers lie inside a block: asked of the kernel that writes them, as every build has its own order.

B blocks   H kv heads   S slots of a block   E numbers that a slot and head hold, keys and values   X = S * E
N tokens   D head dim   M moved slots
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from leanthink.utils.errors import UnsupportedModel

Write = Callable[[Tensor, Tensor, Tensor, Tensor], None]  # keys and values [N, H, D], cache, slots [N]
DIGIT = 128  # every whole number up to twice this is exact in bfloat16


class Layout:
    """Moves slots of a cache whose blocks have some fixed inner order.

    Args:
        write: what the attention layer writes its cache with.
        shape: of the cache, blocks and heads first.
        block_size: slots of a block.
        head_dim: D of keys and of values.
        dtype: of the cache.

    Raises:
        UnsupportedModel: what is written is not found again, each number once.
    """

    def __init__(
        self, write: Write, *, shape: Sequence[int], block_size: int, head_dim: int, dtype: torch.dtype
    ) -> None:
        self.block_size = block_size
        self.heads = shape[1]
        numbers = 2 * head_dim
        scratch = torch.zeros(1, *shape[1:], dtype=dtype)
        found_X = torch.zeros(block_size * numbers, dtype=torch.int64)
        for power in range(3):
            ids_SE = torch.arange(block_size * numbers).view(block_size, numbers)
            digits = (ids_SE // DIGIT**power % DIGIT + 1).to(dtype)
            written = digits[:, None].expand(-1, self.heads, -1)
            keys, values = (part.contiguous() for part in written.split(head_dim, dim=-1))
            write(keys, values, scratch, torch.arange(block_size))
            found_X += (scratch.view(1, self.heads, -1)[0, 0].long() - 1) * DIGIT**power
        if not torch.equal(found_X.sort().values, torch.arange(block_size * numbers)):
            raise UnsupportedModel(
                f"the attention kernel keeps {dtype} keys and values in a form in which they cannot be moved: "
                "start vLLM with the model's own dtype and without a quantised cache"
            )
        self.places_SE = found_X.argsort().view(block_size, numbers)

    def move(self, cache: Tensor, table: Tensor, sources_M: Tensor, targets_M: Tensor) -> None:
        """Copy slots of one request to places nearer to its start, all of them read before any is written.

        Args:
            cache: [B, H, ...], of one layer.
            table: the request's blocks, in its order.
            sources_M: its own slots, counted from its start.
            targets_M: where each goes.
        """
        assert cache.shape[1] == self.heads, tuple(cache.shape)
        assert cache[0, 0].numel() == self.places_SE.numel(), tuple(cache.shape)
        flat_BHX = cache.view(len(cache), self.heads, -1)
        held = flat_BHX[self._index(table, sources_M)]
        flat_BHX[self._index(table, targets_M)] = held

    def _index(self, table: Tensor, slots_M: Tensor) -> tuple[Tensor, slice, Tensor]:
        blocks_M = table[slots_M // self.block_size].long()
        return blocks_M[:, None], slice(None), self.places_SE[slots_M % self.block_size]
