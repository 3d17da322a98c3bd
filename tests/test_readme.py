"""The documentation is true: its examples run, its file map is complete, its table is there."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import socket
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from command_line import start
from leanthink.data.tasks import registry
from leanthink.data.think_tags import KNOWN_TAGS
from leanthink.entrypoints import cli, demo
from leanthink.eval.benchmarks import PUBLIC
from leanthink.eval.tables import shown
from leanthink.models.tiny import predictors_path, weights_path
from leanthink.policies import POLICIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("research/*.md"), ROOT / "examples" / "cycle.md"]
)
CYCLE = (ROOT / "examples" / "cycle.md").read_text()
PYTHON = (ROOT / "docs" / "python.md").read_text()
TRANSFORMERS = (ROOT / "docs" / "transformers.md").read_text()
DESIGN = (ROOT / "docs" / "design.md").read_text()
MOST_LINES, MOST_WORDS, WIDEST = 110, 900, 120
MOST_SPOKEN = 320  # words outside of code and tables: two minutes of reading aloud
# The commands of README are for a GPU and thousands of problems. Here MODEL is the embedded reasoner, fit.jsonl and
# test.jsonl have four problems each, and these options are added, so that everything is as small as it can be.
SMALLER = {
    "predictor": "--max-new-tokens 300 --steps 20 --batch 64 --width 16 --horizons 16,32 --device cpu",
    "eval": "--recent-window 4 --eviction-interval 8 --max-new-tokens 300 --device cpu",
    "serve": "--device cpu",
}


def blocks(language: str, page: str = README) -> list[str]:
    """The code blocks of the README, or of another page, in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def lines(page: str = README) -> list[str]:
    """The command lines of its blocks for a shell, in order."""
    return [line for block in blocks("bash", page) for line in block.replace("\\\n", " ").splitlines()]


def commands(page: str = README, program: str = "leanthink") -> list[list[str]]:
    """The words of every line that begins with this program, in order."""
    return [shlex.split(line, comments=True)[1:] for line in lines(page) if line.startswith(f"{program} ")]


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def smaller(words: list[str]) -> list[str]:
    """The same command on the embedded reasoner, with less to do."""
    return [word.replace("MODEL", "tiny") for word in words] + SMALLER.get(words[0], "").split()


@pytest.mark.slow
def test_the_python_of_the_readme_and_of_its_pages_runs(capsys):
    for pages in ([README], [PYTHON, TRANSFORMERS]):
        names: dict[str, Any] = {}
        for block in [block for page in pages for block in blocks("python", page)]:
            exec(block, names)
    printed = capsys.readouterr().out
    assert printed.count("tokens of thought") == 3
    assert printed.count("1817517") >= 2
    assert names["ids"].shape[0] == 1


