"""Policies with settings: how they are read and written, and that the same settings are the same policy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanthink.engine.engine import Engine
from leanthink.engine.request import PolicyMaker, resolve_policies
from leanthink.policies import POLICIES, Policy, Slots, make_policy, parse_spec, spec_of
from leanthink.policies.budget import Budget
from leanthink.policies.horizon import Horizon
from leanthink.policies.policy_spec import canonical, canonical_specs, split_specs
from leanthink.policies.rkv import RKV
from leanthink.policies.snapkv import SnapKV
from leanthink.utils.errors import UsageError
from models import make_model, make_tokenizer
from policy_slots import HORIZONS, SEPARATORS, FakePredictor

ODD, COUNT, YES_OR_NO = st.integers(0, 20).map(lambda n: 2 * n + 1), st.integers(1, 99), st.booleans()
SHARE = st.floats(0, 1, allow_subnormal=False)
VALUES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "sinks": {"num_sinks": st.integers(0, 99), "pins_prompt": YES_OR_NO},
    "snapkv": {"observation": COUNT, "kernel": ODD, "pins_prompt": YES_OR_NO},
    "h2o": {"waiting": COUNT, "pins_prompt": YES_OR_NO},
    "r-kv": {"mix": SHARE, "observation": COUNT, "kernel": ODD, "alike": st.floats(-1, 1), "pins_prompt": YES_OR_NO},
    "tova": {"pins_prompt": YES_OR_NO},
    "keydiff": {"pins_prompt": YES_OR_NO},
    "vase": {"large": SHARE, "observation": COUNT, "kernel": ODD, "num_sinks": COUNT, "pins_prompt": YES_OR_NO},
    "sepllm": {"num_sinks": st.integers(0, 99), "pins_prompt": YES_OR_NO},
    "horizon": {
        "rule": st.sampled_from(["floor", "ceil"]),
        "only": st.sampled_from([None, *HORIZONS]),
        "local": YES_OR_NO,
    },
}
WITHOUT_SETTINGS = ("full", "window", "random", "random-heads", "dynts")


def build(kind: type[Policy], **settings: Any) -> Policy:
    """A policy of this class, with what it needs beside its settings."""
    needed: dict[str, Any] = {}
    if kind.target is not None:
        needed["predictor"] = PREDICTOR
    if kind.texts:
        needed["separator_ids"] = SEPARATORS
    return kind(**needed, **settings)


PREDICTOR = FakePredictor("horizon", HORIZONS)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    name = draw(st.sampled_from(list(VALUES)))
    chosen = draw(st.sets(st.sampled_from(list(VALUES[name]))))
    return build(POLICIES[name], **{setting: draw(VALUES[name][setting]) for setting in sorted(chosen)})


@given(policy=policies())
def test_a_policy_is_made_again_from_what_is_written_of_it(policy: Policy) -> None:
    text = str(spec_of(policy))
    spec = parse_spec(text)
    assert build(spec.kind, **spec.settings) == policy
    assert str(spec) == canonical(text) == text
    assert split_specs(f"full,{text},random") == ["full", text, "random"]


def test_every_setting_of_every_policy_is_drawn_above() -> None:
    unsettable = {"predictor", "separator_ids", "labels_XTC", "distances"}
    for name, kind in POLICIES.items():
        found = {field.name for field in dataclasses.fields(kind)} - unsettable  # type: ignore[arg-type]
        assert found == set(VALUES.get(name, {})) or name == "oracle", name
    assert set(VALUES) | set(WITHOUT_SETTINGS) | {"oracle"} == set(POLICIES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("snapkv", SnapKV()),
        ("snapkv:observation=16,pins_prompt=false", SnapKV(observation=16, pins_prompt=False)),
        (" snapkv : pins_prompt = False , observation = 16 ", SnapKV(observation=16, pins_prompt=False)),
        ("r-kv:mix=0.25,kernel=5", RKV(mix=0.25, kernel=5)),
        ("r-kv:mix=1", RKV(mix=1)),
    ],
)
def test_settings_are_read_by_their_types(text: str, expected: Policy) -> None:
    assert make_policy(text) == expected


def test_settings_beside_a_predictor() -> None:
    assert make_policy("horizon:rule=ceil,only=16", PREDICTOR) == Horizon(predictor=PREDICTOR, rule="ceil", only=16)
    assert make_policy("horizon:only=none", PREDICTOR) == Horizon(predictor=PREDICTOR)
    with pytest.raises(UsageError, match="unknown horizon 17"):
        make_policy("horizon:only=17", PREDICTOR)


def test_a_default_that_is_written_is_as_if_it_were_not() -> None:
    assert canonical("snapkv:observation=8") == "snapkv"
    assert canonical("snapkv:pins_prompt=false,observation=16") == "snapkv:observation=16,pins_prompt=false"
    assert parse_spec("snapkv:kernel=7") == parse_spec("snapkv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("snapvk:observation=8", ["unknown policy 'snapvk'", "Did you mean 'snapkv'"]),
        (
            "snapkv:observations=8",
            ["setting of policy 'snapkv' 'observations'", "kernel", "Did you mean 'observation'"],
        ),
        ("snapkv:observation=many", ["observation must be a whole number", "'many'", "write observation=8"]),
        ("snapkv:observation=1.5", ["observation must be a whole number, got '1.5'"]),
        ("snapkv:observation=" + 5000 * "9", ["observation must be a whole number, got '999"]),
        ("snapkv:pins_prompt=no", ["pins_prompt must be true or false, got 'no'", "write pins_prompt=true"]),
        ("snapkv:observation", ["'observation' is no key=value", "snapkv:observation=8,kernel=7,pins_prompt=true"]),
        ("snapkv:", ["ends with a colon", "write snapkv, or"]),
        ("snapkv:observation=16,observation=17", ["observation is there twice"]),
        ("snapkv:kernel=4", ["kernel odd", "kernel=4"]),
        ("r-kv:mix=nan", ["mix lie in [0, 1]"]),
        ("vase:num_sinks=-1", ["num_sinks must be a whole number of at least 0"]),
        ("horizon:rule=top", ["rule must be floor or ceil, got 'top'", "rule=floor"]),
        ("horizon:only=x", ["only must be a whole number or none, got 'x'", "only=none"]),
        ("horizon:predictor=x", ["unknown setting of policy 'horizon' 'predictor'"]),
        ("full:pins_prompt=true", ["policy 'full' has no settings: write full alone"]),
        ("dynts:", ["policy 'dynts' has no settings"]),
        ("", ["unknown policy ''"]),
    ],
)
def test_what_cannot_be_read_says_what_is_allowed(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        parse_spec(text)
    assert len(str(error.value)) < 700
    for word in words:
        assert word in str(error.value)


def test_a_list_has_commas_between_policies_and_settings() -> None:
    text = "full, snapkv:observation=16,pins_prompt=false,horizon,r-kv:mix=0.5"
    expected = ["full", "snapkv:observation=16,pins_prompt=false", "horizon", "r-kv:mix=0.5"]
    assert canonical_specs(split_specs(text)) == expected
    assert split_specs("a,b,c") == ["a", "b", "c"]
    with pytest.raises(UsageError, match="'observation=16' is a setting of no policy: write snapkv:observation=16"):
        split_specs("snapkv,observation=16")
    with pytest.raises(UsageError, match="'kernel=5' is a setting of no policy: write NAME:kernel=5"):
        split_specs("kernel=5,snapkv")
    with pytest.raises(UsageError, match="policy snapkv is there twice"):
        canonical_specs(["snapkv", "full", "snapkv:observation=8"])


@dataclass(frozen=True, kw_only=True)
class _Own(Policy):
    """A policy of somebody else's, of which not all can be written."""

    name: ClassVar[str] = "own"
    step: int = 2
    weights: tuple[float, ...] = (1.0,)
    label: str = "a"

    def score(self, slots: Slots) -> Tensor:
        return -slots.ages.float()


