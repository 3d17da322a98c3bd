"""The order of tests; a small saved model, and a command line that runs in this process."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL's trainers would ask the hub to count them

from leanthink.entrypoints import cli
from leanthink.models.fingerprint import fingerprint
from leanthink.models.predictor import Predictor, save_predictor
from leanthink.models.tiny.checkpoint import save_weights
from leanthink.models.tiny.model import build_model, tiny_config
from leanthink.models.tiny.tokenizer import PAD


@pytest.hookimpl(trylast=True)  # when those that are not asked for are gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests begin first: at the end one of them would keep a worker busy while the other has nothing to do.

    Each of two workers begins with one half of the list, so each half has slow tests in front. Those of a file stay
    together, as they may share what is slow to set up, and the largest files are dealt out first.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow"):
            files.setdefault(item.path, []).append(item)
    fast = [item for item in items if not item.get_closest_marker("slow")]
    fronts: tuple[list[pytest.Item], list[pytest.Item]] = ([], [])
    for tests in sorted(files.values(), key=len, reverse=True):
        min(fronts, key=len).extend(tests)
    half = len(fast) // 2
    items[:] = [*fronts[0], *fast[:half], *fronts[1], *fast[half:]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random model of the embedded reasoner's kind, and predictors: its own, another's and a truncated one."""
    folder: Path = tmp_path_factory.mktemp("small")
    model = build_model(tiny_config(layers=2, hidden=64, heads=2, kv_heads=1, mlp=96), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():  # larger than at the start of training: it must not repeat one token for ever
            if weight.dim() == 2:
                weight.normal_(std=1.6 * weight.shape[1] ** -0.5)
        model.get_input_embeddings().weight[PAD:] = 0  # never the likeliest: it thinks to the limit
    save_weights(model, folder)
    predictor = Predictor(target="horizon", hidden_size=64, horizons=(4, 16))
    for name, base in (("own", fingerprint(model)), ("other", "0" * 64)):
        save_predictor(predictor, folder / f"{name}.safetensors", base_fingerprint=base, data={}, metrics={})
    whole = (folder / "own.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture
def inside(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in this process, which spares loading torch again."""

    def run(*arguments: object) -> SimpleNamespace:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run
