"""The package's public face: its names, what importing them costs, and the files that speak of its version."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import leanthink

ROOT = Path(__file__).parent.parent


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_public_names_are_alphabetical():
    constants = [name for name in leanthink.__all__ if name.isupper()]
    classes = [name for name in leanthink.__all__ if name[0].isupper() and not name.isupper()]
    functions = [name for name in leanthink.__all__ if name.islower()]
    assert leanthink.__all__ == [*sorted(constants), *sorted(classes), *sorted(functions)]
    assert len(leanthink.__all__) <= 25


@pytest.mark.parametrize("name", leanthink.__all__)
def test_every_public_name_is_there_and_is_no_module(name):
    assert not isinstance(getattr(leanthink, name), ModuleType)
    assert name in dir(leanthink)


def test_type_checkers_see_the_same_names_as_users():
    tree = ast.parse(Path(leanthink.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module).removeprefix("leanthink.") for node in imports for alias in node.names}
    assert homes == leanthink._HOMES
    assert sorted(homes) == sorted(leanthink.__all__)


@pytest.mark.parametrize("name", leanthink.__all__)
def test_no_room_has_the_name_of_a_function(name):
    assert not (Path(leanthink.__file__).parent / name).exists()


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="generat"):
        _ = leanthink.generat  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "module",
    ["policies.budget", "policies", "data.traces.trace", "utils.errors", "engine.sampling", "data.tasks.registry"],
)
def test_the_pure_parts_work_without_transformers_and_trl(module):
    blocked = "import sys; sys.modules.update(transformers=None, trl=None)"
    assert python(f"{blocked}; import leanthink.{module}; print('done')") == "done"


@pytest.mark.parametrize(
    "module", ["leanthink", "leanthink.entrypoints.cli", "leanthink.data.traces.trace", "leanthink.data.tasks.registry"]
)
def test_importing_what_needs_no_tensors_does_not_import_torch(module):
    assert python(f"import sys, {module}; print('torch' in sys.modules)") == "False"


def test_changelog_and_package_agree_on_the_version():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == leanthink.__version__
    assert f'version = "{leanthink.__version__}"' in (ROOT / "pyproject.toml").read_text()
