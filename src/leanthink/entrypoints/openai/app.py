"""The routes: what can be asked, and how errors are told."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

import leanthink
from leanthink.entrypoints.openai.error_responses import APIError
from leanthink.entrypoints.openai.middleware import ServerMiddleware
from leanthink.entrypoints.openai.protocol import (
    ChatBody,
    ChatDocument,
    FaultDocument,
    ModelCard,
    ModelList,
    TextBody,
    TextDocument,
)
from leanthink.entrypoints.openai.service import Service
from leanthink.entrypoints.viewer.server import PAGE
from leanthink.utils.hosts import allowed_names

ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": FaultDocument}, "5XX": {"model": FaultDocument}}


REFERENCE = "#/components/schemas/{model}"


def make_app(service: Service) -> ASGIApp:
    """The whole application: routes, errors, the middleware around them, and what lets pages of other origins in."""
    app = FastAPI(title="LeanThink", version=leanthink.__version__, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_models(app, service)
    _add_completions(app, service)
    _add_states(app, service)
    app.mount("/viewer", StaticFiles(directory=PAGE, html=True), name="viewer")
    settings = service.settings
    paths = [path for route in app.routes if (path := getattr(route, "path", None))]
    middleware = ServerMiddleware(
        app,
        hosts=allowed_names(settings.host, settings.allowed_hosts),
        keys=settings.keys,
        max_body_bytes=settings.max_body_bytes,
        metrics=service.metrics,
        paths=paths,
    )
    if not settings.allowed_origins:
        return middleware
    return CORSMiddleware(  # outside the middleware: a preflight bears no key, and a page may read why it was refused
        middleware,
        allow_origins=settings.allowed_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(APIError)
    async def refused(_: Request, error: APIError) -> JSONResponse:
        return error.response()

    @app.exception_handler(StarletteHTTPException)
    async def failed(request: Request, error: HTTPException) -> JSONResponse:
        told = {404: f"there is no {request.url.path[:100]} here", 405: f"{request.method} is not allowed here"}
        message = told.get(error.status_code, str(error.detail))
        return APIError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return APIError(500, "an error that nobody planned for: the server's log knows it").response()


def _add_models(app: FastAPI, service: Service) -> None:
    settings, parser, born = service.settings, service.parser, int(time.time())
    limits = {
        "max_budget": settings.max_budget,
        "max_slots": parser.largest,
        "max_new_tokens": settings.max_new_tokens,
        "max_prompt_tokens": parser.max_prompt_tokens,
        "max_choices": settings.max_choices,
        "max_body_bytes": settings.max_body_bytes,
    }
    facts = {
        "policy": parser.policy,
        "policies": sorted(parser.policies),
        "budget": None if settings.budget is None else settings.budget.record,
        "context": parser.context,
        "sampling": parser.knobs,
        "limits": limits,
    }
    card = {"id": settings.name, "object": "model", "created": born, "owned_by": "leanthink", "leanthink": facts}

    @app.get("/v1/models", responses=ERRORS, response_model=ModelList)
    async def list_models() -> JSONResponse:
        """The model that is served, with its policies and limits."""
        return JSONResponse({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}", responses=ERRORS, response_model=ModelCard)
    async def show_model(name: str) -> JSONResponse:
        """One model."""
        if name != settings.name:
            raise APIError(404, f"the model {name[:100]!r} is not served here, {settings.name!r} is",
                          param="model", code="model_not_found")  # fmt: skip
        return JSONResponse(card)


def _add_completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", responses=ERRORS, response_model=ChatDocument, openapi_extra=_taking(ChatBody))
    async def chat(request: Request) -> Response:
        """Answer a conversation; the thought comes apart from the answer."""
        return await service.answer(ChatBody, request)

    @app.post("/v1/completions", responses=ERRORS, response_model=TextDocument, openapi_extra=_taking(TextBody))
    async def complete(request: Request) -> Response:
        """Continue a text as it is."""
        return await service.answer(TextBody, request)

    described = app.openapi

    def with_bodies() -> dict[str, Any]:
        _, bodies = models_json_schema([(ChatBody, "validation"), (TextBody, "validation")], ref_template=REFERENCE)
        page = described()
        page["components"]["schemas"] |= bodies["$defs"]
        return page

    app.openapi = with_bodies  # type: ignore[method-assign]


def _taking(kind: type[BaseModel]) -> dict[str, Any]:
    """What /openapi.json says of a body that FastAPI does not read: it would do so on the event loop."""
    schema = {"$ref": REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _add_states(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses=ERRORS)
    async def health() -> JSONResponse:
        """Whether the server works at all."""
        if service.dispatcher.broken is not None:
            raise APIError(503, "the engine broke: restart the server", code="broken")
        return JSONResponse({"status": "ok"})

    @app.get("/ready", responses=ERRORS)
    async def ready() -> JSONResponse:
        """Whether a request would be taken now."""
        if service.dispatcher.broken is not None or service.draining or service.is_full:
            why = "broken" if service.dispatcher.broken else "shutting_down" if service.draining else "queue_full"
            raise APIError(503, f"not ready: {why}", code=why, headers={"retry-after": "1"})
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)
