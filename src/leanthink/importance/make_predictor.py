"""A predictor for a model, from problems alone: traces are collected, labelled and fitted to, evictions simulated."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from leanthink.data.problems import Problem
from leanthink.data.think_tags import think_tags
from leanthink.data.traces.trace import Trace, read_traces, trace_key
from leanthink.engine.sampling import Sampling
from leanthink.importance.answer_start import AnswerFrom, check_answer_from
from leanthink.importance.collect import check_problems, collect
from leanthink.importance.dataset import split_by_problem, usable
from leanthink.importance.expect import expect
from leanthink.importance.fit import fit
from leanthink.importance.fit_config import FitConfig
from leanthink.importance.inference_backend import LoadedModel
from leanthink.importance.label_file import LabelFile, checksum, default_horizons, label_traces, read_labels
from leanthink.importance.labels import HORIZONS, check_horizons
from leanthink.importance.work_folder import WorkFolder
from leanthink.models.predictor import load_predictor, read_metadata
from leanthink.models.prompt import PLAIN, ChatOptions
from leanthink.policies.policy import Granularity
from leanthink.utils.errors import UsageError

Progress = Callable[[str, int, int], None]
ROWS = {"cpu": 64, "cuda": 512}  # traces generated at a time, as far as memory holds them
NO_TRACES = "collect traces of more problems, or raise max_new_tokens"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to make a predictor from, and how.

    Attributes:
        problems: of at least two ids, as some are held out; their golds tell right traces from wrong ones.
        model: what the traces are to call the model.
        fit_config: how to fit. Its horizons, if it has any, are those that are labelled as well; so is its granularity.
        sampling: how traces are sampled.
        samples: traces for each problem.
        instruction: put after each problem.
        options: how problems become prompts.
        answer_from: where answers begin if the model writes no think tags, as of `label_traces`.
        max_rows: most traces generated at a time; None: ROWS of the device.

    Raises:
        UsageError: too few problems, two of one id, a gold that cannot be graded, samples < 1, an `answer_from` that
            says nothing, or horizons that do not ascend or that no trace of `max_new_tokens` can reach.
    """

    problems: Sequence[Problem]
    model: str
    fit_config: FitConfig
    sampling: Sampling
    samples: int = 1
    instruction: str = ""
    options: ChatOptions = PLAIN
    answer_from: AnswerFrom | None = None
    max_rows: int | None = None

    def __post_init__(self) -> None:
        check_problems(self.problems, self.samples)
        if self.fit_config.val_share and len(self.problems) < 2:
            raise UsageError("one problem is too few: some are held out to measure on, give at least two")
        if self.answer_from is not None:
            check_answer_from(self.answer_from)
        if self.fit_config.horizons is None:
            return
        farthest, most = check_horizons(self.fit_config.horizons)[-1], self.sampling.max_new_tokens
        if farthest >= most:
            raise UsageError(
                f"horizon {farthest}: no trace of at most {most} tokens has so many after one of its tokens; leave it "
                "out, or raise max_new_tokens"
            )

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """What each stage's files depend on; problems and samples may be added to."""
        config = asdict(self.fit_config) | {"granularity": self.granularity}
        return {
            "collect": {"model": self.model, "instruction": self.instruction}
            | asdict(self.options)
            | asdict(self.sampling),
            "label": {name: config[name] for name in ("horizons", "granularity", "only_correct")}
            | {"answer_from": self.answer_from},
            "fit": config,
        }

    @property
    def granularity(self) -> Granularity:
        """Of the index sets that are labelled: that of the config, if it has one, else what measured best."""
        return "model" if self.fit_config.target == "answer" else self.fit_config.granularity or "head"

    def own(self, traces: Iterable[Trace]) -> list[Trace]:
        """Those of the traces that this plan asks for, in its order: they were written in that of their ends."""
        found = {trace.key: trace for trace in traces}
        keys = [trace_key(problem.id, sample) for problem in self.problems for sample in range(self.samples)]
        return [found[key] for key in keys if key in found]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What was made, and from what.

    Attributes:
        out, work: the predictor's file, and the folder beside it that holds traces and labels.
        problems, traces, correct: how many there are, and how many of the traces are right.
        tokens: generated tokens of all traces.
        seconds: of each stage, added up over the calls that it took.
        bytes: size of the predictor's file.
        data, metrics: as of `leanthink.importance.fit.Fitted`.
        expected: the fields of `leanthink.importance.expect.Expected`; None where no held-out thought is long enough.
    """

    out: str
    work: str
    problems: int
    traces: int
    correct: int
    tokens: int
    seconds: dict[str, float]
    bytes: int
    data: dict[str, Any]
    metrics: dict[str, Any]
    expected: dict[str, Any] | None


def make_predictor(
    model: Any,
    tokenizer: Any,
    plan: Plan,
    folder: WorkFolder,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Made:
    """Collect, label and fit; then simulate evictions on traces that the predictor was not fitted to.

    Traces and labels are written as they are finished, into the folder beside the predictor, and stay there. A call
    that was stopped is resumed by `resume`: what is done is not done again, but a fit is begun anew.

    Args:
        model: what the predictor is for, as for `leanthink.generate`.
        tokenizer: its tokenizer.
        plan: what is asked for.
        folder: where it goes; its traces are refused if they exist, unless `resume` or `overwrite`.
        resume: go on with what is there, which must have been made with the same settings.
        overwrite: start anew.
        progress: called with a stage ("collect", "label", "read", "fit", "expect") and how many of its units are done
            and asked for.

    Raises:
        UsageError: another process makes it; what is there was made with other settings, or the traces that came are
            too few or too short; those stay. Also as of `collect`, `label_traces` and `fit`.
        PredictorMismatch: what is there was made with another model.
    """
    tell = progress or _silent
    with folder.held():
        return _make(model, tokenizer, plan, folder, resume, overwrite, tell)


def _make(
    model: Any, tokenizer: Any, plan: Plan, folder: WorkFolder, resume: bool, overwrite: bool, tell: Progress
) -> Made:
    """`make_predictor`, where nobody else makes the same one."""
    settings = _settings(plan, model, tokenizer)
    if resume:
        folder.check(settings)
    elif overwrite:
        folder.clear()
    with folder.stage("collect", settings["collect"]):
        traces = _collected(model, tokenizer, plan, folder, resume, overwrite, tell)
    check_lengths(traces, plan.fit_config)
    labels = _labelled(model, tokenizer, traces, plan, folder, tell)
    _fit(model, traces, labels, plan, folder, tell)
    return _made(traces, plan, folder)


def _settings(plan: Plan, model: Any, tokenizer: Any) -> dict[str, dict[str, Any]]:
    """What each stage's files depend on: those of the plan, and what model and tokenizer add to them."""
    tags = think_tags(tokenizer)
    loaded = {"dtype": str(model.dtype).removeprefix("torch."), "think_tags": [tags.open, tags.close]}
    return plan.settings | {"collect": plan.settings["collect"] | loaded}


