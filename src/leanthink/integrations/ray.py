"""Engines on a Ray cluster: each an actor with a model of its own, handed work until all of it has come back.

Every request has its own seed and runs the same in any batch, so it does not matter which engine completes it. An
actor sends each result as it is there; what one has not sent when it dies is given to the others, and the actor is
replaced. Results reach the caller in this process, once each: it alone writes them down.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leanthink.data.think_tags import set_think_tags
from leanthink.engine.generation import raise_first
from leanthink.engine.outputs import Completion
from leanthink.engine.request import Predictor
from leanthink.importance.inference_backend import GenerationRequest, LoadedModel, ModelInfo
from leanthink.importance.labels import Thought
from leanthink.models.tiny import TINY
from leanthink.policies.policy import Granularity
from leanthink.utils.errors import LeanThinkError, RequestFailed, UsageError

try:
    import ray
    from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError
except ImportError as error:
    raise UsageError("--ray needs the package ray: pip install 'leanthink[ray]'") from error

PATIENCE = 60.0  # seconds without an engine before it is said why nothing happens
DEATHS = (RayActorError, ObjectLostError, OutOfMemoryError)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What each engine loads; paths must lead to the same files on every node.

    Attributes:
        model: as for `leanthink.load`.
        device: cpu, cuda, or None: cuda where the cluster has a GPU.
        dtype: name of a torch dtype, or auto; None: the default of `leanthink.load`.
        predictors: as for `LoadedModel`.
        think_tags: what sets thoughts apart; None: the tags of the model.
        ignore_predictor_mismatch: as for `LoadedModel`.

    Raises:
        UsageError: a device with a number, which is for Ray to choose.
    """

    model: str
    device: str | None
    dtype: str | None
    predictors: Mapping[str | None, Predictor]
    think_tags: tuple[str, str] | None = None
    ignore_predictor_mismatch: bool = False

    def __post_init__(self) -> None:
        if self.device not in (None, "cpu", "cuda"):
            raise UsageError(f"--device {self.device} with --ray: give cpu or cuda, Ray says which GPU an engine gets")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many engines there will be, and the cores and GPUs that Ray keeps for each."""

    workers: int
    cores: int
    gpus: int


def plan(nodes: Sequence[Mapping[str, float]], device: str | None, workers: int | None) -> Plan:
    """One engine for each GPU, else for each core; fewer engines without GPUs get larger shares of the cores.

    Args:
        nodes: resources of each living node, by Ray's names CPU and GPU.
        device: as of `Source`.
        workers: engines asked for; None: as many as there can be.

    Raises:
        UsageError: there cannot be so many, or there is no GPU for cuda.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cores = [int(node.get("CPU", 0)) for node in nodes]
    on_gpus = device == "cuda" or (device is None and gpus > 0)
    most, what = (gpus, "GPUs") if on_gpus else (sum(cores), "cores")
    if most == 0:
        raise UsageError(f"--ray: the cluster has no {what}: add a node" + (", or --device cpu" if on_gpus else ""))
    wanted = most if workers is None else workers
    if not 1 <= wanted <= most:
        raise UsageError(f"--ray-workers {wanted}: must be 1 to {most}, the cluster has {most} {what}")
    share = 1 if on_gpus else max(n for n in range(1, max(cores) + 1) if sum(c // n for c in cores) >= wanted)
    return Plan(workers=wanted, cores=share, gpus=int(on_gpus))


def share(left: int, engines: int, at_once: int) -> int:
    """How many of the items that are left the next free engine gets.

    Half of an even share, so that shares shrink towards the end and all engines finish at about the same time (guided
    self-scheduling, Polychronopoulos and Kuck, 1987), but enough to fill a batch of `at_once` where there are as many.
    """
    even = -(-left // engines)
    return max(-(-even // 2), min(at_once, even))


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the cluster at an address, host:port or auto; "local" starts one on this machine and ends it.

    Raises:
        UsageError: there is no cluster, or the address is one of Ray Client, which does not stream results.
    """
    if address.startswith("ray://"):
        raise UsageError(f"--ray {address}: run the command on a node of the cluster, with --ray auto, or as a Ray job")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address, **quiet, **({"include_dashboard": False} if address == "local" else {}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--ray {address}: no cluster answers there ({' '.join(str(error).split())[:200]}): "
            "start one with `ray start --head`, or give local"
        ) from None
    with redirect_stdout(sys.stderr):  # Ray tells of what died on standard output, which is for data
        try:
            yield
        finally:
            ray.shutdown()


class Worker:
    """One engine, in a process of its own."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def open(self) -> Iterator[tuple[str, ModelInfo, Any]]:
        """Load the model; yields where this is, what decides its results, and its tokenizer."""
        from transformers.utils import logging

        from leanthink.models.loading import as_dtype, load

        logging.disable_progress_bar()
        source = self._source
        model, tokenizer = load(source.model, source.device, as_dtype(source.dtype))
        if source.think_tags is not None:
            set_think_tags(tokenizer, *source.think_tags)
        self._model = LoadedModel(
            model, tokenizer, source.predictors, ignore_predictor_mismatch=source.ignore_predictor_mismatch
        )
        yield f"process {os.getpid()} on {ray.util.get_node_ip_address()}", self._model.model_info, tokenizer

    def work(self, method: str, batch: Mapping[int, Any], options: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
        """Do the work that this method of LoadedModel does; yields each item's number and result as it is there."""
        numbers = list(batch)
        for index, result in getattr(self._model, method)(list(batch.values()), **options):
            yield numbers[index], result


@dataclass(kw_only=True)
class _Engine:
    """An actor, as this process sees it.

    stream: what it is sending; None while it has nothing to do.
    batch: what it was handed and has not sent the results of, by number.
    """

    name: str
    actor: Any
    stream: Any
    is_open: bool = False
    batch: dict[int, Any] = field(default_factory=dict)


class Engines:
    """A `Subject` whose work is done on the cluster that this process is connected to.

    Args:
        source: what each engine loads.
        workers: how many; None: one for each GPU, or for each core where there is none.
        tell: hears of engines that are there and that died.

    Raises:
        UsageError, UnsupportedModel, PredictorMismatch, DamagedFile: as loading the source raises on an engine.
    """

    def __init__(self, source: Source, *, workers: int | None, tell: Callable[[str], None]) -> None:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._plan = plan(alive, source.device, workers)
        device = "cuda" if self._plan.gpus else "cpu"
        self._source = replace(
            source,
            model=_absolute(source.model),
            device=device,
            predictors={name: _absolute(file) for name, file in source.predictors.items()},
        )
        self._tell = tell
        self._model_info: ModelInfo | None = None
        self._deaths = 0  # since the last result
        self._left: deque[tuple[int, Any]] = deque()  # what no engine has in hand
        self._failed: dict[int, RequestFailed] = {}  # of this work, by number
        self._engines = [self._start(f"engine {n} of {self._plan.workers}") for n in range(1, self._plan.workers + 1)]
        while self._model_info is None:
            self._hear()

    @property
    def model_info(self) -> ModelInfo:
        """What decides the results of every engine."""
        assert self._model_info is not None, "the first engine to open said so"
        return self._model_info

    def complete(
        self, requests: Sequence[GenerationRequest], *, max_rows: int, **how: Any
    ) -> Iterator[tuple[int, Completion]]:
        """As of `InferenceBackend`; `max_rows` is of each engine, `how` are its other arguments."""
        return self._each("complete", requests, at_once=max_rows, max_rows=max_rows, **how)

    def label(
        self, thoughts: Sequence[Thought], horizons: tuple[int, ...], granularity: Granularity
    ) -> Iterator[tuple[int, Any]]:
        """Each thought's index and labels, as they are there."""
        return self._each("label", thoughts, at_once=1, horizons=horizons, granularity=granularity)

    def _each(self, method: str, items: Sequence[Any], *, at_once: int, **options: Any) -> Iterator[tuple[int, Any]]:
        """Hand out all items, and yield the number and the result of each, once.

        Raises:
            RequestFailed: some failed; raised for the first of them when all others are done.
        """
        assert not self._left, "earlier work was left unfinished"
        assert not any(engine.batch for engine in self._engines), "earlier work was left unfinished"
        self._left.extend(enumerate(items))
        unfinished = len(items)
        while unfinished > len(self._failed):
            for engine in self._engines:
                if self._left and engine.stream is None:
                    # After a death one at a time, until a result comes: what kills engines must not take others along.
                    count = 1 if self._deaths else share(len(self._left), len(self._engines), at_once)
                    engine.batch = dict(self._left.popleft() for _ in range(count))
                    engine.stream = _streaming(engine.actor.work, method, engine.batch, options)
            found = self._hear()
            if found is not None:
                unfinished -= 1
                yield found
        failed, self._failed = self._failed, {}
        raise_first(failed, len(items))

    def _hear(self) -> tuple[int, Any] | None:
        """Wait for what comes next from any engine: a result is returned, all else is dealt with."""
        streams = [engine.stream for engine in self._engines if engine.stream is not None]
        ready, _ = ray.wait(streams, num_returns=1, timeout=PATIENCE)
        if not ready:
            if not any(engine.is_open for engine in self._engines):
                self._tell("no engine is there yet: others may hold the cluster's cores and GPUs (`ray status` tells)")
            return None
        (engine,) = (engine for engine in self._engines if engine.stream is ready[0])
        try:
            sent = ray.get(next(engine.stream))
        except StopIteration:
            assert not engine.batch, "an engine sends a result for each item"
            engine.stream = None
        except DEATHS as error:
            self._replace(engine, error)
        except RayTaskError as error:
            if isinstance(error.cause, RequestFailed):  # of what it has not sent: that is told when all else is
                self._failed |= {number: RequestFailed(number, error.cause.why) for number in engine.batch}
                engine.batch, engine.stream = {}, None
                return None
            raise error.cause if isinstance(error.cause, LeanThinkError) else error from None
        else:
            if engine.is_open:
                del engine.batch[sent[0]]
                self._deaths = 0
                return sent[0], sent[1]
            self._welcome(engine, *sent)
        return None

    def _start(self, name: str) -> _Engine:
        options = {"num_cpus": self._plan.cores, "num_gpus": self._plan.gpus}
        actor = ray.remote(Worker).options(**options).remote(self._source)
        return _Engine(name=name, actor=actor, stream=_streaming(actor.open))

    def _welcome(self, engine: _Engine, where: str, info: ModelInfo, tokenizer: Any) -> None:
        """A model is loaded; all must be the same one. Raises UsageError."""
        if self._model_info is None:
            hardware = f"{self._plan.workers} engines on Ray, the first on {info.hardware}"
            self._model_info, self.tokenizer = replace(info, hardware=hardware), tokenizer
        if info != self._model_info:
            raise UsageError(
                f"--ray: {engine.name} ({where}) has {info}, another one {self._model_info}: "
                "every node needs the same leanthink, model and predictors"
            )
        engine.is_open = True
        self._tell(f"{engine.name} is {where}")

    def _replace(self, engine: _Engine, error: Exception) -> None:
        """Start an actor in place of one that died, and give what it had in hand to whoever is free.

        Raises:
            LeanThinkError: more died in a row than a lost node explains.
        """
        lines = str(error).splitlines()
        reason = next((line for line in lines if line.startswith("The actor is dead")), lines[0])
        reason = reason.partition(" Worker exit type")[0]
        self._deaths += 1
        if self._deaths > len(self._engines):
            raise LeanThinkError(
                f"{self._deaths} engines died one after the other without a result ({reason}): if memory is short give "
                "fewer --ray-workers or --max-num-seqs; what was finished is kept, and the same command goes on"
            )
        self._tell(f"{engine.name} died ({reason}); it is replaced, {len(engine.batch)} unfinished go to others")
        ray.kill(engine.actor)  # it may only have been out of reach
        self._left.extend(engine.batch.items())
        self._engines[self._engines.index(engine)] = self._start(engine.name)


def _absolute(path: Any) -> Any:
    """The path of a file or folder that is there, for processes that run elsewhere; all else stands for itself."""
    if not isinstance(path, str | Path) or str(path) == TINY or not Path(path).exists():
        return path
    return str(Path(path).absolute())


def _streaming(method: Any, *arguments: Any) -> Any:
    """Call a method of an actor; its results can be waited for and taken one at a time."""
    return method.options(num_returns="streaming").remote(*arguments)
