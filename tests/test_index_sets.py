"""Index sets of each layer or kv head, ranked by token scores: what a plain-Python cache of each set keeps."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from leanthink import Budget, Completion, Sampling, generate
from leanthink.engine import attention_sums
from leanthink.engine.attention import switched_to
from leanthink.engine.cache import SlotCache
from leanthink.engine.cache_requirements import CacheRequirements
from leanthink.engine.engine import Engine
from leanthink.engine.policy_view import policy_view
from leanthink.importance.damage import ATTENTION_NAME, damage, visible
from leanthink.importance.held_out_metrics import MEASURED_SETS, _some_of
from leanthink.importance.labels import Thought
from leanthink.models.kv_shape import KVShape
from leanthink.models.loading import kv_shape
from leanthink.policies import make_policy
from leanthink.policies.horizon import Horizon
from leanthink.policies.oracle import Oracle
from leanthink.policies.policy import Granularity, Policy, Slots
from leanthink.policies.sinks import Sinks
from leanthink.policies.snapkv import SnapKV
from leanthink.utils.errors import UsageError
from models import RandomPredictor, make_model, make_tokenizer

HORIZONS, OFFSETS = (8, 16, 32), (0, 1, 3)


class SetsPredictor(nn.Module):
    """Scores of a random predictor for each of some index sets; `alike` gives all of them the first one's."""

    def __init__(self, hidden_size: int, num_sets: int, *, alike: bool) -> None:
        super().__init__()
        self.target, self.horizons, self.offsets, self.num_sets = "horizon", HORIZONS, OFFSETS, num_sets
        self.alike = alike
        self.each = nn.ModuleList(RandomPredictor(hidden_size, "horizon", HORIZONS, OFFSETS) for _ in range(num_sets))

    def forward(self, hidden_states_NWF: Tensor) -> Tensor:
        """Scores [N, X C]."""
        hidden_states_NWF = hidden_states_NWF.to(next(self.parameters()).dtype)
        parts = [self.each[0 if self.alike else index](hidden_states_NWF) for index in range(self.num_sets)]
        return torch.cat(parts, dim=1)


def sets_of(model: nn.Module, granularity: Granularity) -> int:
    shape = kv_shape(model.config)
    return shape.num_sets(granularity)


BUDGET = Budget(slots=24, recent_window=4, eviction_interval=8)
PROMPTS = [list(range(40, 40 + n)) for n in (9, 17, 30, 12)]


@pytest.mark.parametrize("granularity", ["layer", "head"])
def test_sets_that_are_ranked_alike_give_the_tokens_of_one_shared_set(granularity: Granularity) -> None:
    torch.manual_seed(0)
    model, tokenizer = make_model().double(), make_tokenizer()
    predictor = SetsPredictor(model.config.hidden_size, sets_of(model, granularity), alike=True).double()
    sampling = Sampling(max_new_tokens=90)
    own, shared = (
        generate(model, tokenizer, PROMPTS, policy=Horizon(predictor=p), budget=BUDGET, sampling=sampling)
        for p in (predictor, predictor.each[0])
    )
    assert [out.token_ids for out in own] == [out.token_ids for out in shared]
    assert [out.evictions for out in own] == [out.evictions for out in shared]
    assert max(out.evictions for out in own) > 2


def oracle_of(model: nn.Module, granularity: Granularity, tokens: int) -> Oracle:
    """Random labels for each token, horizon and index set."""
    shape = (sets_of(model, granularity), tokens, len(HORIZONS)) if granularity != "model" else (tokens, len(HORIZONS))
    return Oracle(labels_XTC=torch.rand(*shape, generator=torch.Generator().manual_seed(3)), distances=HORIZONS)


