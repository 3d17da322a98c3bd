"""How a model asks to be sampled: what its generation config says, and what of that is not applied."""

from __future__ import annotations

import warnings
from typing import Any

from leanthink.utils.errors import LeanThinkWarning

KNOBS = ("temperature", "top_p", "top_k", "min_p")
# What would change the tokens and is not applied, with the value that changes nothing.
NOT_APPLIED: dict[str, object] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "num_beams": 1,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


def model_sampling(model: Any) -> dict[str, float | int]:
    """The fields of `Sampling` that the model's generation config states; none where it says nothing.

    `do_sample` false is temperature 0, whatever else is there; true without a temperature is 1. Settings that are not
    applied are named in a LeanThinkWarning.
    """
    config = getattr(model, "generation_config", None)
    _warn_of_the_rest(config)
    if getattr(config, "do_sample", None) is False:
        return {"temperature": 0.0}
    stated = {knob: value for knob in KNOBS if (value := getattr(config, knob, None)) is not None}
    if getattr(config, "do_sample", None):
        stated = {"temperature": 1.0} | stated
    if "top_k" in stated:
        stated["top_k"] = max(0, stated["top_k"])
    return stated


def _warn_of_the_rest(config: Any) -> None:
    given = {name: getattr(config, name, None) for name in NOT_APPLIED}
    left = [
        f"{name}={value}" for name, value in given.items() if value not in (None, NOT_APPLIED[name]) and value != []
    ]
    if left:
        warnings.warn(
            f"the model's generation config asks for {', '.join(left)}: LeanThink does not apply that, and goes on "
            "without",
            LeanThinkWarning,
            stacklevel=3,
        )


def knobs_of(sampling: Any) -> str:
    """Those of a Sampling in words, such as "temperature 0.6, top_p 0.95, top_k 20, min_p 0"."""
    return ", ".join(f"{knob} {getattr(sampling, knob):g}" for knob in KNOBS)
