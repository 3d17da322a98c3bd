"""The documentation is true: its examples run, its file map is complete, its table is there."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leanthink.data.think_tags import KNOWN_TAGS
from leanthink.entrypoints import cli
from leanthink.eval.benchmarks import PUBLIC
from leanthink.models.tiny import predictors_path, weights_path
from leanthink.policies import POLICIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CYCLE = (ROOT / "examples" / "cycle.md").read_text()
TRANSFORMERS = (ROOT / "docs" / "transformers.md").read_text()
DESIGN = (ROOT / "docs" / "design.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    """The code blocks of the README, or of another page, in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands(page: str = README, program: str = "leanthink") -> list[list[str]]:
    """The words of every line that begins with this program, in order."""
    lines = [line for block in blocks("bash", page) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{program} ")]


@pytest.mark.slow
def test_the_python_of_the_readme_runs(capsys):
    names: dict[str, Any] = {}
    for block in [*blocks("python"), *blocks("python", TRANSFORMERS)]:
        exec(block, names)
    printed = capsys.readouterr().out
    assert printed.count("tokens of thought in") == 2
    assert "1817517" in printed
    assert names["ids"].shape[0] == 1


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for words in commands():
        if words != ["demo"]:
            assert cli.run(words) == 0, capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {
        "predictor.safetensors",
        "predictor.safetensors.work",
        "run.jsonl",
    }


@pytest.mark.slow
def test_the_demonstration_runs_on_the_shipped_weights(tmp_path, capfd):
    assert cli.run(["demo", "--out", str(tmp_path / "demo")]) == 0
    out, err = capfd.readouterr()
    assert {path.suffix for path in (tmp_path / "demo").iterdir()} == {".jsonl", ".png"}
    assert "slots held" in err
    full = next(line for line in out.splitlines() if " full " in line)
    assert re.search(r"(9\d|100)\.\d%", full), full


def test_every_command_of_the_readme_is_understood(capfd):
    assert ["demo"] in commands()
    for words in [*commands(), *commands(CYCLE)]:
        assert cli.run([*words, "--help"]) == 0, capfd.readouterr().err


@pytest.mark.slow
def test_the_cycle_runs_in_its_order(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for words in commands(CYCLE):
        assert cli.run(words) == 0, capfd.readouterr().err
    (words,) = commands(CYCLE, "python")
    monkeypatch.syspath_prepend(ROOT / "bench")
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    made = {path.name for path in (tmp_path / "runs" / "cycle").iterdir()}
    assert made >= {"final", "report.html", "traces.jsonl", "labels.safetensors", "horizon.safetensors"}
    assert "compounding.json" in made


def test_the_readme_is_short_and_keeps_the_place_of_its_table():
    assert len(README.splitlines()) < 150
    assert re.search(r"<!-- table:policies -->\n.*<!-- /table -->", README, re.DOTALL)


@pytest.mark.parametrize("name", POLICIES)
def test_the_readme_or_the_page_of_policies_explains_every_policy(name):
    page = (ROOT / "docs" / "policies.md").read_text()
    assert re.search(rf"^\| .*`{name}`.* \|$", README + page, re.MULTILINE)


def test_the_file_map_has_every_room_and_names_no_file_that_is_gone():
    package = ROOT / "src" / "leanthink"
    told = DESIGN.split("## The file map")[1].split("```")[1]
    named, room = set(), ""
    for line in told.splitlines():
        for word in re.findall(r"[\w./]+(?:\.py|/)(?=[\s:,])", line):
            at_the_start = line.startswith(word)
            room = word if at_the_start else room
            named.add(word if at_the_start else f"{room}{word}")
    named = {name for name in named if not name.endswith("static/")}
    assert [name for name in sorted(named) if not (package / name).exists()] == []
    assert {name for name in named if name.count("/") == 1 and name.endswith("/")} == {
        f"{path.parent.name}/" for path in package.glob("*/__init__.py")
    }
    folders = {f"{path.parent.relative_to(package)}/" for path in package.glob("*/*/__init__.py")}
    assert folders - named == {"integrations/verl/", "integrations/vllm/"}


def test_links_lead_to_files_of_the_repository():
    for page in (
        "README.md",
        "docs/design.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "examples/cycle.md",
        "docs/serving.md",
        "docs/evaluation.md",
        "docs/policies.md",
        "docs/prompts.md",
        "docs/ray.md",
        "docs/transformers.md",
        "docs/viewer.md",
    ):
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_embedded_reasoner_is_shipped():
    assert (weights_path() / "sha256.json").is_file()
    assert {path.stem for path in predictors_path().glob("*.safetensors")} == {"dynts", "horizon"}


def test_the_measured_tables_are_those_of_the_result_files():
    script = ROOT / "bench" / "table.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run make report {done.stderr}"


def test_the_page_on_prompts_has_commands_that_are_understood_and_names_the_tags(capfd):
    page = (ROOT / "docs" / "prompts.md").read_text()
    assert {words[0] for words in commands(page)} == {"generate", "eval", "serve"}
    for words in commands(page):
        assert cli.run([*words, "--help"]) == 0, capfd.readouterr().err
    assert all(f"`{start}`" in page for start, _ in KNOWN_TAGS)


def test_the_page_on_evaluation_has_commands_that_are_understood(capfd):
    page = (ROOT / "docs" / "evaluation.md").read_text()
    assert {words[0] for words in commands(page)} == {"eval", "compare"}
    for words in commands(page):
        assert cli.run([*words, "--help"]) == 0, capfd.readouterr().err
    for name in PUBLIC:
        assert f"`{name}`" in page
        assert PUBLIC[name].hub_id in page
