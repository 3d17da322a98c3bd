"""The attention backend: vLLM's own for the CPU, on the slots that are held instead of the positions that were fed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec

from leanthink.integrations.vllm.layout import Layout
from leanthink.integrations.vllm.lengths import Piece
from leanthink.integrations.vllm.manager import BoundedSpec, bounded_spec
from leanthink.integrations.vllm.row import Row
from leanthink.integrations.vllm.step import Step, SubBatch, TokenSpan, sub_batches_of
from leanthink.integrations.vllm.worker import worker_here, worker_of
from leanthink.utils.errors import UnsupportedModel


class BoundedBackend(CPUAttentionBackend):  # type: ignore[misc]  # vLLM is not there when types are checked
    """Registered in place of CPU_ATTN."""

    @staticmethod
    def get_builder_cls() -> type[BoundedBuilder]:
        """Ours."""
        return BoundedBuilder

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """The same spec under our own type, which is what makes the scheduler choose our manager."""
        if type(spec) is BoundedSpec:
            return spec
        if type(spec) is not FullAttentionSpec:
            raise UnsupportedModel(f"a layer's cache is of type {type(spec).__name__}: only full attention is served")
        return bounded_spec(spec, worker_here().tokenizer_name)


class BoundedBuilder(CPUAttentionMetadataBuilder):  # type: ignore[misc]  # as above
    """Prepares each step: sees every length, slot and block of it before any layer runs."""

    def __init__(
        self, kv_cache_spec: AttentionSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.worker = worker_of(vllm_config)
        self._layers = get_layers_from_vllm_config(vllm_config, Attention, layer_names)
        layer: Any = next(iter(self._layers.values()))

        def write(keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
            layer.impl.do_kv_cache_update(layer, keys, values, cache, slots)

        shape = (1, kv_cache_spec.num_kv_heads, self.block_size, 2 * self.head_dim)
        self._layout = Layout(
            write, shape=shape, block_size=self.block_size, head_dim=self.head_dim, dtype=kv_cache_spec.dtype
        )

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CPUAttentionMetadata:
        """Metadata of the first sub-batch; all sub-batches wait in `Worker.step` for the model's forward."""
        rows = self.worker.rows
        if not rows:
            return super().build(common_prefix_len, common_attn_metadata, fast_build)
        sub_batches = sub_batches_of(self._spans(common_attn_metadata, rows))
        built = [
            self._sub_batch(common_attn_metadata, *sub_batch, alone=len(sub_batches) == 1) for sub_batch in sub_batches
        ]
        table = common_attn_metadata.block_table_tensor

        def compact(index: int, kept_K: Tensor, row: Row) -> None:
            self._compact(table[index], kept_K, row.prompt_tokens)

        self.worker.step = Step(sub_batches=built, compact=compact)
        metadata: CPUAttentionMetadata = built[0].metadata
        return metadata

    def _spans(self, common: CommonAttentionMetadata, rows: dict[int, Row]) -> list[TokenSpan]:
        """What each request of the batch feeds, in pieces that no eviction divides."""
        starts, lengths = common.query_start_loc_cpu.tolist(), common.seq_lens.tolist()
        assert max(rows) < common.num_reqs, "rows and batch do not agree"
        spans = []
        for index in range(common.num_reqs):
            start, tokens = starts[index], starts[index + 1] - starts[index]
            logical, row = lengths[index] - tokens, rows.get(index)
            whole = [Piece(tokens=tokens, first_slot=logical, evicts=False)]
            pieces = whole if row is None else row.pieces(logical, tokens)
            spans.append(TokenSpan(row=row, index=index, start=start, pieces=pieces))
        return spans

    def _sub_batch(
        self, common: CommonAttentionMetadata, parts: list[Any], tokens_n: Tensor, *, alone: bool
    ) -> SubBatch:
        """One forward: physical lengths in place of logical ones, and the slots that are free in place of positions."""
        index = torch.tensor([part.index for part in parts])
        counts = [part.piece.tokens for part in parts]
        ends = [part.piece.first_slot + part.piece.tokens for part in parts]
        table, size = common.block_table_tensor[index], self.block_size
        slots = []
        for place, part in enumerate(parts):
            own = torch.arange(part.piece.first_slot, ends[place])
            slots.append(table[place, own // size].long() * size + own % size)
        slots_n = torch.cat(slots)
        if alone:  # the layers' own mapping is this very tensor
            slots_n = common.slot_mapping[: len(slots_n)].copy_(slots_n)
        starts = torch.tensor([0, *counts]).cumsum(0).to(common.query_start_loc.dtype)
        fed = replace(
            common,
            query_start_loc=starts,
            query_start_loc_cpu=starts,
            seq_lens=torch.tensor(ends, dtype=common.seq_lens.dtype),
            num_reqs=len(parts),
            num_actual_tokens=len(slots_n),
            max_query_len=max(counts),
            max_seq_len=max(ends),
            block_table_tensor=table,
            slot_mapping=slots_n,
        )
        metadata = super().build(0, fed)
        return SubBatch(parts=parts, tokens_n=None if alone else tokens_n, metadata=metadata, slots_n=slots_n)

    def _compact(self, table: Tensor, kept_K: Tensor, prompt_tokens: int) -> None:
        """Move the kept thought slots of one request together, in every layer."""
        targets_K = torch.arange(len(kept_K))
        moved = (kept_K != targets_K).nonzero()[:, 0]
        sources_M, targets_M = prompt_tokens + kept_K[moved], prompt_tokens + targets_K[moved]
        for layer in self._layers.values():
            self._layout.move(layer.kv_cache, table, sources_M, targets_M)
