"""`leanthink eval`: a model's answers under policies and budgets on benchmarks, written down so that nothing is lost."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanthink.cli import options
from leanthink.cli.collect import MaxRows, Tasks, whole_numbers
from leanthink.cli.help import help_text, option
from leanthink.cli.output import print_json, say
from leanthink.errors import UsageError, unknown

if TYPE_CHECKING:
    from leanthink.eval.cells import Benchmark, Cell
    from leanthink.eval.outcomes import Outcomes
    from leanthink.eval.records import RunFolder
    from leanthink.eval.run import Setup
    from leanthink.policies import Policy

EXAMPLES = (
    "leanthink eval --tasks sums --levels 3 --count 4 --policies full,horizon --budgets 128 --out runs/tiny",
    "leanthink eval --model MODEL --benchmarks math-500,aime-2025 --policies full --samples 4 --temperature 0.6 --out runs/m",
    "leanthink eval --problems mine.jsonl --ratios 2.8,4.3 --out runs/mine",
)
Benchmarks = Annotated[
    str | None, option("--benchmarks", about="Public data sets; NAME=FOLDER for a local copy.", metavar="A,B,...")
]
Problems = Annotated[
    list[Path] | None, option("--problems", about="JSONL file of id, problem, answer; may be repeated.", metavar="FILE")
]
Tolerance = Annotated[
    float, option("--tolerance", about="Of numbers in those files: a share of the gold.", default=0.0, metavar="SHARE")
]
Levels = Annotated[str, option("--levels", about="Levels of the tasks.", default="1,2,3,4,5", metavar="1,2,...")]
Gym = Annotated[str | None, option("--gym", about="Families of reasoning-gym, an extra.", metavar="A,B,...")]
Count = Annotated[int, option("--count", about="Problems for each family and level, or gym family.", default=8)]
Split = Annotated[str, option("--split", about="held-out or train, for the tasks.", default="held-out")]
Limit = Annotated[int | None, option("--limit", about="Only so many problems from the head of each benchmark.")]
Instruction = Annotated[
    str | None, option("--instruction", about="Text put after each problem.", default="the benchmark's", metavar="TEXT")
]
Policies = Annotated[
    str, option("--policies", about="What is compared; full is the baseline.", default="full,horizon", metavar="A,...")
]
Budgets = Annotated[str | None, option("--budgets", about="Thought slots that stay.", default=256, metavar="N,...")]
Ratios = Annotated[
    str | None,
    option("--ratios", about="Instead: mean full thought by budget + interval.", metavar="R,..."),
]
PredictorFiles = Annotated[
    list[str] | None,
    option("--predictor", about="Fitted predictor, POLICY=FILE or FILE; may be repeated.",
           default="the one shipped with the model", metavar="FILE"),
]  # fmt: skip
Samples = Annotated[int, option("--samples", about="Answers to each problem.", default=1)]
Together = Annotated[bool, option("--together", about="All cells in one batch: faster on a GPU, without wall times.")]
Out = Annotated[Path, option("--out", about="Folder of the run; an unfinished one is gone on with.", metavar="FOLDER")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval", help=help_text("Evaluate policies and budgets on benchmarks, resumably.", EXAMPLES))(command)


def command(
    out: Out,
    model: options.Model = "tiny",
    benchmarks: Benchmarks = None,
    problems: Problems = None,
    tolerance: Tolerance = 0.0,
    tasks: Tasks = None,
    levels: Levels = "1,2,3,4,5",
    gym: Gym = None,
    count: Count = 8,
    split: Split = "held-out",
    limit: Limit = None,
    instruction: Instruction = None,
    policies: Policies = "full,horizon",
    budgets: Budgets = None,
    ratios: Ratios = None,
    window: options.Window = None,
    interval: options.Interval = None,
    answer: options.Answer = None,
    predictor: PredictorFiles = None,
    samples: Samples = 1,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = None,
    max_rows: MaxRows = 64,
    together: Together = False,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Check all that can be checked without the model, then load it, and make what the run still lacks."""
    names = _policies(policies)
    slots = _Slots(names, budgets, ratios, {"window": window, "interval": interval, "answer": answer})
    if samples < 1 or max_rows < 1:
        raise UsageError(f"--samples {samples}, --max-rows {max_rows}: must be 1 or more")
    if samples > 1 and not temperature:
        raise UsageError(f"--samples {samples} at temperature 0 would be {samples} times the same: give --temperature")
    files = _predictors(predictor or [], names)
    sampling = options.make_sampling(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, max_new_tokens=max_new_tokens, seed=seed
    )
    chosen = _benchmarks(
        _Sources(benchmarks, problems or [], tolerance, tasks, levels, gym, count, split, seed or 0), limit, instruction
    )
    loaded, tokenizer = options.load_model(model, device, dtype)
    from leanthink.bench.birth import certificate
    from leanthink.cli.progress import ProgressBar
    from leanthink.eval.records import RunFolder
    from leanthink.eval.run import Setup, finish
    from leanthink.importance.fingerprint import fingerprint

    settings = {
        "model": model,
        "fingerprint": fingerprint(loaded),
        "device": loaded.device.type,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "policies": names,
        "budgets": [asdict(budget) for budget in slots.budgets],
        "ratios": slots.ratios,
        "slots": slots.given,
        "predictors": {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in files.items()},
        "samples": samples,
        "sampling": asdict(sampling),
    }
    made = _make_policies(loaded, names, files)
    about = {name: benchmark.about for name, benchmark in chosen.items()}
    requests = sum(slots.cells * samples * len(benchmark.problems) for benchmark in chosen.values())
    with (
        RunFolder(out, settings, about, certificate(str(loaded.device), _words()), overwrite=overwrite) as folder,
        ProgressBar(requests) as progress,
    ):
        setup = Setup(
            model=loaded,
            tokenizer=tokenizer,
            benchmarks=chosen,
            policies=made,
            samples=samples,
            sampling=sampling,
            max_rows=max_rows,
            progress=progress,
        )
        try:
            cells = _complete(setup, folder, slots, together=together)
        except KeyboardInterrupt:
            say(f"{out} holds every answer that was finished; the same command goes on with the rest")
            raise
        found = finish(setup, folder, cells)
        header = folder.header
    _print(found, header, out, as_json=as_json)


