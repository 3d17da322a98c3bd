"""What evictions do to a recorded thought: how far the next-token distribution moves from the full cache's.

The recorded tokens are fed once with the full cache and once so that each query sees only what its layer and head would
still hold. That is quick, and says before any answer is sampled which ranking is better and by how much.

N tokens of prompt and thought   T thought tokens   X index sets   S slots shown   K slots kept   C channels
V vocabulary   H kv heads   A query heads   P positions of a piece
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from leanthink.engine.attention import switched_to
from leanthink.engine.causal_attention import causal_attention, masked_attention
from leanthink.engine.hidden_states import joined, middle_outputs
from leanthink.engine.request import check_sets
from leanthink.engine.sdpa import for_any_length
from leanthink.importance.labels import Thought
from leanthink.models.loading import kv_shape
from leanthink.policies import Policy, Slots
from leanthink.policies.budget import Budget, select
from leanthink.utils.errors import UsageError

ATTENTION_NAME = "leanthink_damage"
POSITIONS = 512  # whose distributions are held at a time: of a whole thought they would be the largest tensors of all


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What evictions did to one thought, over the positions after the first of them: none if it is too short for one.

    kl_N: Kullback-Leibler divergence of each position's next-token distribution from the full cache's, in nats.
    changed_N: whether its likeliest token is another.
    """

    kl_N: Tensor
    changed_N: Tensor


@torch.no_grad()
def damage(model: Any, thought: Thought, policies: Sequence[Policy], budget: Budget) -> list[Damage]:
    """What each policy's evictions do to this thought, whose answer is not looked at.

    Needs X N N bytes on the device, beside a mask of N x N for each head of one layer, and a few POSITIONS x V.

    Args:
        model: in evaluation mode, on the device to compute on.
        thought: recorded with the full cache.
        policies: those that rank by ages, positions, seeds and token scores, with the prompt pinned.
        budget: of the request.

    Raises:
        UsageError: a policy ranks by something else, evicts nothing or has sets that the model does not have.
    """
    for policy in policies:
        check_sets(policy, model)
        if policy.name == "full" or policy.per_head or policy.texts or not policy.pins_prompt:
            raise UsageError(
                f"policy {policy.name!r} cannot be simulated: give one that ranks by ages, positions, seeds and "
                "token scores, with the prompt pinned"
            )
    ids_1N = torch.tensor([thought.token_ids[: thought.thought_end]], device=model.device)
    with middle_outputs(model) as middle, for_any_length():
        full_NM = model.base_model(input_ids=ids_1N, use_cache=False).last_hidden_state[0]
    states_TF = joined(full_NM, middle[0][0])[thought.prompt_tokens :]
    first = thought.prompt_tokens + budget.max_thought_slots  # the first query that misses something
    found = []
    for policy in policies:
        seen_XNN = visible(model, thought, policy, budget, states_TF)
        with switched_to(ATTENTION_NAME, model.config), for_any_length():
            less_NM = model.base_model(input_ids=ids_1N, use_cache=False, damage_seen=seen_XNN).last_hidden_state[0]
        found.append(_compared(model, full_NM[first:], less_NM[first:]))
    return found


def _compared(model: Any, full_NM: Tensor, less_NM: Tensor) -> Damage:
    """The damage, from the final hidden states of the full cache and of one that holds less."""
    kl, changed = [], []
    pieces = (torch.split(hidden_NM, POSITIONS) for hidden_NM in (full_NM, less_NM))
    for full_PM, less_PM in zip(*pieces, strict=True):
        full_PV, less_PV = _log_probs(model, torch.stack([full_PM, less_PM]))
        kl.append(F.kl_div(less_PV, full_PV, log_target=True, reduction="none").sum(dim=-1))
        changed.append(less_PV.argmax(dim=-1) != full_PV.argmax(dim=-1))
    return Damage(kl_N=torch.cat(kl).cpu(), changed_N=torch.cat(changed).cpu())


