"""The importance predictor: a small network on the final hidden state, and the file it is shipped in.

Shapes: N tokens, M hidden size of the base model, C numbers per token.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from leanthink.errors import DamagedFile, PredictorMismatch, UsageError, unknown
from leanthink.importance.fingerprint import fingerprint

VERSION = "1"
TARGETS = ("answer", "horizon")
Target = Literal["answer", "horizon"]


class Predictor(nn.Module):
    """Scores every token by its final-norm hidden state; a higher score means more important.

    `answer` (arXiv 2601.18383): one number, the attention that the answer will pay the token; no biases, and a last
    Softplus keeps it positive. `horizon`: one logit for each horizon, sigmoid of which is the largest attention that
    any token at least so far away will pay.

    Raises:
        UsageError: an unknown target, horizons given to `answer`, or none given to `horizon`.
    """

    def __init__(self, *, target: Target, hidden_size: int, horizons: tuple[int, ...] = ()) -> None:
        super().__init__()
        if target not in TARGETS:
            raise unknown("predictor target", target, TARGETS)
        if (target == "horizon") != bool(horizons):
            raise UsageError(f"target {target!r} with horizons {list(horizons)}: only, and always, 'horizon' has them")
        self.target, self.hidden_size, self.horizons = target, hidden_size, horizons
        bias = target == "horizon"
        layers: list[nn.Module] = [
            nn.Linear(hidden_size, 2 * hidden_size, bias=bias),
            nn.Softplus(),
            nn.Linear(2 * hidden_size, hidden_size // 2, bias=bias),
            nn.Softplus(),
            nn.Linear(hidden_size // 2, len(horizons) or 1, bias=bias),
        ]
        self.layers = nn.Sequential(*layers, *([nn.Softplus()] if target == "answer" else []))

    def forward(self, hidden_NM: Tensor) -> Tensor:
        """Scores [N, C], in the weights' dtype, C = 1 for `answer` and one per horizon for `horizon`."""
        scores_NC: Tensor = self.layers(hidden_NM.to(next(self.parameters()).dtype))
        return scores_NC


def save_predictor(
    predictor: Predictor,
    path: str | os.PathLike[str],
    *,
    base_fingerprint: str,
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Write the sidecar: bfloat16 weights, and as metadata what they were fitted on, to and with what result."""
    path = Path(path)
    metadata = {
        "leanthink": "predictor",
        "version": VERSION,
        "target": predictor.target,
        "horizons": json.dumps(predictor.horizons),
        "hidden_size": str(predictor.hidden_size),
        "fingerprint": base_fingerprint,
        "data": json.dumps(data, allow_nan=False),
        "metrics": json.dumps(metrics, allow_nan=False),
    }
    weights = {name: value.to("cpu", torch.bfloat16).contiguous() for name, value in predictor.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(weights, partial, metadata=metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a sidecar says about itself: version, target, horizons, hidden_size, fingerprint, data, metrics.

    Raises:
        UsageError: no such file, a safetensors file that is no predictor, or another version.
        DamagedFile: truncated, or no safetensors file at all.
    """
    return _read(Path(path))[0]


def load_predictor(path: str | os.PathLike[str], model: Any) -> Predictor:
    """The predictor of a file, ready for this model: on its device, in its dtype on a GPU and in float32 on a CPU.

    Raises:
        UsageError: no such file, a safetensors file that is no predictor, or another version.
        DamagedFile: truncated, no safetensors file at all, or weights that do not fit its own metadata.
        PredictorMismatch: fitted for another model.
    """
    path = Path(path)
    metadata, weights = _read(path)
    ours = fingerprint(model)
    if metadata["fingerprint"] != ours:
        raise PredictorMismatch(
            f"{path} was fitted for a model with hidden size {metadata['hidden_size']} and fingerprint "
            f"{metadata['fingerprint'][:12]}, this model has {model.config.hidden_size} and {ours[:12]}: "
            "load the model it was fitted for, or fit one for this model with `leanthink fit`"
        )
    predictor = Predictor(
        target=metadata["target"], hidden_size=metadata["hidden_size"], horizons=tuple(metadata["horizons"])
    )
    try:
        predictor.load_state_dict(weights)
    except RuntimeError as error:
        raise DamagedFile(f"{path}: the weights do not fit its own metadata ({error})") from None
    return made_ready(predictor, model)


def made_ready(predictor: Predictor, model: Any) -> Predictor:
    """The predictor on the model's device, frozen, in the model's dtype on a GPU and in float32 on a CPU."""
    dtype = model.dtype if model.device.type != "cpu" else torch.float32
    return predictor.to(model.device, dtype).eval().requires_grad_(False)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise UsageError(f"no predictor at {path}: fit one with `leanthink fit`")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise DamagedFile(f"{path} is truncated or no safetensors file ({error}): fit or download it again") from None
    if metadata.get("leanthink") != "predictor":
        raise UsageError(f"{path} is a safetensors file but no predictor: fit one with `leanthink fit`")
    if metadata.get("version") != VERSION:
        raise UsageError(f"{path} has version {metadata.get('version')}, this LeanThink reads {VERSION}: fit it again")
    try:
        decoded = {name: json.loads(metadata[name]) for name in ("horizons", "hidden_size", "data", "metrics")}
        if metadata["target"] not in TARGETS or not isinstance(metadata["fingerprint"], str):
            raise ValueError(f"target {metadata['target']!r}")
    except (KeyError, ValueError) as error:
        raise DamagedFile(f"{path}: its metadata cannot be read ({error!r}): fit it again") from None
    return metadata | decoded, weights
