"""What a predictor is fitted to: states of thought tokens beside their labels, trace by trace.

Shapes: T thought tokens of a trace (or a sample of them), F state size (see `engine.hidden_states`), H horizons,
W tokens that the predictor sees of each, N tokens seen in all (or fed), B traces of a batch, X index sets, Y label
columns.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanthink.data.traces.trace import Trace
from leanthink.engine.hidden_states import joined, middle_outputs
from leanthink.engine.sdpa import for_any_length
from leanthink.importance.batches import batches_by_length, check_vocabulary, padded
from leanthink.importance.label_file import LabelFile
from leanthink.models.fingerprint import fingerprint
from leanthink.utils.errors import PredictorMismatch, UsageError

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Thought tokens of one trace, on the CPU.

    states_NF: states of every token that is seen, each once, in the model's dtype.
    seen_TW: int64, which of them each token is scored by: itself, then those that follow it; past the thought's end,
        the last token of the thought.
    labels_TY: float32 [T, 1 + H], column 0 the answer label; or uint8 [T, X H], those of one index set side by side, as
        of `leanthink.importance.labels.packed`.
    tokens_after_T: int64, how many tokens of the trace come after each: from further away nobody could read it.
    """

    problem_id: str
    states_NF: Tensor
    seen_TW: Tensor
    labels_TY: Tensor
    tokens_after_T: Tensor

    def __post_init__(self) -> None:
        assert len(self.seen_TW) == len(self.labels_TY) == len(self.tokens_after_T) > 0
        assert int(self.seen_TW.max()) < len(self.states_NF)


def usable(traces: Iterable[Trace], labels: LabelFile, *, only_correct: bool, need_answer: bool) -> list[Trace]:
    """The traces that can be fitted to, each split into thought and answer as it was labelled.

    Raises:
        UsageError: none is left; the message counts why.
    """
    kept, not_correct, unlabelled, no_answer = [], 0, 0, 0
    for trace in traces:
        found_TC = labels.of(trace)
        if only_correct and not trace.correct:
            not_correct += 1
        elif found_TC is None:
            unlabelled += 1
        elif need_answer and bool(found_TC[0, 0].isnan()):
            no_answer += 1
        else:
            kept.append(labels.as_labelled(trace))
    if not kept:
        raise UsageError(
            f"no trace to fit to: {not_correct} not correct, {unlabelled} without labels, {no_answer} without answer; "
            "collect more traces, or label those there are"
            + (", with answer_from where the model writes no think tags" if no_answer else "")
        )
    return kept


def split_by_problem(traces: Sequence[Trace], *, share: float, seed: int) -> tuple[list[Trace], list[Trace]]:
    """Traces to fit to and traces held out; all samples of one problem fall on the same side.

    Raises:
        UsageError: a share above 0 of fewer than two problems.
    """
    if share == 0:
        return list(traces), []
    ids = sorted({trace.id for trace in traces})
    if len(ids) < 2:
        raise UsageError("holding traces out takes at least two problems: collect more, or give val_share=0")
    random.Random(seed).shuffle(ids)
    held_out = set(ids[: min(max(1, round(share * len(ids))), len(ids) - 1)])
    return [t for t in traces if t.id not in held_out], [t for t in traces if t.id in held_out]


def gather(
    model: Any,
    traces: Sequence[Trace],
    labels: LabelFile,
    *,
    offsets: tuple[int, ...],
    tokens_per_trace: int | None,
    seed: int,
    by_set: bool = False,
    progress: Progress | None = None,
) -> list[Examples]:
    """The examples of each trace; of a longer thought a random sample of `tokens_per_trace` tokens, in order.

    Each token is seen with those at `offsets` after it, and labelled for each index set if `by_set`. On a GPU traces of
    like length share a forward pass.

    Raises:
        PredictorMismatch: the labels belong to another model.
        UsageError: a trace has a token that is not in the model's vocabulary.
    """
    if labels.fingerprint != (ours := fingerprint(model)):
        raise PredictorMismatch(
            f"the labels are of the model {labels.fingerprint[:12]}, this one is {ours[:12]}: label its own traces"
        )
    check_vocabulary(([*trace.prompt_ids, *trace.token_ids] for trace in traces), model.config.vocab_size)
    examples: dict[int, Examples] = {}
    lengths = [len(trace.prompt_ids) + trace.thought_tokens for trace in traces]
    for batch in batches_by_length(lengths, model.device):
        states = _thought_states(model, [traces[index] for index in batch])
        for index, states_TF in zip(batch, states, strict=True):
            examples[index] = _examples(
                traces[index],
                states_TF,
                _table(labels, traces[index], by_set=by_set),
                offsets=offsets,
                tokens_per_trace=tokens_per_trace,
                seed=seed,
            )
            if progress is not None:
                progress(len(examples), len(traces))
    return [examples[index] for index in range(len(traces))]


def _table(labels: LabelFile, trace: Trace, *, by_set: bool) -> Tensor:
    """Labels of a trace as `Examples` holds them, [T, Y]."""
    labels_TC = labels.of(trace)
    assert labels_TC is not None, "only labelled traces are gathered"
    return labels.sets_of(trace).transpose(0, 1).flatten(1) if by_set else labels_TC


def _examples(
    trace: Trace,
    states_TF: Tensor,
    labels_TY: Tensor,
    *,
    offsets: tuple[int, ...],
    tokens_per_trace: int | None,
    seed: int,
) -> Examples:
    chosen_T = _sample(len(labels_TY), tokens_per_trace, f"{seed}/{trace.key}")
    at_TW = (chosen_T[:, None] + torch.tensor(offsets)).clamp(max=len(labels_TY) - 1)
    at_N, seen_TW = torch.unique(at_TW, return_inverse=True)
    return Examples(
        problem_id=trace.id,
        states_NF=states_TF[at_N.to(states_TF.device)].cpu(),
        seen_TW=seen_TW,
        labels_TY=labels_TY[chosen_T],
        tokens_after_T=len(trace.token_ids) - 1 - chosen_T,
    )


@torch.no_grad()
def _thought_states(model: Any, traces: Sequence[Trace]) -> list[Tensor]:
    """States of each thought, [T, F]; what comes after it cannot change them and is not fed."""
    fed = [(*trace.prompt_ids, *trace.token_ids[: trace.thought_tokens]) for trace in traces]
    with middle_outputs(model) as middle, for_any_length():
        output = model.base_model(input_ids=padded(fed, model.device), use_cache=False)
    states_BNF = joined(output.last_hidden_state, middle[0])
    return [
        states_NF[len(trace.prompt_ids) : len(ids)]
        for trace, ids, states_NF in zip(traces, fed, states_BNF, strict=True)
    ]


def _sample(count: int, most: int | None, name: str) -> Tensor:
    if most is None or most >= count:
        return torch.arange(count)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values