def visible(model: Any, thought: Thought, policy: Policy, budget: Budget, states_TF: Tensor) -> Tensor:
    """Which tokens each query sees under a policy, bool [X, N, N]: query, then key.

    As in the engine, a request evicts as soon as it holds `slots` + `interval` thought slots, the youngest included.
    """
    prompt, N, device = thought.prompt_tokens, thought.thought_end, model.device
    X, T = policy.num_sets, N - prompt
    token_scores_TXC = _token_scores(policy, states_TF)
    seen_XNN = torch.ones(N, N, dtype=torch.bool, device=device).tril_().repeat(X, 1, 1)
    held_XS = torch.arange(budget.max_thought_slots, device=device).repeat(X, 1)  # thought tokens
    for written in range(budget.max_thought_slots, T, budget.eviction_interval):
        shown = _shown(thought, policy, held_XS, written, token_scores_TXC)
        scores_XS = policy.score(shown).view(X, -1).float()
        kept_XK = select(scores_XS, None, None, budget)
        stays_XT = torch.zeros(X, written, dtype=torch.bool, device=device).scatter_(
            1, held_XS.gather(1, kept_XK), True
        )
        seen_XNN[:, prompt + written :, prompt : prompt + written] &= stays_XT[:, None]
        newer = torch.arange(written, written + budget.eviction_interval, device=device).repeat(X, 1)
        held_XS = torch.cat([held_XS.gather(1, kept_XK), newer], dim=1)
    return seen_XNN


def _shown(thought: Thought, policy: Policy, held_XS: Tensor, written: int, token_scores_TXC: Tensor | None) -> Slots:
    """What the policy is shown once so many thought tokens are written."""
    X, device = policy.num_sets, held_XS.device
    ages_XS = written - 1 - held_XS
    token_scores_XSC = (
        None if token_scores_TXC is None else token_scores_TXC[held_XS, torch.arange(X, device=device)[:, None]]
    )
    shape = (1, X) if X > 1 else (1,)
    return Slots(
        ages=ages_XS.view(*shape, -1),
        positions=(held_XS + thought.prompt_tokens).view(*shape, -1),
        next_position=torch.tensor([thought.prompt_tokens + written], device=device),
        prompt_tokens=torch.tensor([thought.prompt_tokens], device=device),
        seeds=torch.zeros(1, dtype=torch.int64, device=device),
        token_scores=None if token_scores_XSC is None else token_scores_XSC.view(*shape, *token_scores_XSC.shape[1:]),
    )


def _token_scores(policy: Policy, states_TF: Tensor) -> Tensor | None:
    """The policy's scores of each thought token, [T, X, C]."""
    if not policy.score_dims:
        return None
    at_TW = torch.arange(len(states_TF))[:, None] + torch.tensor(policy.offsets)
    token_scores_TY = policy.score_tokens(states_TF[at_TW.clamp(max=len(states_TF) - 1).to(states_TF.device)])
    return token_scores_TY.view(len(states_TF), policy.num_sets, policy.score_dims)


def _log_probs(model: Any, hidden_2PM: Tensor) -> Tensor:
    """Of the next token [2, P, V], as the model itself makes them of final hidden states: some scale or cap logits."""

    def of_these(body: Any, given: Any, output: Any) -> Any:
        output.last_hidden_state = hidden_2PM
        return output

    with model.base_model.register_forward_hook(of_these):
        logits_2PV = model(torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False).logits
    return logits_2PV.float().log_softmax(dim=-1)  # type: ignore[no-any-return]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    s_aux: Tensor | None = None,
    damage_seen: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """The output of a layer [1, N, A, D], each head seeing what its set still holds; a sliding one loses nothing."""
    H, A = key.shape[1], query.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    shape = kv_shape(module.config)
    layer = shape.in_slots(module.layer_idx)
    if layer is None:
        whole_1AND = causal_attention(query, key, value, scaling, window=shape.window, sinks_A=s_aux)
        return whole_1AND.transpose(1, 2).contiguous(), None
    of_layer = (
        damage_seen if len(damage_seen) == 1 else damage_seen.view(shape.layers, -1, *damage_seen.shape[1:])[layer]
    )
    seen_1ANN = of_layer.expand(H, -1, -1).repeat_interleave(A // H, dim=0)[None]
    return masked_attention(query, key, value, seen_1ANN, scaling, s_aux).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, _attention)
