"""The rooms of the package: which may import which, that no arrow leads back, and how few entries lie at the top."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "leanthink"
# Each room may import itself, `leanthink` (whose names are imported when they are used) and these.
MAY_IMPORT = {
    "utils": set(),
    "data": {"utils"},
    "policies": {"utils"},
    "models": {"utils", "data", "policies"},
    "engine": {"utils", "data", "policies", "models"},
    "importance": {"utils", "data", "policies", "models", "engine"},
    "eval": {"utils", "data", "policies", "models", "engine", "importance"},
    "rl": {"utils", "data", "policies", "models", "engine"},
    "integrations": {"utils", "data", "policies", "models", "engine", "importance", "rl"},
    "entrypoints": {"utils", "data", "policies", "models", "engine", "importance", "eval", "rl", "integrations"},
}
MOST_ENTRIES = 12
MOST_FILE_LINES, MOST_FUNCTION_LINES = 400, 60
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def imports(path: Path, package: Path = PACKAGE) -> set[str]:
    """The rooms that a file imports from, anywhere in it, for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute, so that the arrows can be read"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            words = module.split(".")
            if words[0] == "leanthink" and len(words) > 1 and (package / words[1]).is_dir():
                found.add(words[1])
    return found


def arrows(package: Path = PACKAGE) -> dict[str, dict[str, list[str]]]:
    """Of each room, the rooms that its files import from, and which files do."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(package.glob("*/**/*.py")):
        room = path.relative_to(package).parts[0]
        targets = found.setdefault(room, {})
        for target in imports(path, package) - {room}:
            targets.setdefault(target, []).append(str(path.relative_to(package)))
    return found


def forbidden(package: Path = PACKAGE) -> list[str]:
    """The arrows that the map does not allow, in words."""
    return [
        f"{', '.join(files)}: {room} must not import {target}"
        for room, targets in arrows(package).items()
        for target, files in targets.items()
        if target not in MAY_IMPORT.get(room, set())
    ]


def test_arrows_between_rooms_are_those_of_the_map():
    assert forbidden() == []


def test_no_arrow_of_the_map_is_unused():
    assert {room: set(targets) for room, targets in arrows().items()} == MAY_IMPORT


def test_the_map_has_no_circle():
    TopologicalSorter(MAY_IMPORT).prepare()  # raises CycleError


def test_few_entries_lie_at_the_top():
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES
    assert {name for name in entries if not name.startswith("__")} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    "line",
    [
        "from leanthink.engine.engine import Engine",
        "from leanthink import engine",
        "import leanthink.engine",
        "def f():\n    from leanthink.engine import cache",
        "if TYPE_CHECKING:\n    from leanthink.engine.engine import Engine",
    ],
)
def test_an_arrow_that_is_not_allowed_is_found_wherever_it_stands(tmp_path: Path, line: str):
    for room in ("policies", "engine"):
        (tmp_path / room).mkdir()
    (tmp_path / "policies" / "new.py").write_text(line)
    assert forbidden(tmp_path) == ["policies/new.py: policies must not import engine"]


def test_every_module_can_be_the_first_that_is_imported():
    """No circle within a room hides behind the order in which its modules happen to be imported.

    All other rooms stay imported, as no arrow of the map leads back.
    """
    heavy = {"integrations", "rl"}  # they need what is not always installed
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.glob("*/*.py")]
    first = sorted(name for name in names if not name.endswith("__init__") and name.split(".")[1] not in heavy)
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    room = name.rpartition('.')[0]\n"
        "    for known in [known for known in sys.modules if known == room or known.startswith(room + '.')]:\n"
        "        del sys.modules[known]\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *first], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_and_no_function_is_long(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_FILE_LINES
    lengths = {node.name: lines_of(node) for node in ast.walk(ast.parse(text)) if isinstance(node, FUNCTIONS)}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_FUNCTION_LINES} == {}


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines a function has without its docstring."""
    assert function.end_lineno is not None
    own, first = function.end_lineno - function.lineno + 1, function.body[0]
    is_docstring = ast.get_docstring(function) is not None and first.end_lineno is not None
    return own - (first.end_lineno - first.lineno + 1) if is_docstring else own
