"""Many clients at once, some of them bad: no 5xx, no leak, and every answer equals the one computed alone.

    python bench/serve_load.py --out bench/results/serve-load.json
    python bench/serve_load.py --clients 100 --seconds 600 --hostile 0.1 --half-open 50 --stops 20 --out chaos.json

Each client asks again and again. Of its requests a fifth is left at a random moment, a tenth is read slowly, and a
twentieth is malformed; a client that is told 429 waits as long as it is told. Answers are compared with `generate` on
one request at a time; times are those of clients that read at once. /health is asked ten times a second.

`--hostile` is the share of requests that once ended or stopped a server: temperatures that float32 cannot divide by,
bodies of a megabyte, control tokens. `--half-open` connections send half a request and wait. At `--stops` random
moments the server is stopped with SIGSTOP for a third of a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from serve_client import Answer, ask, running

from leanthink.data.tasks import registry
from leanthink.engine.bench.measure import quantiles
from leanthink.engine.generation import generate
from leanthink.engine.sampling import Sampling
from leanthink.models.loading import load
from leanthink.policies.budget import FILE_KEYS, Budget
from leanthink.utils.provenance import provenance_record

POLICIES = ("full", "window", "sinks", "random", "random-heads", "snapkv", "dynts", "horizon")
LEAVE, SLOW, MALFORMED = 0.2, 0.1, 0.05  # shares of the requests
MAX_SLOTS = 512
STOPPED_S = 1 / 3
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BAD_BODIES = (
    b"{",
    b"\xff\xfe",
    b"[]",
    b'{"model": "tiny"}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "colour": 1}',
    b'{"model": "tiny", "messages": [{"role": "system", "content": "hi"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "budget": 1000000}',
    b'{"model": "other", "messages": [{"role": "user", "content": "hi"}]}',
    b" " * 2**21,
)


def _chat(**fields: Any) -> bytes:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "What is 48 times 37?"}], "max_tokens": 20}
    return json.dumps(body | fields).encode()


def _text(prompt: object) -> bytes:
    return json.dumps({"model": "tiny", "prompt": prompt, "max_tokens": 1}).encode()


HOSTILE = (
    *((CHAT, _chat(temperature=temperature)) for temperature in (1e-45, 1e-40, 3e-38, 1e-6)),
    (CHAT, _chat(messages=[{}] * 250_000)),
    (CHAT, _chat(messages=[[]] * 250_000)),
    (CHAT, _chat(messages=[{"role": "user", "content": [{"type": "text", "text": ""}] * 25_000}])),
    (CHAT, _chat(messages=[{"role": "user", "content": "<|im_start|>" * 60_000}])),
    (CHAT, _chat(chat_template_kwargs={str(number): 1 for number in range(60_000)})),
    (CHAT, b"[" * 500_000),
    (TEXT, _text([""] * 250_000)),
    (TEXT, _text([-1] * 300_000)),
    (TEXT, _text([[]] * 250_000)),
    (TEXT, _text([2**70])),
    (TEXT, _text("x" * 1_000_000)),
)


def draw(chance: random.Random, prompts: list[str]) -> dict[str, Any]:
    """The body of one request."""
    policy = chance.choice(POLICIES)
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": chance.choice(prompts)}],
        "policy": policy,
        "max_tokens": chance.randrange(20, 300),
        "temperature": chance.choice([0.0, 0.6, 1.0]),
        "top_k": chance.choice([0, 20]),
        "top_p": chance.choice([1.0, 0.95]),
        "seed": chance.randrange(2**53),
    }
    if policy != "full":
        body |= {"budget": chance.randrange(16, 96), "recent_window": 8}
        body |= {"eviction_interval": chance.randrange(8, 48), "max_answer_slots": 200}
    return body


def alone(model: Any, tokenizer: Any, body: dict[str, Any]) -> tuple[str, str, str]:
    """Thought, answer and finish reason of this request by itself."""
    budget: dict[str, Any] = {"slots": body.get("budget"), **{name: body.get(name) for name in FILE_KEYS.values()}}
    names = ("temperature", "top_k", "top_p", "seed")
    (done,) = generate(
        model,
        tokenizer,
        body["messages"][0]["content"],
        policy=body["policy"],
        budget=None if body["policy"] == "full" else Budget(**budget),
        sampling=Sampling(max_new_tokens=body["max_tokens"], **{name: body[name] for name in names}),
    )
    return done.thought, done.answer, done.finish_reason


class Load:
    """The clients, and what they saw."""

    def __init__(self, port: int, bodies: list[dict[str, Any]], *, seconds: float, seed: int, hostile: float) -> None:
        self.port, self.bodies, self.ends = port, bodies, time.perf_counter() + seconds
        self.chance, self.hostile = random.Random(seed), hostile
        self.statuses: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.first: list[float] = []
        self.between: list[float] = []
        self.answers: list[tuple[int, Answer]] = []
        self.wrong_status: list[str] = []

    async def client(self) -> None:
        """Ask until the time is over."""
        while time.perf_counter() < self.ends:
            drawn, which = self.chance.random(), self.chance.randrange(len(self.bodies))
            if drawn < MALFORMED:
                await self._bad("malformed", CHAT, self.chance.choice(BAD_BODIES))
            elif drawn < MALFORMED + LEAVE:
                await self._one("left", which, leave_after=self.chance.randrange(1, 150))
            elif drawn < MALFORMED + LEAVE + SLOW:
                await self._one("slow", which, pause=0.05)
            elif drawn < MALFORMED + LEAVE + SLOW + self.hostile:
                await self._bad("hostile", *self.chance.choice(HOSTILE))
            else:
                await self._one("read", which)

    async def _bad(self, kind: str, path: str, body: bytes) -> None:
        """Some hostile requests are legal, and answered; to all others the client is at fault."""
        answer = await ask(self.port, body, path=path)
        self.kinds[kind] += 1
        self.statuses[answer.status] += 1
        if not (400 <= answer.status < 500 or (kind == "hostile" and answer.status == 200)):
            self.wrong_status.append(f"{answer.status} for {body[:60]!r}")

    async def half_open(self) -> None:
        """Send half a request and wait to be given up, again and again."""
        while time.perf_counter() < self.ends:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(
                    self.chance.choice((b"", b"POST ", b"POST /v1/completions HTTP/1.1\r\ncontent-length: 9\r\n\r\n{"))
                )
                await asyncio.wait_for(reader.read(), max(0.1, self.ends - time.perf_counter()))
                self.kinds["half-open"] += 1
            except (OSError, TimeoutError):
                await asyncio.sleep(0.1)
            finally:
                writer.close()

    async def health(self) -> list[float]:
        """Seconds until /health answers, asked ten times a second."""
        found = []
        while time.perf_counter() < self.ends:
            start = time.perf_counter()
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            if b" 200 " not in await reader.readline():
                self.wrong_status.append("not 200 for /health")
            found.append(time.perf_counter() - start)
            writer.close()
            await asyncio.sleep(0.1)
        return found

    async def _one(self, kind: str, which: int, *, pause: float | None = None, leave_after: int | None = None) -> None:
        body = json.dumps(self.bodies[which] | {"stream": True}).encode()
        start = time.perf_counter()
        slowly = None if pause is None else lambda _: self.chance.random() * 2 * pause
        answer = await ask(self.port, body, pause=slowly, leave_after=leave_after)
        self.statuses[answer.status] += 1
        if answer.status == 429:
            self.kinds["told to wait"] += 1
            await asyncio.sleep(answer.retry_after)
            return
        self.kinds[kind] += 1
        if answer.status != 200:
            self.wrong_status.append(f"{answer.status} for {body[:200]!r}")
        if answer.complete:
            self.answers.append((which, answer))
        if kind == "read":
            times = answer.times[1:]  # the first event, the role, is there at once
            self.first.append(times[0] - start)
            self.between += [later - earlier for earlier, later in pairwise(times)]


async def watch(pid: int, seconds: float) -> tuple[list[float], list[int]]:
    """The server's memory in MiB and its open descriptors, every second."""
    megabytes, descriptors = [], []
    for _ in range(int(seconds)):
        fields = Path(f"/proc/{pid}/status").read_text().splitlines()
        megabytes.append(int(next(line for line in fields if line.startswith("VmRSS")).split()[1]) / 1024)
        descriptors.append(open_descriptors(pid))
        await asyncio.sleep(1)
    return megabytes, descriptors