def test_every_line_for_a_shell_is_one_that_a_test_runs():
    assert {line.split()[0] for line in lines()} == {"pip", "leanthink", "curl", "make"}
    assert [words[0] for words in commands()] == ["plan", "serve", "predictor", "eval", "serve", "generate"]
    assert [line for line in lines() if line.startswith("make ")] == [
        "make demo  # two minutes on two cores, after the installation"
    ]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo: .*\n\t.*leanthink demo --out demo --overwrite$", makefile, re.MULTILINE)
    (installed,) = (line for line in lines() if line.startswith("pip "))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search(r"\.\[(.*)\]", installed)[1].split(",")
    assert set(extras) <= set(project["optional-dependencies"])


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    problems = [problem for seed in range(4) for problem in registry.sample("sums", 1, 1, seed)]
    records = [{"problem": problem.prompt, "answer": problem.answer} for problem in problems]
    for name in ("fit", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for words in commands():
        if words[0] != "serve":
            assert cli.run(smaller(words)) == 0, capfd.readouterr().err
            printed = capfd.readouterr().out
            if words[0] == "eval":
                assert "test: the smallest budget of horizon within one point of full: " in printed
        elif "--predictor" in words:
            with start(*smaller(words), "--port", free_port()) as process:
                assert any("serving tiny" in line for line in process.stderr)
                process.terminate()
    assert {path.name for path in tmp_path.iterdir()} == {
        "predictor.safetensors",
        "predictor.safetensors.work",
        "fit.jsonl",
        "test.jsonl",
        "runs",
    }


def test_what_the_plan_prints_is_what_the_readme_shows(capfd):
    (words,) = (words for words in commands() if words[0] == "plan")
    assert cli.run(words) == 0
    (shown,) = (block for block in blocks("text") if "requests at once" in block)
    assert shown in capfd.readouterr().out


@pytest.mark.slow
def test_the_server_of_the_readme_answers_its_request():
    words = next(words for words in commands() if words[0] == "serve")
    (asked,) = (line for line in lines() if line.startswith("curl "))
    port = free_port()
    with start(*smaller(words), "--port", port) as process:
        try:
            said = next(line for line in process.stderr if "serving" in line)
            assert f"serving tiny at http://127.0.0.1:{port}/v1" in said
            line = asked.replace("MODEL", "tiny").replace(":8000/", f":{port}/")
            done = subprocess.run(
                ["sh", "-c", f"{line} --silent"], capture_output=True, text=True, check=True, timeout=60
            )
        finally:
            process.terminate()
    reply = json.loads(done.stdout)
    message = reply["choices"][0]["message"]
    assert "boxed{1776}" in message["content"]
    assert message["reasoning_content"]
    assert reply["usage"]["kv"]


def test_the_budget_that_the_readme_shows_follows_from_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import real_table

    one = next(found for found in real_table.read() if found.name == "gsm8k")
    within = [slots for slots in one.slots if one.above("horizon", "full", slots).value >= -0.01]
    difference = shown(one.above("horizon", "full", min(within)), 100, "+.1f")
    interval = one.document["settings"]["slots"]["interval"]
    assert (
        f"gsm8k: the smallest budget of horizon within one point of full: {min(within) - interval}+{interval}, "
        f"{difference} points\n"
    ) in blocks("text")


def test_the_numbers_at_the_head_of_the_readme_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import real_table
    import speed_table

    kept = {}
    for one in real_table.read():
        kept[one.name] = [100 * float(one.right["horizon"][slots].mean() / one.full.mean()) for slots in one.slots]
    assert [f"{share:.0f}" for share in kept["gsm8k"][1:]] == ["96", "90"]
    speeds = {
        row["budget"]: row["tokens_per_second"]
        for row in speed_table.read()["throughput"]
        if row["kv_cache_dtype"] == "auto" and row["policy"] in ("full", "horizon")
    }
    assert f"{speeds[2048] / speeds[None]:.1f}" == "4.7"
    head = " ".join(README.split("## ")[0].split())
    for told in (
        "keeps 96 % of its right answers with a quarter",
        "90 % with a sixth",
        "With 2048 slots for thoughts of 16384 tokens an H200 writes 4.7 times as many tokens per second as with a "
        "full cache (Llama-3.1-8B's shape)",
    ):
        assert told in head


@pytest.mark.slow
def test_the_demonstration_runs_on_the_shipped_weights(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(demo, "Plan", partial(demo.Plan, count=2, policies=("full", "horizon")))  # of 4, and of five
    assert cli.run(["demo", "--out", str(tmp_path / "demo")]) == 0
    out, err = capfd.readouterr()
    assert {path.suffix for path in (tmp_path / "demo").iterdir()} == {".jsonl", ".png"}
    assert "slots held" in err
    full = next(line for line in out.splitlines() if " full " in line)
    assert re.search(r"(9\d|100)\.\d%", full), full


def test_every_command_of_the_readme_is_understood(capfd):
    for words in [*commands(), *commands(CYCLE)]:
        assert cli.run([*words, "--help"]) == 0, capfd.readouterr().err


@pytest.mark.slow
def test_the_cycle_runs_in_its_order(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for words in commands(CYCLE):
        assert cli.run(words) == 0, capfd.readouterr().err
    made = {path.name for path in (tmp_path / "runs" / "cycle").iterdir()}
    assert made >= {"final", "report.html", "traces.jsonl", "labels.safetensors", "horizon.safetensors", "compared"}


def test_the_readme_is_short_and_its_lines_are_read_once():
    assert len(README.splitlines()) <= MOST_LINES
    assert len(README.split()) <= MOST_WORDS
    assert max(map(len, README.splitlines())) <= WIDEST
    spoken = re.sub(r"^```.*?^```$|^[|!].*?$|<!--.*?-->|\]\(.*?\)", "", README, flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"\w[\w'.,-]*", spoken)) <= MOST_SPOKEN


@pytest.mark.parametrize("word", ["slot", "budget", "interval", "window", "pinned", "predictor", "horizons"])
def test_a_word_of_ours_is_explained_where_it_first_stands(word):
    prose = re.sub(r"^```.*?^```", "", README.split("## Your model")[1], flags=re.MULTILINE | re.DOTALL)
    first = re.search(rf"\b{word}\b", prose)
    assert prose[first.start() - 2 : first.end() + 2] == f"**{word}**"


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository_and_to_headings(page):
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), f"{page}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{page}: {target}#{heading}"


def test_the_index_of_the_docs_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    named = set(re.findall(r"^\| \[[^]]*\]\(([^)]*)\)", index, re.MULTILINE))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - named == {"README.md"}


def test_the_log_is_a_list_of_decisions_newest_first():
    rows = re.findall(r"^\| (\d{4}-\d\d-\d\d) \| (.*) \| (.*) \| (.*) \|$", (ROOT / "LOG.md").read_text(), re.MULTILINE)
    assert 20 <= len(rows) <= 30
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)
    assert all(choice.startswith("**") and evidence for _, choice, evidence, _ in rows)


def test_the_embedded_reasoner_is_shipped():
    assert (weights_path() / "sha256.json").is_file()
    assert {path.stem for path in predictors_path().glob("*.safetensors")} == {"dynts", "horizon"}


def test_the_measured_tables_are_those_of_the_result_files(monkeypatch):
    script = ROOT / "bench" / "table.py"
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [str(script), "--check"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script), run_name="__main__")
    assert not left.value.code, "run make report"


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
