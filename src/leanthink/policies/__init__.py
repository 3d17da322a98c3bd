"""The eviction policies: one file, one class and one line in POLICIES for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from leanthink.policies.dynts import DynTS
from leanthink.policies.full import Full
from leanthink.policies.h2o import H2O
from leanthink.policies.horizon import Horizon
from leanthink.policies.keydiff import KeyDiff
from leanthink.policies.oracle import Oracle
from leanthink.policies.policy import ImportancePredictor, Policy, Slots, Target
from leanthink.policies.policy_spec import PolicySpec, parse_spec, spec_of
from leanthink.policies.random import Random
from leanthink.policies.random_heads import RandomHeads
from leanthink.policies.rkv import RKV
from leanthink.policies.sepllm import SepLLM, ids_of
from leanthink.policies.sinks import Sinks
from leanthink.policies.snapkv import SnapKV
from leanthink.policies.tova import TOVA
from leanthink.policies.vase import VaSE
from leanthink.policies.window import Window
from leanthink.utils.errors import UsageError

__all__ = [
    "POLICIES",
    "ImportancePredictor",
    "Policy",
    "PolicySpec",
    "Slots",
    "Target",
    "make_policy",
    "parse_spec",
    "spec_of",
]

POLICIES: dict[str, type[Policy]] = {
    "full": Full,
    "window": Window,
    "sinks": Sinks,
    "random": Random,
    "random-heads": RandomHeads,
    "dynts": DynTS,
    "horizon": Horizon,
    "snapkv": SnapKV,
    "h2o": H2O,
    "r-kv": RKV,
    "tova": TOVA,
    "keydiff": KeyDiff,
    "vase": VaSE,
    "sepllm": SepLLM,
    "oracle": Oracle,
}


def make_policy(spec: str, predictor: ImportancePredictor | None = None, tokenizer: Any = None) -> Policy:
    """The policy of this name, with its default settings where the spec says nothing else.

    Args:
        spec: a key of POLICIES, alone or with settings, such as `snapkv:observation=16,pins_prompt=false`.
        predictor: the fitted importance predictor, exactly for the policies whose `target` is not None.
        tokenizer: the model's, for the policies that look for `texts`; all others leave it alone.

    Raises:
        UsageError: the name or a setting is unknown, a value is out of its range, or the predictor is missing, not
            wanted, or of another target; or the policy is for one recorded request only.
    """
    found = parse_spec(spec)
    name, target = found.name, found.kind.target
    build: Callable[..., Policy] = partial(found.kind, **found.settings)
    if found.kind.labelled:
        raise UsageError(
            f"policy {name!r} knows the future of one recorded request and has no name for all: give the objects that "
            "leanthink.importance.oracle.oracles makes, one for each request"
        )
    if target is None:
        if predictor is not None:
            learned = [other for other, policy in POLICIES.items() if policy.target is not None]
            raise UsageError(f"policy {name!r} takes no predictor: leave it out, or choose {' or '.join(learned)}")
        if found.kind.texts:
            if tokenizer is None:
                raise UsageError(f"policy {name!r} looks for separators in the text: give the model's tokenizer")
            return build(separator_ids=ids_of(found.kind.texts, tokenizer))
        return build()
    if predictor is None:
        raise UsageError(
            f"policy {name!r} ranks by a fitted importance predictor of target {target!r}, and none was given: "
            "pass predictor=, fitted on this model's own traces with `leanthink predictor`; or leave the policy out "
            "for the best that needs none"
        )
    return build(predictor=predictor)