def open_descriptors(pid: int) -> int:
    """How many the process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


async def stop_now_and_then(pid: int, seconds: float, stops: int, chance: random.Random) -> None:
    """Stop the process for a moment, so many times."""
    moments = sorted(chance.uniform(0, seconds) for _ in range(stops))
    for before, moment in pairwise([0.0, *moments]):
        await asyncio.sleep(max(0.0, moment - before - STOPPED_S))
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(STOPPED_S)
        os.kill(pid, signal.SIGCONT)


def gauges(port: int) -> dict[str, float]:
    """The server's metrics, those without labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        lines = [line.split() for line in page.read().decode().splitlines()]
    return {name: float(value) for name, value in (line for line in lines if len(line) == 2) if "{" not in name}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a run left: the clients, and by the second or afterwards what the server held and said.

    Attributes:
        load: the clients.
        megabytes, descriptors: of the server, every second.
        health: seconds until /health answered, each time.
        left: its metrics when all clients had gone.
        descriptors_around: before the first client and after the last.
        exit_code, errors: how it ended, and the lines of its log that say error or critical.
    """

    load: Load
    megabytes: list[float]
    descriptors: list[int]
    health: list[float]
    left: dict[str, float]
    descriptors_around: tuple[int, int]
    exit_code: int
    errors: list[str]


def loaded(bodies: list[dict[str, Any]], options: argparse.Namespace, chance: random.Random) -> Seen:
    """Run a server and its clients."""
    memory = 64 * MAX_SLOTS * 8192 / 2**30
    flags = ["--max-slots", MAX_SLOTS, "--kv-gib", memory, "--grace", 20, "--read-timeout", 10]

    async def all_clients(port: int, pid: int) -> tuple[Load, list[float], list[int], list[float]]:
        load = Load(port, bodies, seconds=options.seconds, seed=options.seed, hostile=options.hostile)
        clients = [load.client() for _ in range(options.clients)] + [load.half_open() for _ in range(options.half_open)]
        everyone = asyncio.gather(*clients, stop_now_and_then(pid, options.seconds, options.stops, chance))
        health = asyncio.create_task(load.health())
        megabytes, descriptors = await watch(pid, options.seconds)
        await everyone
        return load, megabytes, descriptors, await health

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with running(log, *flags) as (process, port):
            before = open_descriptors(process.pid)
            load_, megabytes, descriptors, health = asyncio.run(all_clients(port, process.pid))
            time.sleep(2)
            left, after = gauges(port), open_descriptors(process.pid)
        lines = log.read_text().splitlines()
    return Seen(
        load=load_,
        megabytes=megabytes,
        descriptors=descriptors,
        health=health,
        left=left,
        descriptors_around=(before, after),
        exit_code=process.returncode,
        errors=[line for line in lines if '"level": "error"' in line or '"level": "critical"' in line],
    )


def different_from_alone(load_: Load) -> list[int]:
    """Which requests got an answer that they do not get alone, once for each such answer."""
    model, tokenizer = load("tiny")
    asked = sorted({which for which, _ in load_.answers})
    expected = {which: alone(model, tokenizer, load_.bodies[which]) for which in asked}
    return [
        which
        for which, answer in load_.answers
        if (answer.reasoning_content, answer.content, answer.finish_reason) != expected[which]
    ]


def result_of(seen: Seen, options: argparse.Namespace) -> dict[str, Any]:
    """What the result file says."""
    load_, third, (before, after) = seen.load, max(1, len(seen.megabytes) // 3), seen.descriptors_around
    times = quantiles(seen.health, p50=0.5, p99=0.99)
    return {
        "birth": provenance_record("cpu"),
        "cores": os.cpu_count(),
        "settings": {name: str(value) for name, value in vars(options).items()},
        "requests": dict(load_.kinds),
        "statuses": {str(status): count for status, count in sorted(load_.statuses.items())},
        "wrong_statuses": load_.wrong_status,
        "errors_in_the_log": seen.errors[:5],
        "finished_answers": len(load_.answers),
        "different_from_alone": different_from_alone(load_),
        "left_in_the_engine": {name: seen.left[f"leanthink_{name}"] for name in ("queue", "running", "slots_reserved")},
        "tokens_streamed_to_readers": len(load_.between) + len(load_.first),
        "evictions": seen.left["leanthink_evictions_total"],
        "seconds_to_first_token": quantiles(load_.first, p50=0.5, p99=0.99),
        "seconds_between_tokens": quantiles(load_.between, p50=0.5, p99=0.99),
        "seconds_to_health": {**times, "largest": max(seen.health), "asked": len(seen.health)},
        "descriptors": {"before": before, "most": max(seen.descriptors), "after": after},
        "resident_mebibytes": {
            "every_10_seconds": [round(value, 1) for value in seen.megabytes[::10]],
            "mean_of_second_third": sum(seen.megabytes[third : 2 * third]) / third,
            "mean_of_last_third": sum(seen.megabytes[-third:]) / third,
        },
        "exit_code": seen.exit_code,
    }


def main() -> None:
    """Load, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--different", type=int, default=120, help="different requests, each asked many times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hostile", type=float, default=0.0, help="share of the requests")
    parser.add_argument("--half-open", type=int, default=0, help="connections")
    parser.add_argument("--stops", type=int, default=0, help="times the server is stopped for a moment")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    prompts = [p.prompt for family in registry.FAMILIES for p in registry.sample(family, 1, 20, options.seed)]
    bodies = [draw(chance, prompts) for _ in range(options.different)]
    text = json.dumps(result_of(loaded(bodies, options, chance), options), indent=1)
    options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
