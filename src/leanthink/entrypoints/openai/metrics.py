"""What Prometheus reads at /metrics."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from leanthink.engine.outputs import Completion
from leanthink.engine.stats import EngineStats

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """One server's counters; all names begin with leanthink_, all times are seconds."""

    def __init__(self, *, slots: int) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("leanthink_requests", "HTTP requests", ["path", "status"], **own)
        self.seconds = Histogram("leanthink_request_seconds", "From request to end of answer", buckets=SECONDS, **own)
        self.choices = Counter("leanthink_choices", "Choices that ended, by why", ["finish_reason"], **own)
        self.tokens = Counter("leanthink_tokens", "Tokens of choices that ended", ["kind"], **own)
        self.of_engine = {
            "evictions": Counter("leanthink_evictions", "Evictions", **own),
            "prefix_cache_queries": Counter("leanthink_prefix_cache_queries", "Prompt tokens", **own),
            "prefix_cache_hits": Counter("leanthink_prefix_cache_hits", "Of these copied", **own),
        }
        self.first_token = Histogram("leanthink_first_token_seconds", "To the first token", buckets=SECONDS, **own)
        self.between = Histogram("leanthink_between_tokens_seconds", "Between two tokens", buckets=SECONDS, **own)
        self.queue = Gauge("leanthink_queue", "Choices that wait for a row", **own)
        self.running = Gauge("leanthink_running", "Choices whose prompt is fed or that decode", **own)
        self.slots_total = Gauge("leanthink_slots_total", "Slots there are", **own)
        self.held = Gauge("leanthink_slots_held", "Slots that decoding choices hold", **own)
        self.reserved = Gauge("leanthink_slots_reserved", "Slots that running choices have reserved", **own)
        self.saved = Gauge("leanthink_slots_saved", "Slots that full caches would hold beside these", **own)
        self.slots_total.set(slots)
        self._shown = EngineStats()

    def show(self, stats: EngineStats) -> None:
        """Take in what the engine holds."""
        self.queue.set(stats.waiting)
        self.running.set(stats.running)
        self.held.set(stats.slots_held)
        self.reserved.set(stats.slots_reserved)
        self.saved.set(stats.slots_of_full - stats.slots_held)
        for name, counter in self.of_engine.items():
            counter.inc(getattr(stats, name) - getattr(self._shown, name))
        self._shown = stats

    def ended(self, completion: Completion | None, reason: str) -> None:
        """Count a choice that ended, with what it has written."""
        self.choices.labels(reason).inc()
        if completion is not None:
            self.tokens.labels("prompt").inc(completion.prompt_tokens)
            self.tokens.labels("thought").inc(completion.thought_tokens)
            self.tokens.labels("answer").inc(completion.answer_tokens)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
