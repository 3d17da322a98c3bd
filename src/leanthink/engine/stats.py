"""What an engine holds at one moment, for whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Requests and slots of an engine between two steps.

    Attributes:
        waiting: requests that hold nothing yet.
        running: requests whose prompts are fed or that decode.
        max_rows: most requests that run at a time.
        slots_total: slots there are.
        slots_reserved: slots that running requests have reserved: their bounds.
        slots_held: slots that decoding requests hold now.
        slots_of_full: slots that full caches would hold in their place.
        state_bytes: of the sliding windows, or the linear or state-space layers' states, of all rows, which are there
            whatever runs; 0 for a model without.
        max_slots_per_request: most slots that one request can have.
        evictions: of all requests so far.
        prefix_cache_queries: prompt tokens of all requests that began to decode so far.
        prefix_cache_hits: those of them that were copied from other prompts.
    """

    waiting: int = 0
    running: int = 0
    max_rows: int = 0
    slots_total: int = 0
    slots_reserved: int = 0
    slots_held: int = 0
    slots_of_full: int = 0
    state_bytes: int = 0
    max_slots_per_request: int = 0
    evictions: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