def _collected(
    model: Any, tokenizer: Any, plan: Plan, folder: WorkFolder, resume: bool, overwrite: bool, tell: Progress
) -> list[Trace]:
    """The traces of the plan, those that lacked written now."""
    collect(
        model,
        tokenizer,
        plan.problems,
        folder.traces,
        samples=plan.samples,
        sampling=plan.sampling,
        model_name=plan.model,
        instruction=plan.instruction,
        options=plan.options,
        max_rows=plan.max_rows or ROWS.get(model.device.type, ROWS["cuda"]),
        resume=resume,
        overwrite=overwrite,
        progress=partial(tell, "collect"),
    )
    gc.collect()  # the engine with its cache, for what comes next needs that memory
    return plan.own(read_traces(folder.traces))


def check_lengths(traces: Sequence[Trace], config: FitConfig) -> None:
    """Refuse traces that are too few or too short to fit to, before they are labelled (UsageError)."""
    right = [trace for trace in traces if trace.correct or not config.only_correct]
    thinking = [trace for trace in right if trace.thought_tokens]
    if len({trace.id for trace in thinking}) < (2 if config.val_share else 1):
        raise UsageError(
            f"too few of {len(traces)} traces can be fitted to: {len(traces) - len(right)} are not correct, "
            f"{len(right) - len(thinking)} have no thought, and some of the others' problems are held out; {NO_TRACES}"
        )
    longest = max(len(trace.token_ids) for trace in thinking)
    for horizon in config.horizons or HORIZONS[:1] if config.target == "horizon" else ():
        if longest <= horizon:
            raise UsageError(
                f"horizon {horizon}: the longest of {len(thinking)} traces has {longest} tokens, and none of these so "
                f"many after it; leave the horizon out, or {NO_TRACES}"
            )


