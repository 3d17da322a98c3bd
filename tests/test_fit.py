from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from leanthink.data.traces.trace import Trace
from leanthink.importance import fit as fitting
from leanthink.importance.batches import BATCH_TOKENS
from leanthink.importance.dataset import gather, split_by_problem, usable
from leanthink.importance.fit import fit
from leanthink.importance.fit_config import FitConfig, loss, lr_schedule, targets
from leanthink.importance.label_file import LabelFile, checksum, label_traces, read_labels
from leanthink.models.fingerprint import fingerprint
from leanthink.models.predictor import load_predictor, read_metadata
from leanthink.utils.errors import PredictorMismatch, UsageError
from recorded import HORIZONS, TRACES, small_model, trace


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model()


@pytest.fixture(scope="module")
def labels(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("labels") / "labels.safetensors"
    label_traces(model, TRACES, path, horizons=HORIZONS, granularity="model")
    return read_labels(path)


def test_samples_of_one_problem_stay_on_one_side() -> None:
    train, val = split_by_problem(TRACES, share=0.3, seed=1)
    assert len(val) == 4
    assert not {t.id for t in train} & {t.id for t in val}
    assert len(train) + len(val) == len(TRACES)
    assert split_by_problem(TRACES, share=0.3, seed=1) == (train, val)
    assert split_by_problem(TRACES, share=0, seed=1) == (TRACES, [])
    assert len(split_by_problem(TRACES[:4], share=0.99, seed=1)[0]) == 2
    with pytest.raises(UsageError, match="two problems"):
        split_by_problem(TRACES[:2], share=0.1, seed=0)


def test_traces_that_cannot_be_fitted_to_are_counted_in_the_error(model: Any, tmp_path: Path) -> None:
    path, unclosed = tmp_path / "l.safetensors", trace("unclosed", answer=0)
    label_traces(model, [unclosed], path, horizons=HORIZONS)
    found, wrong = read_labels(path), trace("w", correct=False)
    assert usable([unclosed, wrong], found, only_correct=True, need_answer=False) == [unclosed]
    with pytest.raises(UsageError, match="1 not correct, 1 without labels, 1 without answer"):
        usable([unclosed, wrong, trace("new")], found, only_correct=True, need_answer=True)


def test_hidden_states_stand_beside_their_own_labels(model: Any, labels: Any) -> None:
    one = TRACES[3]
    ids = torch.tensor([[*one.prompt_ids, *one.token_ids]])
    with torch.no_grad():
        # Of two layers the middle one is the last, and its output is what the final norm is applied to.
        every = model.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        middle: list[torch.Tensor] = []
        hook = model.model.norm.register_forward_pre_hook(lambda _, inputs: middle.append(inputs[0]))
        model.model(input_ids=ids, use_cache=False)
        hook.remove()
        states = torch.cat([every[-1], middle[0]], dim=-1)[0, 3 : 3 + one.thought_tokens]
    (whole,) = gather(model, [one], labels, offsets=(0,), tokens_per_trace=None, seed=0)
    torch.testing.assert_close(whole.states_NF[whole.seen_TW[:, 0]], states)
    assert torch.equal(whole.labels_TY, labels.labels[one.key])
    assert whole.tokens_after_T.tolist() == list(range(len(one.token_ids) - 1, one.answer_tokens - 1, -1))
    (part,) = gather(model, [one], labels, offsets=(0, 1, 3), tokens_per_trace=7, seed=0)
    at = (len(one.token_ids) - 1 - part.tokens_after_T).tolist()
    assert len(at) == 7
    assert at == sorted(set(at))
    last = one.thought_tokens - 1
    for column, offset in enumerate((0, 1, 3)):
        seen = [min(index + offset, last) for index in at]
        torch.testing.assert_close(part.states_NF[part.seen_TW[:, column]], states[seen])
    assert len(part.states_NF) <= 3 * 7
    assert torch.equal(part.labels_TY, whole.labels_TY[at])


def test_examples_gathered_in_batches_are_those_of_each_trace_in_the_order_given(
    model: Any, labels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces, seen = [TRACES[index] for index in (2, 11, 0, 7, 4)], []
    how: dict[str, Any] = {"offsets": (0, 1), "tokens_per_trace": 9, "seed": 0}
    alone = gather(model, traces, labels, **how)
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 3 * 28)
    together = gather(model, traces, labels, **how, progress=lambda *now: seen.append(now))
    assert seen == [(done, 5) for done in range(1, 6)]
    assert [examples.problem_id for examples in together] == [one.id for one in traces]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other.states_NF, one.states_NF, rtol=1e-4, atol=1e-5)
        for name in ("seen_TW", "labels_TY", "tokens_after_T"):
            assert torch.equal(getattr(other, name), getattr(one, name))


