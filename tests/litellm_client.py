"""A conversation through LiteLLM, as a process of its own: it leaves an event loop open, and its imports warn.

Arguments: the server's URL and the two questions. Prints what came as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm


def texts(chunks: Any) -> tuple[str, str]:
    """Thought and answer of a stream."""
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    names = ("reasoning_content", "content")
    thought, answer = ("".join(getattr(delta, name, None) or "" for delta in deltas) for name in names)
    return thought, answer


def converse(url: str, question: str, following: str) -> dict[str, Any]:
    """Both turns, whole and streamed; the second is cut short."""
    ask: dict[str, Any] = {"model": "openai/tiny", "api_base": f"{url}/v1", "api_key": "unused",
                           "temperature": 0, "tools": [], "user": "me"}  # fmt: skip
    messages: list[Any] = [{"role": "user", "content": question}]
    message = litellm.completion(**ask, messages=messages).choices[0].message
    told = {"whole": (message.reasoning_content, message.content)}
    told["streamed"] = texts(litellm.completion(**ask, messages=messages, stream=True))
    messages += [message.model_dump(), {"role": "user", "content": following}]
    more = litellm.completion(**ask, messages=messages, max_tokens=20)
    told["more"] = (more.choices[0].message.reasoning_content, more.choices[0].message.content or "")
    told["more streamed"] = texts(litellm.completion(**ask, messages=messages, max_tokens=20, stream=True))
    return {**told, "prompt_tokens": more.usage.prompt_tokens}


if __name__ == "__main__":
    print(json.dumps(converse(*sys.argv[1:])))
