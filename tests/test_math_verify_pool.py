"""Comparing mathematics in processes of their own: hangs, crashes, forks, many askers at once."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from leanthink.data.grading.math_verify_pool import MathVerifyPool

needs_math_verify = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="extra eval")
ODD = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    given = json.loads(line)["given"]
    if given == "hang":
        time.sleep(60)
    if given == "crash":
        os.kill(os.getpid(), 11)
    print(json.dumps(given == "right"), flush=True)
"""


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[MathVerifyPool]:
    """A pool whose processes hang, crash or answer as they are told."""
    script = tmp_path / "odd.py"
    script.write_text(ODD)
    pool = MathVerifyPool(seconds=1, most=2, command=[sys.executable, str(script)])
    yield pool
    pool.close()


@pytest.mark.parametrize("way", ["hang", "crash"])
def test_what_hangs_or_crashes_is_wrong_and_the_next_question_is_answered(
    odd: MathVerifyPool, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert odd.same("right", "x")
    with caplog.at_level(logging.WARNING):
        assert not odd.same(way, "x")
    assert "no verdict within 1 s, graded as wrong: 'hang'".replace("hang", way) in caplog.text
    assert odd.same("right", "x")
    assert not odd.same("wrong", "x")


def test_a_process_that_does_not_even_start_is_no_verdict(caplog: pytest.LogCaptureFixture) -> None:
    pool = MathVerifyPool(seconds=1, command=[sys.executable, "-c", "raise SystemExit(1)"])
    assert not pool.same("right", "x")
    assert "no verdict" in caplog.text


def test_many_threads_ask_few_processes_and_each_gets_its_own_verdict(odd: MathVerifyPool) -> None:
    asked = ["right", "wrong"] * 40
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda given: odd.same(given, "x"), asked))
    assert verdicts == [given == "right" for given in asked]
    assert len(odd._idle) <= 2


def test_a_forked_child_asks_processes_of_its_own(odd: MathVerifyPool) -> None:
    assert odd.same("right", "x")
    child = os.fork()
    if child == 0:
        odd.forget()
        os._exit(0 if odd.same("right", "x") and not odd.same("wrong", "x") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert odd.same("right", "x")


@needs_math_verify
def test_mathematics_that_never_ends_is_given_up() -> None:
    pool = MathVerifyPool(seconds=1)
    assert not pool.same(r"9^{9^{9^{9^{9}}}}", r"9^{9^{9^{9^{8}}}}+1")
    assert pool.same(r"\sqrt{8}", r"2\sqrt{2}")
    pool.close()
