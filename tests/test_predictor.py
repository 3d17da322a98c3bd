from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from leanthink.models.fingerprint import fingerprint
from leanthink.models.predictor import Predictor, load_predictor, read_metadata, save_predictor
from leanthink.policies.horizon import Horizon
from leanthink.utils.errors import DamagedFile, PredictorMismatch, UnsupportedModel, UsageError


def small_model(kind: str = "qwen3", **changes: Any) -> Any:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 60,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    } | changes
    return (
        Qwen3ForCausalLM(Qwen3Config(**shape)) if kind == "qwen3" else LlamaForCausalLM(LlamaConfig(**shape))
    ).eval()


def saved(path: Path, model: Any, predictor: Predictor) -> Path:
    save_predictor(predictor, path, base_fingerprint=fingerprint(model), data={"traces": 3}, metrics={"loss": 0.5})
    return path


def test_the_answer_predictor_is_the_head_of_the_paper() -> None:
    predictor = Predictor(target="answer", hidden_size=64)
    shapes = [tuple(weight.shape) for weight in predictor.parameters()]
    assert shapes == [(128, 64), (32, 128), (1, 32)]
    states = torch.randn(50, 1, 128)
    assert (predictor(states) > 0).all()
    assert predictor.horizons == ()
    middle_changed = torch.cat([states[..., :64], torch.randn(50, 1, 64)], dim=-1)
    assert torch.equal(predictor(middle_changed), predictor(states))


def test_the_horizon_predictor_gives_one_logit_for_each_horizon() -> None:
    torch.manual_seed(0)
    predictor = Predictor(target="horizon", hidden_size=64, horizons=(32, 64, 128))
    shapes = [tuple(weight.shape) for weight in predictor.parameters()]
    assert shapes == [(128, 128), (128,), (32, 128), (32,), (3, 32), (3,)]
    scores = predictor(10 * torch.randn(50, 1, 128))
    assert scores.shape == (50, 3)
    assert scores.min() < 0 < scores.max()


def test_the_horizon_predictor_reads_every_token_it_is_shown_and_both_halves_of_its_states() -> None:
    predictor = Predictor(target="horizon", hidden_size=64, horizons=(32,), offsets=(0, 1, 5))
    states = torch.randn(4, 3, 128)
    for token in range(3):
        for half in (slice(0, 64), slice(64, 128)):
            changed = states.clone()
            changed[:, token, half] += 1
            assert not torch.equal(predictor(changed), predictor(states))


def test_states_that_follow_are_summarised_in_one_product() -> None:
    """Not token by token, which is many times as slow and gives the same numbers."""
    predictor = Predictor(target="horizon", hidden_size=64, horizons=(32,), offsets=(0, 1, 5)).requires_grad_(False)
    for score, shape in ((predictor, (40, 3, 128)), (predictor.score_consecutive, (9, 40, 128))):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
            score(torch.randn(shape))
        counts = {event.key: event.count for event in profile.key_averages()}
        assert counts["aten::mm"] == 2, "the summaries, and what follows of them"
        assert "aten::addmm" in counts
        assert "aten::bmm" not in counts


