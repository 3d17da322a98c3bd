"""How fast the viewer is: seconds to load a long trace in headless Chromium, and frames per second while sliding.

The trace is made up: random words, random scores, and the evictions that `horizon` would make of them. Loading is
measured from the start of the navigation to the first frame that shows text. Sliding moves the slider in every frame,
from end to end and to random places by turns, and counts the frames that the browser paints.

PYTHONPATH=src python bench/viewer_speed.py --out bench/results
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from leanthink.data.traces.token_scores import pack
from leanthink.data.traces.trace import Trace, TraceWriter
from leanthink.engine.bench.measure import spread
from leanthink.entrypoints.viewer.server import address_of, list_traces, make_server
from leanthink.utils.provenance import provenance_record

WORDS = [
    "yes\n",
    *[
        "so",
        "the",
        "sum",
        "of",
        "two",
        "and",
        "three",
        "is",
        "five",
        "wait",
        "check",
        "again",
        "carry",
        "one",
        "hence",
        "total",
        "a",
        "b1",
        "c22",
        "ok",
    ],
]
HORIZONS = (32, 64, 128, 256, 512, 1024)
SLIDE = """([frames, jumps]) => new Promise((done) => {
  const slider = document.getElementById("time");
  const most = Number(slider.max);
  const times = [];
  let work = 0;
  const frame = (now) => {
    times.push(now);
    if (times.length > frames) {
      const gaps = times.slice(1).map((time, k) => time - times[k]).sort((a, b) => a - b);
      const seconds = (times.at(-1) - times[0]) / 1000;
      return done({ fps: frames / seconds, p99_gap_ms: gaps[Math.floor(0.99 * (gaps.length - 1))] });
    }
    const sweep = Math.abs(((times.length / frames) * 4) % 2 - 1);
    slider.value = Math.round(most * (jumps ? Math.random() : sweep));
    slider.dispatchEvent(new Event("input"));
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
})"""


def made_up(tokens: int, *, policy: str, seed: int = 0, answer: int = 40) -> Trace:
    """A trace of so many tokens with scores and evictions, of no model; its words are the same for every policy."""
    draws = random.Random(0)
    words = [draws.choice(WORDS) + draws.choice((" ", " ", "")) for _ in range(tokens)]
    slots, window, interval = tokens // 8, 32, 64
    scores = random.Random(f"{policy}{seed}")
    numbers = [[scores.gauss(-1.5 - 0.4 * h, 1.2) for h in range(len(HORIZONS))] for _ in range(tokens)]
    evicted_at: list[int | None] = [None] * tokens
    held: list[int] = []
    for now in range(1, tokens - answer + 1):
        held.append(now - 1)
        if len(held) == slots + interval:
            score_of = {i: numbers[i][_reached(now - 1 - i)] for i in held[:-window]}
            for index in sorted(score_of, key=score_of.__getitem__)[:interval]:
                evicted_at[index] = now
            held = [index for index in held if evicted_at[index] is None]
    evictions = len({at for at in evicted_at if at is not None})
    kept_slots = 24 + tokens - 1 - evictions * interval
    return Trace(
        id="made-up", sample=0, problem="What do two and three make?", gold="5", model="none", policy=policy,
        budget={"slots": slots, "window": window, "interval": interval, "answer": 1024}, seed=seed, temperature=0.0,
        prompt_ids=tuple(range(24)), token_ids=tuple(range(tokens)), text="".join(words),
        thought_tokens=tokens - answer, answer_tokens=answer, finish_reason="stop", correct=True,
        peak_slots=max(24 + slots + interval, kept_slots), kept_slots=kept_slots, evictions=evictions,
        peak_kv_bytes=0, full_kv_bytes=0, evicted_at=tuple(evicted_at), token_chars=tuple(map(len, words)),
        scores=pack(HORIZONS, b"".join(struct.pack("<6e", *row) for row in numbers)),
    )  # fmt: skip


def _reached(age: int) -> int:
    return max((channel for channel, horizon in enumerate(HORIZONS) if horizon <= age), default=0)


@contextmanager
def served(traces: list[Trace]) -> Iterator[str]:
    """The address of the page that shows these traces."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.jsonl"
        with TraceWriter(path) as writer:
            for trace in traces:
                writer.write(trace)
        with make_server(list_traces([path]), host="127.0.0.1", port=0) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield address_of(server)
            finally:
                server.shutdown()
                thread.join()


def find_browser() -> str | None:
    """A Chromium: that of the system, or None for playwright's own."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def load_seconds(page: Page, address: str) -> float:
    """Seconds from the start of the navigation to the frame that shows the text."""
    page.goto(address, wait_until="commit")
    page.wait_for_selector(".line")
    shown: float = page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now() / 1000))))"
    )
    return shown


def main() -> None:
    """Measure, tell and write `viewer_speed.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--frames", type=int, default=240)
    options = parser.parse_args()
    horizon = made_up(options.tokens, policy="horizon")
    traces = [horizon, replace(made_up(options.tokens, policy="random"), id="made-up")]
    with served(traces) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        found = measure(browser.new_page(viewport={"width": 1360, "height": 860}), address, options)
        version = browser.version
        browser.close()
    load = [round(value, 2) for value in os.getloadavg()]  # other work on the machine slows the browser down
    settings = {
        "load_average": load,
        "cores": os.cpu_count(),
        "tokens": options.tokens,
        "repeats": options.repeats,
        "frames": options.frames,
        "chromium": version,
    }
    result = {"settings": settings, **found, "birth": provenance_record(device="cpu")}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "viewer_speed.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def measure(page: Page, address: str, options: argparse.Namespace) -> dict[str, Any]:
    """Load times, then frames per second of each way to move, with one thought and with two side by side."""
    load_seconds(page, address)  # the first starts the browser's own caches
    found: dict[str, Any] = {"load_seconds": spread([load_seconds(page, address) for _ in range(options.repeats)])}
    for panes in (1, 2):
        if panes == 2:
            page.keyboard.press("c")
            page.locator(".pane").nth(1).locator(".line").first.wait_for()
        for name, jumps in (("sweeping", False), ("jumping", True)):
            runs = [page.evaluate(SLIDE, [options.frames, jumps]) for _ in range(options.repeats)]
            found[f"{name}, {panes} at a time"] = {key: spread([run[key] for run in runs]) for key in runs[0]}
    return found


if __name__ == "__main__":
    main()
