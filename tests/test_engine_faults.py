"""Whatever goes wrong for one request ends that one alone: the others get the very tokens that they get alone."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from leanthink.data.think_tags import ThinkTags
from leanthink.engine import attention_sums
from leanthink.engine.engine import Engine
from leanthink.engine.generation import generate, stream
from leanthink.engine.outputs import Completion, Progress
from leanthink.engine.sampling import Sampling
from leanthink.policies import Policy, Slots, make_policy
from leanthink.policies.budget import Budget
from leanthink.policies.h2o import H2O
from leanthink.policies.window import Window
from leanthink.utils.errors import DeviceLost, LeanThinkError, RequestFailed
from models import RandomPredictor, endless, make_tokenizer, mix_prompts
from test_engine import assert_empty

TOKENIZER = make_tokenizer()
BUDGET = Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=8)
POISON = 77  # a token that a broken model, predictor or tokenizer cannot stand
PROMPTS = [[5, 6, 7], [8, POISON], [9], [5, 6, 7, 10]]
SPOILT = 1  # of these
ROW_SLOTS = pytest.mark.parametrize("row_slots", [None, 100])


@pytest.fixture(autouse=True, params=["apart", "together"])
def _prompts_and_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fed by two forwards, or by one."""
    if request.param == "together":
        mix_prompts(monkeypatch)


def samplings() -> list[Sampling]:
    return [Sampling(max_new_tokens=60, temperature=0.9 * (i % 2), seed=i, logprobs=i or None) for i in range(4)]


def run(engine: Engine) -> Progress:
    """Everything that ends, with every invariant checked after each step."""
    whole = Progress()
    while engine.unfinished:
        progress = engine.step()
        engine.check_integrity()
        whole.finished.update(progress.finished)
        whole.failed.update(progress.failed)
    return whole


def alone(model: Any, index: int, policy: Any = "window") -> Completion:
    options: dict[str, Any] = {"policy": policy, "budget": None if policy == "full" else BUDGET}
    (done,) = generate(model, TOKENIZER, PROMPTS[index], sampling=samplings()[index], **options)
    return done


def assert_only_one_failed(engine: Engine, model: Any, why: str, policy: Any = "window", **choices: Any) -> None:
    """Of PROMPTS on this engine; and whoever comes next on the same slots gets what it gets alone, too."""
    options: dict[str, Any] = {"policy": policy, "budget": None if policy == "full" else BUDGET} | choices
    ids = [
        engine.add(prompt, sampling=sampling, streamed=i % 2 == 0, **options)
        for i, (prompt, sampling) in enumerate(zip(PROMPTS, samplings(), strict=True))
    ]
    whole = run(engine)
    assert list(whole.failed) == [ids[SPOILT]]
    assert why in str(whole.failed[ids[SPOILT]])
    assert_empty(engine)
    again = [engine.add(PROMPTS[i], sampling=samplings()[i], **options) for i in (0, 2, 3)]
    finished = whole.finished | run(engine).finished
    for i, first, second in zip((0, 2, 3), (ids[0], ids[2], ids[3]), again, strict=True):
        expected = alone(model, i, policy).token_ids
        assert finished[first].token_ids == finished[second].token_ids == expected
    assert_empty(engine)


def poisoned(**changes: Any) -> Any:
    """A model that overflows where it reads POISON, which it never writes."""
    model = endless(**changes).double()
    with torch.no_grad():
        model.get_output_embeddings().weight[POISON] = 0
        model.get_input_embeddings().weight[POISON] = torch.nan
    return model


@ROW_SLOTS
@pytest.mark.parametrize("architecture", ["llama", "phi3", "gpt_oss", "bamba"])
def test_logits_that_are_no_numbers_end_their_own_request(row_slots: int | None, architecture: str) -> None:
    model = poisoned(architecture=architecture)
    engine = Engine(model, TOKENIZER, slots=400, rows=4, row_slots=row_slots)
    assert_only_one_failed(engine, model, "logits are NaN or infinite")


