"""What the latest queries attend to: the arithmetic that several policies per head have in common.

R rows   H kv heads   G query heads per kv head   W latest queries   S slots   D head dim
"""

from __future__ import annotations

import torch
from torch import Tensor

from leanthink.policies.policy import Slots


def products(left: Tensor, right: Tensor) -> Tensor:
    """Dot products of two stacks of vectors in each row: [R, ..., X, D] and [R, ..., Y, D] give [R, ..., X, Y].

    On a CPU row by row: a batched product may round differently for another number of rows, and the score of a
    request must not depend on its neighbours.
    """
    if left.is_cuda:
        return left @ right.mT
    return torch.stack([one @ other.mT for one, other in zip(left, right, strict=True)])


def observed_logits(slots: Slots, count: int) -> tuple[Tensor, Tensor]:
    """Scaled products of the last `count` queries with the keys, and where a query did not see a slot.

    Returns:
        Logits float32 [R, H, G, W, S], W = `count`, and bool [R, H, 1, W, S]: True where the slot was written after
        the query, or where the query is a prompt token's, which is not kept.
    """
    assert slots.keys is not None, "a policy per head sees the keys of its layer"
    assert slots.queries is not None, "the cache keeps the latest queries of a policy with num_queries"
    assert slots.scaling is not None, "queries come with the scale of their product with keys"
    queries_RHGWD = slots.queries[..., -count:, :].float()
    logits_RHQS = products(queries_RHGWD.flatten(2, 3), slots.keys.float()) * slots.scaling
    query_ages_W1 = torch.arange(count - 1, -1, -1, device=slots.ages.device)[:, None]
    unseen_RHWS = slots.ages[:, :, None, :] < query_ages_W1
    decoded_R = slots.next_position - slots.prompt_tokens  # the last prompt token is fed by decoding, too
    not_kept_RW1 = query_ages_W1 > decoded_R[:, None, None]
    return logits_RHQS.view(*queries_RHGWD.shape[:4], -1), (unseen_RHWS | not_kept_RW1[:, None])[:, :, None]


def observed_attention(slots: Slots, count: int) -> Tensor:
    """The attention that the last `count` queries paid to each slot, as the model had it: [R, H, G, W, S].

    The softmax runs over all that the query saw, the slots that are not shown included.
    """
    logits_RHGWS, unseen_RH1WS = observed_logits(slots, count)
    logits_RHGWS = logits_RHGWS.masked_fill(unseen_RH1WS, -torch.inf)
    log_sums_RHGW = logits_RHGWS.logsumexp(dim=-1)
    if slots.pinned_log_sums is not None:
        log_sums_RHGW = torch.logaddexp(log_sums_RHGW, slots.pinned_log_sums[..., -count:])
    # A query that saw nothing has a sum of 0, and inf - inf is nan.
    return (logits_RHGWS - log_sums_RHGW[..., None]).exp().masked_fill(unseen_RH1WS, 0.0)
