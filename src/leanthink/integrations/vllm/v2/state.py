"""vLLM's model state: sees each step before and after its forward, outside of any CUDA graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from leanthink.data.think_tags import think_tags
from leanthink.integrations.vllm.lengths import LATE
from leanthink.integrations.vllm.manager import BoundedSpec
from leanthink.integrations.vllm.settings import asked_of
from leanthink.integrations.vllm.thought import Watch, tokenizer_of
from leanthink.integrations.vllm.v2.device_rows import Batch, Sampled
from leanthink.integrations.vllm.v2.platform import mover, shared_only
from leanthink.integrations.vllm.v2.rows import Request, Rows
from leanthink.integrations.vllm.v2.text_tags import TextTags
from leanthink.integrations.vllm.worker import worker_of
from leanthink.utils.errors import UnsupportedModel, UsageError


class BoundedModelState(DefaultModelState):  # type: ignore[misc]  # vLLM is not there when types are checked
    """Keeps the rows, hands attention the slots that are held, and evicts after the forward."""

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        if encoder_cache is not None or self.prompt_embeds_state is not None:
            raise UnsupportedModel("a model that takes more than tokens is not served")
        self.worker = worker_of(vllm_config)
        if not self.worker.policies:  # weights that were never loaded
            self.worker.make_policies(model, {}, shared=shared_only(vllm_config))
        settings = self.worker.settings
        self.rows = Rows(
            requests=self.max_num_reqs,
            most_slots=settings.max_thought_slots,
            policies=list(self.worker.policies.values()),
            state_size=2 * self.inputs_embeds_size,
            dtype=self.dtype,
            device=device,
        )
        self.lengths_R = torch.zeros(self.max_num_reqs, dtype=torch.int32, device=device)
        self._tags = think_tags(tokenizer_of(self.worker.tokenizer_name))
        self._text_tags = TextTags() if self._tags.only_in_text else None
        self._batch: Batch | None = None  # of the step under way, if any of its requests has a budget
        self._before: tuple[Tensor, Tensor] | None = None  # tokens fed and slots held before it
        self._req_states: Any = None
        self._move: Any = None
        self._block_size = 0

    def initialize_kv_cache(self, kv_cache_config: Any, block_tables: Any) -> None:
        """The cache is there."""
        super().initialize_kv_cache(kv_cache_config, block_tables)
        if len(kv_cache_config.kv_cache_groups) != 1:
            raise UnsupportedModel("layers with caches of several kinds are not served")
        spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
        if not isinstance(spec, BoundedSpec):
            raise UsageError(
                f"attention keeps its cache as {type(spec).__name__}, not in our form: give vLLM the attention backend "
                "FLASH_ATTN, or leave the choice to it"
            )
        self._block_size = int(block_tables.block_sizes[0])
        names = kv_cache_config.kv_cache_groups[0].layer_names
        layers = get_layers_from_vllm_config(self.vllm_config, Attention, names)
        self._move = mover([layers[name] for name in names], self._block_size, self.dtype)
        if torch.device(self.device).type == "cuda":
            self.rows.warm_up(self._move, self._block_size)

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """A request enters; one that was preempted brings its own tokens as part of its prompt."""
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        asked = None if params is None else asked_of(params.extra_args, self.worker.settings)
        if asked is None:
            self.rows.enter(req_index, None)
            if self._text_tags is not None:
                self._text_tags.enter(req_index, None, [])
            return
        tokens, prompt = list(new_req_data.prefill_token_ids), new_req_data.prompt_len
        if new_req_data.num_computed_tokens > prompt:
            raise UsageError("generated tokens came out of the prefix cache: use the plugin's own scheduler class")
        late = 0 if self._text_tags is None else LATE
        watch = Watch(tokens[:prompt], tokenizer_of(self.worker.tokenizer_name), late=late)
        if self._text_tags is not None:
            self._text_tags.enter(req_index, watch, tokens[prompt:])
        self.rows.enter(
            req_index,
            Request(
                prompt=prompt,
                budget=asked.budget,
                policy=self.worker.policies[asked.policy],
                seed=params.seed or 0,
                answer_at=watch.answer_at(tokens[prompt:]),
            ),
        )

    def apply_staged_writes(self) -> None:
        """All requests of the step have entered."""
        super().apply_staged_writes()
        self.rows.flush()

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """As in vLLM; the state of requests is kept, for the tokens that are sampled."""
        self._req_states = req_states
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        return inputs

    def preprocess_state(
        self, input_batch: Any, block_tables: Any, kv_cache_config: Any, num_computed_tokens: Tensor
    ) -> None:
        """A real batch: what the host knows of it."""
        super().preprocess_state(input_batch, block_tables, kv_cache_config, num_computed_tokens)
        self._batch = self._before = None
        if self._text_tags is not None:
            for index, answer_at in self._text_tags.found():
                self.rows.end_thought(index, answer_at)
            self.rows.flush()
        if not self.rows.any_in(input_batch.idx_mapping_np):
            return
        rows = input_batch.num_reqs
        self._batch = Batch(
            indices=np.asarray(input_batch.idx_mapping_np[:rows]),
            before=input_batch.num_computed_tokens_np[:rows].astype(np.int64),
            tokens=input_batch.num_scheduled_tokens[:rows].astype(np.int64),
            indices_n=input_batch.idx_mapping[:rows],
            computed_R=num_computed_tokens,
            starts_n1=input_batch.query_start_loc[: rows + 1],
            table_n=block_tables[0][:rows],
        )

    def prepare_attn(
        self,
        input_batch: Any,
        cudagraph_mode: Any,
        block_tables: tuple[Tensor, ...],
        slot_mappings: Tensor,
        *rest: Any,
        **more: Any,
    ) -> dict[str, Any]:
        """As in vLLM, with the slots that are held in place of the tokens that were fed.

        The lengths lie in a buffer of our own, whose address graphs remember: the sampler reads vLLM's.
        """
        seq_lens_p, batch = input_batch.seq_lens, self._batch
        lengths_p = self.lengths_R[: len(seq_lens_p)]
        given = replace(input_batch, seq_lens=lengths_p)
        if batch is None or self._before is not None:
            lengths_p.copy_(seq_lens_p)
        else:
            rows = self.rows.device
            self._before = rows.place(batch, seq_lens_p, lengths_p, slot_mappings[0], self._block_size)
            bound = input_batch.seq_lens_cpu_upper_bound.clamp(max=self.rows.longest(batch))
            given = replace(given, seq_lens_cpu_upper_bound=bound)
        metadata: dict[str, Any] = super().prepare_attn(
            given, cudagraph_mode, block_tables, slot_mappings, *rest, **more
        )
        return metadata

    def postprocess_state(
        self, idx_mapping: Tensor, num_sampled: Any, num_computed_tokens: Tensor | None = None
    ) -> None:
        """The step is fed and its tokens are sampled: score, evict, see whose thought is over."""
        super().postprocess_state(idx_mapping, num_sampled, num_computed_tokens)
        batch, self._batch = self._batch, None
        if batch is None or self._before is None:
            return
        sampled = None
        if self._tags.closes and isinstance(num_sampled, Tensor):
            tokens_R1 = self._req_states.last_sampled_tokens
            if self._text_tags is not None:
                self._text_tags.note(batch, tokens_R1, num_sampled)
            elif self._tags.close_id is not None:
                sampled = Sampled(tokens_R1=tokens_R1, counts_n=num_sampled, close_id=self._tags.close_id)
        self.rows.note(batch, *self._before, self.model.states_NF, sampled)
        self.rows.evict(batch, self._move)