@pytest.mark.parametrize("granularity", ["model", "layer", "head"])
@pytest.mark.parametrize(("architecture", "layers"), [("llama", 3), ("gpt_oss", 4)])
def test_each_set_evicts_for_itself_as_masked_attention_says(
    granularity: Granularity, architecture: str, layers: int
) -> None:
    model, tokenizer = make_model(architecture, num_hidden_layers=layers).double(), make_tokenizer()
    oracle = oracle_of(model, granularity, 120)
    evictions = 0
    for prompt in PROMPTS:
        sampling = Sampling(max_new_tokens=80)
        (out,) = generate(model, tokenizer, [prompt], policy=oracle, budget=BUDGET, sampling=sampling)
        evictions += out.evictions
        ids, end = [*prompt, *out.token_ids], len(prompt) + out.thought_tokens
        thought = Thought(token_ids=ids, prompt_tokens=len(prompt), thought_end=end)
        seen_XNN = visible(model, thought, oracle, BUDGET, torch.zeros(0))
        with switched_to(ATTENTION_NAME, model.config), torch.no_grad():
            logits_NV = model(torch.tensor([ids[:end]]), use_cache=False, damage_seen=seen_XNN).logits[0]
        wanted = logits_NV.argmax(dim=-1)[len(prompt) - 1 : end - 1]
        assert wanted.tolist() == ids[len(prompt) : end]
    assert evictions > 10


def test_sets_that_the_model_does_not_have_are_refused() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    shape = kv_shape(model.config)
    odd = SetsPredictor(model.config.hidden_size, 5, alike=True)
    labels_XTC = torch.rand(5, 40, len(HORIZONS))
    for policy in (Horizon(predictor=odd), Oracle(labels_XTC=labels_XTC, distances=HORIZONS)):
        with pytest.raises(UsageError, match=rf"5 index sets.* {shape.layers} layers of {shape.kv_heads} kv heads"):
            generate(model, tokenizer, PROMPTS, policy=policy, budget=BUDGET)


@dataclass(frozen=True)
class BySetsAndHeads(Policy):
    """Says of itself what cannot both be."""

    name: ClassVar[str] = "by-sets-and-heads"
    per_head: ClassVar[bool] = True

    @property
    def num_sets(self) -> int:
        return 2

    def score(self, slots: Slots) -> Tensor:
        return -slots.ages


def test_a_policy_ranks_by_sets_or_per_head() -> None:
    with pytest.raises(UsageError, match=r"per_head=True.*num_sets=2"):
        generate(make_model(), make_tokenizer(), PROMPTS, policy=BySetsAndHeads(), budget=BUDGET)


def test_damage_begins_with_the_first_eviction_and_a_smaller_budget_does_more() -> None:
    model = make_model()
    thought = Thought(token_ids=list(range(60)), prompt_tokens=10, thought_end=60)
    least, tight = (
        Budget(slots=41, recent_window=4, eviction_interval=8),
        Budget(slots=16, recent_window=4, eviction_interval=8),
    )
    whole = Oracle(labels_XTC=torch.arange(60.0)[:, None].repeat(1, 3), distances=HORIZONS)
    (little,) = damage(model, thought, [whole], least)
    (some,) = damage(model, thought, [oracle_of(model, "head", 60)], tight)
    assert len(little.kl_N) == 1
    assert len(some.kl_N) == 26
    assert little.kl_N.mean() < some.kl_N.mean()
    assert some.kl_N.mean() > 1e-4


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {}),
        ("granite", {"logits_scaling": 7.0}),
        ("falcon_h1", {"lm_head_multiplier": 0.2}),
        ("gemma3_text", {"final_logit_softcapping": 0.9}),
    ],
)
def test_damage_is_of_the_distributions_that_the_model_draws_from(architecture: str, changes: dict[str, float]) -> None:
    model = make_model(architecture, **changes)
    thought = Thought(token_ids=list(range(60)), prompt_tokens=10, thought_end=60)
    oracle, ids = oracle_of(model, "model", 60), torch.arange(60)[None]
    (found,) = damage(model, thought, [oracle], BUDGET)
    with torch.no_grad():
        full = model(ids, use_cache=False).logits[0]
        with switched_to(ATTENTION_NAME, model.config):
            seen_XNN = visible(model, thought, oracle, BUDGET, torch.zeros(0))
            less = model(ids, use_cache=False, damage_seen=seen_XNN).logits[0]
    full_NV, less_NV = (logits.log_softmax(dim=-1)[-len(found.kl_N) :] for logits in (full, less))
    kl_N = (full_NV.exp() * (full_NV - less_NV)).sum(dim=-1)
    torch.testing.assert_close(found.kl_N, kl_N, rtol=1e-3, atol=1e-5)
    assert kl_N.mean() > 1e-4