class _Plain(Policy):
    name = "plain"

    def score(self, slots: Slots) -> Tensor:
        return -slots.ages.float()


def test_a_policy_that_is_added_has_settings_by_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "own", _Own)
    monkeypatch.setitem(POLICIES, "plain", _Plain)
    assert make_policy("own:step=3,label=b") == _Own(step=3, label="b")
    assert str(spec_of(_Own(weights=(2.0,), step=3))) == "own:step=3"
    assert isinstance(make_policy("plain"), _Plain)
    assert str(spec_of(_Plain())) == "plain"
    with pytest.raises(UsageError, match="unknown setting of policy 'own' 'weights'"):
        parse_spec("own:weights=1")


def test_equal_settings_are_one_object_wherever_they_are_asked_for() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    asked = ["snapkv:kernel=5,observation=16", "snapkv:observation=16,kernel=5", "snapkv", "snapkv:observation=8"]
    first, second, usual, same = resolve_policies(model, tokenizer, asked, None)
    assert first is second
    assert usual is same
    maker = PolicyMaker(model, tokenizer)
    assert maker.make(asked[0], None) is maker.make(asked[1], None)
    engine = Engine(model, tokenizer, slots=2000)
    for text in (*asked, SnapKV(observation=16, kernel=5)):
        engine.add([1, 2, 3], policy=text, budget=Budget(slots=32))
    assert engine.policies == [SnapKV(observation=16, kernel=5), SnapKV()]
