from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.backends.cuda import cudnn_sdp_enabled

from leanthink.engine.engine import Engine
from leanthink.engine.sampling import Sampling
from leanthink.engine.sdpa import for_any_length
from leanthink.importance.labels import label_trace
from models import make_model, make_tokenizer
from rl_runs import make_policy, make_trainer


@pytest.fixture(autouse=True)
def cudnn_is_preferred() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)


def noted(model: Any) -> list[bool]:
    """Fills with whether cuDNN was allowed, at each forward pass of the model's body."""
    seen: list[bool] = []
    model.base_model.register_forward_pre_hook(lambda _module, _inputs: seen.append(cudnn_sdp_enabled()))
    return seen


def test_cudnn_is_allowed_again_afterwards() -> None:
    with for_any_length():
        assert not cudnn_sdp_enabled()
    assert cudnn_sdp_enabled()


def test_prompts_and_traces_of_any_length_go_without_cudnn() -> None:
    model = make_model()
    seen = noted(model)
    engine = Engine(model, make_tokenizer(), slots=64, rows=1)
    engine.add("some prompt", policy="full", sampling=Sampling(max_new_tokens=2))
    while engine.unfinished:
        engine.step()
    assert not seen[0], "the prompt; what follows is decoding, on our own kernel"
    seen.clear()
    label_trace(model, list(range(50, 70)), 4, 16, (2, 4))
    assert seen == [False]


def test_training_goes_without_cudnn(tmp_path: Path) -> None:
    model = make_policy()
    seen = noted(model)
    trainer, _ = make_trainer(tmp_path, model=model, max_steps=1)
    trainer.train()
    assert seen
    assert not any(seen)
    assert cudnn_sdp_enabled()
