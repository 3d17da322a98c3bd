from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from leanthink.importance.labels import Labels, Thought, label_batch, label_trace, packed, unpacked
from leanthink.models.loading import kv_shape
from leanthink.utils.errors import UnsupportedModel, UsageError
from models import ARCHITECTURES, make_model
from reference.labels_slow import label_sets_slow, label_trace_slow


def small_model(kind: str = "qwen3", *, kv_heads: int = 2, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    shape = {
        "vocab_size": 60,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "head_dim": 16,
        "initializer_range": 0.3,  # sharp attention: labels far from uniform
        "max_position_embeddings": 256,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**shape)) if kind == "qwen3" else LlamaForCausalLM(LlamaConfig(**shape))
    return model.eval()


def tokens(count: int, seed: int = 1) -> list[int]:
    return torch.randint(0, 60, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def row_bytes(N: int) -> int:
    return 8 * 4 * N


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("N", "prompt", "end"), [(37, 5, 30), (37, 0, 36), (24, 4, 23), (3, 1, 2), (40, 39, 40), (33, 7, 33)]
)
def test_labels_equal_those_of_the_whole_matrix(kind: str, kv_heads: int, N: int, prompt: int, end: int) -> None:
    model, ids, horizons = small_model(kind, kv_heads=kv_heads), tokens(N), (1, 2, 5, 16, 31, 200)
    expected = torch.tensor(label_trace_slow(model, ids, prompt, end, horizons))
    for rows in (1, 2, 7, 16, 64):
        labels_TC = label_trace(model, ids, prompt, end, horizons, block_bytes=rows * row_bytes(N)).values_TC
        assert labels_TC.dtype == torch.float32
        torch.testing.assert_close(labels_TC, expected, rtol=1e-4, atol=1e-6, equal_nan=True)


# Prompts, thoughts and answers of all sizes: no answer, an answer without rows, thoughts that do not overlap, some
# closed by a token and some by nothing.
RAGGED = [
    Thought(token_ids=tokens(N, seed=seed), prompt_tokens=prompt, thought_end=end, closing_tokens=closing)
    for seed, (N, prompt, end, closing) in enumerate(
        [
            *[(24, 4, 20, 1), (37, 25, 30, 1), (3, 1, 2, 1), (31, 0, 31, 1), (12, 5, 11, 1), (30, 2, 7, 1)],
            *[(24, 4, 20, 0), (12, 5, 11, 0), (9, 3, 4, 0), (31, 0, 31, 0)],
        ]
    )
]


