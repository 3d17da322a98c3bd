"""What of the plugin for vLLM needs no vLLM: lengths, rows, the inner order of blocks, settings, versions."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from leanthink import load
from leanthink.integrations.vllm.checkpoint import identity_of, sampled
from leanthink.integrations.vllm.layout import Layout
from leanthink.integrations.vllm.lengths import NEVER, Lengths
from leanthink.integrations.vllm.plugin import register
from leanthink.integrations.vllm.row import Row
from leanthink.integrations.vllm.settings import VARIABLE, Asked, Settings, asked_of, read_settings, settings_here
from leanthink.integrations.vllm.step import TokenSpan, sub_batches_of
from leanthink.integrations.vllm.thought import Watch
from leanthink.integrations.vllm.version import check_layers, check_version
from leanthink.integrations.vllm.worker import Worker
from leanthink.models.fingerprint import fingerprint, fingerprint_of, sample, weights_of
from leanthink.models.predictor import Predictor, predictor_of, save_predictor
from leanthink.models.predictor_compatibility import base_shape
from leanthink.models.tiny import predictors_path, weights_path
from leanthink.policies.budget import Budget
from leanthink.policies.horizon import Horizon
from leanthink.policies.random import Random
from leanthink.utils.errors import LeanThinkError, LeanThinkWarning, PredictorMismatch, UnsupportedModel, UsageError
from models import CLOSE, OPEN, make_model, make_tokenizer
from quantised import dequantised, parts_of
from reference.bounded_row_slow import SlowRow

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "bench"))
from quantised_checkpoint import KINDS, write

HORIZONS, OFFSETS = (6, 9, 20), (0, 1, 3)  # so that three tokens are scored at a time
budgets = st.builds(
    lambda slots, window, interval: Budget(
        slots=slots, recent_window=min(window, slots), eviction_interval=interval, max_answer_slots=50
    ),
    st.integers(1, 12), st.integers(0, 6), st.integers(1, 9),
)  # fmt: skip


@dataclass(frozen=True)
class SumOfStates:
    """A predictor whose numbers are whole, so that no order of addition shows."""

    target: str = "horizon"
    horizons: tuple[int, ...] = HORIZONS
    offsets: tuple[int, ...] = OFFSETS

    def __call__(self, states_NWF: Tensor) -> Tensor:
        return states_NWF[:, :, : len(self.horizons)].sum(dim=1)


class FixedWatch(Watch):
    """Knows where the answer begins."""

    def __init__(self, answer_at: int) -> None:
        self.at = answer_at

    def answer_at(self, output_ids: object) -> int:
        return self.at


def make_row(budget: Budget, prompt: int, answer_at: int = NEVER, policy: Any = None) -> Row:
    policy = policy or Horizon(predictor=SumOfStates())
    return Row(prompt_tokens=prompt, budget=budget, policy=policy, seed=0, watch=FixedWatch(answer_at), output_ids=[])


def run(row: Row, states_TF: Tensor, spans: list[int]) -> list[tuple[int, list[int]]]:
    """Feed all tokens, in steps that end at these lengths; what is held of the thought after each eviction."""
    after = []
    for start, end in pairwise([0, *spans]):
        logical = start
        for piece in row.pieces(start, end - start):
            assert piece.first_slot == min(logical, row.prompt_tokens) + row.thought or logical > row.lengths.answer_at
            row.note(states_TF[logical : logical + piece.tokens], piece.tokens)
            logical += piece.tokens
            if piece.evicts:
                row.evict()
                after.append((logical, row.positions_S[: row.thought].tolist()))
    return after


@given(budget=budgets, prompt=st.integers(1, 9), thought=st.integers(0, 90), answer=st.integers(0, 20), data=st.data())
@hypothesis_settings(max_examples=150, deadline=None)
def test_a_row_holds_what_its_reference_implementation_holds_however_its_tokens_are_cut(
    budget: Budget, prompt: int, thought: int, answer: int, data: st.DataObject
) -> None:
    """That is what feeds a preempted request again, in pieces of any size, as it was fed in single tokens."""
    total, answer_at = prompt + thought + answer, prompt + thought if answer else NEVER
    states_TF = torch.randint(0, 5, (total, 6), generator=torch.Generator().manual_seed(total)).float()
    slow = SlowRow(prompt=prompt, slots=budget.slots, window=budget.recent_window, interval=budget.eviction_interval,
                   horizons=HORIZONS, offsets=OFFSETS)  # fmt: skip
    lengths, expected = Lengths(prompt=prompt, budget=budget, answer_at=answer_at), []
    for at, state in enumerate(states_TF.tolist()):
        if slow.feed(state, answer=at >= answer_at):
            expected.append((at + 1, list(slow.thought)))
        assert lengths.physical(at + 1) == slow.held
        assert lengths.peak(at + 1) == slow.most <= budget.bound(prompt, total) or answer > budget.max_answer_slots
    ends = sorted(data.draw(st.sets(st.integers(1, total), max_size=12)) | {total})
    assert run(make_row(budget, prompt, answer_at), states_TF, ends) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leanthink.integrations.vllm.row.MAX_GATHERED_BYTES", 150)  # no more than a few tokens at once
        assert run(make_row(budget, prompt, answer_at), states_TF, ends) == expected
    assert run(make_row(budget, prompt, answer_at), states_TF, list(range(1, total + 1))) == expected


@given(budget=budgets, prompt=st.integers(1, 9), logical=st.integers(0, 60), tokens=st.integers(1, 60))
def test_pieces_cover_all_tokens_and_end_at_evictions_alone(
    budget: Budget, prompt: int, logical: int, tokens: int
) -> None:
    lengths = Lengths(prompt=prompt, budget=budget)
    pieces = lengths.pieces(logical, tokens)
    assert sum(piece.tokens for piece in pieces) == tokens
    assert all(piece.evicts for piece in pieces[:-1])
    for piece in pieces:
        assert piece.first_slot == lengths.physical(logical)
        assert piece.first_slot + piece.tokens <= lengths.peak(logical + piece.tokens)
        logical += piece.tokens
        assert piece.evicts == (lengths.next_eviction(logical - 1) == logical)


def test_lengths_by_hand() -> None:
    """Prompt 10, 4 slots and 3 more: evictions after thought tokens 7 and 10; the answer begins at 21."""
    budget = Budget(slots=4, recent_window=1, eviction_interval=3)
    lengths = Lengths(prompt=10, budget=budget, answer_at=21)
    assert [lengths.physical(n) for n in (5, 10, 16, 17, 18, 19, 20, 21, 22, 25)] == [
        5,
        10,
        16,
        14,
        15,
        16,
        14,
        15,
        16,
        19,
    ]
    assert [lengths.peak(n) for n in (5, 16, 17, 20, 22, 23, 25)] == [5, 16, 17, 17, 17, 17, 19]
    assert [lengths.next_eviction(n) for n in (0, 16, 17, 19)] == [17, 17, 20, 20]
    assert lengths.next_eviction(20) == NEVER


def test_a_row_that_is_fed_again_forgets_what_it_held_and_comes_to_the_same() -> None:
    states_TF = torch.randint(0, 5, (60, 6), generator=torch.Generator().manual_seed(1)).float()
    row = make_row(Budget(slots=8, recent_window=2, eviction_interval=4), prompt=5)
    first = run(row, states_TF, [5, *range(6, 50)])
    assert run(row, states_TF, [49]) == first
    with pytest.raises(AssertionError):
        row.pieces(20, 3)  # neither the next token nor a beginning


def test_a_row_begins_behind_a_prefix_that_was_found_in_the_cache() -> None:
    row = make_row(Budget(slots=2, recent_window=1, eviction_interval=2), prompt=8)
    assert [(piece.tokens, piece.first_slot) for piece in row.pieces(4, 4)] == [(4, 4)]
    row.note(torch.zeros(4, 6), 4)
    assert row.logical == 8
    assert row.thought == 0


def test_a_policy_without_token_scores_needs_no_states_and_draws_by_the_seed_of_the_request() -> None:
    budget, kept = Budget(slots=8, recent_window=0, eviction_interval=8), []
    for seed in (0, 0, 1):
        row = make_row(budget, 3, policy=Random())
        row.seed = seed
        for piece in row.pieces(0, 19):
            row.note(None, piece.tokens)
        kept.append(row.evict().tolist())
    assert kept[0] == kept[1] != kept[2]


def test_a_score_that_is_no_number_is_told() -> None:
    row = make_row(Budget(slots=8, recent_window=0, eviction_interval=30), prompt=2)
    states_TF = torch.zeros(40, 6)
    states_TF[4] = torch.nan
    with pytest.raises(LeanThinkError, match="NaN"):
        run(row, states_TF, [40])


# -- the inner order of blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ["keys turned", "rows", "pairs of values"])
def test_slots_are_moved_whatever_order_a_block_has(dtype: torch.dtype, order: str) -> None:
    blocks, heads, size, width = 5, 2, 8, 4

    def write(keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
        keys_BHSD, values_BHSD = cache.view(len(cache), heads, 2, size * width).unbind(2)
        for token, slot in enumerate(slots.tolist()):
            block, offset = divmod(slot, size)
            lanes = torch.arange(width)
            at_keys = lanes * size + offset if order == "keys turned" else offset * width + lanes
            at_values = offset // 2 * 2 * width + 2 * lanes + offset % 2 if order == "pairs of values" else (
                offset * width + lanes)  # fmt: skip
            keys_BHSD[block][:, at_keys] = keys[token]
            values_BHSD[block][:, at_values] = values[token]

    shape = (blocks, heads, size, 2 * width)
    layout = Layout(write, shape=shape, block_size=size, head_dim=width, dtype=dtype)
    keys, values = torch.randn(2, 30, heads, width).to(dtype)
    table = torch.tensor([3, 1, 4, 0])  # the request's blocks, in its order
    slots = table[torch.arange(30) // size] * size + torch.arange(30) % size
    cache, expected = torch.zeros(2, *shape, dtype=dtype)
    write(keys, values, cache, slots)
    kept = sorted(random.Random(0).sample(range(6, 30), 11))  # six slots of prompt
    layout.move(cache, table, torch.tensor(kept), torch.arange(6, 17))
    chosen = torch.tensor([*range(6), *kept])
    write(keys[chosen], values[chosen], expected, slots[:17])
    held = torch.arange(17)
    for token in held.tolist():  # read both back through the same order
        index = layout._index(table, torch.tensor([token]))
        assert torch.equal(cache.view(blocks, heads, -1)[index], expected.view(blocks, heads, -1)[index])
    assert torch.equal(cache[2], torch.zeros_like(cache[2]))  # a block of nobody's


def test_a_kernel_that_does_not_keep_numbers_as_they_are_is_refused() -> None:
    def write(keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
        cache.view(1, 1, 4, 4)[:] = torch.cat([keys, values], dim=-1).transpose(0, 1) / 2

    with pytest.raises(UnsupportedModel, match="cannot be moved"):
        Layout(write, shape=(9, 1, 4, 4), block_size=4, head_dim=2, dtype=torch.float32)


def test_sub_batches_take_the_pieces_of_all_requests_in_turns() -> None:
    lengths = Lengths(prompt=3, budget=Budget(slots=2, recent_window=0, eviction_interval=2))
    whole = Lengths(prompt=99, budget=lengths.budget).pieces(0, 4)
    spans = [
        TokenSpan(row=None, index=0, start=0, pieces=whole),
        TokenSpan(row=None, index=1, start=4, pieces=lengths.pieces(0, 10)),  # 7, 2 and 1 tokens
    ]
    (first, tokens), (second, later), (_, last) = sub_batches_of(spans)
    assert [(part.index, part.first, part.piece.tokens) for part in first] == [(0, 0, 4), (1, 4, 7)]
    assert tokens.tolist() == list(range(11))
    assert [(part.index, part.first, part.piece.first_slot) for part in second] == [(1, 0, 5)]
    assert later.tolist() == [11, 12]
    assert last.tolist() == [13]


# -- what requests and servers ask for -------------------------------------------------------------------------------


def test_the_answer_begins_at_the_closing_tag() -> None:
    tokenizer = make_tokenizer()
    watch = Watch([1, 2, OPEN], tokenizer)
    output: list[int] = [5, 6]
    assert watch.answer_at(output) == NEVER
    output += [CLOSE, 7, CLOSE]
    assert watch.answer_at(output) == watch.answer_at([*output, 8]) == 5
    assert Watch([1, OPEN, CLOSE], tokenizer).answer_at([]) == 3
    assert Watch([1, OPEN, CLOSE, 77], tokenizer).answer_at([]) == NEVER


def test_a_request_gets_the_servers_budget_with_its_own_parts_in_place() -> None:
    budget = Budget(slots=100, recent_window=10, eviction_interval=20, max_answer_slots=30)
    server = Settings(budget=budget, policies=("horizon", "random"))
    assert asked_of(None, server) == Asked(policy="horizon", budget=budget)
    assert asked_of({"other": 1}, server) == Asked(policy="horizon", budget=budget)
    own = {"leanthink_policy": "random", "leanthink_eviction_interval": 5}
    assert asked_of(own, server) == Asked(policy="random", budget=replace(budget, eviction_interval=5))
    assert asked_of({"leanthink_policy": "full"}, server) is None
    assert asked_of({}, Settings()) is None
    assert asked_of({"leanthink_budget": 64}, Settings()) == Asked(policy="horizon", budget=Budget(slots=64))


@pytest.mark.parametrize(
    ("given", "server", "message"),
    [
        ({"leanthink_budgt": 1}, {}, "Did you mean 'leanthink_budget'"),
        ({"leanthink_window": 1}, {}, "unknown request parameter 'leanthink_window'.*leanthink_recent_window"),
        ({"leanthink_budget": "64"}, {}, "slots must be an integer"),
        ({"leanthink_budget": 64.5}, {}, "slots must be an integer"),
        ({"leanthink_budget": 8}, {}, "window=32 is larger than slots=8"),
        ({"leanthink_recent_window": 4}, {}, "no budget of its own"),
        ({"leanthink_budget": 8000, "leanthink_eviction_interval": 193}, {}, "at most 8192"),
        ({"leanthink_budget": 64, "leanthink_max_answer_slots": 1}, {}, "2 or more"),
        ({"leanthink_policy": "random", "leanthink_budget": 64}, {}, "choose one of horizon, full"),
        ({"leanthink_policy": "full", "leanthink_budget": 64}, {}, "leave out leanthink_budget"),
    ],
)
def test_what_a_request_may_not_ask_is_refused(given: dict[str, Any], server: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asked_of(given, Settings(**server))


def test_settings_are_read_from_json_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"policy": "sinks", "policies": ["sinks", "random"], "budget": 64, "recent_window": 8}
    text = json.dumps(given | {"max_thought_slots": 256, "eviction_interval": None})
    expected = Settings(policy="sinks", policies=("sinks", "random"), max_thought_slots=256,
                        budget=Budget(slots=64, recent_window=8))  # fmt: skip
    (tmp_path / "settings.json").write_text(text)
    assert read_settings(text) == read_settings(str(tmp_path / "settings.json")) == expected
    monkeypatch.setenv(VARIABLE, text)
    assert settings_here() == expected
    monkeypatch.delenv(VARIABLE)
    register()  # nothing to register, and no vLLM is looked for
    with pytest.raises(UsageError, match="is not set"):
        settings_here()


def test_policies_with_settings_are_offered_and_asked_for() -> None:
    given = {"policy": "sinks:num_sinks=4", "policies": ["sinks", "horizon:only=64,rule=ceil"], "budget": 64}
    server = read_settings(json.dumps(given))
    assert server.offered == ("sinks", "horizon:rule=ceil,only=64")
    asked = asked_of({"leanthink_policy": "horizon:only=64,rule=ceil"}, server)
    assert asked == Asked(policy="horizon:rule=ceil,only=64", budget=Budget(slots=64))
    assert asked_of({}, server) == Asked(policy="sinks", budget=Budget(slots=64))
    with pytest.raises(UsageError, match="unknown policy 'horizon'"):
        asked_of({"leanthink_policy": "horizon"}, server)
    with pytest.raises(UsageError, match="Did you mean 'num_sinks'"):
        Settings(policy="sinks:sinks=3")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.json", "give a JSON object"),
        ("{", "is no JSON"),
        (json.dumps({"budgets": 1}), "Did you mean 'budget'"),
        (json.dumps({"budget": 64, "window": 8}), "unknown setting in LEANTHINK_VLLM 'window'"),
        (json.dumps({"recent_window": 1}), "without a budget"),
        (json.dumps({"policy": "snapkv"}), "cannot be served in vLLM"),
        (json.dumps({"policy": "full"}), "cannot be served in vLLM"),
        (json.dumps({"policy": "horizn"}), "Did you mean 'horizon'"),
        (json.dumps({"policies": ["random"]}), "not among"),
        (json.dumps({"budget": 9000}), "at most 8192"),
        (json.dumps({"ignore_predictor_mismatch": True}), "is of predictors"),
    ],
)
def test_wrong_settings_are_refused(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_settings(given)


def test_versions_that_nobody_has_looked_at_are_refused() -> None:
    check_version("0.32.0")
    check_version("0.32.1")
    for other in ("0.31.4", "0.33.0", "1.0"):
        with pytest.raises(UsageError, match=f"vLLM {other} is installed"):
            check_version(other)


def test_layers_of_other_kinds_are_refused() -> None:
    check_layers(make_model("qwen2").config)
    for name, facts in (("qwen3", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8}),
                        ("qwen3_5_text", {}), ("falcon_h1", {})):  # fmt: skip
        with pytest.raises(UnsupportedModel, match="which the plugin does not serve"):
            check_layers(make_model(name, **facts, use_sliding_window=True).config)


# -- the predictor of a model that is loaded piece by piece ----------------------------------------------------------


def test_the_fingerprint_of_a_checkpoint_is_that_of_its_model() -> None:
    model, _ = load("tiny", device="cpu")
    found = {}
    for file in weights_path().glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as weights:
            found |= {name: sample(weights.get_tensor(name)) for name in weights.keys()}  # noqa: SIM118 (no mapping)
    ours = fingerprint_of(model.config, [found[name] for name in weights_of(model)])
    assert ours == fingerprint(model)
    shipped = predictors_path() / "horizon.safetensors"
    assert predictor_of(shipped, ours, model.config).target == "horizon"
    with pytest.raises(PredictorMismatch):
        predictor_of(shipped, "0" * 64, model.config)


def worker_of(quantization: str | None = None) -> Worker:
    about = SimpleNamespace(tokenizer="tiny", dtype=torch.bfloat16, quantization=quantization)
    return Worker(SimpleNamespace(model_config=about))


def test_a_worker_takes_the_predictor_of_a_relative_only_if_told_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load(folder, device="cpu")
    samples = {name: sample(weight) for name, weight in weights_of(model).items()}
    given: dict[str, Any] = {"predictors": {"horizon": str(folder / "other.safetensors")}}
    for ignored in (False, True):
        monkeypatch.setenv(VARIABLE, json.dumps(given | {"ignore_predictor_mismatch": ignored}))
        worker = worker_of()
        expected: Any = pytest.warns(LeanThinkWarning, match="borrowed from another model")
        ours = f"this model has fingerprint {fingerprint(model)[:12]}.*ignore_predictor_mismatch"
        with expected if ignored else pytest.raises(PredictorMismatch, match=ours):
            worker.make_policies(model, samples)
        assert list(worker.policies) == ["horizon"] * ignored


# -- quantised checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_checkpoint_holds_the_weights_rounded(kind: str, tmp_path: Path) -> None:
    assert write(weights_path(), tmp_path / "out", kind) == 8 * 7
    whole: dict[str, Tensor] = {}
    for file in weights_path().glob("*.safetensors"):
        whole |= load_file(file)
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in whole.items():
        if ".layers." not in name or weight.dim() != 2:
            assert torch.equal(found.pop(name), weight)
            continue
        meant, most = dequantised(parts := parts_of(name, found))
        for part in parts:
            del found[name.removesuffix("weight") + part]
        assert ((meant - weight.float()).abs() <= most * 1.001).all(), name
        assert 0 < most.max() < weight.float().abs().max() / 6
    assert not found
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"] == KINDS[kind][1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_checkpoint_is_no_known_model(kind: str, tmp_path: Path) -> None:
    write(weights_path(), tmp_path / "out", kind)
    samples: dict[str, Tensor] = {}
    stream = load_file(tmp_path / "out" / "model.safetensors")
    passed = dict(sampled(stream.items(), samples))
    assert passed.keys() == stream.keys()
    identity = identity_of(AutoConfig.from_pretrained(weights_path()), samples, kind)
    assert identity.fingerprint == "unknown"
    assert f"is quantised ({kind})" in identity.told


def test_a_checkpoint_that_vllm_quantises_itself_is_the_model_that_it_was() -> None:
    samples: dict[str, Tensor] = {}
    for file in weights_path().glob("*.safetensors"):
        dict(sampled(load_file(file).items(), samples))
    model, _ = load("tiny", device="cpu")
    assert identity_of(model.config, samples, "fp8").fingerprint == fingerprint(model)


def test_the_refusal_of_a_quantised_checkpoint_names_its_kind_and_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "{}")
    model = SimpleNamespace(config=AutoConfig.from_pretrained(weights_path()))
    with pytest.raises(PredictorMismatch, match=r"is quantised \(awq_marlin\)") as refused:
        worker_of("awq_marlin").make_policies(model, {})
    told = f'"predictors": {json.dumps({"horizon": str(predictors_path() / "horizon.safetensors")})}'
    setting = f'{told} and "ignore_predictor_mismatch": true'
    assert f"set {setting} in {VARIABLE}" in str(refused.value)
    monkeypatch.setenv(VARIABLE, f"{{{setting.replace(' and', ',')}}}")
    worker, model = worker_of("awq_marlin"), SimpleNamespace(**vars(model), parameters=parameters_of_any)
    with pytest.warns(LeanThinkWarning, match="borrowed from another model"):
        worker.make_policies(model, {})
    (policy,) = worker.policies.values()
    assert isinstance(policy, Horizon)
    assert next(policy.predictor.parameters()).dtype == torch.bfloat16, "that of states, not of packed weights"


def parameters_of_any() -> Iterator[Tensor]:
    """Of a model that is not on a CPU, and whose first weight is packed."""
    yield torch.zeros(1, dtype=torch.int32, device="meta")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 512}, "reads hidden states of size 384"),
        ({"num_hidden_layers": 9}, "ranks a set for each head, 16 in all .8 layers of 2 kv heads"),
        ({"num_key_value_heads": 3}, "has 8 layers of 3 kv heads"),
        ({"vocab_size": 400}, "has a vocabulary of 264 tokens"),
    ],
)
def test_whoever_ignores_a_mismatch_must_have_a_model_of_that_shape(
    changes: dict[str, int], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, file = AutoConfig.from_pretrained(weights_path()), tmp_path / "heads.safetensors"
    heads = Predictor(target="horizon", hidden_size=384, horizons=(4, 16), granularity="head", num_sets=16)
    save_predictor(heads, file, base_fingerprint="0" * 64, base_shape=base_shape(config), data={}, metrics={})
    settings = {"predictors": {"horizon": str(file)}, "ignore_predictor_mismatch": True}
    monkeypatch.setenv(VARIABLE, json.dumps(settings))
    for name, value in changes.items():
        setattr(config, name, value)
    if "num_hidden_layers" in changes:
        config.layer_types = ["full_attention"] * 9
    with pytest.raises(PredictorMismatch, match=message):
        worker_of("fp8").make_policies(SimpleNamespace(config=config), {}, shared=False)


def test_policies_without_predictor_do_not_ask_which_model_a_checkpoint_is(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = ["random", "window", "sinks"]
    monkeypatch.setenv(VARIABLE, json.dumps({"policy": "random", "policies": policies}))
    worker = worker_of("gptq_marlin")
    worker.make_policies(None, {})
    assert sorted(worker.policies) == sorted(policies)


def test_two_ranks_that_hold_different_heads_keep_the_same_slots() -> None:
    """A row is shown tokens, seed and whole states, which are the same on all ranks, and nothing of a rank's own."""
    states_TF = torch.randn(80, 6, generator=torch.Generator().manual_seed(3))
    budget = Budget(slots=16, recent_window=4, eviction_interval=8)
    ranks = [run(make_row(budget, prompt=7), states_TF.clone(), list(range(1, 81))) for _ in range(2)]
    assert ranks[0] == ranks[1]
