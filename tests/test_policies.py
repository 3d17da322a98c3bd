"""The laws that every policy obeys: one matrix over POLICIES."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from leanthink.policies import POLICIES, Policy
from policy_slots import (
    GROUP,
    HEAD_DIM,
    HEADS,
    HORIZONS,
    LABELS_TC,
    PER_HEAD,
    SEPARATORS,
    WIDTH,
    make,
    only_slots,
    rows_of,
    slots_for,
    tensors_of,
)
from reference.policies_slow import (
    Key,
    Row,
    dynts_slow,
    h2o_slow,
    horizon_slow,
    keydiff_slow,
    oracle_slow,
    random_heads_slow,
    random_slow,
    rkv_slow,
    sepllm_slow,
    sinks_slow,
    snapkv_slow,
    tova_slow,
    vase_slow,
    window_slow,
)

# "full" has no budget, so it never ranks; every other policy has a line here and so obeys the laws below.
SLOW: dict[str, Callable[[Row], list[Key]]] = {
    "window": window_slow,
    "sinks": sinks_slow,
    "random": random_slow,
    "random-heads": random_heads_slow,
    "dynts": dynts_slow,
    "horizon": lambda row: horizon_slow(row, HORIZONS),
    "snapkv": snapkv_slow,
    "h2o": h2o_slow,
    "r-kv": rkv_slow,
    "tova": tova_slow,
    "keydiff": keydiff_slow,
    "vase": vase_slow,
    "sepllm": lambda row: sepllm_slow(row, SEPARATORS),
    "oracle": lambda row: oracle_slow(row, LABELS_TC.tolist(), HORIZONS),
}
# These rank a slot beside the others: by a softmax over them, their mean or their redundancy. The rest, by itself.
RANKED_BY_NEIGHBOURS = {"snapkv", "r-kv", "tova", "keydiff", "vase"}
ONE_SET_A_LAYER = {"tova"}


def ranking(keys: list[Any]) -> list[int]:
    """Slots from the highest to the lowest key, the younger (later) first between equals."""
    return sorted(range(len(keys)), key=lambda slot: (keys[slot], slot), reverse=True)


# --- the laws


def test_every_policy_but_full_is_in_the_matrix() -> None:
    assert set(SLOW) == set(POLICIES) - {"full"}
    assert [policy.name for policy in POLICIES.values()] == list(POLICIES)


@pytest.mark.parametrize("num_slots", [1, 2, 40])
@pytest.mark.parametrize("name", SLOW)
def test_scores_are_finite_floats_of_the_right_shape(name: str, num_slots: int) -> None:
    slots = slots_for(make(name), num_slots=num_slots)
    score = make(name).score(slots)
    assert score.shape == slots.ages.shape
    assert score.is_floating_point()
    assert torch.isfinite(score).all()


@pytest.mark.parametrize("num_slots", [1, 7, 40])
@pytest.mark.parametrize("name", SLOW)
def test_a_policy_ranks_as_its_reference_implementation_does(name: str, num_slots: int) -> None:
    for seed in range(3):
        slots = slots_for(make(name), num_slots=num_slots, seed=seed)
        fast = make(name).score(slots).flatten(0, -2)
        for score, row in zip(fast.tolist(), rows_of(slots), strict=True):
            slow = SLOW[name](row)
            if isinstance(slow[0], float):
                assert score == pytest.approx(slow, rel=1e-4, abs=1e-7)
            else:
                assert ranking(score) == ranking(slow)


@pytest.mark.parametrize("name", SLOW)
def test_a_policy_is_deterministic_and_writes_nothing_that_it_is_shown(name: str) -> None:
    slots = slots_for(make(name))
    before = {field: tensor.clone() for field, tensor in tensors_of(slots).items()}
    first = make(name).score(slots).clone()
    torch.manual_seed(1)
    assert torch.equal(make(name).score(slots), first)
    assert all(torch.equal(tensor, before[field]) for field, tensor in tensors_of(slots).items())


@pytest.mark.parametrize(("rows", "num_slots"), [(2, 1), (3, 40), (5, 321)])
@pytest.mark.parametrize("name", SLOW)
def test_a_row_alone_scores_exactly_as_in_a_batch(name: str, rows: int, num_slots: int) -> None:
    slots = slots_for(make(name), rows=rows, num_slots=num_slots)
    batch = make(name).score(slots)
    for row in range(rows):
        alone = replace(slots, **{field: tensor[row : row + 1] for field, tensor in tensors_of(slots).items()})
        assert torch.equal(make(name).score(alone)[0], batch[row])


@pytest.mark.parametrize("name", [name for name in SLOW if POLICIES[name].per_head and name not in ONE_SET_A_LAYER])
def test_a_head_depends_on_nothing_of_another_head(name: str) -> None:
    slots, others = slots_for(make(name), seed=0), slots_for(make(name), seed=1)
    mixed = {}
    for field, tensor in tensors_of(slots).items():
        mixed[field] = tensor.clone()
        if field in PER_HEAD:
            mixed[field][:, 1] = tensors_of(others)[field][:, 1]
    score = make(name).score(replace(slots, **mixed))
    assert torch.equal(score[:, 0], make(name).score(slots)[:, 0])
    assert not torch.equal(score[:, 1], make(name).score(slots)[:, 1])


@pytest.mark.parametrize("name", [name for name in SLOW if name not in RANKED_BY_NEIGHBOURS])
def test_a_slot_scores_the_same_whatever_else_is_held(name: str) -> None:
    slots, chosen = slots_for(make(name)), torch.tensor([0, 3, 4, 11, 38, 39])
    part = make(name).score(only_slots(slots, chosen))
    assert torch.equal(part, make(name).score(slots)[..., chosen])


# Not R-KV: these keys all have one direction, and then its redundancy ranks by nothing but rounding.
@pytest.mark.parametrize("name", [name for name in SLOW if name != "r-kv"])
def test_the_ranking_in_bfloat16_is_that_in_float32(name: str) -> None:
    policy, slots = make(name), slots_for(make(name), num_slots=12)
    steps = torch.randperm(12, generator=torch.Generator().manual_seed(3)).float() / 2
    exact, rounded = {}, {}
    if policy.score_dims:
        states_NM = (steps[:, None] - 3) * torch.tensor([1.03, 1.01, 0.97, 1.0, 1.0, 1.0])
        for dtype, scored in ((torch.float32, exact), (torch.bfloat16, rounded)):
            scored["token_scores"] = policy.score_tokens(states_NM[:, None].to(dtype)).expand(3, -1, -1)
    if policy.num_queries:
        direction_D = torch.linspace(0.5, 1.5, HEAD_DIM)
        keys = steps[:, None] * direction_D / direction_D.norm()
        exact["keys"] = keys.expand(3, HEADS, -1, -1)
        exact["queries"] = direction_D.expand(3, HEADS, GROUP, policy.num_queries, -1).contiguous()
        rounded = {field: tensor.bfloat16() for field, tensor in exact.items()}
    ranks = [policy.score(replace(slots, **tensors)).argsort(dim=-1, stable=True) for tensors in (exact, rounded)]
    assert torch.equal(ranks[0], ranks[1])


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_scores_tokens_in_as_many_float32_dimensions_as_it_says_or_refuses(name: str) -> None:
    policy, hidden_states_NWF = make(name), torch.randn(5, 1, WIDTH).bfloat16()
    if policy.score_dims == 0:
        with pytest.raises(AssertionError, match="scores no tokens"):
            policy.score_tokens(hidden_states_NWF)
    else:
        scores_NC = policy.score_tokens(hidden_states_NWF)
        assert scores_NC.dtype == torch.float32
        assert torch.equal(scores_NC, hidden_states_NWF[:, 0, : policy.score_dims].float())


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_frozen_hashable_and_its_repr_says_its_settings(name: str) -> None:
    policy = make(name)
    assert policy == replace(policy)
    assert hash(policy) == hash(replace(policy))
    settings = [field.name for field in dataclasses.fields(policy) if field.repr and field.name != "predictor"]
    assert type(policy).__name__ in repr(policy)
    for setting in settings:
        assert f"{setting}={getattr(policy, setting)!r}" in repr(policy)
    with pytest.raises(FrozenInstanceError):
        policy.name = "other"


# --- the guide for a new policy


def test_the_policy_in_the_contributing_guide_obeys_the_laws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    code = re.search(r"```python\n(.*?)```", guide, re.DOTALL)
    assert code is not None
    (tmp_path / "guide_key_norm.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    policy: Policy = importlib.import_module("guide_key_norm").KeyNorm()
    slots = slots_for(policy)
    assert slots.keys is not None
    assert torch.equal(policy.score(slots), -slots.keys.norm(dim=-1))
    assert (policy.name, policy.per_head, policy.target, policy.num_queries, policy.score_dims) == (
        "key-norm",
        True,
        None,
        0,
        0,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SLOW)
def test_the_ranking_is_the_same_on_cuda(name: str) -> None:
    slots = slots_for(make(name))
    on_cuda = replace(slots, **{field: tensor.cuda() for field, tensor in tensors_of(slots).items()})
    score, expected = make(name).score(on_cuda).cpu(), make(name).score(slots)
    if name in RANKED_BY_NEIGHBOURS:
        torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-6)
    else:
        assert torch.equal(score, expected)
