"""Leaves out the hashes of wheels that nobody installs here: `python trim.py uv.lock demo.txt test.txt`.

Of those, a lock has two thirds: for musl, threads without the GIL, and Python above 3.13.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

INSTALLED = re.compile(r"-(cp31[123]-cp31[123]|cp3([2-9]|1[0-3])-abi3|(py2\.)?py3\d*-none)-(any|.*manylinux.*)\.whl$")


def is_installed(name: str) -> bool:
    """Whether the file of a distribution is for Linux with glibc and Python 3.11 to 3.13, or built there."""
    return not name.endswith(".whl") or INSTALLED.search(name) is not None


def trimmed(text: str, names: Mapping[str, str]) -> str:
    """The requirements without such hashes; `names` are those of files, by hash."""
    lines = text.replace(" \\\n", "\n").splitlines()
    kept = [line for line in lines if is_installed(names.get(line.rpartition("sha256:")[2], ""))]
    return re.sub(r"\n    --hash", r" \\\n    --hash", "\n".join(kept) + "\n")


def main() -> None:
    """Read the lock, and write the files anew."""
    lock, *files = map(Path, sys.argv[1:])
    packages = tomllib.loads(lock.read_text())["package"]
    wheels = [wheel for package in packages for wheel in package.get("wheels", ())]
    names = {wheel["hash"].removeprefix("sha256:"): wheel["url"].rpartition("/")[2] for wheel in wheels}
    for file in files:
        file.write_text(trimmed(file.read_text(), names))


if __name__ == "__main__":
    main()