def test_labels_of_another_model_are_refused(labels: Any) -> None:
    with pytest.raises(PredictorMismatch, match="label its own traces"):
        gather(small_model(num_hidden_layers=1), TRACES[:1], labels, offsets=(0,), tokens_per_trace=None, seed=0)


@pytest.mark.parametrize("target", ["horizon", "answer"])
def test_a_fit_learns_writes_its_sidecar_and_repeats_exactly(
    target: Any, model: Any, labels: Any, tmp_path: Path
) -> None:
    recipe = FitConfig(target=target, steps=150, batch=64, val_share=0.2, seed=3)
    before = torch.get_rng_state()
    fitted = fit(model, TRACES, labels, recipe, out_path=tmp_path / "p.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    again = fit(model, TRACES, labels, recipe)
    other = fit(model, TRACES, labels, FitConfig(target=target, steps=1, batch=64, val_share=0.2, seed=3))
    assert fitted.metrics == again.metrics
    assert fitted.metrics["train_loss"] < other.metrics["train_loss"]
    loaded = load_predictor(tmp_path / "p.safetensors", model)
    assert loaded.target == target
    assert loaded.horizons == (HORIZONS if target == "horizon" else ())
    assert loaded.offsets == ((0, 1) if target == "horizon" else (0,))
    states = torch.randn(5, len(loaded.offsets), 128)
    assert torch.equal(loaded(states), fitted.predictor(states))
    metadata = read_metadata(tmp_path / "p.safetensors")
    assert metadata["metrics"] == fitted.metrics
    assert metadata["data"]["traces"] == 10
    assert metadata["data"]["recipe"]["steps"] == 150
    names = ["2", "8"] if target == "horizon" else ["answer"]
    assert list(fitted.metrics["ranking"]) == names
    assert set(fitted.metrics["ranking"][names[0]]) == {"kendall_tau", "top_20%", "top_30%", "traces"}


def made_labels(model: Any, traces: list[Trace], values_TC: torch.Tensor, horizons: tuple[int, ...]) -> LabelFile:
    """The same labels for each of these traces."""
    return LabelFile(
        horizons=horizons,
        fingerprint=fingerprint(model),
        labels={one.key: values_TC for one in traces},
        checksums={one.key: checksum(one) for one in traces},
    )


def twins(**changes: Any) -> list[Trace]:
    """Two problems with one and the same trace: what is held out is what was fitted to."""
    one = trace("q0", **changes)
    return [one, replace(one, id="q1")]


def test_labels_that_hang_on_the_hidden_state_are_ranked_almost_perfectly(model: Any) -> None:
    random_TC = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    labels = made_labels(model, twins(), random_TC, HORIZONS)
    ranking = fit(model, twins(), labels, FitConfig(steps=600, batch=64, lr=3e-3, val_share=0.5)).metrics["ranking"]
    assert ranking["2"]["kendall_tau"] > 0.9
    assert ranking["8"]["top_30%"] > 0.8
    assert ranking["8"]["traces"] == 1


def test_a_horizon_is_measured_only_on_tokens_that_are_ever_ranked_by_it(model: Any) -> None:
    values_TC = torch.zeros(20, 2)
    values_TC[10:, 1] = torch.linspace(0.1, 0.9, 10)  # all that differs lies nearer to the end than the horizon
    labels = made_labels(model, twins(answer=0), values_TC, (10,))
    assert fit(model, twins(answer=0), labels, FitConfig(steps=1, batch=8, val_share=0.5)).metrics["ranking"] == {
        "10": {"traces": 0}
    }


def test_horizons_that_a_thought_does_not_reach_are_left_out(model: Any) -> None:
    values_TC = torch.ones(20, 2)
    values_TC[10:, 1] = 0  # nothing comes so late: it must not be learned that these tokens will not be read
    labels = made_labels(model, twins(answer=0), values_TC, (10,))
    fitted = fit(model, twins(answer=0), labels, FitConfig(steps=300, batch=64))
    offsets = fitted.predictor.offsets
    (last,) = gather(model, twins(answer=0)[:1], labels, offsets=offsets, tokens_per_trace=None, seed=0)
    assert fitted.predictor(last.states_NF[last.seen_TW[10:]]).min() > 0


def test_the_learning_rate_follows_its_schedule(model: Any, labels: LabelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "lr_schedule", lambda step, steps, target: float(step == 0))
    one, many = (fit(model, TRACES, labels, FitConfig(steps=steps, batch=8)).predictor for steps in (1, 5))
    for first, last in zip(one.parameters(), many.parameters(), strict=True):
        assert torch.equal(first, last)


@pytest.mark.parametrize(("target", "clipped"), [("answer", [1.0, 1.0]), ("horizon", [])])
def test_gradients_are_clipped_as_in_the_paper(
    target: Any, clipped: list[float], model: Any, labels: LabelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: norms.append(norm))
    fit(model, TRACES, labels, FitConfig(target=target, steps=2, batch=8))
    assert norms == clipped


def test_horizons_can_be_a_choice_of_the_labelled_ones(model: Any, labels: Any) -> None:
    fitted = fit(model, TRACES, labels, FitConfig(horizons=(8,), steps=2, batch=8))
    assert fitted.predictor.horizons == (8,)
    assert list(fitted.metrics["ranking"]) == ["8"]
    with pytest.raises(UsageError, match="unknown horizon 16"):
        fit(model, TRACES, labels, FitConfig(horizons=(16,), steps=2))
    with pytest.raises(UsageError, match="ascending"):
        fit(model, TRACES, labels, FitConfig(horizons=(8, 2), steps=2))


def test_horizons_that_hardly_any_token_reaches_are_left_out_unless_they_are_asked_for(model: Any) -> None:
    values_TC = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    labels = made_labels(model, twins(answer=0), values_TC, (4, 10, 19, 20, 30))  # 16, 10, 1, 0 and 0 tokens of 20
    assert fit(model, twins(answer=0), labels, FitConfig(steps=1, batch=8)).predictor.horizons == (4, 10, 19)
    rare = [*twins(answer=0), *(replace(trace(f"s{i}", thought=9, answer=0)) for i in range(20))]
    assert fitting._columns(rare, labels, FitConfig())[1].horizons == (4, 10)  # 19 is reached by 2 tokens of 220
    assert fitting._columns(rare, labels, FitConfig(horizons=(19,)))[1].horizons == (19,)
    short = [trace(f"t{i}", thought=3, answer=0) for i in range(2)]
    assert fitting._reached(short, 4) == 0
    with pytest.raises(UsageError, match="longer traces"):
        fitting._columns(short, labels, FitConfig())
    with pytest.raises(UsageError, match="horizon 20: no thought token"):
        fitting._columns(rare, labels, FitConfig(horizons=(4, 20)))


def test_a_horizon_that_held_out_traces_alone_reach_is_not_fitted(model: Any, tmp_path: Path) -> None:
    names = [trace("a"), trace("b")]
    (_, (apart,)) = split_by_problem(names, share=0.5, seed=0)
    traces = [trace(one.id, thought=20, answer=15 if one == apart else 0) for one in names]
    label_traces(model, traces, tmp_path / "l", horizons=(2, 25), granularity="model")
    labels = read_labels(tmp_path / "l")
    assert fit(model, traces, labels, FitConfig(val_share=0.5, steps=1, batch=8)).predictor.horizons == (2,)
    with pytest.raises(UsageError, match="horizon 25: no thought token of the 1 traces to fit to"):
        fit(model, traces, labels, FitConfig(val_share=0.5, horizons=(2, 25)))


def test_a_fit_that_diverges_is_told_and_nothing_is_written(model: Any, labels: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"loss is nan after 5 steps: give a lower lr than 1e\+30"):
        fit(model, TRACES, labels, FitConfig(lr=1e30, steps=5, batch=8), out_path=tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_without_held_out_traces_only_the_training_loss_is_reported(model: Any, labels: Any) -> None:
    metrics = fit(model, TRACES[:1], labels, FitConfig(steps=2, batch=8, val_share=0, tokens_per_trace=4)).metrics
    assert metrics.keys() == {"train_loss", "held_out_traces"}


@pytest.mark.parametrize(
    "bad",
    [
        {"target": "answers"},
        {"transform": "log"},
        {"target": "answer", "horizons": (32,)},
        {"target": "answer", "offsets": (0,)},
        {"steps": 0},
        {"batch": 0},
        {"lr": 0.0},
        {"val_share": 1.0},
        {"val_share": -0.1},
        {"tokens_per_trace": 0},
    ],
)
def test_a_recipe_out_of_range_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        FitConfig(**bad)


def test_goals_are_the_transforms_of_the_paper() -> None:
    label = torch.tensor([[2.5e-4]])
    assert targets(label, FitConfig(target="answer", transform="scale")).item() == pytest.approx(2.5)
    assert targets(label, FitConfig(target="answer")).item() == pytest.approx(10 * 2.5e-4**0.3 / 0.3)
    assert targets(label, FitConfig()).item() == pytest.approx(2.5e-4)


def test_the_answer_loss_weighs_the_band_from_4_to_5_fivefold() -> None:
    wanted = torch.tensor([[3.9], [4.0], [4.9], [5.0]])
    everything = torch.ones_like(wanted, dtype=torch.bool)
    assert loss(wanted + 1, wanted, everything, "answer").item() == pytest.approx((1 + 5 + 5 + 1) / 4)


def test_the_horizon_loss_leaves_out_what_does_not_count() -> None:
    scores, wanted = torch.tensor([[0.0, 9.0]]), torch.tensor([[0.5, 0.0]])
    counted = torch.tensor([[True, False]])
    assert loss(scores, wanted, counted, "horizon").item() == pytest.approx(math.log(2))
    assert loss(scores, wanted, torch.zeros(1, 2, dtype=torch.bool), "horizon").item() == 0


def test_learning_rates_decay_linearly_or_warm_up_and_follow_a_cosine() -> None:
    assert [lr_schedule(step, 4, "horizon") for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    answer = [lr_schedule(step, 100, "answer") for step in range(101)]
    assert answer[0] == pytest.approx(0.1)
    assert answer[9] == answer[10] == 1
    assert answer[55] == pytest.approx(0.5)
    assert answer[100] == pytest.approx(0)


@pytest.mark.parametrize(("granularity", "sets"), [("layer", 2), ("head", 4)])
def test_a_fit_for_index_sets_learns_each_of_them_and_is_read_back(
    model: Any, granularity: Any, sets: int, tmp_path: Path
) -> None:
    label_traces(model, TRACES, tmp_path / "l", horizons=HORIZONS, granularity=granularity)
    labels, out = read_labels(tmp_path / "l"), tmp_path / "p"
    short, long = (FitConfig(width=32, steps=steps, batch=64) for steps in (2, 200))  # the granularity is the labels'
    fitted = fit(model, TRACES, labels, long, out_path=out)
    assert fitted.metrics["train_loss"] < fit(model, TRACES, labels, short).metrics["train_loss"]
    assert fitted.predictor.num_sets == sets
    for ranking in fitted.metrics["ranking"].values():
        assert ranking["traces"] == fitted.metrics["held_out_traces"], "not times the sets"
    loaded = load_predictor(out, model)
    hidden_states_NWF = torch.randn(3, len(loaded.offsets), 2 * model.config.hidden_size)
    assert loaded(hidden_states_NWF).shape == (3, sets * len(loaded.horizons))
    assert torch.equal(loaded(hidden_states_NWF), fitted.predictor(hidden_states_NWF))
    assert (loaded.granularity, loaded.width) == (granularity, 32)


def test_labels_of_another_granularity_or_a_narrow_width_are_refused(model: Any, labels: Any) -> None:
    with pytest.raises(UsageError, match="granularity 'head' needs labels of it, these are of 'model'"):
        fit(model, TRACES, labels, FitConfig(granularity="head", steps=1))
    with pytest.raises(UsageError, match="width must be at least 4, got 3"):
        FitConfig(width=3)
    with pytest.raises(UsageError, match="belong to the target 'horizon'"):
        FitConfig(target="answer", granularity="layer")
