"""A model that overflows for one client's prompt: that client gets an error, and nobody else notices."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from models import END, make_model, make_tokenizer
from server import Server, serving

POISON = 20  # a token id that the model cannot read


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model, spoilt = make_model("qwen3"), tmp_path_factory.mktemp("spoilt")
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = torch.nan
        model.get_output_embeddings().weight[[POISON, END]] = 0
    model.save_pretrained(spoilt)
    make_tokenizer().save_pretrained(spoilt)
    with serving(spoilt / "log", "--model", spoilt, "--name", "tiny", "--policy", "window", "--kv-gib", 0.1) as server:
        yield server


def complete(server: Server, prompt: list[int], **fields: Any) -> tuple[int, Any]:
    return server.request("/v1/completions", {"model": "tiny", "prompt": prompt, "temperature": 0, **fields})


def streamed(server: Server, prompt: list[int], **fields: Any) -> list[Any]:
    """Every event of a stream but the last, which says that it is the last."""
    body = {"model": "tiny", "prompt": prompt, "temperature": 0, "stream": True, **fields}
    asked = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        *events, last = answer.read().decode().strip().split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_logits_that_are_no_numbers_cost_the_client_who_asked_and_nobody_else(server: Server) -> None:
    _, alone = complete(server, [5, 6], max_tokens=300)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(streamed, server, [5, 6], max_tokens=300)
        for _ in range(3):
            status, document = complete(server, [7, POISON, 8])
            assert status == 500
            assert document["error"]["type"] == "server_error"
            assert document["error"]["code"] == "request_failed"
            assert "the model's logits are NaN or infinite" in document["error"]["message"]
            assert "request_failed" in json.dumps(streamed(server, [POISON])[-1])
            assert complete(server, [7], n=2, max_tokens=5)[0] == 200
        document = complete(server, [[7], [POISON]], max_tokens=1)[1]  # the first ends in the step in which one fails
        assert document["error"]["code"] == "request_failed"
        events = other.result()
    assert "".join(event["choices"][0]["text"] for event in events) == alone["choices"][0]["text"]
    assert server.request("/health")[0] == 200
    metrics = server.metrics()
    assert metrics['leanthink_choices_total{finish_reason="error"}'] == 7
    assert metrics['leanthink_choices_total{finish_reason="length"}'] == 1 + 1 + 3 * 2 + 1
    assert 'leanthink_choices_total{finish_reason="gone"}' not in metrics
    assert metrics["leanthink_slots_reserved"] == 0
    assert [line["event"] for line in server.lines()].count("a choice failed") == 7


def test_the_smallest_temperatures_are_greedy(server: Server) -> None:
    _, greedy = complete(server, [5, 6], max_tokens=20)
    for temperature in (1e-45, 1e-40, 3e-38):
        status, document = complete(server, [5, 6], max_tokens=20, temperature=temperature)
        assert (status, document["choices"][0]["text"]) == (200, greedy["choices"][0]["text"])
