"""Fields that change nothing are taken as if they were left out; with any other value they are refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from leanthink.entrypoints.openai.error_responses import from_validation
from leanthink.entrypoints.openai.neutral_fields import BODY, MESSAGE, STREAM_OPTIONS, Neutral
from leanthink.entrypoints.openai.protocol import ChatBody, Message, StreamOptions, Strict, TextBody

KINDS: list[tuple[type[Strict], dict[str, Any]]] = [
    (ChatBody, {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}),
    (TextBody, {"model": "tiny", "prompt": "hi"}),
    (Message, {"role": "assistant", "content": "hi"}),
    (StreamOptions, {"include_usage": True}),
]
FIELDS = [(kind, body, field) for kind, body in KINDS for field in kind.neutral]
TEXT = st.text(max_size=8)
OF_TYPE = {
    str: TEXT,
    bool: st.booleans(),
    list: st.lists(TEXT, max_size=2),
    dict: st.dictionaries(TEXT, TEXT, max_size=2),
}
VALUES = st.one_of(*OF_TYPE.values(), st.integers(-3, 3), st.floats(-2, 2), st.just([{"type": "function"}]))


def neutral_values(neutral: Neutral) -> st.SearchStrategy[Any]:
    return OF_TYPE[neutral] if isinstance(neutral, type) else st.sampled_from(neutral)


def is_neutral(value: object, neutral: Neutral) -> bool:
    """As JSON sees it: true is not 1, and 1.0 is."""
    if isinstance(neutral, type):
        return type(value) is neutral
    return any((type(value) is bool) is (type(one) is bool) and value == one for one in neutral)


def refusal(kind: type[Strict], body: dict[str, Any]) -> Any:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    return from_validation(caught.value.errors())


def names(values: list[Any]) -> Any:
    return [f"{kind.__name__}-{field}" for kind, _, field in values]


@pytest.mark.parametrize(("kind", "body", "field"), FIELDS, ids=names(FIELDS))
@settings(max_examples=20)
@given(data=st.data())
def test_a_neutral_value_is_as_good_as_none(
    kind: type[Strict], body: dict[str, Any], field: str, data: st.DataObject
) -> None:
    value = data.draw(st.none() | neutral_values(kind.neutral[field]))
    assert kind.model_validate({**body, field: value}) == kind.model_validate(body)


@pytest.mark.parametrize(("kind", "body", "field"), FIELDS, ids=names(FIELDS))
@settings(max_examples=20)
@given(value=VALUES)
def test_any_other_value_is_refused_by_name_with_those_that_are_honoured(
    kind: type[Strict], body: dict[str, Any], field: str, value: object
) -> None:
    neutral = kind.neutral[field]
    assume(not is_neutral(value, neutral))
    refused = refusal(kind, {**body, field: value})
    assert (refused.param, refused.code) == (field, "unsupported_value")
    for one in () if isinstance(neutral, type) else neutral:
        assert json.dumps(one) in str(refused)


@pytest.mark.parametrize(("kind", "body"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_null_stands_for_any_field_that_is_left_out(kind: type[Strict], body: dict[str, Any]) -> None:
    optional = [name for name, field in kind.model_fields.items() if not field.is_required() and name not in body]
    assert kind.model_validate(body | dict.fromkeys([*optional, "colour"])) == kind.model_validate(body)
    assert refusal(kind, body | {"colour": 1}).param == "colour"


@pytest.mark.parametrize(("kind", "fields"), [(ChatBody, BODY), (Message, MESSAGE), (StreamOptions, STREAM_OPTIONS)])
def test_the_schema_that_is_published_lists_them(kind: type[Strict], fields: Mapping[str, Neutral]) -> None:
    published = kind.model_json_schema()["properties"]
    assert fields.keys() | kind.model_fields.keys() == published.keys()
    assert not fields.keys() & kind.model_fields.keys(), "a field is owned by one of them"
    for name, neutral in fields.items():
        values, null = published[name]["anyOf"]
        assert null == {"type": "null"}
        assert values.get("enum", neutral) == (neutral if isinstance(neutral, type) else list(neutral))


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "content"),
        ({"role": "system", "content": None}, "content"),
        ({"role": "user", "content": "hi", "reasoning": "so"}, "reasoning"),
        ({"role": "user", "content": "hi", "reasoning_content": "so"}, "reasoning_content"),
        ({"role": "user", "content": "hi", "refusal": "no"}, "refusal"),
        ({"role": "assistant", "content": "hi", "refusal": "no"}, "refusal"),
        ({"role": "assistant", "reasoning": "so", "reasoning_content": "no"}, "reasoning"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "tool_calls"),
    ],
)
def test_what_contradicts_a_message_is_refused_by_name(message: dict[str, Any], param: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}, message]}
    refused = refusal(ChatBody, body)
    assert refused.param == f"messages.1.{param}"
    assert str(refused).startswith(f"messages.1.{param}: ")