@pytest.mark.parametrize("offsets", [(0,), (0, 1), (0, 3, 4), (0, 1, 2, 4, 8, 12)])
@pytest.mark.parametrize("scored", [1, 4, 16])
def test_consecutive_tokens_are_scored_at_once_as_each_by_itself(scored: int, offsets: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 64, "horizons": (32, 64), "granularity": "head", "num_sets": 4}
    predictor = Predictor(target="horizon", offsets=offsets, **shape).requires_grad_(False)
    head: Any = predictor.head
    head.standardise(3 * torch.randn(100, 128) + torch.randn(128))
    states_TRF = 3 * torch.randn(scored + offsets[-1], 3, 128)
    seen_SRWF = torch.stack([states_TRF[offset : offset + scored] for offset in offsets], dim=2)
    wanted_SRC = torch.stack([predictor(seen_RWF) for seen_RWF in seen_SRWF])
    before, policy = states_TRF.clone(), Horizon(predictor=predictor)
    for got_SRC in (predictor.score_consecutive(states_TRF), policy.score_consecutive(states_TRF)):
        torch.testing.assert_close(got_SRC, wanted_SRC, rtol=0, atol=1e-5)
    torch.testing.assert_close(predictor.score_consecutive(states_TRF[:, 1:2]), wanted_SRC[:, 1:2], rtol=0, atol=1e-5)
    rows_first = states_TRF.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(predictor.score_consecutive(rows_first), wanted_SRC, rtol=0, atol=1e-5)
    assert torch.equal(states_TRF, before), "what it is shown belongs to the caller"


