"""Automatic prefix caching: the head that a prompt has in common with one that lies in the cache is copied, not fed.

A prompt is cut into chunks, each known by a digest of itself, all before it and the `cache_salt`, as in vLLM. Whole
chunks are shared by whoever begins alike, what is left behind them by equal prompts. What has ended serves until its
slots are given to another: no memory is kept for it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Container, Iterable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING

from leanthink.engine.cache import SlotCache
from leanthink.engine.cache_requirements import CacheRequirements
from leanthink.engine.request import Request
from leanthink.engine.slot_allocator import Allocation

if TYPE_CHECKING:
    from leanthink.engine.scheduler import Prefilling

CHUNK_TOKENS = 16  # as the blocks of vLLM


def chunk_keys(request: Request) -> tuple[bytes, ...]:
    """A digest for each chunk of what is fed of a prompt: all but its last token.

    That of a last chunk that is not whole covers the last token, too, so that equal prompts alone have it.
    """
    ids, keys = request.prompt_ids, [sha256(repr(request.cache_salt).encode()).digest()]
    for first in range(0, len(ids) - 1, CHUNK_TOKENS):
        whole = first + CHUNK_TOKENS < len(ids)
        tokens = array("q", ids[first : first + CHUNK_TOKENS] if whole else ids[first:])
        keys.append(sha256(keys[-1] + (b"" if whole else b"end") + tokens.tobytes()).digest())
    return tuple(keys[1:])


class PrefixCache:
    """Knows which heads of prompts lie where, and copies them to requests whose prompts begin alike.

    A policy that adds up the attention within its prompt has all of it fed. One that does not pin its prompt takes from
    others and gives to nobody, as it may lose any slot. A model with layers that hold no slots has all prompts fed, as
    these no longer have what they knew at the end of a head.

    Attributes:
        queries, hits: as of `EngineStats`.
    """

    def __init__(self, cache: SlotCache, *, enabled: bool) -> None:
        self.cache, self.enabled = cache, enabled and cache.shape.only_slots
        self.queries = self.hits = 0
        self._keys: dict[Allocation, list[bytes]] = {}  # of the chunks that lie there, in their order
        self._holders: dict[bytes, dict[Allocation, None]] = {}  # who has each, and with it all before it
        self._ended: list[Allocation] = []  # those of them that are given back

    def admit(self, entry: Prefilling) -> None:
        """A request has got its slots: it begins with what lies in the cache, which may be in these very slots."""
        if self.enabled and not CacheRequirements.of(entry.request.policy).prompt_attention:
            entry.keys = chunk_keys(entry.request)
        overwritten = [ended for ended in self._ended if _overlap(ended, entry.allocation)]
        for ended in overwritten:
            self._ended.remove(ended)
            if ended.start != entry.allocation.start:
                self.forget(ended)  # it would be read while it is written
        self.reuse(entry)
        for ended in overwritten:
            self.forget(ended)

    def reuse(self, entry: Prefilling, being_fed: Container[bytes] = ()) -> bool:
        """Copy the longest head that lies in the cache; False, and nothing yet, while a longer one is `being_fed`."""
        known = bisect_left(entry.keys, True, key=lambda key: key not in self._holders)
        if known < len(entry.keys) and entry.keys[known] in being_fed:
            return False
        tokens = min(known * CHUNK_TOKENS, len(entry.request.prompt_ids) - 1)
        if tokens > entry.done:
            source = next(iter(self._holders[entry.keys[known - 1]]))
            if source.start != entry.allocation.start:
                self.cache.copy_prompt(source, entry.allocation, tokens)
            entry.allocation.cached_tokens += tokens - entry.done
            entry.done = tokens
            self.note(entry)
        return True

    def offered(self, entry: Prefilling) -> tuple[bytes, ...]:
        """Keys of what others may have of this prompt once it is fed."""
        return entry.keys if entry.request.policy.pins_prompt else ()

    def note(self, entry: Prefilling) -> None:
        """More of this prompt lies there."""
        offered = self.offered(entry)[: entry.done // CHUNK_TOKENS if entry.left else None]
        known = self._keys.setdefault(entry.allocation, []) if offered else []
        for key in offered[len(known) :]:
            self._holders.setdefault(key, {})[entry.allocation] = None
            known.append(key)

    def count(self, entry: Prefilling) -> None:
        """All that is to be fed of this prompt is there."""
        self.queries += len(entry.request.prompt_ids)
        self.hits += entry.allocation.cached_tokens

    def end(self, freed: Iterable[Allocation]) -> None:
        """These are given back: what is intact stays known."""
        for allocation in freed:
            if allocation.intact and allocation in self._keys:
                self._ended.append(allocation)
            else:
                self.forget(allocation)

    def reset(self) -> None:
        """Forget what has ended."""
        while self._ended:
            self.forget(self._ended.pop())

    def forget(self, allocation: Allocation) -> None:
        """Nobody copies from it any more."""
        for key in self._keys.pop(allocation, ()):
            del self._holders[key][allocation]
            if not self._holders[key]:
                del self._holders[key]

    def check_integrity(self, held: Mapping[Allocation, Request]) -> None:
        """Raise AssertionError unless what it knows lies in slots that are `held` by that request, or by nobody now."""
        for allocation, keys in self._keys.items():
            assert (allocation in held) != (allocation in self._ended)
            assert allocation not in held or tuple(keys) == chunk_keys(held[allocation])[: len(keys)]
        lying = {(key, allocation) for allocation, keys in self._keys.items() for key in keys}
        assert lying == {(key, holder) for key, holders in self._holders.items() for holder in holders}
        assert not any(_overlap(ended, allocation) for ended in self._ended for allocation in held)


def _overlap(one: Allocation, other: Allocation) -> bool:
    return one.start < other.end and other.start < one.end
