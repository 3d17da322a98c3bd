"""Whose prompts share slots: everybody's, those of one salt, or those of one API key."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from leanthink.entrypoints.openai.app import make_app
from leanthink.entrypoints.openai.run import make_engine
from leanthink.entrypoints.openai.service import Service
from leanthink.entrypoints.openai.settings import Settings
from models import make_model, make_tokenizer

ASKED = [("sk-a", None), ("sk-a", None), ("sk-b", None), ("sk-b", "x"), ("sk-a", "x"), ("sk-a", "x")]


@pytest.mark.parametrize(
    ("options", "cached"),
    [
        ({"keys": ("sk-a", "sk-b")}, [0, 2, 2, 0, 2, 2]),
        ({"keys": ("sk-a", "sk-b"), "cache_salt_per_key": True}, [0, 2, 0, 0, 0, 2]),
        ({}, [0, 2, 2, 0, 2, 2]),
        ({"enable_prefix_caching": False}, [0] * 6),
    ],
)
def test_requests_share_slots_within_a_salt_and_if_told_so_within_a_key(
    options: dict[str, Any], cached: list[int]
) -> None:
    settings = Settings(name="tiny", policy="full", budget=None, kv_gib=0.001, **options)
    engine, salts, found = make_engine(make_model(), make_tokenizer(), settings), list[Any](), list[int]()
    add_request = engine.add_request

    def noted(request: Any, **how: Any) -> int:
        salts.append(request.cache_salt)
        return add_request(request, **how)

    engine.add_request = noted  # type: ignore[method-assign]

    async def ask() -> None:
        service = Service(engine, settings, on_failure=lambda: None)
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for key, salt in ASKED:
                body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 2, "cache_salt": salt}
                headers = {"authorization": f"Bearer {key}"}
                answer = await client.post("/v1/completions", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                found.append(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
        service.stop()

    asyncio.run(ask())
    assert found == cached
    assert len(salts) == len(ASKED)
    assert not any("sk-" in str(salt) for salt in salts), "a key does not travel further than it must"
