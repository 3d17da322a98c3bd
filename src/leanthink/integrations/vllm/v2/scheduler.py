"""vLLM's schedulers, which tell our manager of a request before its first blocks are counted."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from leanthink.integrations.vllm.manager import BoundedManager


class _Bounded:
    """A request with a budget gets all blocks that it can ever need at once, and so is not preempted for want of them.

    One that is preempted all the same, because others grow, is fed again in pieces that no eviction divides.
    """

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        managers = self.kv_cache_manager.coordinator.single_type_managers  # type: ignore[attr-defined]
        self._managers = [manager for manager in managers if isinstance(manager, BoundedManager)]
        for manager in self._managers:
            manager.reserve(self.max_model_len)  # type: ignore[attr-defined]
        self.need_mamba_block_aligned_split = True  # the scheduler's only hook where a request's tokens are cut

    def add_request(self, request: Any) -> None:
        """As in vLLM."""
        for manager in self._managers:
            manager.learn(request)
        super().add_request(request)  # type: ignore[misc]

    def _mamba_block_aligned_split(
        self, request: Any, num_new_tokens: int, num_new_local_computed_tokens: int = 0, num_external: int = 0
    ) -> int:
        """As many of the next tokens as are fed together."""
        computed = request.num_computed_tokens + num_new_local_computed_tokens + num_external
        for manager in self._managers:
            num_new_tokens = manager.fed_together(request, computed, num_new_tokens)
        return num_new_tokens


class BoundedScheduler(_Bounded, Scheduler):  # type: ignore[misc]  # vLLM is not there when types are checked
    """Without asynchronous scheduling."""


class BoundedAsyncScheduler(_Bounded, AsyncScheduler):  # type: ignore[misc]  # as above
    """With it."""
