"""From the bytes of a body to what they ask for, or to the first thing that is wrong with them.

That is work for another thread than the event loop's: a megabyte of JSON can be half a million numbers.
"""

from __future__ import annotations

import ctypes
import sys
from email.message import Message
from json import JSONDecodeError
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from leanthink.entrypoints.openai.error_responses import Refusal, of_validation
from leanthink.utils.file_reading import parse_json

Body = TypeVar("Body", bound=BaseModel)
LARGE_BODY = 2**16  # bytes: what is made of it is worth giving back
# Only glibc has it.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def is_json(content_type: str) -> bool:
    """Whether a body of this type is read; another could be sent by any page without the browser asking first."""
    message = Message()
    message["content-type"] = content_type
    kind, subtype = message.get_content_maintype(), message.get_content_subtype()
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def parse(kind: type[Body], body: bytes, content_type: str) -> Body:
    """The body, checked.

    Raises:
        Refusal: it is not JSON, or not of this kind.
    """
    if not body or not is_json(content_type):
        raise Refusal(400, "the body is empty or is not sent as application/json: give it", code="missing_field")
    try:
        given = parse_json(body)
    except JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error.msg}", code="invalid_json") from None
    except ValueError as error:  # other than UTF-8, endless digits, too deep
        raise Refusal(400, f"the body cannot be read: {error}", code="invalid_json") from None
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise of_validation(error.errors(include_url=False)) from None


def give_memory_back() -> None:
    """Give the system what is freed: glibc keeps the many small pieces of a large body, other ones of each thread."""
    if _malloc_trim is not None:
        _malloc_trim(0)
