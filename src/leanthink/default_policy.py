"""Which policy ranks where none is named: the fitted one where there is a predictor, else the best that needs none."""

from __future__ import annotations

import shlex
from typing import Any

FITTED, WITHOUT_PREDICTOR = "horizon", "r-kv"


def default_policy(model: Any, predictor: object) -> str:
    """The name of the policy for this model, where `predictor` is given for it or None."""
    from leanthink.importance.fingerprint import fingerprint
    from leanthink.importance.predictor import shipped_predictor

    is_fitted = predictor is not None or shipped_predictor(FITTED, fingerprint(model)) is not None
    return FITTED if is_fitted else WITHOUT_PREDICTOR


def how_to_fit(model_name: str) -> str:
    """One line that says which policy is taken without a predictor, with the commands that fit one."""
    model = shlex.quote(model_name)
    labelled = "--granularity head --traces traces.jsonl"
    steps = {
        "collect": "--problems problems.jsonl --samples 4 --temperature 0.6 --out traces.jsonl",
        "label": f"{labelled} --out labels.safetensors",
        "fit": f"{labelled} --labels labels.safetensors --out predictor.safetensors",
    }
    commands = [f"leanthink {verb} --model {model} {options}" for verb, options in steps.items()]
    return (
        f"no predictor is fitted for this model: policy {WITHOUT_PREDICTOR!r} ranks, the best that needs none. To fit "
        f"one for --predictor: {' && '.join(commands)}"
    )


def name_of(model: Any) -> str:
    """What the model was loaded by, as the commands take it."""
    return str(getattr(model.config, "_name_or_path", "")) or "MODEL"
