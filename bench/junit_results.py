"""Writes what a JUnit report of pytest says, with its provenance: `python bench/junit_results.py gpu.xml --out FILE`.

On the machine that ran the tests, as in CONTRIBUTING.md:
    pytest -m gpu --junitxml gpu.xml; python bench/junit_results.py gpu.xml --out bench/results/gpu_tests.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import one_a_line

from leanthink.utils.provenance import provenance_record


def by_file(report: ElementTree.Element) -> list[dict[str, Any]]:
    """For each file the cases of every test that passed and their seconds, and the outcomes of the other cases."""
    found: dict[str, dict[str, Any]] = {}
    for case in report.iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        of_file = found.setdefault(file, {"file": file, "passed": {}, "others": {}})
        others = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        if others:
            of_file["others"][case.get("name")] = others[0]
        else:
            cases, seconds = of_file["passed"].get(test := case.get("name", "").partition("[")[0], (0, 0.0))
            of_file["passed"][test] = (cases + 1, round(seconds + float(case.get("time", 0)), 2))
    return list(found.values())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="what pytest --junitxml wrote")
    parser.add_argument("--device", default="cuda", help="whose name stands in the result")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    tests = by_file(ElementTree.parse(options.report).getroot())
    result = {
        "birth": provenance_record(options.device),
        "passed": sum(cases for one in tests for cases, _ in one["passed"].values()),
        "not_passed": sum(len(one["others"]) for one in tests),
        "tests": tests,
    }
    one_a_line.write(options.out, result, "tests")


if __name__ == "__main__":
    main()
