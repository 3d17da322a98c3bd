"""Fields that clients send and that change nothing here: which values of them are honoured, each field once.

A field that would change the answer with any other value is refused by name with that value.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

Neutral = type | tuple[Any, ...]  # every value of a type, or these values only
NOT_HONOURED, UNKNOWN_FIELD = "not_honoured", "unknown_field"  # the kinds of error that are raised here
TYPES = {str: "string", bool: "boolean", list: "array", dict: "object"}  # as JSON schema calls them

BODY: Mapping[str, Neutral] = {
    # for the caller's books
    "user": str,
    "metadata": dict,
    "safety_identifier": str,
    "service_tier": str,
    "prompt_cache_key": str,
    "prompt_cache_retention": str,
    "store": (False,),
    # no tools, plain text
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": bool,
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "include_reasoning": (True,),
    # sampling as it is anyway
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "typical_p": (1,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "stop_token_ids": ([],),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "use_beam_search": (False,),
    "best_of": (1,),
    # the prompt as it is, the text as it is
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "documents": ([],),
    "suffix": ("",),
    "echo": (False,),
    "skip_special_tokens": (True,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "priority": (0,),
}
STREAM_OPTIONS: Mapping[str, Neutral] = {"include_obfuscation": bool, "continuous_usage_stats": (False,)}
MESSAGE: Mapping[str, Neutral] = {
    "tool_calls": ([],),
    "annotations": list,
    "provider_specific_fields": dict,
}


def without_neutral(body: Any, fields: Mapping[str, Neutral], *, known: Container[str]) -> Any:
    """A body without its nulls and without the neutral values of these fields; what is no object stays as it is.

    Raises:
        PydanticCustomError: one of the fields has another value, or one is there that is neither of these nor `known`.
    """
    if not isinstance(body, dict):
        return body
    given = {name: value for name, value in body.items() if value is not None}
    unknown = next((name for name in given if name not in fields and name not in known), None)
    if unknown is not None:
        raise PydanticCustomError(
            UNKNOWN_FIELD, "not a field that this server honours: leave it out", {"field": sendable(unknown)}
        )
    for name in given.keys() & fields.keys():
        if not _is_neutral(given[name], fields[name]):
            raise not_honoured(name, f"only {_allowed(fields[name])} is honoured here: give that, or leave it out")
    return {name: value for name, value in given.items() if name not in fields}


def sendable(text: str) -> str:
    """The text without halves of surrogate pairs, which can stand in JSON, but cannot be sent."""
    return text.encode(errors="replace").decode()


def not_honoured(field: str, why: str) -> PydanticCustomError:
    """The error of a validator for a whole object that blames one of its fields."""
    return PydanticCustomError(NOT_HONOURED, "{why}", {"field": field, "why": why})


def schema_of(neutral: Neutral) -> dict[str, Any]:
    """What JSON schema says of such a field."""
    kinds = {"type": TYPES[neutral]} if isinstance(neutral, type) else {"enum": list(neutral)}
    return {"anyOf": [kinds, {"type": "null"}], "description": "Changes nothing."}


def _is_neutral(value: object, neutral: Neutral) -> bool:
    if isinstance(neutral, type):
        return isinstance(value, neutral)
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)


def _allowed(neutral: Neutral) -> str:
    return f"a {TYPES[neutral]}" if isinstance(neutral, type) else " or ".join(json.dumps(one) for one in neutral)
