"""Budget and select: hand-worked cases, and the fast select against its reference implementation."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanthink.policies.budget import Budget, file_keys, select
from leanthink.utils.errors import LeanThinkError, UsageError
from reference.select_slow import select_slow


def kept(scores: list[float], ages: list[int], pinned: list[int], budget: Budget) -> list[int]:
    """`select` of one row, as a list."""
    row = (torch.tensor([scores]), torch.tensor([ages]), torch.tensor([pinned], dtype=torch.bool))
    return select(*row, budget)[0].tolist()


# --- Budget


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"slots": 0}, "slots must be an integer of at least 1, got 0"),
        ({"slots": -3}, "slots must be an integer of at least 1, got -3"),
        ({"slots": 64.0}, "got 64.0"),
        ({"slots": True}, "got True"),
        ({"slots": "64"}, "got '64'"),
        ({"slots": 64, "recent_window": -1}, "recent_window must be an integer of at least 0, got -1"),
        ({"slots": 64, "eviction_interval": 0}, "eviction_interval must be an integer of at least 1, got 0"),
        ({"slots": 64, "max_answer_slots": 0}, "max_answer_slots must be an integer of at least 1, got 0"),
        ({"slots": 16}, "window=32 is larger than slots=16"),
        ({"slots": 16, "recent_window": 17}, "give slots=17 or more, or recent_window=16 or less"),
    ],
)
def test_a_budget_that_cannot_hold_says_what_is_allowed(given: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        Budget(**given)


def test_the_smallest_budget_and_a_window_of_all_slots_are_allowed() -> None:
    assert Budget(slots=1, recent_window=0, eviction_interval=1, max_answer_slots=1).slots == 1
    assert Budget(slots=1, recent_window=1).recent_window == 1


def test_a_budget_is_frozen_and_says_its_settings() -> None:
    budget = Budget(slots=256)
    with pytest.raises(FrozenInstanceError):
        budget.slots = 1
    assert repr(budget) == "Budget(slots=256, recent_window=32, eviction_interval=64, max_answer_slots=1024)"
    assert eval(repr(budget)) == budget


def test_files_have_keys_of_their_own() -> None:
    budget = Budget(slots=99, recent_window=1, eviction_interval=2, max_answer_slots=3)
    assert list(budget.record.items()) == [("slots", 99), ("window", 1), ("interval", 2), ("answer", 3)]
    assert Budget.from_record(budget.record) == budget
    assert file_keys({"slots": 9, "recent_window": 2}) == {"slots": 9, "window": 2}


@pytest.mark.parametrize("given", [{"windows": 3}, {"window": 3}])
def test_unknown_keywords_are_errors(given: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'window"):
        Budget(slots=99, **given)


def test_eviction_is_due_exactly_at_slots_plus_interval() -> None:
    budget = Budget(slots=2900, recent_window=2000, eviction_interval=2100)
    assert [budget.is_due(n) for n in (0, 2900, 4999, 5000, 5001)] == [False, False, False, True, True]
    assert budget.max_thought_slots == 5000


def test_the_bound_is_prompt_and_the_smaller_of_thought_plus_answer_and_the_token_limit() -> None:
    budget = Budget(slots=256, eviction_interval=64, max_answer_slots=100)
    assert budget.bound(prompt_tokens=10, max_new_tokens=4096) == 10 + 256 + 64 + 100
    assert budget.bound(prompt_tokens=10, max_new_tokens=420) == 430
    assert budget.bound(prompt_tokens=10, max_new_tokens=50) == 60
    assert budget.bound(prompt_tokens=10, max_new_tokens=4096, thinks=False) == 10 + 100
    assert budget.bound(prompt_tokens=10, max_new_tokens=4096, answers=False) == 10 + 256 + 64
    assert budget.bound(prompt_tokens=10, max_new_tokens=50, answers=False) == 60


# --- select, worked out by hand (slot 0 is the oldest)


def test_the_highest_scores_stay_in_their_order() -> None:
    assert kept([5.0, 1.0, 4.0, 2.0, 3.0], [4, 3, 2, 1, 0], [0] * 5, Budget(slots=3, recent_window=0)) == [0, 2, 4]


def test_the_window_stays_whatever_its_score() -> None:
    assert kept([5.0, 4.0, 3.0, -9.0, -9.0], [4, 3, 2, 1, 0], [0] * 5, Budget(slots=3, recent_window=2)) == [0, 3, 4]


def test_a_window_of_all_slots_keeps_exactly_the_youngest() -> None:
    assert kept([9.0, 8.0, 7.0, 0.0, 0.0], [4, 3, 2, 1, 0], [0] * 5, Budget(slots=2, recent_window=2)) == [3, 4]


def test_between_equal_scores_the_younger_stays() -> None:
    assert kept([1.0, 1.0, 1.0, 1.0, 0.0], [9, 7, 3, 1, 0], [0] * 5, Budget(slots=2, recent_window=0)) == [2, 3]
    assert kept([1.0, 1.0, 1.0, 1.0], [1, 9, 3, 7], [0] * 4, Budget(slots=2, recent_window=0)) == [0, 2]


def test_prompt_slots_survive_any_score_and_are_not_counted() -> None:
    budget = Budget(slots=2, recent_window=1)
    assert kept([-9.0, -9.0, 3.0, 4.0, 5.0, 0.0], [5, 4, 3, 2, 1, 0], [1, 1, 0, 0, 0, 0], budget) == [0, 1, 4, 5]


def test_young_pinned_slots_do_not_use_up_the_window() -> None:
    budget = Budget(slots=1, recent_window=1)
    assert kept([9.0, 9.0, 0.0, 0.0, 0.0], [4, 3, 2, 1, 0], [0, 0, 0, 1, 1], budget) == [2, 3, 4]


@pytest.mark.parametrize("num_slots", [0, 1, 3, 4])
def test_everything_stays_up_to_the_budget(num_slots: int) -> None:
    ages = list(range(num_slots))[::-1]
    assert kept([float(age % 2) for age in ages], ages, [0] * num_slots, Budget(slots=4, recent_window=2)) == sorted(
        ages
    )


def test_one_slot_above_the_budget_loses_exactly_the_lowest() -> None:
    assert kept([2.0, 0.0, 1.0, 3.0, 4.0], [4, 3, 2, 1, 0], [0] * 5, Budget(slots=4, recent_window=1)) == [0, 2, 3, 4]


def test_all_slots_pinned_all_stay() -> None:
    assert kept([0.0, 0.0], [1, 0], [1, 1], Budget(slots=1, recent_window=0)) == [0, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_an_error_even_below_the_budget(bad: float) -> None:
    with pytest.raises(LeanThinkError, match="NaN or infinite"):
        kept([0.0, bad, 0.0], [2, 1, 0], [0, 0, 0], Budget(slots=8, recent_window=0))


def test_rows_that_pin_different_counts_are_a_bug() -> None:
    pinned = torch.tensor([[True, False], [False, False]])
    with pytest.raises(AssertionError, match="between 0 and 1"):
        select(torch.zeros(2, 2), torch.tensor([[1, 0], [1, 0]]), pinned, Budget(slots=1, recent_window=0))


# --- select against its reference implementation

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Budget]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Scores with many ties, ages with gaps and in any order, any pinned slots, budgets around the length."""
    lead = draw(st.sampled_from([(1,), (2,), (3,), (2, 3), (1, 2, 2)]))
    num_slots = draw(st.integers(1, 24))
    num_pinned = draw(st.integers(0, num_slots))
    slots = draw(st.integers(1, num_slots + 2))
    window = draw(st.integers(0, slots))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    scores = torch.randint(-levels, levels + 1, (*lead, num_slots), generator=generator).to(dtype)
    ages = torch.rand((*lead, 3 * num_slots), generator=generator).argsort(dim=-1)[..., :num_slots]
    if draw(st.booleans()):
        ages = ages.sort(dim=-1, descending=True).values
    pinned = torch.rand((*lead, num_slots), generator=generator).argsort(dim=-1) < num_pinned
    return scores, ages, pinned, Budget(slots=slots, recent_window=window)


