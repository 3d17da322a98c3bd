"""What the options of `leanthink eval` ask for: policies, budgets or ratios, predictors, benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from leanthink.entrypoints.cli import options
from leanthink.entrypoints.cli.collect import Tasks, whole_numbers
from leanthink.entrypoints.cli.help import option
from leanthink.utils.errors import UsageError, unknown

if TYPE_CHECKING:
    from leanthink.eval.configurations import Benchmark
    from leanthink.policies.budget import Budget


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


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Budgets as the options give them, or the ratios that they are to be made from.

    Attributes:
        policies: names, with settings where they are not the defaults, in the order asked for.
        budgets: empty with ratios.
        ratios: mean full thought by budget + interval.
        usual: a budget with the window, interval and answer of those that are made from a ratio.
    """

    policies: tuple[str, ...]
    budgets: tuple[Budget, ...]
    ratios: tuple[float, ...]
    usual: Budget

    @property
    def bounded(self) -> list[str]:
        """The policies that take a budget."""
        return [name for name in self.policies if name != "full"]

    @property
    def cells(self) -> int:
        """Cells of each benchmark."""
        return ("full" in self.policies) + len(self.bounded) * len(self.ratios or self.budgets)


def make_slots(policies: str, budgets: str | None, ratios: str | None, **parts: int | None) -> Slots:
    """Policies and slots of the options; raises UsageError for what does not go together."""
    from leanthink.policies.budget import Budget

    names = policy_names(policies)
    given = {name: value for name, value in parts.items() if value is not None}
    bounded = [name for name in names if name != "full"]
    if budgets is not None and ratios is not None:
        raise UsageError("--budgets and --ratios exclude each other: give slots, or parts of the full thought")
    if not bounded and (budgets is not None or ratios is not None or given):
        raise UsageError(
            "policy full alone keeps everything: leave out --budgets, --ratios, --recent-window and the like"
        )
    if ratios is not None and "full" not in names:
        raise UsageError("--ratios are of the mean full thought: add full to --policies")
    counts = (options.DEFAULT_SLOTS,) if budgets is None else whole_numbers("--budgets", budgets)
    usual = Budget(slots=max(options.DEFAULT_SLOTS, given.get("recent_window", 0)), **given)
    return Slots(
        policies=tuple(names),
        budgets=tuple(Budget(slots=count, **given) for count in counts) if bounded and ratios is None else (),
        ratios=() if ratios is None else _ratios(ratios),
        usual=usual,
    )


def policy_names(text: str) -> list[str]:
    """The policies of --policies; raises UsageError for one that cannot be read or is there twice."""
    from leanthink.policies.policy_spec import canonical_specs, split_specs

    return canonical_specs(split_specs(text))


def _ratios(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--ratios {text!r}: give numbers with commas between them, such as 2.8,4.3") from None
    if not min(found) >= 1:
        raise UsageError(f"--ratios {text!r}: must be 1 or more; they divide the mean full thought")
    return found


def predictor_files(given: Sequence[str], policies: Sequence[str]) -> dict[str, Path]:
    """Files by policy, with its settings; a file without a name is for the only one that ranks by one.

    Raises:
        UsageError: a name is none of a policy with a predictor, or there is no such file.
    """
    from leanthink.policies import parse_spec

    specs = {spec: parse_spec(spec) for spec in policies}
    learned = list(dict.fromkeys(spec.name for spec in specs.values() if spec.kind.target is not None))
    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            if len(learned) != 1:
                whose = ", ".join(learned) or "no policy of this run"
                raise UsageError(f"--predictor {text!r}: say whose it is, POLICY=FILE; by one rank {whose}")
            name, path = learned[0], text
        if name not in learned:
            raise unknown("policy with a predictor", name, learned)
        if not Path(path).is_file():
            raise UsageError(f"there is no predictor at {path}: fit one with `leanthink fit`")
        found |= {text: Path(path) for text, spec in specs.items() if spec.name == name}
    return found


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the problems come from. Raises UsageError for nowhere."""

    benchmarks: Benchmarks = None
    problems: Problems = None
    tolerance: Tolerance = 0.0
    tasks: Tasks = None
    levels: Levels = "1,2,3,4,5"
    gym: Gym = None
    count: Count = 8
    split: Split = "held-out"
    limit: Limit = None
    instruction: Instruction = None

    def __post_init__(self) -> None:
        if not (self.benchmarks or self.problems or self.tasks or self.gym):
            raise UsageError("nothing to evaluate on: give --benchmarks, --problems, --tasks or --gym")
        if self.tolerance and not self.problems:
            raise UsageError("--tolerance belongs to --problems: the other benchmarks have their own")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit must be 1 or more, got {self.limit}")

    def read(self, seed: int) -> dict[str, Benchmark]:
        """All of them, loaded, by name; tasks are drawn from the seed. Raises UsageError for two of one name."""
        found: dict[str, Benchmark] = {}
        for benchmark in self._all(seed):
            if benchmark.name in found:
                raise UsageError(f"two benchmarks are called {benchmark.name}: rename a file, or give each once")
            text = benchmark.instruction if self.instruction is None else self.instruction
            found[benchmark.name] = replace(benchmark, problems=benchmark.problems[: self.limit], instruction=text)
        return found

    def _all(self, seed: int) -> list[Benchmark]:
        from leanthink.data.grading.answer_normalisation import Tolerance
        from leanthink.data.tasks.problem import Split
        from leanthink.data.tasks.registry import FAMILIES
        from leanthink.eval import benchmarks as known

        found = []
        for text in self.benchmarks.split(",") if self.benchmarks else []:
            name, is_copy, where = text.strip().partition("=")
            found.append(known.public(name, where if is_copy else None))
        found += [known.from_file(path, Tolerance(relative=self.tolerance)) for path in self.problems or []]
        if self.tasks is not None:
            families = list(FAMILIES) if self.tasks == "all" else [name.strip() for name in self.tasks.split(",")]
            levels = whole_numbers("--levels", self.levels)
            found.append(known.from_families(families, levels, self.count, seed, cast(Split, self.split)))
        for family in self.gym.split(",") if self.gym else []:
            found.append(known.from_gym(family.strip(), self.count, seed))
        return found
