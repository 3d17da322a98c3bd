"""The HTTP part of bench/vllm_gpu.py: vLLM's own server with the plugin on model runner V2."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import vllm_server
from vllm_parts import extra_args

PORT = 8117
URL = f"http://127.0.0.1:{PORT}"
WRONG = {
    "an unknown name": {"leanthink_budgt": 64},
    "too large a budget": {"leanthink_budget": 500000},
    "a policy that is not offered": {"leanthink_budget": 64, "leanthink_policy": "snapkv"},
    "a window above the budget": {"leanthink_budget": 8, "leanthink_recent_window": 32},
}


@contextmanager
def served(work: Path, flags: Sequence[str]) -> Iterator[None]:
    """The server, ready; what it says goes to log-server.txt."""
    from leanthink.models.tiny import weights_path

    words = ["-m", "vllm.entrypoints.cli.main", "serve", str(weights_path()), "--served-model-name", "tiny",
             "--port", str(PORT), *flags]  # fmt: skip
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with vllm_server.served(words, environment, URL, log=work / "log-server.txt"):
        yield


def checks(ids: list[list[int]], texts: list[str], expected: list[list[int]], asked: dict[str, Any]) -> Any:
    """What is tried over HTTP, by name: each returns what it saw, and raises where that is wrong.

    Args:
        ids: prompts.
        texts: the same as users write them.
        expected: tokens that `LLM()` gave.
        asked: budget, recent_window, eviction_interval and policy.
    """
    extra = extra_args(asked)
    most = max(map(len, expected))

    def tokens() -> dict[str, int]:
        body = {"vllm_xargs": extra, "return_token_ids": True, "max_tokens": most}
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda one: _post("/v1/completions", {"prompt": one, **body}), ids))
        got = [list(answer["choices"][0]["token_ids"]) for answer in answers]
        counted = [answer["usage"]["completion_tokens"] for answer in answers]
        assert counted == [len(one) for one in got], "usage"
        return {"same": sum(a == b for a, b in zip(got, expected, strict=True)), "of": len(ids)}

    def streamed() -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": texts[0]}], "vllm_xargs": extra, "max_tokens": most}
        whole = _post("/v1/chat/completions", body)
        events = _stream("/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}})
        message, length = whole["choices"][0]["message"], {}
        for name in ("reasoning", "content"):
            text = "".join(choice["delta"].get(name) or "" for event in events for choice in event["choices"])
            assert text == (message[name] or ""), f"another {name}"
            length[name] = len(text)
        assert length["reasoning"], message
        assert "</think>" not in str(message), message
        counts = [{name: n for name, n in one["usage"].items() if n is not None} for one in (events[-1], whole)]
        assert counts[0] == counts[1], counts
        return {"events": len(events), "usage": counts[0], "characters": length}

    def refused() -> dict[str, str]:
        said = {name: _refusal({"prompt": "1", "vllm_xargs": wrong}) for name, wrong in WRONG.items()}
        assert {code for code, _ in said.values()} == {400}, said
        return {name: message for name, (_, message) in said.items()}

    def held() -> dict[str, float]:
        with urllib.request.urlopen(f"{URL}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        (usage,) = [float(line.split()[-1]) for line in lines if line.startswith("vllm:kv_cache_usage_perc{")]
        assert usage == 0, usage
        return {"cache_usage_at_the_end": usage}

    tried: dict[str, Callable[[], Any]] = {"tokens": tokens, "streamed": streamed, "refused": refused, "held": held}
    return tried


def _open(path: str, body: dict[str, Any]) -> Any:
    return vllm_server.opened(URL + path, body, seconds=120)


def _post(path: str, body: dict[str, Any]) -> dict[str, Any]:
    with _open(path, body) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def _refusal(body: dict[str, Any]) -> tuple[int, str]:
    """Status and reason; 200 where it was not refused."""
    try:
        _post("/v1/completions", body)
    except urllib.error.HTTPError as error:
        return error.code, str(json.loads(error.read())["error"]["message"])[:160]
    return 200, ""


def _stream(path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with _open(path, body) as answer:
        lines = [line.decode().strip() for line in answer]
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line != "data: [DONE]"]