class _Slots:
    """Budgets as the options give them, or the ratios that they are to be made from."""

    def __init__(
        self, policies: list[str], budgets: str | None, ratios: str | None, others: dict[str, int | None]
    ) -> None:
        from leanthink.budget import Budget

        given = {name: value for name, value in others.items() if value is not None}
        bounded = [name for name in policies if name != "full"]
        if budgets is not None and ratios is not None:
            raise UsageError("--budgets and --ratios exclude each other: give slots, or shares of the full thought")
        if not bounded and (budgets or ratios or given):
            raise UsageError("policy full alone keeps everything: leave out --budgets, --ratios, --window and the like")
        if ratios is not None and "full" not in policies:
            raise UsageError("--ratios are of the mean full thought: add full to --policies")
        self.ratios = [] if ratios is None else _ratios(ratios)
        counts = whole_numbers("--budgets", budgets) if budgets else (options.DEFAULT_SLOTS,)
        self.budgets = [] if self.ratios or not bounded else [Budget(slots=count, **given) for count in counts]
        usual = Budget(slots=max(options.DEFAULT_SLOTS, given.get("window", 0)), **given)
        self.given = {"window": usual.window, "interval": usual.interval, "answer": usual.answer}
        self.policies = policies
        self.cells = ("full" in policies) + len(bounded) * len(self.ratios or self.budgets)


