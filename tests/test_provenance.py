"""Which commit a result is of: the project's own, wherever it is made from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from leanthink import __version__
from leanthink.utils import provenance

PACKAGE = Path(provenance.__file__).parents[1]


def git(folder: Path, *arguments: str) -> str:
    named = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    run = subprocess.run(("git", "-C", str(folder), *named, *arguments), capture_output=True, text=True, check=True)
    return run.stdout.strip()


def repository(folder: Path) -> Path:
    """Another project's repository, with one commit."""
    folder.mkdir()
    (folder / "theirs.txt").write_text("theirs")
    (folder / ".gitignore").write_text("venv\n__pycache__\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "theirs")
    return folder


def copied(folder: Path) -> Path:
    """The part of the package that knows its provenance, in another place."""
    (folder / "leanthink").mkdir(parents=True)
    shutil.copy(PACKAGE / "__init__.py", folder / "leanthink")
    shutil.copytree(PACKAGE / "utils", folder / "leanthink" / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def commit_told(package: Path, stand_in: Path) -> str:
    """What the copy in `package` says, asked from another folder."""
    code = f"import sys; sys.path.insert(0, {str(package)!r})\n"
    code += "from leanthink.utils.provenance import commit; print(commit())"
    run = subprocess.run(
        (sys.executable, "-c", code), cwd=stand_in, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture(autouse=True)
def _without_a_given_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMMIT", raising=False)


def test_inside_another_repository_the_commit_is_that_of_the_packages_checkout(tmp_path: Path) -> None:
    theirs, ours = repository(tmp_path / "theirs"), repository(tmp_path / "ours")
    copied(ours / "src")
    git(ours, "add", ".")
    git(ours, "commit", "--quiet", "--message", "ours")
    head = git(ours, "rev-parse", "--short", "HEAD")
    assert head != git(theirs, "rev-parse", "--short", "HEAD")
    (theirs / "theirs.txt").write_text("changed")
    assert commit_told(ours / "src", theirs) == head


def test_a_checkout_with_changes_says_so(tmp_path: Path) -> None:
    ours = repository(tmp_path / "ours")
    copied(ours / "src")
    git(ours, "add", ".")
    git(ours, "commit", "--quiet", "--message", "ours")
    (ours / "theirs.txt").write_text("changed")
    assert commit_told(ours / "src", tmp_path) == git(ours, "rev-parse", "--short", "HEAD") + "+changes"


def test_an_installation_inside_another_repository_is_not_that_repositorys(
    tmp_path: Path,
) -> None:
    theirs = repository(tmp_path / "theirs")
    told = commit_told(copied(theirs / "venv"), theirs)
    assert told == provenance._of_installation()
    assert told != git(theirs, "rev-parse", "--short", "HEAD")


@pytest.mark.parametrize(
    ("noted", "told"),
    [
        (None, f"version {__version__}"),
        ({"url": "file:///x", "dir_info": {}}, f"version {__version__}"),
        ({"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}, "0123456"),
    ],
)
def test_an_installation_is_known_by_what_pip_noted_of_it_else_by_its_version(
    noted: object, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = None if noted is None else json.dumps(noted)
    monkeypatch.setattr(provenance, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))
    monkeypatch.setattr(provenance, "_of_checkout", lambda: None)
    assert provenance.commit() == told


def test_the_environment_may_name_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMIT", "abc")
    assert provenance.provenance_record("cpu")["commit"] == "abc"


def test_without_git_there_is_no_commit_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_command: object, **_settings: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance.subprocess, "run", missing)
    monkeypatch.setattr(provenance, "distribution", lambda name: SimpleNamespace(read_text=lambda file: None))
    assert provenance.commit() == f"version {__version__}"


def test_no_hook_of_the_repository_around_the_package_is_run(tmp_path: Path) -> None:
    theirs = repository(tmp_path / "theirs")
    package = copied(theirs / "src")
    git(theirs, "add", ".")
    git(theirs, "commit", "--quiet", "--message", "with the package")
    hook, ran = tmp_path / "hook", tmp_path / "ran"
    hook.write_text(f"#!/bin/sh\ntouch {ran}\n")
    hook.chmod(0o755)
    shutil.copy(hook, theirs / ".git" / "hooks" / "post-index-change")
    git(theirs, "config", "core.fsmonitor", str(hook))
    assert commit_told(package, tmp_path) == git(theirs, "-c", "core.fsmonitor=false", "rev-parse", "--short", "HEAD")
    assert not ran.exists()
