"""Which models may borrow a predictor: relatives of the one it was fitted to, of its shape and with its vocabulary.

A relative is the same model in another precision, quantized, or lightly trained on. What it shares with a stranger of
its shape nobody can see in a config, so whoever borrows says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leanthink.models.loading import kv_shape
from leanthink.utils.errors import PredictorMismatch

ADDED = 0.01  # of the vocabulary: so much may padding and a fine-tune's own tokens change its size
OPTION = "--ignore-predictor-mismatch (ignore_predictor_mismatch=True in Python)"


def base_shape(config: Any) -> dict[str, int]:
    """What a predictor's file says of the shape of the model it was fitted to, besides its hidden size."""
    shape = kv_shape(config)
    return {"layers": shape.layers, "kv_heads": shape.kv_heads, "vocab_size": config.vocab_size}


def check_borrowing(path: Path, metadata: Mapping[str, Any], ours: str, config: Any, *, ignored: bool) -> None:
    """Refuse a predictor that was fitted to a model with another fingerprint than `ours`.

    Args:
        path: of its file.
        metadata: of its file.
        ours: fingerprint of the model in hand.
        config: of the model in hand.
        ignored: whether a relative may have it all the same.

    Raises:
        PredictorMismatch: it does not fit this model, or nobody said that this is a relative.
    """
    told = (
        f"{path} was fitted for a model with hidden size {metadata['hidden_size']} and fingerprint "
        f"{metadata['fingerprint'][:12]}, this model has {config.hidden_size} and {ours[:12]}"
    )
    why = misfit(metadata, config)
    if why is not None:
        raise PredictorMismatch(
            f"{told}; no relative of it: {why}. Load the model it was fitted for, or fit one for this model with "
            "`leanthink fit`"
        )
    if not ignored:
        raise PredictorMismatch(
            f"{told}: load the model it was fitted for, or fit one for this model with `leanthink fit`. If this is a "
            f"relative of that model, such as another precision or a light fine-tune, {OPTION} lets it be used"
        )


def misfit(metadata: Mapping[str, Any], config: Any) -> str | None:
    """Why a predictor cannot be that of a model with this config or of a relative; None where it can.

    Files from before `base_shape` was written say nothing of the vocabulary, which then is not compared.
    """
    if metadata["hidden_size"] != config.hidden_size:
        return f"it reads hidden states of size {metadata['hidden_size']}, and this model's have {config.hidden_size}"
    base, granularity = metadata["base_shape"], metadata["granularity"]
    if granularity != "model":
        shape = kv_shape(config)
        if metadata["num_sets"] != shape.num_sets(granularity) or base.get("layers", shape.layers) != shape.layers:
            of = f" ({base['layers']} layers of {base['kv_heads']} kv heads)" if base else ""
            return (
                f"it ranks a set for each {granularity}, {metadata['num_sets']} in all{of}, and this model has "
                f"{shape.layers} layers of {shape.kv_heads} kv heads"
            )
    known = base.get("vocab_size")
    if known is not None and abs(config.vocab_size - known) > ADDED * known:
        return (
            f"its model has a vocabulary of {known} tokens, and this one of {config.vocab_size}, where padding and "
            f"added tokens account for {ADDED:.0%} at most"
        )
    return None


def borrowed_note(path: object, borrowed_from: str) -> str:
    """One line on a predictor that is borrowed, and how to see what it is worth."""
    return (
        f"the predictor {path} is borrowed from another model (fingerprint {borrowed_from[:12]}): `leanthink fit "
        f"--compare {shlex.quote(str(path))}` on a few labelled traces of this model measures what it is worth here"
    )
