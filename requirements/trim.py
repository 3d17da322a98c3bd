"""Leaves out the hashes of files that nobody installs here: `python trim.py uv.lock demo.txt test.txt`.

Of wheels, those are two thirds of a lock: for musl, threads without the GIL, and Python above 3.13. Of sources, those
of packages with wheels for all Pythons and machines, which pip takes.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from itertools import product
from pathlib import Path

WHEEL = re.compile(
    r"-(cp3(?P<exact>\d+)-cp3(?P=exact)|cp3(?P<least>\d+)-abi3|(py2\.)?py3(?P<above>\d*)-none)"
    r"-(?P<machine>any|.*manylinux.*)\.whl$"
)
INSTALLED = tuple(product((11, 12, 13), ("x86_64", "aarch64")))  # the minor version of Python, Linux with glibc


def fits(name: str, python: int, machine: str) -> bool:
    """Whether a file of this name is a wheel for them."""
    found = WHEEL.search(name)
    if found is None:
        return False
    least = int(found["least"] or found["above"] or 0)
    return found["exact"] in (None, str(python)) and least <= python and found["machine"].endswith(("any", machine))


def kept(names: list[str]) -> list[bool]:
    """Which files of a package stay; one that is unknown has an empty name, and stays."""
    fitting = [{here for here in INSTALLED if fits(name, *here)} for name in names]
    built = set().union(*fitting) < set(INSTALLED)  # where no wheel fits
    return [
        bool(here) if name.endswith(".whl") else built or not name for name, here in zip(names, fitting, strict=True)
    ]


def trimmed(text: str, names: Mapping[str, str]) -> str:
    """The requirements without such hashes; `names` are those of files, by hash."""
    lines: list[str] = []
    for requirement in re.split(r"\n(?! )", text.replace(" \\\n", "\n").rstrip("\n")):
        version, *hashes = requirement.splitlines()
        stays = kept([names.get(line.rpartition("sha256:")[2], "") for line in hashes])
        lines += [version, *(line for line, one in zip(hashes, stays, strict=True) if one)]
    return re.sub(r"\n    --hash", r" \\\n    --hash", "\n".join(lines) + "\n")


def main() -> None:
    """Read the lock, and write the files anew."""
    lock, *files = map(Path, sys.argv[1:])
    packages = tomllib.loads(lock.read_text())["package"]
    wheels = [wheel for package in packages for wheel in package.get("wheels", ())]
    sources = [package["sdist"] for package in packages if "sdist" in package]
    names = {file["hash"].removeprefix("sha256:"): file["url"].rpartition("/")[2] for file in wheels + sources}
    for file in files:
        file.write_text(trimmed(file.read_text(), names))


if __name__ == "__main__":
    main()
