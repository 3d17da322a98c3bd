"""What bench/vllm_speed.py looks at inside vLLM's engine core, which runs in a process of its own.

vLLM makes its worker a subclass of `Inside` (`worker_extension_cls`) and calls these methods between two steps.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any


class Inside:
    """More methods for vLLM's worker."""

    model_runner: Any

    def inside_start(self) -> dict[str, Any]:
        """Count graph replays, preemptions and seconds of the host from now on; say what the engine is made of."""
        runner, self.counts = self.model_runner, dict.fromkeys(("graphs", "preemptions", "steps"), 0)
        self.seconds = dict.fromkeys(("runner", "schedule", "update"), 0.0)
        self.torch_profile: Any = None  # vLLM's worker has a `profiler` of its own
        self.core = _core()
        runner.cudagraph_manager.run_fullgraph = self._counted(runner.cudagraph_manager.run_fullgraph, "graphs")
        scheduler = self.core.scheduler
        scheduler._preempt_request = self._counted(scheduler._preempt_request, "preemptions")
        runner.execute_model = self._timed(self._counted(runner.execute_model, "steps"), "runner")
        runner.sample_tokens = self._timed(runner.sample_tokens, "runner")
        scheduler.schedule = self._timed(scheduler.schedule, "schedule")
        scheduler.update_from_output = self._timed(scheduler.update_from_output, "update")
        layer = next(iter(runner.compilation_config.static_forward_context.values()))
        return {
            "state": type(runner.model_state).__name__,
            "model": f"{type(runner.model).__module__}.{type(runner.model).__name__}",
            "scheduler": type(scheduler).__name__,
            "graphs": str(runner.compilation_config.cudagraph_mode),
            "backend": runner.attn_groups[0][0].backend.__name__,
            "cache": [list(layer.kv_cache.shape), list(layer.kv_cache.stride()), str(layer.kv_cache.dtype)],
        }

    def inside_read(self, rows: int) -> dict[str, Any]:
        """What was counted since it was read last, and how many slots attention read for these first rows."""
        steps = max(1, self.counts["steps"])
        host_ms = {name: round(1e3 * seconds / steps, 3) for name, seconds in self.seconds.items()}
        counted = {**self.counts, "host_ms_per_step": host_ms}
        self.counts, self.seconds = dict.fromkeys(self.counts, 0), dict.fromkeys(self.seconds, 0.0)
        lengths = getattr(self.model_runner.model_state, "lengths_R", None)
        if lengths is not None and rows:
            counted["lengths"] = [int(lengths[:rows].min()), int(lengths[:rows].max())]
            counted["evictions_due"] = self.model_runner.model_state.rows.evictions
        return counted

    def inside_profile(self, path: str | None) -> dict[str, Any] | None:
        """Start a profile, or end it and write its tables: path-cpu.txt and path-cuda.txt."""
        import torch
        from torch.profiler import ProfilerActivity

        if path is None:
            self.counts = dict.fromkeys(self.counts, 0)
            self.torch_profile = torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self.torch_profile.start()
            return None
        assert self.torch_profile is not None
        torch.cuda.synchronize()
        steps = self.counts["steps"]
        self.torch_profile.stop()
        averages = self.torch_profile.key_averages()
        self.torch_profile = None
        for name, key in (("cuda", "self_device_time_total"), ("cpu", "self_cpu_time_total")):
            with open(f"{path}-{name}.txt", "w") as file:
                file.write(averages.table(sort_by=key, row_limit=60, max_name_column_width=70))
        kernels = [event for event in averages if event.self_device_time_total and event.device_type.name == "CUDA"]
        ours = ("_rows", "recall_states", "move_slots", "_select_ragged")
        total = sum(event.self_device_time_total for event in kernels)
        own = {event.key: event for event in kernels if any(word in event.key for word in ours)}
        return {
            "steps": steps,
            "gpu_ms_per_step": round(total / steps / 1e3, 4),
            "kernels_per_step": round(sum(event.count for event in kernels) / steps, 1),
            "own": {
                key: {"us": round(event.self_device_time_total / event.count, 2), "count": event.count}
                for key, event in own.items()
            },
        }

    def inside_hash(self) -> str:
        """Of all sets of kept slots since this was asked last, in the order of evictions; on this rank."""
        state, before = self.model_runner.model_state, getattr(self, "kept_hash", None)
        if before is None:
            move = state._move

            def noted(table: Any, first: Any, kept: Any, counts: Any) -> None:
                for one, count in zip(kept.tolist(), counts.tolist(), strict=True):
                    self.kept_hash.update(repr([of_set[:count] for of_set in one]).encode())
                move(table, first, kept, counts)

            state._move = noted
        self.kept_hash = hashlib.sha256()
        return "" if before is None else str(before.hexdigest())

    def _counted(self, run: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*given: Any, **more: Any) -> Any:
            self.counts[name] += 1
            return run(*given, **more)

        return counted

    def _timed(self, run: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*given: Any, **more: Any) -> Any:
            start = time.perf_counter()
            try:
                return run(*given, **more)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed


def _core() -> Any:
    """The engine core that called us."""
    from vllm.v1.engine.core import EngineCore

    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), EngineCore):
            return frame.f_locals["self"]
        frame = frame.f_back
    raise AssertionError("not called from an engine core")
