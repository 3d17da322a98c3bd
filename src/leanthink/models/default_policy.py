"""Which policy ranks where none is named: the fitted one where there is a predictor, else the best that needs none."""

from __future__ import annotations

import shlex
from typing import Any

FITTED, WITHOUT_PREDICTOR = "horizon", "r-kv"


def default_policy(model: Any, predictor: object) -> str:
    """The name of the policy for this model, where `predictor` is given for it or None."""
    from leanthink.models.fingerprint import fingerprint
    from leanthink.models.predictor import shipped_predictor

    is_fitted = predictor is not None or shipped_predictor(FITTED, fingerprint(model)) is not None
    return FITTED if is_fitted else WITHOUT_PREDICTOR


def how_to_fit(model_name: str) -> str:
    """One line that says which policy is taken without a predictor, with the command that fits one."""
    options = f"--model {shlex.quote(model_name)} --problems problems.jsonl --out predictor.safetensors"
    return (
        f"no predictor is fitted for this model: policy {WITHOUT_PREDICTOR!r} ranks, the best that needs none. To fit "
        f"one for --predictor: leanthink predictor {options}"
    )


def name_of(model: Any) -> str:
    """What the model was loaded by, as the commands take it."""
    return str(getattr(model.config, "_name_or_path", "")) or "MODEL"
