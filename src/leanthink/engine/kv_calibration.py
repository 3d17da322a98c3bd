"""Finds the offsets and scales of FP8 keys and values: by what the model writes of one fixed text.

They depend on the model alone and never on requests, whose tokens therefore do not depend on each other.
"""

from __future__ import annotations

from typing import Any

import torch

from leanthink.engine import attention
from leanthink.engine.cache import SlotCache
from leanthink.engine.forward_batch import PromptChunk
from leanthink.engine.quantized_kv import E4M3, KVQuantization, kv_dtype
from leanthink.models.context import context_of
from leanthink.models.kv_shape import KVShape
from leanthink.utils.errors import UsageError

TEXT = (
    "A farmer sold 48 apples on Monday and half as many on Tuesday. How many were sold altogether? Let me think. On "
    "Tuesday it was 48 / 2 = 24, so in total 48 + 24 = 72. Wait, is that right? 72 - 24 = 48, yes.\n\n"
    "Rivers carry sand to the sea; where the water slows down it sinks, and over centuries an island grows.\n"
    "def area(width, height):\n    return width * height  # in square metres\n\n"
    "If x^2 - 5x + 6 = 0, then (x - 2)(x - 3) = 0, hence x = 2 or x = 3. The sum of the roots is 5, which agrees.\n"
    'She wrote: "Dear Anna, we arrive on 17 May 1998 at 9:45; please don\'t wait for us." Nobody answered.\n'
)
PIECES, PIECE = 8, 48  # pieces of the text, and tokens of each
REACH = 32768  # tokens: no piece stands further off than this


def calibrated(model: Any, tokenizer: Any, shape: KVShape, kv_cache_dtype: str) -> KVQuantization | None:
    """Offsets and scales for this model, found by a forward over a few hundred tokens; None for "auto".

    The text is fed in pieces at positions 0, and 1/64, 1/32, ... of the context (up to `REACH`) on: keys are held
    rotated, and what is constant in them near the beginning turns slowly on the way.

    Raises:
        UsageError: the name is unknown, the GPU has no FP8, or the model has sinks, whose logits would be off by what
            all products are.
    """
    if kv_dtype(kv_cache_dtype, model.dtype) != E4M3:
        return None
    if model.device.type == "cuda" and torch.cuda.get_device_capability(model.device) < (8, 9):
        name = torch.cuda.get_device_name(model.device)
        raise UsageError(f"kv_cache_dtype={kv_cache_dtype!r}: {name} has no FP8, which began with Ada and Hopper")
    total = PIECES * PIECE
    ids_S = torch.tensor(_token_ids(tokenizer, len(model.get_input_embeddings().weight), total), device=model.device)
    cache = SlotCache(shape, slots=total, rows=PIECES, dtype=model.dtype, device=model.device)
    given = [cache.allocator.allocate(PIECE) for _ in range(PIECES)]
    chunks = [PromptChunk(allocation=it, done=0, tokens=PIECE) for it in given if it is not None]
    reach = max(0, min(context_of(model.config), REACH) - PIECE)
    first_C = torch.tensor([0, *(reach >> back for back in range(PIECES - 2, -1, -1))], device=model.device)
    with torch.inference_mode():
        together = PIECES if cache.recurrent is None else 1  # a recurrence would run on from one piece into the next
        for at in range(0, PIECES, together):
            some = slice(at, at + together)
            positions_1S = cache.start_prefill(chunks[some]) + first_C[some].repeat_interleave(PIECE)
            attention.prefill(model, cache, ids_S[None, at * PIECE : some.stop * PIECE], positions_1S)
    if cache.sinks:
        raise UsageError(
            f"kv_cache_dtype={kv_cache_dtype!r}: this model has attention sinks, and keys in FP8 are shifted against "
            "them: give 'auto'"
        )
    return KVQuantization.of(cache.kv_LPHTD[:, :, :, :total])


def _token_ids(tokenizer: Any, vocabulary: int, count: int) -> list[int]:
    """So many tokens of the text, over and over; some of the vocabulary where there is no text."""
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids if callable(tokenizer) else []
    ids = [token for token in ids if 0 <= token < vocabulary]
    ids = ids if len(ids) >= PIECE else [7919 * place % vocabulary for place in range(1, count + 1)]
    return (ids * -(-count // len(ids)))[:count]
