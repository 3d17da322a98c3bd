"""Runs the tests marked `gpu` and writes what each came to, with its birth certificate.

python bench/gpu_tests.py --out bench/results/gpu_tests.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import one_a_line
import pytest

from leanthink.utils.provenance import certificate

TESTS = Path(__file__).parent.parent / "tests"


class Outcomes:
    """A pytest plugin that notes outcome and seconds of every test that ran, and of every set-up that did not pass."""

    def __init__(self) -> None:
        self.tests: list[dict[str, str | float]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each phase of each test."""
        if report.when == "call" or not report.passed:
            row = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
            self.tests.append(row)


def by_file(tests: list[dict[str, str | float]]) -> list[dict[str, Any]]:
    """For each file the seconds of every test that passed, and the outcomes of the others."""
    found: dict[str, dict[str, Any]] = {}
    for row in tests:
        file, _, name = str(row["test"]).partition("::")
        of_file = found.setdefault(file, {"file": file, "passed": {}, "others": {}})
        if row["outcome"] == "passed":
            of_file["passed"][name] = row["seconds"]
        else:
            of_file["others"][name] = row["outcome"]
    return list(found.values())


def main() -> int:
    """The exit status is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    outcomes = Outcomes()
    # The device's Python may have packages that warn where the tested ones do not.
    # Only modules that have such tests: others need packages that a machine for measuring may lack.
    modules = [str(path) for path in sorted(TESTS.glob("test_*.py")) if "mark.gpu" in path.read_text()]
    status = pytest.main(["-m", "gpu", "-W", "ignore::DeprecationWarning", *modules], plugins=[outcomes])
    passed = sum(row["outcome"] == "passed" for row in outcomes.tests)
    result = {
        "birth": certificate("cuda"),
        "passed": passed,
        "not_passed": len(outcomes.tests) - passed,
        "tests": by_file(outcomes.tests),
    }
    one_a_line.write(options.out, result, "tests")
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