def assert_equal_to_the_reference_implementation(
    model: Any, thoughts: list[Thought], found: list[Labels], horizons: tuple[int, ...]
) -> None:
    for thought, labels in zip(thoughts, found, strict=True):
        slow = label_trace_slow(
            model, thought.token_ids, thought.prompt_tokens, thought.thought_end, horizons, thought.closing_tokens
        )
        torch.testing.assert_close(labels.values_TC, torch.tensor(slow), rtol=1e-4, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("chosen", [slice(None), slice(2), slice(2, 5), slice(1, None, 2), slice(6, 8)])
def test_labels_of_a_ragged_batch_equal_those_of_each_trace_alone(kv_heads: int, chosen: slice) -> None:
    model, thoughts, horizons = small_model(kv_heads=kv_heads), RAGGED[chosen], (1, 2, 5, 16, 31, 200)
    for rows in (1, 2, 7, 16, 64):
        found = label_batch(model, thoughts, horizons, block_bytes=rows * len(thoughts) * row_bytes(37))
        assert_equal_to_the_reference_implementation(model, thoughts, found, horizons)
    for thought, labels in zip(thoughts, found, strict=True):
        (alone,) = label_batch(model, [thought], horizons)
        torch.testing.assert_close(labels.values_TC, alone.values_TC, rtol=1e-4, atol=1e-6, equal_nan=True)
        assert labels.values_TC.is_contiguous()


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_a_block_of_a_batch_stays_within_its_bytes(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    softmax, sizes = torch.softmax, []

    def measured(scores: torch.Tensor, dim: int) -> torch.Tensor:
        sizes.append(2 * 4 * scores.numel())
        return softmax(scores, dim=dim)

    monkeypatch.setattr(torch, "softmax", measured)
    block_bytes = rows * len(RAGGED) * row_bytes(37)
    label_batch(small_model(), RAGGED, (1,), block_bytes=block_bytes)
    assert block_bytes / 2 < max(sizes) <= block_bytes  # less than all of it: the last block has fewer rows


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_supported_architecture_is_labelled_exactly(architecture: str) -> None:
    model, thoughts = make_model(architecture), [RAGGED[0], RAGGED[1]]
    found = label_batch(model, thoughts, (2, 8), block_bytes=12 * row_bytes(37))
    assert_equal_to_the_reference_implementation(model, thoughts, found, (2, 8))


def test_a_model_that_cannot_be_served_is_refused_by_name() -> None:
    model = make_model("gemma3_text", layer_types=["sliding_attention"] * 2)
    with pytest.raises(UnsupportedModel, match="all its layers use a sliding window of 8"):
        label_trace(model, tokens(12), 2, 8, (4,))


def test_a_block_smaller_than_one_row_still_takes_one_row() -> None:
    model, ids = small_model(), tokens(20)
    tiny = label_trace(model, ids, 3, 15, (4,), block_bytes=1).values_TC
    torch.testing.assert_close(tiny, label_trace(model, ids, 3, 15, (4,)).values_TC)


@pytest.mark.parametrize("closing", [0, 1])
def test_the_answer_is_read_in_full_when_every_horizon_lies_beyond_it(closing: Any) -> None:
    thought = Thought(token_ids=tokens(30), prompt_tokens=4, thought_end=20, closing_tokens=closing)
    model = small_model()
    assert_equal_to_the_reference_implementation(model, [thought], label_batch(model, [thought], (200,)), (200,))


def test_a_trace_without_answer_has_no_answer_label_but_all_others() -> None:
    model, ids = small_model(), tokens(20)
    for N, end in ((20, 20), (20, 19)):
        labels_TC = label_trace(model, ids[:N], 3, end, (4,)).values_TC
        assert labels_TC[:, 0].isnan().all()
        assert labels_TC[0, 1] > 0


def test_tokens_nearer_to_the_end_than_the_horizon_are_labelled_zero() -> None:
    labels_TC = label_trace(small_model(), tokens(30), 0, 30, (10,)).values_TC
    assert (labels_TC[:20, 1] > 0).all()
    assert (labels_TC[20:, 1] == 0).all()


def test_labels_never_grow_with_the_horizon() -> None:
    labels_TC = label_trace(small_model(), tokens(64), 4, 50, (1, 2, 4, 8, 16, 32)).values_TC
    assert (labels_TC[:, 1:].diff(dim=1) <= 0).all()
    assert labels_TC.amax() <= 1


def test_the_attention_of_the_model_is_restored_even_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    model.set_attn_implementation("eager")
    label_trace(model, tokens(12), 2, 8, (4,))
    assert model.config._attn_implementation == "eager"
    with pytest.raises(IndexError):
        label_trace(model, [10_000] * 12, 2, 8, (4,))
    assert model.config._attn_implementation == "eager"


def test_bfloat16_models_are_labelled_near_the_float32_labels() -> None:
    ids = tokens(48)
    exact = label_trace(small_model(), ids, 4, 40, (8,)).values_TC
    rounded = label_trace(small_model().bfloat16(), ids, 4, 40, (8,)).values_TC
    assert (exact - rounded).abs().mean() < 0.02


@pytest.mark.parametrize(("prompt", "end"), [(5, 5), (6, 5), (-1, 5), (2, 13)])
def test_bounds_outside_the_trace_are_refused(prompt: int, end: int) -> None:
    with pytest.raises(UsageError, match="no thought to label"):
        label_trace(small_model(), tokens(12), prompt, end, (4,))


@pytest.mark.parametrize("horizons", [(), (0,), (4, 4), (8, 4), (-1, 3)])
def test_horizons_must_ascend_from_one(horizons: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="ascending"):
        label_trace(small_model(), tokens(12), 2, 8, horizons)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_labels_on_a_gpu_equal_those_on_the_cpu() -> None:
    ids = tokens(300)
    on_cpu = label_trace(small_model(), ids, 4, 250, (2, 32, 64)).values_TC
    on_gpu = label_trace(small_model().cuda(), ids, 4, 250, (2, 32, 64), block_bytes=1 << 20).values_TC
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-5)
    for one, other in zip(label_batch(small_model().cuda(), RAGGED), label_batch(small_model(), RAGGED), strict=True):
        torch.testing.assert_close(one.values_TC, other.values_TC, rtol=1e-3, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("granularity", ["layer", "head"])
@pytest.mark.parametrize("architecture", [None, "gpt_oss"])
def test_labels_of_each_set_equal_those_of_its_own_heads(granularity: Any, architecture: str | None) -> None:
    model = small_model() if architecture is None else make_model(architecture, num_hidden_layers=3)
    horizons, sets = (1, 2, 5, 16), kv_shape(model.config).num_sets(granularity)
    found = label_batch(model, RAGGED, horizons, granularity=granularity, block_bytes=6 * 3 * row_bytes(37))
    for thought, labels in zip(RAGGED, found, strict=True):
        slow = label_sets_slow(model, thought.token_ids, thought.prompt_tokens, thought.thought_end, horizons, sets)
        torch.testing.assert_close(labels.sets_XTH, torch.tensor(slow), rtol=1e-4, atol=1e-6)
    assert_equal_to_the_reference_implementation(
        model, RAGGED, found, horizons
    )  # what all sets have together is as before


def test_packed_labels_keep_the_order_and_come_back_within_a_step_of_their_root() -> None:
    labels = torch.cat([torch.tensor([0.0, 1.0]), torch.rand(2000, generator=torch.Generator().manual_seed(0)) ** 4])
    codes = packed(labels)
    assert codes.dtype == torch.uint8
    assert codes[:2].tolist() == [0, 255]
    assert (unpacked(codes).sqrt() - labels.sqrt()).abs().max() <= 0.5 / 255 + 1e-6
    assert (codes[labels.argsort()].int().diff() >= 0).all()
