"""What the tests of policies rank: every policy with a fake predictor, and thought slots made at random for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leanthink.policies import POLICIES, Policy, Slots, make_policy
from leanthink.policies.oracle import Oracle
from leanthink.policies.sepllm import SepLLM
from reference.policies_slow import Row

HORIZONS = (4, 16, 64)
WIDTH = 6  # of the hidden states that the fake predictor reads
HEADS, GROUP, HEAD_DIM, LAYER = 2, 3, 8, 1
SEPARATORS = (2, 5, 11)  # of the 12 tokens that there are
LABELS_TC = torch.rand(90, len(HORIZONS), generator=torch.Generator().manual_seed(7))


@dataclass(frozen=True)
class FakePredictor:
    """A linear predictor: channel c reads number c of the token itself."""

    target: str
    horizons: tuple[int, ...] = ()
    offsets: tuple[int, ...] = (0,)
    num_sets: int = 1

    def __call__(self, hidden_states_NWF: Tensor) -> Tensor:
        return hidden_states_NWF[:, 0, : max(1, len(self.horizons))]


def make(name: str) -> Policy:
    if name == "sepllm":
        return SepLLM(separator_ids=SEPARATORS)
    if name == "oracle":
        return Oracle(labels_XTC=LABELS_TC, distances=HORIZONS)
    target = POLICIES[name].target
    horizons = HORIZONS if target == "horizon" else ()
    return make_policy(name, predictor=None if target is None else FakePredictor(target, horizons))


def slots_for(policy: Policy, *, rows: int = 3, num_slots: int = 40, seed: int = 0) -> Slots:
    """Thought slots with gaps where others were evicted; rows with prompts, lengths and seeds of their own."""
    generator = torch.Generator().manual_seed(seed)
    heads = HEADS if policy.per_head else 1
    prompt_tokens, thought_tokens = torch.arange(rows) * 7 + 5, torch.arange(rows) + 3 * num_slots
    positions = torch.empty(rows, heads, num_slots, dtype=torch.int64)
    for row in range(rows):
        youngest = int(thought_tokens[row]) - 1
        for head in range(heads):
            older = torch.randperm(youngest, generator=generator)[: num_slots - 1].sort().values
            positions[row, head] = prompt_tokens[row] + torch.cat([older, torch.tensor([youngest])])
    next_position = prompt_tokens + thought_tokens
    ages = next_position[:, None, None] - 1 - positions
    shared = Slots(
        ages=ages[:, 0],
        positions=positions[:, 0],
        next_position=next_position,
        prompt_tokens=prompt_tokens,
        seeds=torch.arange(rows) - 1,
        token_scores=torch.randn(rows, num_slots, policy.score_dims, generator=generator)
        if policy.score_dims
        else None,
        token_ids=torch.randint(12, (rows, num_slots), generator=generator) if policy.texts else None,
    )
    if not policy.per_head:
        return shared
    return replace(
        shared,
        ages=ages,
        positions=positions,
        layer=LAYER + torch.arange(rows),
        keys=torch.randn(rows, HEADS, num_slots, HEAD_DIM, generator=generator),
        values=torch.randn(rows, HEADS, num_slots, HEAD_DIM, generator=generator),
        queries=torch.randn(rows, HEADS, GROUP, policy.num_queries, HEAD_DIM, generator=generator),
        scaling=HEAD_DIM**-0.5,
        pinned_log_sums=torch.randn(rows, HEADS, GROUP, policy.num_queries, generator=generator),
        accumulated_attention=torch.rand(rows, HEADS, num_slots, generator=generator) if policy.accumulates else None,
    )


# Fields of Slots that a policy per head has for each head.
PER_HEAD = ("ages", "positions", "keys", "values", "queries", "pinned_log_sums", "accumulated_attention")


def tensors_of(slots: Slots) -> dict[str, Tensor]:
    named = ((field.name, getattr(slots, field.name)) for field in dataclasses.fields(slots))
    return {name: value for name, value in named if isinstance(value, Tensor)}


def rows_of(slots: Slots) -> list[Row]:
    """Each row, and each head where there are heads, as plain numbers for the reference implementations."""
    rows: list[Row] = []
    for index in range(slots.ages.shape[0]):
        row: Row = {"layer": slots.layer, "scaling": slots.scaling}
        row |= {name: tensor[index].tolist() for name, tensor in tensors_of(slots).items()}
        row["seed"] = row.pop("seeds")
        if slots.layer is None:
            rows.append(row)
            continue
        for head in range(slots.ages.shape[1]):
            of_head = {name: row[name][head] for name in PER_HEAD if name in row}
            rows.append(row | of_head | {"head": head, "layer's": row})
    return rows


def only_slots(slots: Slots, chosen: Tensor) -> Slots:
    """A shorter cache: the chosen slots only."""
    dims = {
        "ages": -1,
        "positions": -1,
        "token_scores": -2,
        "keys": -2,
        "values": -2,
        "token_ids": -1,
        "accumulated_attention": -1,
    }
    fields = tensors_of(slots)
    return replace(slots, **{name: fields[name].index_select(dims[name], chosen) for name in dims if name in fields})