def _ratios(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--ratios {text!r}: give numbers with commas between them, such as 2.8,4.3") from None
    if min(found) < 1:
        raise UsageError(f"--ratios {text!r}: must be 1 or more; they divide the mean full thought")
    return found


def _complete(setup: Setup, folder: RunFolder, slots: _Slots, *, together: bool) -> list[Cell]:
    """All cells, finished: those of the full cache first, because the ratios are of its thoughts."""
    from leanthink.eval.cells import FULL, Cell, budget_at_ratio, cells_of
    from leanthink.eval.run import complete, mean_thought

    bounded = [name for name in slots.policies if name != FULL]
    full = {name: Cell(benchmark=name, policy=FULL, budget=None) for name in setup.benchmarks}
    first = list(full.values()) if FULL in slots.policies else []
    complete(setup, folder, first, together=together)
    rest: list[Cell] = []
    for name in setup.benchmarks:
        budgets = slots.budgets
        if slots.ratios:
            mean = mean_thought(setup, folder, full[name])
            budgets = [budget_at_ratio(mean, ratio, **slots.given) for ratio in slots.ratios]
            told = ", ".join(
                f"{ratio:g}x: {b.slots}+{b.interval}" for ratio, b in zip(slots.ratios, budgets, strict=True)
            )
            say(f"{name}: mean full thought {mean:.0f} tokens; slots {told}")
        rest += cells_of(name, bounded, budgets)
    complete(setup, folder, rest, together=together)
    return [cell for name in setup.benchmarks for cell in [*first, *rest] if cell.benchmark == name]


def _policies(text: str) -> list[str]:
    from leanthink.policies import POLICIES

    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES:
            raise unknown("policy", name, POLICIES)
        if names.count(name) > 1:
            raise UsageError(f"--policies {text!r}: {name} is there twice")
    return names


def _predictors(given: list[str], policies: list[str]) -> dict[str, str]:
    """Files by policy; a file without a name is for the only policy that ranks by one."""
    from leanthink.policies import POLICIES

    learned = [name for name in policies if POLICIES[name].target is not None]
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            if len(learned) != 1:
                raise UsageError(f"--predictor {text!r}: say whose it is, POLICY=FILE; by one rank {learned or 'none'}")
            name, path = learned[0], text
        if name not in learned:
            raise unknown("policy with a predictor in this run", name, learned)
        if not Path(path).is_file():
            raise UsageError(f"there is no predictor at {path}: fit one with `leanthink fit`")
        found[name] = path
    return found


def _make_policies(model: Any, names: list[str], files: dict[str, str]) -> dict[str, Policy]:
    from leanthink.request import PolicyMaker

    maker = PolicyMaker(model)
    return {name: maker.make(name, files.get(name)) for name in names}


class _Sources:
    """Where the problems come from, as the options say; raises UsageError unless it is from somewhere."""

    def __init__(
        self,
        benchmarks: str | None,
        problems: list[Path],
        tolerance: float,
        tasks: str | None,
        levels: str,
        gym: str | None,
        count: int,
        split: str,
        seed: int,
    ) -> None:
        if not (benchmarks or problems or tasks or gym):
            raise UsageError("nothing to evaluate on: give --benchmarks, --problems, --tasks or --gym")
        if tolerance and not problems:
            raise UsageError("--tolerance belongs to --problems: the other benchmarks have their own")
        self.benchmarks, self.problems, self.tolerance = benchmarks, problems, tolerance
        self.tasks, self.levels, self.gym, self.count, self.split, self.seed = tasks, levels, gym, count, split, seed

    def read(self) -> list[Benchmark]:
        """All of them, loaded."""
        from leanthink.eval import benchmarks as known
        from leanthink.eval.literals import Tolerance
        from leanthink.tiny.tasks import FAMILIES

        found = []
        for text in self.benchmarks.split(",") if self.benchmarks else []:
            name, _, where = text.strip().partition("=")
            found.append(known.public(name, where or None))
        found += [known.from_file(path, Tolerance(relative=self.tolerance)) for path in self.problems]
        if self.tasks is not None:
            families = list(FAMILIES) if self.tasks == "all" else [name.strip() for name in self.tasks.split(",")]
            chosen = whole_numbers("--levels", self.levels)
            found.append(known.from_families(families, chosen, self.count, self.seed, self.split))  # type: ignore[arg-type]  # checked there
        for family in self.gym.split(",") if self.gym else []:
            found.append(known.from_gym(family.strip(), self.count, self.seed))
        return found


def _benchmarks(sources: _Sources, limit: int | None, instruction: str | None) -> dict[str, Benchmark]:
    """By name; raises UsageError for two of one name."""
    from dataclasses import replace

    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be 1 or more, got {limit}")
    found: dict[str, Benchmark] = {}
    for benchmark in sources.read():
        if benchmark.name in found:
            raise UsageError(f"two benchmarks are called {benchmark.name}: rename a file, or give each once")
        text = benchmark.instruction if instruction is None else instruction
        found[benchmark.name] = replace(benchmark, problems=benchmark.problems[:limit], instruction=text)
    return found


def _words() -> str:
    import sys

    return " ".join(["leanthink", *sys.argv[1:]])


def _print(found: list[Outcomes], header: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """The table of a finished run."""
    from leanthink.eval.compare import full_of
    from leanthink.eval.metrics import metrics
    from leanthink.eval.tables import COST_HEAD, accuracy_head, accuracy_row, cost_row

    rows = [(one.cell, metrics(one, full_of(one, found))) for one in found]
    if as_json:
        cells = [{**cell.record, **row.record} for cell, row in rows]
        print_json({"folder": str(out), "settings": header["settings"], "cells": cells})
        return
    samples = [header["settings"]["samples"]]
    from leanthink.eval.tables import aligned

    for name in header["benchmarks"]:
        mine = [(cell, row) for cell, row in rows if cell.benchmark == name]
        told = header["benchmarks"][name]
        print(f"{name}: {told['problems']} problems x {samples[0]} ({told['source']})\n")
        print(
            aligned(accuracy_head(samples), [accuracy_row(cell.policy, cell, row, samples) for cell, row in mine]),
            end="\n\n",
        )
        print(aligned(COST_HEAD, [cost_row(cell.policy, cell, row) for cell, row in mine]), end="\n\n")
    print(f"{out / 'result.json'}; `leanthink compare {out}` makes the report")