def _labelled(
    model: Any, tokenizer: Any, traces: Sequence[Trace], plan: Plan, folder: WorkFolder, tell: Progress
) -> LabelFile:
    """The labels of these traces, those that lacked made now."""
    before = folder.stages.get("label", {}) if folder.labels.exists() else {}
    horizons = plan.fit_config.horizons or before.get("horizons") or default_horizons(traces)
    with folder.stage("label", plan.settings["label"]) as entry:
        entry["horizons"] = list(horizons)
        label_traces(
            None,
            traces,
            folder.labels,
            horizons=horizons,
            granularity=plan.granularity,
            answer_from=plan.answer_from,
            only_correct=plan.fit_config.only_correct,
            progress=partial(tell, "label"),
            backend=LoadedModel(model, tokenizer, {}),
        )
    return read_labels(folder.labels)


def _fit(model: Any, traces: list[Trace], labels: LabelFile, plan: Plan, folder: WorkFolder, tell: Progress) -> None:
    """Fit, unless that is done, and simulate evictions on the traces held out."""
    config, told_by = plan.fit_config, _digest(traces)
    if not (folder.out.exists() and folder.stages.get("fit", {}).get("traces") == told_by):
        folder.stages.pop("expect", None)
        with folder.stage("fit", plan.settings["fit"], anew=True) as entry:
            fit(model, traces, labels, config, out_path=folder.out, progress=tell)
            entry["traces"] = told_by
    if "found" in folder.stages.get("expect", {}):
        return
    kept = usable(traces, labels, only_correct=config.only_correct, need_answer=config.target == "answer")
    held_out = {trace.key for trace in split_by_problem(kept, share=config.val_share, seed=config.seed)[1]}
    whole = [trace for trace in traces if trace.key in held_out]  # as a policy meets it, wherever the answer begins
    predictor = load_predictor(folder.out, model)
    mean = predictor.thought_tokens or 0.0
    with folder.stage("expect", {}, anew=True) as entry:
        found = expect(model, predictor, whole, thought_tokens=mean, progress=partial(tell, "expect"))
        entry["found"] = None if found is None else found.record


def _made(traces: list[Trace], plan: Plan, folder: WorkFolder) -> Made:
    metadata = read_metadata(folder.out)
    return Made(
        out=str(folder.out),
        work=str(folder.path),
        problems=len(plan.problems),
        traces=len(traces),
        correct=sum(bool(trace.correct) for trace in traces),
        tokens=sum(len(trace.token_ids) for trace in traces),
        seconds={name: stage["seconds"] for name, stage in folder.stages.items()},
        bytes=folder.out.stat().st_size,
        data=metadata["data"],
        metrics=metadata["metrics"],
        expected=folder.stages["expect"]["found"],
    )


def _digest(traces: Sequence[Trace]) -> str:
    """Tells whether a predictor was fitted to these traces or to others."""
    told = sorted(f"{trace.key} {checksum(trace)}" for trace in traces)
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _silent(stage: str, done: int, total: int) -> None:
    """Say nothing."""