@pytest.mark.parametrize("name", ["full", "r-kv", "sepllm"])
def test_damage_of_what_it_cannot_simulate_is_refused(name: str) -> None:
    thought = Thought(token_ids=list(range(60)), prompt_tokens=10, thought_end=60)
    with pytest.raises(UsageError, match=rf"{name}.* cannot be simulated"):
        damage(make_model(), thought, [make_policy(name, tokenizer=make_tokenizer())], BUDGET)
    odd = Oracle(labels_XTC=torch.rand(5, 40, len(HORIZONS)), distances=HORIZONS)
    with pytest.raises(UsageError, match="5 index sets"):
        damage(make_model(), thought, [odd], BUDGET)
    with pytest.raises(UsageError, match=r"sinks.* cannot be simulated"):
        damage(make_model(), thought, [Sinks(pins_prompt=False)], BUDGET)


@pytest.mark.parametrize("sets", [1, 8, 9, 15, 28, 56])
def test_ranking_is_measured_on_at_most_so_many_sets(sets: int) -> None:
    chosen = _some_of(range(2, 3 * sets, 3))
    assert 1 <= len(chosen) <= MEASURED_SETS
    assert chosen[0] == 2


@pytest.mark.parametrize("granularity", ["layer", "head"])
def test_token_scores_stay_with_the_slots_of_their_own_set(granularity: Granularity) -> None:
    """Every score tells its position, set and dimension, so that one of another shows."""
    shape = KVShape(layers=3, kv_heads=2, group=2, head_dim=4)
    X = shape.num_sets(granularity)
    policy = Horizon(predictor=SetsPredictor(8, X, alike=False))
    cache = SlotCache(shape, slots=64, rows=2, dtype=torch.float32, device=torch.device("cpu"))
    cache.require(
        CacheRequirements(score_dims=1 + X * policy.score_dims, per_head=True)
    )  # the first belongs to another policy
    allocation = cache.allocator.allocate(40)
    assert allocation is not None
    rows_R, generator = torch.tensor([cache.assign_row(allocation, 1)]), torch.Generator().manual_seed(0)
    own_XC = torch.arange(X * policy.score_dims).view(X, policy.score_dims)
    for evicted in range(4):
        for _ in range(8):
            cache.start_step()
            cache.finish()
            cache.advance()
            scores_XC = own_XC + 1000 * (cache.next_positions[0] - 1)
            cache.store_token_scores(rows_R, scores_XC.view(1, 1, -1), first=1)
        held = int(cache.host_lengths[0]) - 1
        shown = policy_view(cache, rows_R, held, torch.zeros(1), policy, first=1)
        assert shown.token_scores is not None
        assert torch.equal(shown.token_scores[0], own_XC[:, None] + 1000.0 * shown.positions[0, :, :, None])
        kept_XK = torch.stack(
            [torch.randperm(held, generator=generator)[: 6 + evicted].sort().values for _ in range(X)]
        )
        cache.evict([0], kept_XK[None], policy, first=1)
        cache.check_integrity()


def test_token_scores_are_held_in_the_dtype_of_the_predictor_that_gives_them() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    narrow = SetsPredictor(model.config.hidden_size, sets_of(model, "layer"), alike=False).bfloat16()
    wide = SetsPredictor(model.config.hidden_size, sets_of(model, "head"), alike=False)
    engine = Engine(model, tokenizer, slots=200, rows=2)
    dtypes = []
    for policy in (make_policy("sinks"), Horizon(predictor=narrow), make_policy("window"), Horizon(predictor=wide)):
        engine.add(PROMPTS[0], policy=policy, budget=BUDGET, sampling=Sampling(max_new_tokens=20))
        dtypes.append(engine.cache.token_scores.dtype)
    assert dtypes[1:] == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_token_scores_are_narrow_only_where_all_weights_are_floats_of_16_bits() -> None:
    """Quantized weights are narrower than what they give, and what is behind them may be wider."""

    def held_in(*dtypes: torch.dtype) -> torch.dtype:
        predictor = RandomPredictor(8, "answer")
        weights = [nn.Parameter(torch.zeros(2, dtype=dtype), requires_grad=False) for dtype in dtypes]
        predictor.head = nn.ParameterList(weights)
        return make_policy("dynts", predictor).score_dtype

    assert held_in(torch.float16, torch.float16) == torch.float16
    assert held_in(torch.bfloat16) == torch.bfloat16
    for dtypes in ([torch.int8], [torch.bfloat16, torch.float32], [torch.float8_e4m3fn, torch.bfloat16], []):
        assert held_in(*dtypes) == torch.float32


