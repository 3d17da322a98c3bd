"""Errors as OpenAI's clients expect them: a status, and a body that says what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from leanthink.entrypoints.openai.neutral_fields import NOT_HONOURED, UNKNOWN_FIELD, sendable

LONGEST_PARAM = 200  # characters
TYPES = ("str", "int", "list")


class APIError(Exception):
    """A request that gets no answer but this error.

    Args:
        status: of HTTP, 4xx or 5xx.
        message: what was given, what is allowed, what to do.
        param: the field of the body that is to blame.
        code: a word for programs.
        headers: more of the answer's headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(sendable(message))
        self.status, self.code, self.headers = status, code, headers
        self.param = None if param is None else sendable(param)[:LONGEST_PARAM]

    def document(self) -> dict[str, Any]:
        """The body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.document(), self.status, headers=self.headers)


def bad_request(message: str, param: str | None = None) -> APIError:
    """A body that asks for what is not allowed."""
    return APIError(400, message, param=param, code="invalid_value")


def from_validation(errors: Sequence[Mapping[str, Any]]) -> APIError:
    """The error for what pydantic found, told by its first finding; what was given is not repeated at length."""
    found = next((error for error in errors if not error["type"].endswith("_type")), errors[0])
    place = [str(part) for part in found["loc"] if not _is_branch(part)]
    if found["type"] in (NOT_HONOURED, UNKNOWN_FIELD):
        blamed = ".".join([*place, found["ctx"]["field"]])[:LONGEST_PARAM]
        code = "unknown_field" if found["type"] == UNKNOWN_FIELD else "unsupported_value"
        verb = " is " if found["type"] == UNKNOWN_FIELD else ": "
        return APIError(400, f"{blamed}{verb}{found['msg']}", param=blamed, code=code)
    param = ".".join(place) or None
    if found["type"] == "missing":
        return APIError(400, f"{param} is missing: give it", param=param, code="missing_field")
    return bad_request(f"{param or 'the body'}: {found['msg']}{_given(found.get('input'))}", param)


def _is_branch(part: str | int) -> bool:
    """Whether this part of a place names one of the types that a field may have, and not a field."""
    return isinstance(part, str) and (part in TYPES or "[" in part or part.startswith("constrained-"))


def _given(value: object) -> str:
    return f", got {value!r}" if isinstance(value, bool | int | float) and abs(value) < 1e30 else ""
