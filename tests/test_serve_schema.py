"""Schemathesis against a running server: whatever fits or does not fit the schema, there is no 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance

from server import Server, serving

CHECKS = [not_a_server_error, response_schema_conformance]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    flags = ["--model", folder, "--name", "tiny", "--policy", "window", "--max-new-tokens", 8, "--kv-gib", 0.1]
    with serving(tmp_path_factory.mktemp("schema") / "log", *flags) as server:
        yield server


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_nothing_that_can_be_drawn_from_the_schema_breaks_the_server(server: Server, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    statuses: set[int] = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue  # nothing can be wrong with them

        @settings(
            max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def no_5xx(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
                case.body["model"] = "tiny"  # else nearly all would be 404
            response = case.call()
            statuses.add(response.status_code)
            case.validate_response(response, checks=CHECKS)

        no_5xx()
    assert statuses >= ({200, 400} if mode is GenerationMode.POSITIVE else {400})
    assert server.request("/health")[0] == 200
