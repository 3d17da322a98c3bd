"""A policy as it is written: its name, and the settings that are not its defaults, such as `snapkv:observation=16`."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from leanthink.policies.policy import Policy
from leanthink.utils.errors import UsageError, unknown

LONGEST_SHOWN = 100  # characters of what was given, in messages
BOOLEANS = {"true": True, "false": False}
NOTHING = "none"
# Types that a setting may have, and how its values are written.
WRITTEN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): NOTHING}
Value = bool | int | float | str | None


@dataclass(frozen=True)
class PolicySpec:
    """A policy's name and settings; two that mean the same are equal, and are written the same.

    Attributes:
        name: a key of `POLICIES`.
        settings: those that differ from the defaults, in the order of the policy's fields.
    """

    name: str
    settings: Mapping[str, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        """As `parse` reads it; without settings the name alone."""
        told = ",".join(f"{name}={written(value)}" for name, value in self.settings.items())
        return f"{self.name}:{told}" if told else self.name

    @property
    def kind(self) -> type[Policy]:
        """The policy's class."""
        from leanthink.policies import POLICIES

        return POLICIES[self.name]


def parse_spec(text: str) -> PolicySpec:
    """The policy of `NAME` or `NAME:key=value,...`.

    Values are whole numbers, numbers, true or false, none, or one of the words that the setting knows.

    Raises:
        UsageError: the name or a setting is unknown, a value is not of the setting's type or out of its range, or a
            setting is there twice.
    """
    from leanthink.policies import POLICIES

    name, colon, rest = (part.strip() for part in text.partition(":"))
    if name not in POLICIES:
        raise unknown("policy", name[:LONGEST_SHOWN], POLICIES)
    allowed = settings_of(POLICIES[name])
    if colon and not allowed:
        raise UsageError(f"policy {name!r} has no settings: write {name} alone")
    if colon and not rest:
        raise UsageError(f"policy {_cut(text)!r} ends with a colon: {_example(name, allowed)}")
    given: dict[str, Value] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UsageError(f"policy {_cut(text)!r}: {_cut(part)!r} is no key=value: {_example(name, allowed)}")
        if key not in allowed:
            raise unknown(f"setting of policy {name!r}", key[:LONGEST_SHOWN], allowed)
        if key in given:
            raise UsageError(f"policy {_cut(text)!r}: {key} is there twice: give it once")
        given[key] = read_value(name, key, value, allowed[key])
    return make_spec(name, given)


def make_spec(name: str, settings: Mapping[str, Any]) -> PolicySpec:
    """The spec of these settings, without those that are defaults; what can be checked without a model is."""
    from leanthink.policies import POLICIES

    kind = POLICIES[name]
    usual = settings_of(kind)
    found = {key: settings[key] for key in usual if key in settings and settings[key] != usual[key].default}
    if found and not any(_is_needed(it) for it in fields(cast(Any, kind))):
        kind(**found)  # checks itself
    return PolicySpec(name, found)


def spec_of(policy: Policy) -> PolicySpec:
    """The spec by which `make_policy` makes this policy again, from the same predictor or tokenizer."""
    usual = settings_of(type(policy))
    given = {name: getattr(policy, name) for name in usual}
    return PolicySpec(policy.name, {name: value for name, value in given.items() if value != usual[name].default})


def split_specs(text: str) -> list[str]:
    """The specs of a list with commas; a piece such as `key=value` belongs to the policy before it.

    Raises:
        UsageError: a setting follows a name that has no colon, or nothing.
    """
    found: list[str] = []
    for piece in (part.strip() for part in text.split(",")):
        name, equals, _ = piece.partition("=")
        if not equals or ":" in name:
            found.append(piece)
        elif found and ":" in found[-1]:
            found[-1] += f",{piece}"
        else:
            whose = found[-1] if found else "NAME"
            raise UsageError(f"{_cut(text)!r}: {_cut(piece)!r} is a setting of no policy: write {whose}:{_cut(piece)}")
    return found


def canonical(text: str) -> str:
    """The one way to write this policy: settings in the order of its fields, without its defaults."""
    return str(parse_spec(text))


def canonical_specs(specs: Iterable[str]) -> list[str]:
    """All of them, each `canonical`. Raises UsageError for one that is there twice, too."""
    found: list[str] = []
    for spec in map(canonical, specs):
        if spec in found:
            raise UsageError(f"policy {spec} is there twice: give each once")
        found.append(spec)
    return found


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one setting of a policy may be: of which types, and what it is by default."""

    kinds: tuple[Any, ...]
    default: Value


@cache
def settings_of(kind: type[Policy]) -> dict[str, Setting]:
    """The settings of a policy's class: its fields that have a default and a type that can be written, in order."""
    if not is_dataclass(kind):
        return {}
    usual = [it for it in fields(kind) if it.init and it.default is not MISSING]
    hints = get_type_hints(kind) if usual else {}
    found = {it.name: Setting(kinds=_kinds(hints[it.name]), default=it.default) for it in usual}
    return {name: it for name, it in found.items() if all(kind in WRITTEN or _is_word(kind) for kind in it.kinds)}


def _is_needed(it: Field[Any]) -> bool:
    return it.init and it.default is MISSING and it.default_factory is MISSING


def read_value(policy: str, name: str, text: str, setting: Setting) -> Value:
    """A setting's value from its text. Raises UsageError for what is not of its type."""
    kinds = setting.kinds
    words = [word for kind in kinds if _is_word(kind) for word in get_args(kind)]
    if text in words:
        return text
    if type(None) in kinds and text.lower() == NOTHING:
        return None
    if bool in kinds and text.lower() in BOOLEANS:
        return BOOLEANS[text.lower()]
    for number in (kind for kind in (int, float) if kind in kinds):
        try:
            return number(text)
        except ValueError:
            continue
    if str in kinds:
        return text
    allowed = [*words, *(told for kind, told in WRITTEN.items() if kind in kinds)]
    raise UsageError(
        f"policy {policy!r}: {name} must be {' or '.join(allowed)}, got {text[:LONGEST_SHOWN]!r}: "
        f"write {name}={written(setting.default)}, or leave it out for that"
    )


def written(value: Value) -> str:
    """A setting's value as `read_value` reads it."""
    return value if isinstance(value, str) else str(value).lower()


def _is_word(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation allows."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _example(name: str, allowed: Mapping[str, Setting]) -> str:
    shown = ",".join(f"{key}={written(it.default)}" for key, it in allowed.items())
    return f"write {name}, or settings, whose defaults are {name}:{shown}"