@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_select_equals_its_reference_implementation(case: Case) -> None:
    scores, ages, pinned, budget = case
    fast = select(scores, ages, pinned, budget).flatten(0, -2).tolist()
    rows = zip(*(tensor.flatten(0, -2).tolist() for tensor in (scores, ages, pinned)), strict=True)
    assert fast == [select_slow(*row, slots=budget.slots, window=budget.recent_window) for row in rows]


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_select_of_a_row_alone_is_its_row_of_the_batch_and_writes_nothing(case: Case) -> None:
    *tensors, budget = case
    before = [tensor.clone() for tensor in tensors]
    batch = select(*tensors, budget)
    assert batch.dtype == torch.int64
    for row in range(batch.shape[0]):
        assert torch.equal(select(*(tensor[row : row + 1] for tensor in tensors), budget)[0], batch[row])
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))


def test_budget_and_policies_import_neither_transformers_nor_trl() -> None:
    code = (
        "import sys, leanthink.policies.budget, leanthink.policies\n"
        "print(*sorted({'transformers', 'trl', 'tokenizers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_select_is_the_same_on_cuda() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (4, 2, 300), generator=generator).float()
    ages = torch.arange(299, -1, -1).expand_as(scores)
    pinned = ages > 290
    budget = Budget(slots=100, recent_window=10)
    on_cuda = select(scores.cuda(), ages.cuda(), pinned.cuda(), budget).cpu()
    assert torch.equal(on_cuda, select(scores, ages, pinned, budget))


@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_select_of_slots_oldest_first_equals_the_reference_implementation_without_pinned_slots(case: Case) -> None:
    scores, ages, _, budget = case
    ages, before = ages.sort(dim=-1, descending=True).values, scores.clone()
    fast = select(scores, None, None, budget).flatten(0, -2)
    assert fast.dtype == torch.int64
    rows = zip(scores.flatten(0, -2).tolist(), ages.flatten(0, -2).tolist(), strict=True)
    limits = {"slots": budget.slots, "window": budget.recent_window}
    assert fast.tolist() == [select_slow(*row, [False] * len(row[0]), **limits) for row in rows]
    assert torch.equal(scores, before)
