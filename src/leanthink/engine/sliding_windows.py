"""Keys and values of layers with a sliding window: of each request those of its latest tokens, in a ring.

Position p lies at p modulo the window W. Keys are rotated when they are written, and attention does not ask in which
order they lie: to decode, a ring is an allocation of W slots that begins at the request's state index times W.

L sliding layers   P keys, values   H kv heads   T places of all rings   D head dim   N rows   A query heads (H * G)
S tokens fed   E tokens before a chunk
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from leanthink.engine.causal_attention import causal_attention
from leanthink.engine.forward_batch import DecodeBatch, PrefillBatch, PromptChunk, WindowChunk, by_allocation
from leanthink.engine.layer_kv import LayerKV, layers_of
from leanthink.models.kv_shape import KVShape


class SlidingWindows:
    """The rings of up to `rows` requests, and one that is nobody's: rows without a request write there.

    Args:
        shape: of the model, which has sliding layers.
        rows: most requests at a time.
        dtype: of keys and values.
        device: where they lie.
    """

    def __init__(self, shape: KVShape, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.window, self.rows = shape, shape.window, rows
        places = (rows + 1) * shape.window
        sizes = (len(shape.sliding_layers), 2, shape.window_kv_heads, places, shape.window_head_dim)
        self.kv_LPHTD = torch.zeros(sizes, dtype=dtype, device=device)
        self._layers = dict(zip(shape.sliding_layers, layers_of(self.kv_LPHTD), strict=True))

    def layer(self, model_layer: int) -> LayerKV:
        """Keys and values of a layer of the model."""
        return self._layers[model_layer]

    def announced(self, slots: DecodeBatch, states_N: Tensor, next_N: Tensor, *, packed: bool) -> DecodeBatch:
        """The step that is announced as `slots`, with what sliding layers are told of it.

        Args:
            slots: what layers of full attention are told.
            states_N: state index of each row, of those that do not live, too.
            next_N: position of each row's new token.
            packed: whether one call attends to all rings, on a CPU.
        """
        assert slots.states_N is not None
        last_N = next_N.clamp(max=self.window - 1)
        longest, fixed = min(slots.longest, self.window), {}
        if packed:
            longest = int(last_N.max()) + 1
            fixed = by_allocation(states_N, last_N, int(states_N.max()) + 1, longest=longest, dtype=self.kv_LPHTD.dtype)
        windows = DecodeBatch(
            starts_N=states_N * self.window,
            last_N=last_N,
            write_N=slots.states_N * self.window + next_N % self.window,
            live_N=slots.live_N,
            longest=longest,
            largest=self.window,
            **fixed,
        )
        return replace(slots, windows=windows)

    def chunks(self, chunks: Sequence[PromptChunk]) -> tuple[WindowChunk, ...]:
        """Where these chunks of prompts, fed one after the other, are read and written."""
        found, first, device = [], 0, self.kv_LPHTD.device
        for chunk in chunks:
            end, start = chunk.done + chunk.tokens, chunk.allocation.state_index * self.window
            earlier_E = torch.arange(max(0, chunk.done - self.window + 1), chunk.done, device=device)
            kept = min(chunk.tokens, self.window)
            latest_K = torch.arange(end - kept, end, device=device)
            behind = first + chunk.tokens
            found.append(
                WindowChunk(
                    fed=slice(first, behind),
                    earlier_E=start + earlier_E % self.window,
                    latest=slice(behind - kept, behind),
                    write_K=start + latest_K % self.window,
                )
            )
            first = behind
        return tuple(found)

    def prefill(
        self,
        model_layer: int,
        batch: PrefillBatch,
        qkv: tuple[Tensor, Tensor, Tensor],
        scaling: float,
        sinks_A: Tensor | None,
    ) -> Tensor:
        """Attend to what the tokens of the chunks see, and write the latest of them.

        Args:
            model_layer: a sliding layer of the model.
            batch: the announced forward.
            qkv: queries [1, A, S, D], keys and values [1, H, S, D], all of them rotated.
            scaling: factor on the dot products.
            sinks_A: as of `leanthink.engine.causal_attention`.

        Returns:
            Outputs [1, A, S, D].
        """
        kept_PHTD, outs = self.layer(model_layer).kv_PHTD, []
        for chunk in batch.windows:
            query, *fed = (given[:, :, chunk.fed] for given in qkv)
            keys, values = (
                torch.cat([kept_HTD[None, :, chunk.earlier_E], new], dim=2)
                for kept_HTD, new in zip(kept_PHTD, fed, strict=True)
            )
            outs.append(causal_attention(query, keys, values, scaling, window=self.window, sinks_A=sinks_A))
            for kept_HTD, new in zip(kept_PHTD, qkv[1:], strict=True):
                kept_HTD[:, chunk.write_K] = new[0, :, chunk.latest]
        return torch.cat(outs, dim=2)

    def scrub(self, state_index: int) -> None:
        """Zero the ring of a request in which a NaN may lie."""
        self.kv_LPHTD[:, :, :, state_index * self.window : (state_index + 1) * self.window] = 0
