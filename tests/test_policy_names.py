"""What a policy of a user's own has to be: derived from Policy, and what it may override."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from leanthink import Budget, Policy, Sampling, UsageError, generate
from leanthink.engine.request import resolve_policies
from leanthink.models.predictor import Predictor
from leanthink.policies.dynts import DynTS
from leanthink.policies.horizon import Horizon
from leanthink.policies.policy import Slots
from models import RandomPredictor, make_model, make_tokenizer

ROOT = Path(__file__).parents[1]
BUDGET = Budget(slots=8, recent_window=2, eviction_interval=4, max_answer_slots=8)


class ByNorm(Policy):
    """Keeps the tokens whose hidden states are longest."""

    name: ClassVar[str] = "by-norm"

    @property
    def score_dims(self) -> int:
        return 1

    def score_tokens(self, hidden_states_NWF: Tensor) -> Tensor:
        return hidden_states_NWF[:, 0].float().norm(dim=-1, keepdim=True)

    def score(self, slots: Slots) -> Tensor:
        return slots.token_scores[..., 0]


class Norm(RandomPredictor):
    def forward(self, hidden_states_NWF: Tensor) -> Tensor:
        return hidden_states_NWF[:, 0].float().norm(dim=-1, keepdim=True)


class Strided(ByNorm):
    name: ClassVar[str] = "strided"
    offsets = (0, 2)
    stride = 3

    def score(self, slots: Slots) -> Tensor:
        return torch.where(slots.ages < 5, 1e6 - slots.ages, slots.token_scores[..., 0])


class ByNormAfterAll(Horizon):
    def score_tokens(self, hidden_states_NWF: Tensor) -> Tensor:
        return hidden_states_NWF[:, 0].float().norm(dim=-1, keepdim=True)


def tokens_under(policy: Policy) -> tuple[int, ...]:
    torch.manual_seed(0)
    sampling = Sampling(max_new_tokens=40)
    (done,) = generate(make_model(), make_tokenizer(), [[5, 6, 7]], policy=policy, budget=BUDGET, sampling=sampling)
    assert done.evictions > 3
    return done.token_ids


def test_a_policy_of_a_users_own_scores_tokens_and_ranks_by_them_as_ours_do() -> None:
    assert tokens_under(ByNorm()) == tokens_under(DynTS(predictor=Norm(8, "answer")))


def test_one_that_only_scores_each_token_by_itself_may_still_score_them_in_strides() -> None:
    predictor = Predictor(target="horizon", hidden_size=64, horizons=(5,), offsets=(0, 2))
    strided = tokens_under(Strided())
    assert strided == tokens_under(Horizon(predictor=Norm(8, "horizon", (5,), offsets=(0, 2))))
    assert strided == tokens_under(ByNormAfterAll(predictor=predictor))
    assert strided != tokens_under(Horizon(predictor=predictor))


def test_a_policy_without_a_score_cannot_be_made() -> None:
    class Scoreless(Policy):
        name: ClassVar[str] = "scoreless"

    with pytest.raises(TypeError, match=r"abstract.*score"):
        Scoreless()


@dataclass(frozen=True)
class LooksLikeOne:
    name: str = "looks-like-one"

    def score(self, slots: Slots) -> Tensor:
        return -slots.ages.float()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (LooksLikeOne(), r"'LooksLikeOne' has a score but is not derived.*class LooksLikeOne\(leanthink.Policy\)"),
        (ByNorm, r"ByNorm is a class: give an object of it, such as ByNorm\(\)"),
        (3, "unknown policy 3"),
    ],
)
def test_what_is_no_policy_is_refused_by_name_with_what_to_do(given: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        resolve_policies(None, None, [given], None)


def test_whatever_the_guide_says_can_be_overridden_is_a_member_of_policy() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = guide.partition("| override |")[2].partition("\n\n")[0].splitlines()[2:]
    names = [name for row in table for name in re.findall(r"`(\w+)", row.split("|")[1])]
    assert {"per_head", "num_queries", "accumulates", "texts", "score_dims", "score_tokens", "num_sets"} <= set(names)
    assert all(hasattr(Policy, name) for name in names), names


def test_slots_and_interval_are_added_in_budget_alone() -> None:
    added = re.compile(r"\bslots \+ (\w+\.)*eviction_interval")
    rooms = [ROOT / "src" / "leanthink" / room for room in ("engine", "policies", "integrations", "importance")]
    found = [path for room in rooms for path in room.rglob("*.py") if added.search(path.read_text(encoding="utf-8"))]
    assert [path.name for path in found if "bench" not in path.parts] == ["budget.py"]


def test_rows_are_given_moved_and_freed_in_one_place() -> None:
    calls = re.compile(r"\.(assign_rows?|free_rows|move)\(|batch\.(add|free)\(")
    engine = ROOT / "src" / "leanthink" / "engine"
    assert [path.name for path in engine.glob("*.py") if calls.search(path.read_text(encoding="utf-8"))] == ["rows.py"]