@ROW_SLOTS
@pytest.mark.parametrize("architecture", ["llama", "gpt_oss"])
def test_nan_in_the_middle_of_a_prompt_does_not_stay_in_the_slots(row_slots: int | None, architecture: str) -> None:
    model = poisoned(architecture=architecture)
    engine = Engine(model, TOKENIZER, slots=300, rows=3, row_slots=row_slots, prefill_tokens=4)
    sampling = Sampling(max_new_tokens=30)
    for ends in ("fails", "is cancelled"):
        spoilt = engine.add([POISON] * 9, policy="full", sampling=sampling)
        other = engine.add([1], policy="full", sampling=sampling)
        if ends == "is cancelled":
            engine.step()
            assert engine.cancel(spoilt)
        whole = run(engine)
        assert list(whole.failed) == ([spoilt] if ends == "fails" else [])
        windows = engine.cache.windows
        for held in (engine.cache, *([windows] if windows is not None else [])):
            assert bool(held.kv_LPHTD.isfinite().all()), ends
        (expected,) = generate(model, TOKENIZER, [1], policy="full", sampling=sampling)
        assert whole.finished[other].token_ids == expected.token_ids


class Broken(Window):
    """Ranks by age, but not the slots of requests with the seed of the spoilt one."""

    def score(self, slots: Slots) -> Tensor:
        """NaN for them."""
        return (-slots.ages.double()).masked_fill(slots.seeds[:, None] == SPOILT, torch.nan)


class Raising(Window):
    """Raises where it is shown the slots of the spoilt request."""

    def score(self, slots: Slots) -> Tensor:
        """As of Window."""
        if bool((slots.seeds == SPOILT).any()):
            raise ZeroDivisionError("out of chalk")
        return super().score(slots)


class BrokenInLayerOne(H2O):
    """Ranks by attention, but not the slots of one head in layer 1 of requests with the seed of the spoilt one."""

    def score(self, slots: Slots) -> Tensor:
        """NaN for them."""
        assert slots.layer is not None
        scores_RHS = super().score(slots).double()
        scores_RHS[(slots.seeds == SPOILT) & (slots.layer == 1), -1] = torch.nan
        return scores_RHS


class RaisingInLayerOne(H2O):
    """Raises where it is shown the slots of layer 1 of the spoilt request."""

    def score(self, slots: Slots) -> Tensor:
        """As of H2O."""
        assert slots.layer is not None
        if bool(((slots.seeds == SPOILT) & (slots.layer == 1)).any()):
            raise ZeroDivisionError("out of chalk")
        return super().score(slots)