@pytest.mark.parametrize("granularity", ["layer", "head"])
def test_token_scores_in_bfloat16_rank_as_the_predictor_says(granularity: Granularity) -> None:
    """What a predictor in bfloat16 says fits: the same tokens as with its words written out in float32."""
    torch.manual_seed(0)
    model, tokenizer = make_model(), make_tokenizer()
    predictor = SetsPredictor(model.config.hidden_size, sets_of(model, granularity), alike=False).bfloat16()

    class Wide(Horizon):
        score_dtype = torch.float32

    def run(policy: Policy) -> list[tuple[int, ...]]:
        sampling = Sampling(max_new_tokens=90)
        done = generate(model, tokenizer, PROMPTS, policy=policy, budget=BUDGET, sampling=sampling)
        assert min(out.evictions for out in done) > 2
        return [out.token_ids for out in done]

    assert run(Horizon(predictor=predictor)) == run(Wide(predictor=predictor))


@pytest.mark.parametrize("row_slots", [None, 120])
@pytest.mark.parametrize("scratch", [1, attention_sums.SCRATCH_BYTES])
def test_sets_beside_other_policies_give_what_they_give_alone(
    scratch: int, row_slots: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come and go, and those that are due together are evicted one by one where there is no room for more."""
    torch.manual_seed(0)
    monkeypatch.setattr(attention_sums, "SCRATCH_BYTES", scratch)
    model, tokenizer, chance = make_model().double(), make_tokenizer(), random.Random(0)
    hidden_size = model.config.hidden_size
    predictors: list[nn.Module] = [
        SetsPredictor(hidden_size, sets_of(model, "layer"), alike=False).bfloat16(),
        SetsPredictor(hidden_size, sets_of(model, "head"), alike=False),
        RandomPredictor(hidden_size, "horizon", HORIZONS, OFFSETS).double(),
    ]
    policies = [*(Horizon(predictor=predictor) for predictor in predictors), SnapKV(pins_prompt=False)]
    engine = Engine(model, tokenizer, slots=7 * 120, rows=7, row_slots=row_slots)
    asked: dict[int, tuple[list[int], dict[str, Any]]] = {}
    finished: dict[int, Completion] = {}
    for _ in range(8):
        for prompt in PROMPTS:
            choices: dict[str, Any] = {
                "policy": chance.choice(policies),
                "sampling": Sampling(max_new_tokens=chance.randrange(1, 80)),
            }
            asked[engine.add(prompt, budget=BUDGET, **choices)] = (prompt, choices)
        finished |= engine.step().finished
    while engine.unfinished:
        finished |= engine.step().finished
        engine.check_integrity()
    assert sum(out.evictions for out in finished.values()) > 60
    for request_id, (prompt, choices) in asked.items():
        (alone,) = generate(model, tokenizer, [prompt], budget=BUDGET, **choices)
        assert finished[request_id].token_ids == alone.token_ids, choices["policy"]


@pytest.mark.gpu
@pytest.mark.parametrize("granularity", ["layer", "head"])
def test_sets_on_a_gpu_give_the_tokens_of_the_cpu(granularity: Granularity) -> None:
    torch.manual_seed(0)
    model, tokenizer = make_model(), make_tokenizer()
    oracle, sampling = oracle_of(model, granularity, 120), Sampling(max_new_tokens=90)
    predictor = SetsPredictor(model.config.hidden_size, sets_of(model, granularity), alike=False)
    choices = {"policy": [oracle, Horizon(predictor=predictor)] * 2, "budget": BUDGET, "sampling": sampling}
    expected = [out.token_ids for out in generate(model, tokenizer, PROMPTS, **choices)]
    predictor.cuda()
    found = [out.token_ids for out in generate(model.to("cuda"), tokenizer, PROMPTS, **choices)]
    assert found == expected
