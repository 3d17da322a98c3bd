"""Runs a server from its first request to its last: sockets, signals, and the way down."""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import uvicorn

from leanthink.engine.cache_requirements import bytes_per_slot
from leanthink.engine.engine import Engine
from leanthink.engine.quantized_kv import kv_dtype
from leanthink.engine.request import PolicyMaker
from leanthink.entrypoints.openai.app import make_app
from leanthink.entrypoints.openai.connections import BACKLOG, Connections, raise_descriptors
from leanthink.entrypoints.openai.logs import log, start_logging
from leanthink.entrypoints.openai.service import STALLED_SECONDS, Service
from leanthink.entrypoints.openai.settings import Settings
from leanthink.models.default_policy import default_policy
from leanthink.models.loading import kv_shape
from leanthink.policies import parse_spec
from leanthink.policies.budget_hints import budget_hints
from leanthink.utils.errors import LeanThinkError, UsageError
from leanthink.utils.hosts import is_loopback

GIB = 2**30
CPU_GIB, GPU_SHARE = 2.0, 0.8
LAST_SECONDS = 10  # after the grace time, for what was cut to be sent


def make_engine(model: Any, tokenizer: Any, settings: Settings) -> Engine:
    """The engine with the memory of these settings, which has to hold what their policy remembers of each slot, too.

    Sliding windows and states of all rows are taken off first.

    With `max_slots` every choice reserves so many on a CPU: there one call attends to rows of equal size.

    Raises:
        UsageError: the memory has no room for one request.
        LeanThinkError: the default policy cannot be had for this model.
    """
    spec = parse_spec(settings.policy or default_policy(model, settings.predictor))
    predictor = None if spec.kind.target is None else settings.predictor
    ignored = settings.ignore_predictor_mismatch
    policy = PolicyMaker(model, tokenizer).make(str(spec), predictor, ignore_predictor_mismatch=ignored)
    shape, most = kv_shape(model.config), settings.max_slots
    windows = (settings.rows + 1) * shape.bytes_per_state(model.dtype)
    room = max(0, int(kv_bytes(model.device, settings)) - windows)
    slots = room // bytes_per_slot(shape, kv_dtype(settings.kv_cache_dtype, model.dtype), [policy])
    if slots < (most or 2):
        taken = f" beside {windows / GIB:.2g} GiB of windows and states" if windows else ""
        fewer = " or lower rows" if windows else ""
        raise UsageError(f"there is memory for {slots} slots{taken}, and {most or 2} are needed: raise kv_gib{fewer}")
    how: dict[str, Any] = {"kv_cache_dtype": settings.kv_cache_dtype}
    how |= {name: getattr(settings, name) for name in ("enable_prefix_caching", "async_scheduling")}
    engine = partial(Engine, model, tokenizer, **how)
    if most is None or model.device.type != "cpu":
        return engine(slots=slots, rows=settings.rows)
    rows = min(settings.rows, slots // most)
    return engine(slots=rows * most, rows=rows, row_slots=most)


def kv_bytes(device: torch.device, settings: Settings) -> float:
    """The memory for keys and values. Raises UsageError for a share of a GPU's memory where there is no GPU."""
    share = settings.gpu_memory_utilization
    if settings.kv_gib is not None:
        return settings.kv_gib * GIB
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return GPU_SHARE * free if share is None else max(0, share * total - (total - free))
    if share is not None:
        raise UsageError(f"gpu_memory_utilization={share} is of a GPU's memory, and this is {device.type}: give kv_gib")
    return CPU_GIB * GIB


def serve(
    model: Any,
    tokenizer: Any,
    settings: Settings,
    *,
    tell: Callable[[str], None],
    ready: Callable[[dict[str, Any]], None],
) -> None:
    """Serve until a signal says to stop, then finish what runs within the grace time.

    Args:
        model: as `load` gives it.
        tokenizer: its tokenizer.
        settings: of the server.
        tell: for warnings to whoever started it.
        ready: called once, when requests are answered: with url, model, rows, slots and bytes of windows and states.

    Raises:
        UsageError: the address cannot be had, or the memory has no room.
        LeanThinkError: the engine broke.
    """
    start_logging()
    if not is_loopback(settings.host) and not settings.keys:
        tell(f"warning: {settings.host} can be reached from other machines, and no API key is set: give --keys")
    if "*" in settings.allowed_origins and not settings.keys:
        tell("warning: every page that a browser here opens can use this server, and no API key is set: give --keys")
    engine = make_engine(model, tokenizer, settings)
    gc.collect()
    gc.freeze()  # the model's objects stay: a body of many small lists would have them all looked through
    with _listen(settings.host, settings.port) as listening:
        asyncio.run(_serve(engine, settings, listening, tell, ready))


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:  # asyncio sets TCP_NODELAY by it
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections have it from here
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * STALLED_SECONDS))
        try:
            listening.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host}:{port}: {error.strerror}; give another --host or --port"
            ) from error
        yield listening


class _Server(uvicorn.Server):
    """uvicorn, which leaves the signals to us: it would end the process by the signal, not with exit code 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing."""
        yield


async def _serve(
    engine: Engine,
    settings: Settings,
    listening: socket.socket,
    tell: Callable[[str], None],
    ready: Callable[[dict[str, Any]], None],
) -> None:
    service = Service(engine, settings, on_failure=lambda: _stop(server))
    for hint in budget_hints(service.parser.policies[service.parser.policy], settings.budget):
        tell(hint)
    room = raise_descriptors(settings.limit_concurrency)
    if room < settings.limit_concurrency:
        tell(f"warning: there are descriptors for {room} connections, not for {settings.limit_concurrency}: "
             "raise the limit (ulimit -n)")  # fmt: skip
    connections = Connections(limit=room, read_seconds=settings.read_timeout_seconds)
    server = _Server(_config(service, connections))

    def on_signal() -> None:
        if service.draining:
            service.cut_all()  # a second signal: now
        service.drain()
        _stop(server)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(connections.on_error)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    facts = _facts(service, listening)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    log("ready", **facts)
    ready(facts)
    await serving
    service.stop()
    log("stopped")
    if service.dispatcher.broken is not None:
        raise LeanThinkError(f"the engine broke: {service.dispatcher.broken}") from service.dispatcher.broken


def _config(service: Service, connections: Connections) -> uvicorn.Config:
    """What uvicorn is told; all else it would do is ours."""
    return uvicorn.Config(
        make_app(service),
        http=cast(type[asyncio.Protocol], connections),
        ws="none",
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(service.settings.grace_seconds) + LAST_SECONDS,
    )


def _facts(service: Service, listening: socket.socket) -> dict[str, Any]:
    """What whoever started the server is told when it is ready."""
    host, port = listening.getsockname()[:2]
    stats = service.engine.stats()
    return {
        "url": f"http://{f'[{host}]' if ':' in host else host}:{port}",
        "model": service.settings.name,
        "policy": service.parser.policy,
        "sampling": service.parser.knobs,
        "rows": stats.max_rows,
        "slots": stats.slots_total,
        "state_bytes": stats.state_bytes,
    }


def _stop(server: uvicorn.Server) -> None:
    server.should_exit = True