@ROW_SLOTS
@pytest.mark.parametrize("together", [1, 2])  # layers that are shown at a time
@pytest.mark.parametrize(
    ("kind", "why"), [(BrokenInLayerOne, "score that is NaN or infinite"), (RaisingInLayerOne, "out of chalk")]
)
def test_a_ranking_per_head_that_fails_in_one_layer_ends_the_request_whose_slots_it_is_of(
    kind: type[Policy], why: str, together: int, row_slots: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = endless().double()
    monkeypatch.setattr(attention_sums, "at_a_time", lambda _cache, _bytes, num_rows: (num_rows, together))
    engine = Engine(model, TOKENIZER, slots=400, rows=4, row_slots=row_slots)
    assert_only_one_failed(engine, model, why, policy=kind())


@ROW_SLOTS
@pytest.mark.parametrize(("kind", "why"), [(Broken, "score that is NaN or infinite"), (Raising, "out of chalk")])
def test_a_ranking_that_fails_ends_the_request_whose_slots_it_is_of(
    kind: type[Policy], why: str, row_slots: int | None
) -> None:
    model = endless().double()
    engine = Engine(model, TOKENIZER, slots=400, rows=4, row_slots=row_slots)
    assert_only_one_failed(engine, model, why, policy=kind())


def test_the_next_request_on_the_row_of_one_whose_ranking_failed_is_served() -> None:
    engine = Engine(endless(), TOKENIZER, slots=100, rows=1)
    options: dict[str, Any] = {"policy": Broken(), "budget": BUDGET}
    seeds = [SPOILT, 0]
    spoilt, next_one = (engine.add([5], sampling=Sampling(max_new_tokens=60, seed=s), **options) for s in seeds)
    whole = run(engine)
    assert (list(whole.failed), list(whole.finished)) == ([spoilt], [next_one])


@ROW_SLOTS
@pytest.mark.parametrize("raises_at", [6, 17, 18, 19, 31])  # calls: 8 for each eviction of 4 rows, 2 for each of theirs
def test_attention_is_added_once_though_adding_raises_on_the_way(
    raises_at: int, row_slots: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = endless().double()
    options: dict[str, Any] = {"policy": H2O(waiting=8), "budget": BUDGET}
    expected = [alone(model, i, H2O(waiting=8)).token_ids for i in range(4)]
    engine = Engine(model, TOKENIZER, slots=400, rows=4, row_slots=row_slots)
    sums, calls = attention_sums._sums, count(1)

    def scarce(*args: Any) -> Tensor:
        if next(calls) == raises_at:
            raise RuntimeError("no room")
        return sums(*args)

    monkeypatch.setattr(attention_sums, "_sums", scarce)
    monkeypatch.setattr(attention_sums, "at_a_time", lambda _cache, _bytes, num_rows: (num_rows, 1))
    ids = [engine.add(prompt, sampling=samplings()[i], **options) for i, prompt in enumerate(PROMPTS)]
    whole = run(engine)
    assert not whole.failed
    assert [whole.finished[i].token_ids for i in ids] == expected
    assert next(calls) > raises_at


class Choosy(RandomPredictor):
    """A predictor that cannot stand the states of one token."""

    def __init__(self, *args: Any, how: str) -> None:
        super().__init__(*args)
        self.how = how

    def forward(self, hidden_states_NWF: Tensor) -> Tensor:
        """As of RandomPredictor; states that the test has marked bring NaN or raise."""
        bad_N = (hidden_states_NWF > 1e8).flatten(1).any(1)
        if self.how == "raises" and bool(bad_N.any()):
            raise ValueError("too large for me")
        return super().forward(hidden_states_NWF).masked_fill(bad_N[:, None], torch.nan)


@pytest.mark.parametrize(("how", "why"), [("nan", "score that is NaN"), ("raises", "too large for me")])
@pytest.mark.parametrize("policy", ["dynts", "horizon"])  # scored in the forward, and many tokens at a time
def test_a_predictor_that_fails_ends_the_request_whose_token_it_saw(
    policy: str, how: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = endless().double()
    engine = Engine(model, TOKENIZER, slots=400, rows=4)
    mark_spoilt(engine, monkeypatch)
    assert_only_one_failed(engine, model, why, policy=choosy(policy, how, model))


def choosy(policy: str, how: str, model: Any) -> Policy:
    """One with a predictor beside this model that cannot stand what `mark_spoilt` marks."""
    horizons, offsets = ((), (0,)) if policy == "dynts" else ((8, 16), (0, 1, 3))
    target = "answer" if policy == "dynts" else "horizon"
    predictor = Choosy(64, target, horizons, offsets, how=how).to(model.device, model.dtype)
    return make_policy(policy, predictor)


def mark_spoilt(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token of the spoilt request gets states that the test's predictor cannot stand."""
    decode = engine.model_runner._decode

    def marked(cache: Any, ids_N: Tensor, positions_N1: Tensor) -> tuple[Tensor, Tensor]:
        states_NF, logits_NV = decode(cache, ids_N, positions_N1)
        n = len(logits_NV)  # prompts come first
        spoilt_N = (engine.sampler.seeds[:n] == SPOILT) & (positions_N1[-n:, 0] == 9) & (cache.live[:n] > 0)
        return states_NF.masked_fill(spoilt_N[:, None], 1e9), logits_NV

    monkeypatch.setattr(engine.model_runner, "_decode", marked)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("fault", ["logits", "score", "raising score", "layer", "raising layer"])
def test_a_fault_on_a_gpu_ends_its_own_request(fault: str, graphs: bool) -> None:
    policy, why = {
        "logits": ("window", "logits are NaN"),
        "score": (Broken(), "score that is NaN"),
        "raising score": (Raising(), "out of chalk"),
        "layer": (BrokenInLayerOne(), "score that is NaN"),
        "raising layer": (RaisingInLayerOne(), "out of chalk"),
    }[fault]
    model = (poisoned() if fault == "logits" else endless()).float().to("cuda")
    engine = Engine(model, TOKENIZER, slots=400, rows=4, graphs=graphs)
    assert_only_one_failed(engine, model, why, policy=policy)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:a step cannot be captured")
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(("how", "why"), [("nan", "score that is NaN"), ("raises", "too large for me")])
@pytest.mark.parametrize("policy", ["dynts", "horizon"])
def test_a_predictor_that_fails_on_a_gpu_ends_the_request_whose_token_it_saw(
    policy: str, how: str, why: str, graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = endless().to("cuda")
    engine = Engine(model, TOKENIZER, slots=400, rows=4, graphs=graphs)
    mark_spoilt(engine, monkeypatch)
    assert_only_one_failed(engine, model, why, policy=choosy(policy, how, model))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:a step cannot be captured")
def test_a_token_score_that_cannot_be_captured_runs_without_graphs() -> None:
    """It has the host wait: true of any policy that asks for a number."""
    model = endless().to("cuda")
    made = choosy("dynts", "raises", model)
    engine = Engine(model, TOKENIZER, slots=400, rows=4)
    ids = [engine.add(PROMPTS[i], policy=made, budget=BUDGET, sampling=samplings()[i]) for i in (0, 2, 3)]
    stream, state = torch.cuda.current_stream(), torch.cuda.get_rng_state()
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        whole = run(engine)
    assert torch.cuda.current_stream() == stream
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.rand(1, device="cuda")
    assert [whole.finished[i].token_ids for i in ids] == [alone(model, i, made).token_ids for i in (0, 2, 3)]


@ROW_SLOTS
@pytest.mark.parametrize(
    ("architecture", "late"),
    [("llama", False), ("llama", True), ("gpt_oss", False), ("qwen3_5_text", True), ("bamba", True)],
)
def test_a_forward_that_raises_ends_the_request_that_it_raises_for(
    row_slots: int | None, architecture: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = endless(architecture=architecture).double()
    with torch.no_grad():
        model.get_output_embeddings().weight[POISON] = 0
    engine = Engine(model, TOKENIZER, slots=400, rows=4, row_slots=row_slots)
    for owner, name in ((engine.model_runner, "_decode"), (model.model, "forward")):
        monkeypatch.setattr(owner, name, refusing(getattr(owner, name), late=late))
    assert_only_one_failed(engine, model, "no room for a token")


def refusing(forward: Callable[..., Any], *, late: bool = False) -> Callable[..., Any]:
    """The same, but raises where it reads POISON; late: when its work is done, states of other requests included."""

    def read(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if any(bool((tensor == POISON).any()) for tensor in tensors if not tensor.is_floating_point()):
            if late:
                forward(*args, **kwargs)
            raise RuntimeError("no room for a token")
        return forward(*args, **kwargs)

    return read


@pytest.mark.parametrize("ahead", [1, 9])  # all in one chunk, or the poison in the second
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "qwen3_5_text"])
def test_a_prompt_that_raises_when_it_is_fed_ends_its_own_request(
    architecture: str, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = endless(architecture=architecture).double()
    with torch.no_grad():
        model.get_output_embeddings().weight[POISON] = 0
    engine = Engine(model, TOKENIZER, slots=400, rows=4, prefill_tokens=8)
    for owner, name in ((engine.model_runner, "_decode"), (model.model, "forward")):
        monkeypatch.setattr(owner, name, refusing(getattr(owner, name)))
    options: dict[str, Any] = {"sampling": Sampling(max_new_tokens=30), "policy": "h2o", "budget": BUDGET}
    before = engine.add([1, 2, 3], **options)
    spoilt = engine.add([4] * ahead + [POISON, 6], **options)
    behind = engine.add([7, 8], **options)
    whole = run(engine)
    assert list(whole.failed) == [spoilt]
    for request_id, prompt in ((before, [1, 2, 3]), (behind, [7, 8])):
        (expected,) = generate(model, TOKENIZER, prompt, **options)
        assert whole.finished[request_id].token_ids == expected.token_ids
    assert_empty(engine)


class Illiterate:
    """The tokenizer, which cannot read what follows the spoilt prompt."""

    def __init__(self, token: int) -> None:
        self._token = token

    def __getattr__(self, name: str) -> Any:
        return getattr(TOKENIZER, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return TOKENIZER(*args, **kwargs)

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        """Its text."""
        if self._token in token_ids:
            raise OverflowError("who can read this?")
        return TOKENIZER.decode(token_ids, **kwargs)


@pytest.mark.parametrize("reads", ["completion", "stream", "stop", "tag", "cut"])
def test_a_tokenizer_that_cannot_read_an_answer_ends_the_request_that_wrote_it(reads: str) -> None:
    model = endless().double()
    tags = ThinkTags(open_id=None, close_id=None, open="<x>", close="</x>") if reads == "tag" else None
    options: dict[str, Any] = {"policy": "full", "sampling": Sampling(max_new_tokens=20)}
    if reads == "stop":
        options["sampling"] = replace(options["sampling"], stop=("never written",))
    written = [done.token_ids for done in generate(model, TOKENIZER, [[1], [2]], **options)]
    odd = next(token for token in written[1] if token not in written[0])
    engine = Engine(model, Illiterate(odd), slots=200, rows=2, tags=tags)
    good, bad = (engine.add([first], **options, streamed=reads == "stream") for first in (1, 2))
    cut: dict[int, RequestFailed] = {}
    if reads == "cut":
        for _ in written[1][:-1]:
            engine.step()
        with pytest.raises(RequestFailed) as raised:
            engine.finish_early(bad)
        assert engine.unfinished == 1
        cut = {bad: raised.value}
    whole = run(engine)
    failed = whole.failed | cut
    assert whole.finished[good].token_ids == written[0]
    assert list(failed) == [bad]
    assert "OverflowError: who can read this?" in str(failed[bad])
    assert_empty(engine)


def test_a_stream_of_a_request_that_fails_raises_and_the_other_streams_go_on() -> None:
    model = poisoned()
    engine = Engine(model, TOKENIZER, slots=400, rows=4)
    sampling = Sampling(max_new_tokens=12)
    silent = engine.add([POISON, POISON], policy="full", sampling=sampling)
    good = engine.stream([1, 2], policy="full", sampling=sampling)
    bad = engine.stream([3, POISON], policy="full", sampling=sampling)
    first = next(good)
    with pytest.raises(RequestFailed, match="request 2 failed: the model's logits"):
        next(bad)
    rest = list(good)
    (expected,) = generate(model, TOKENIZER, [1, 2], policy="full", sampling=sampling)
    assert (first.token_id, *(step.token_id for step in rest)) == expected.token_ids
    assert list(engine.step().failed) == [silent], "it failed while the streams were read"
    assert not engine.step().failed
    assert_empty(engine)


def test_an_error_that_nobody_can_be_blamed_for_ends_what_runs_and_not_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = endless().double()
    engine = Engine(model, TOKENIZER, slots=400, rows=2)
    sampling = Sampling(max_new_tokens=12)
    ids = [engine.add([i], policy="full", sampling=sampling) for i in range(3)]
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine.cache, "advance", lambda: 1 / 0)
        assert list(engine.step().failed) == ids[:2]
    engine.check_integrity()
    whole = run(engine)
    (expected,) = generate(model, TOKENIZER, [2], policy="full", sampling=sampling)
    assert whole.finished[ids[2]].token_ids == expected.token_ids
    assert not whole.failed
    assert_empty(engine)


def test_generate_brings_the_others_to_their_end_before_it_raises() -> None:
    model, heard = poisoned(), dict[int, Completion]()
    options: dict[str, Any] = {"policy": "window", "budget": BUDGET}
    with pytest.raises(RequestFailed, match=r"request 1 failed: the model's logits are NaN"):
        generate(model, TOKENIZER, PROMPTS, sampling=samplings(), max_rows=2, on_finish=heard.__setitem__, **options)
    assert sorted(heard) == [0, 2, 3]
    for index, done in heard.items():
        assert done.token_ids == alone(model, index).token_ids
    with pytest.raises(RequestFailed):
        list(stream(model, TOKENIZER, PROMPTS[1], **options))


def test_an_error_meant_for_the_user_reaches_him_as_it_was_raised() -> None:
    model = endless("phi3")
    model.train()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.raises(LeanThinkError):
        generate(model, TOKENIZER, PROMPTS[0], policy="full", sampling=Sampling(max_new_tokens=3))


def test_only_a_lost_device_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(endless(), TOKENIZER, slots=400, rows=2)
    engine.add([1], policy="full", sampling=Sampling(max_new_tokens=12))

    def lost(error: Exception) -> None:
        raise DeviceLost("cuda:0 answers no more") from error

    monkeypatch.setattr(engine.faults, "check_device", lost)
    monkeypatch.setattr(engine.model_runner, "launch", lambda *_, **__: 1 / 0)
    with pytest.raises(DeviceLost):
        engine.step()


def test_a_failure_can_be_sent_to_another_process() -> None:
    failure = pickle.loads(pickle.dumps(RequestFailed(3, "why")))
    assert (failure.request_id, str(failure)) == (3, "request 3 failed: why")