def test_states_are_measured_against_those_that_were_fitted_to() -> None:
    predictor = Predictor(target="horizon", hidden_size=64, horizons=(32,), offsets=(0, 1))
    states = torch.randn(500, 2, 128)
    as_they_are = predictor(states)
    scaled = states * torch.linspace(0.1, 10, 128) + 3
    predictor.head.standardise(scaled.flatten(0, 1))
    unit = (states - states.flatten(0, 1).mean(0)) / states.flatten(0, 1).std(0, correction=0)
    fresh = Predictor(target="horizon", hidden_size=64, horizons=(32,), offsets=(0, 1))
    fresh.load_state_dict(predictor.state_dict() | {"head.mean_F": torch.zeros(128), "head.spread_F": torch.ones(128)})
    torch.testing.assert_close(predictor(scaled), fresh(unit), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(predictor(scaled), as_they_are, atol=1e-4)


@pytest.mark.parametrize("offsets", [(), (1,), (0, 2, 2), (0, 3, 1), (0, 32)])
def test_offsets_out_of_order_or_beyond_the_first_horizon_are_refused(offsets: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="offsets"):
        Predictor(target="horizon", hidden_size=64, horizons=(32, 64), offsets=offsets)
    with pytest.raises(UsageError, match="sees the token alone"):
        Predictor(target="answer", hidden_size=64, offsets=(0, 1))


def test_scores_take_hidden_states_of_any_float_dtype() -> None:
    predictor = Predictor(target="answer", hidden_size=64)
    assert predictor(torch.randn(2, 1, 128).bfloat16()).dtype == torch.float32
    assert predictor(torch.randn(0, 1, 128)).shape == (0, 1)


@pytest.mark.parametrize(
    ("target", "horizons"), [("answer", (32,)), ("horizon", ()), ("horizons", (32,)), ("answers", ())]
)
def test_a_predictor_of_contradictory_arguments_is_refused(target: Any, horizons: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        Predictor(target=target, hidden_size=64, horizons=horizons)


@pytest.mark.parametrize(("target", "horizons"), [("answer", ()), ("horizon", (32, 64))])
def test_a_sidecar_reads_back_what_was_written(target: Any, horizons: tuple[int, ...], tmp_path: Path) -> None:
    offsets = (0, 1, 7) if horizons else (0,)
    model = small_model()
    predictor = Predictor(target=target, hidden_size=64, horizons=horizons, offsets=offsets)
    path = saved(tmp_path / "sub" / "p.safetensors", model, predictor)
    loaded = load_predictor(path, model)
    assert (loaded.target, loaded.horizons, loaded.offsets, loaded.hidden_size) == (target, horizons, offsets, 64)
    for before, after in zip(predictor.parameters(), loaded.parameters(), strict=True):
        assert after.dtype == torch.float32
        assert not after.requires_grad
        assert torch.equal(before.bfloat16().float(), after)
    metadata = read_metadata(path)
    assert metadata["data"] == {"traces": 3}
    assert metadata["metrics"] == {"loss": 0.5}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_another_model_is_refused_naming_both_sides(tmp_path: Path) -> None:
    model, other = small_model(), small_model(hidden_size=32)
    path = saved(tmp_path / "p.safetensors", model, Predictor(target="answer", hidden_size=64))
    with pytest.raises(PredictorMismatch) as caught:
        load_predictor(path, other)
    for part in (str(path), "64", "32", fingerprint(model)[:12], fingerprint(other)[:12]):
        assert part in str(caught.value)


def test_a_truncated_sidecar_is_a_damaged_file_wherever_it_was_cut(tmp_path: Path) -> None:
    model = small_model()
    path = saved(tmp_path / "p.safetensors", model, Predictor(target="answer", hidden_size=64))
    data = path.read_bytes()
    for end in (0, 4, 20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(DamagedFile, match="truncated"):
            load_predictor(path, model)


def test_files_that_are_no_predictor_are_usage_errors(tmp_path: Path) -> None:
    model, path = small_model(), tmp_path / "p.safetensors"
    with pytest.raises(UsageError, match="no predictor at"):
        load_predictor(path, model)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(UsageError, match="no predictor"):
        load_predictor(path, model)
    save_file({"w": torch.zeros(2)}, path, metadata={"leanthink": "predictor", "version": "99"})
    with pytest.raises(UsageError, match="version 99"):
        load_predictor(path, model)


@pytest.mark.parametrize(
    "change",
    [
        {"horizons": "["},
        {"target": "x"},
        {"hidden_size": None},
        {"hidden_size": "128"},
        {"horizons": "[1, 2]"},
        {"offsets": "[0, 1]"},
        {"offsets": "[0, 32]"},
    ],
)
def test_metadata_that_cannot_be_right_is_a_damaged_file(change: dict[str, str | None], tmp_path: Path) -> None:
    model, path = small_model(), tmp_path / "p.safetensors"
    metadata: dict[str, str | None] = {
        "leanthink": "predictor",
        "version": "2",
        "target": "horizon",
        "horizons": "[32]",
        "offsets": "[0]",
        "hidden_size": "64",
        "fingerprint": fingerprint(model),
        "data": "{}",
        "metrics": "{}",
    } | change
    weights = Predictor(target="horizon", hidden_size=64, horizons=(32,)).state_dict()
    save_file(weights, path, metadata={name: value for name, value in metadata.items() if value is not None})
    with pytest.raises(DamagedFile):
        load_predictor(path, model)


def test_the_fingerprint_follows_shape_and_layers_and_not_the_vocabulary() -> None:
    model = small_model()
    original = fingerprint(model)
    assert fingerprint(small_model().bfloat16()) == original
    nn.init.normal_(model.get_input_embeddings().weight)
    model.resize_token_embeddings(80)
    assert fingerprint(model) == original
    model.model.norm.weight.data[3] += 0.5
    assert fingerprint(model) != original
    other = small_model()
    nn.init.normal_(other.model.layers[1].mlp.up_proj.weight)
    assert fingerprint(other) != original
    for change in ({"num_hidden_layers": 3}, {"num_key_value_heads": 4}, {"intermediate_size": 64}, {"head_dim": 32}):
        assert fingerprint(small_model(**change)) != original
    assert fingerprint(small_model("llama")) != original


def test_a_model_that_was_trained_on_is_another() -> None:
    model, ids = small_model(), torch.arange(8)[None]
    original = fingerprint(model)
    weights = [layer.self_attn.v_proj.weight for layer in model.model.layers]  # as few as the least of adapters touches
    optimiser = torch.optim.Adam(weights, lr=1e-5)
    for _ in range(5):
        optimiser.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimiser.step()
    assert fingerprint(model) != original


def test_a_model_without_a_final_norm_cannot_be_identified() -> None:
    model = small_model()
    model.model.norm = None
    with pytest.raises(UnsupportedModel, match="no final norm"):
        fingerprint(model)
