"""Policies that know the future: recorded requests are labelled, and each becomes the oracle of its own repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leanthink.importance.batches import batches_by_length
from leanthink.importance.labels import HORIZONS, Thought, check_horizons, label_batch
from leanthink.policies.oracle import Oracle
from leanthink.policies.policy import Granularity


def oracles(
    model: Any,
    thoughts: Sequence[Thought],
    horizons: Sequence[int] = HORIZONS,
    *,
    granularity: Granularity = "model",
) -> list[Oracle]:
    """One policy for each recorded request, in their order.

    Args:
        model: that wrote them, with the full cache.
        thoughts: the recorded requests; each is to be repeated with the same sampling and seed.
        horizons: distances in tokens, ascending, as of a predictor of `horizon`.
        granularity: of the index sets that each keeps.

    Raises:
        UsageError, UnsupportedModel: as of `leanthink.importance.labels.label_batch`.
    """
    distances = check_horizons(horizons)
    made: dict[int, Oracle] = {}
    for batch in batches_by_length([len(thought.token_ids) for thought in thoughts], model.device):
        found = label_batch(model, [thoughts[index] for index in batch], distances, granularity=granularity)
        for index, labels in zip(batch, found, strict=True):
            made[index] = Oracle(labels_XTC=labels.sets_XTH.to(model.device), distances=distances)
    return [made[index] for index in range(len(thoughts))]
