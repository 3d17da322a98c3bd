"""How well a predictor ranks the tokens of held-out traces.

Shapes: T tokens of a trace, C channels (1 for `answer`, one per horizon for `horizon`), X index sets, Y = X C.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from leanthink.importance.dataset import Examples
from leanthink.importance.fit_config import FitConfig, loss, targets
from leanthink.importance.rank_metrics import kendall_tau, top_overlap
from leanthink.models.predictor import Predictor

TOP_SHARES = (0.2, 0.3)
MEASURED_SETS = 8  # of the index sets: ranking quality is the mean over so many of them


def counted(examples: Sequence[Examples], config: FitConfig) -> Tensor:
    """Which labels count in the loss, bool [N, C]: of a horizon those of tokens with so many tokens after them.

    A slot is ranked by a horizon only once it is that old, and then its thought did go on so long: a label of 0 for a
    thought that ended sooner would teach how long thoughts are, and old slots that are still needed would be lost.
    """
    after_N1 = torch.cat([example.tokens_after_T for example in examples])[:, None]
    return after_N1 >= torch.tensor(config.horizons or (0,))


def measure(predictor: Predictor, examples: Sequence[Examples], config: FitConfig) -> dict[str, Any]:
    """Loss and ranking quality on held-out traces: within each trace and index set, then the mean over all.

    Each horizon is measured on the tokens that can be ranked by it: those with so many tokens after them. It may be
    fewer horizons than the predictor has: those of the config, which the examples are labelled for.
    """
    if not examples:
        return {"held_out_traces": 0}
    found: dict[str, list[list[dict[str, float]]]] = {name: [] for name in _channels(config)}
    losses = []
    for example in examples:
        for of_traces in found.values():
            of_traces.append([])
        scores_TY = scores(predictor, example, config)
        target_TY = targets(example.labels_TY, config)
        losses.append(float(loss(scores_TY, target_TY, counted([example], config), config.target)))
        for name, predicted, truth in ranked(example, config, scores_TY, target_TY):
            ranking = _ranking(predicted, truth)
            found[name][-1] += [ranking] if ranking else []
    return {
        "held_out_traces": len(examples),
        "held_out_tokens": sum(len(example.labels_TY) for example in examples),
        "held_out_loss": fmean(losses),
        "ranking": {name: mean_of(by_trace) for name, by_trace in found.items()},
    }


def ranked(
    example: Examples, config: FitConfig, first_TY: Tensor, second_TY: Tensor
) -> Iterator[tuple[str, list[float], list[float]]]:
    """Two orders of the same tokens for each channel, by its name, and each measured index set."""
    channels = _channels(config)
    for channel, (name, tokens) in enumerate(channels.items()):
        reached_T = example.tokens_after_T >= tokens
        for column in _some_of(range(channel, first_TY.shape[1], len(channels))):
            yield name, first_TY[reached_T, column].tolist(), second_TY[reached_T, column].tolist()


def of_horizons(values_TY: Tensor, known: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Columns of the wanted horizons out of those of the known ones, of each index set; all where they are the same."""
    if tuple(known) == tuple(wanted):
        return values_TY
    chosen = [known.index(horizon) for horizon in wanted]
    by_set_TXC = values_TY.view(len(values_TY), -1, len(known))
    return by_set_TXC[..., chosen].flatten(1)


@torch.no_grad()
def scores(predictor: Predictor, example: Examples, config: FitConfig) -> Tensor:
    """What it gives the tokens at the config's horizons, [T, Y] on the CPU."""
    device = next(predictor.parameters()).device
    states_NF = example.states_NF.to(device)
    parts = [predictor(states_NF[part.to(device)]).cpu() for part in torch.split(example.seen_TW, 8192)]
    return of_horizons(torch.cat(parts), predictor.horizons, config.horizons or ())


def _channels(config: FitConfig) -> dict[str, int]:
    """The channels by name, and how many tokens must come after one that can be ranked by it."""
    return {str(horizon): horizon for horizon in config.horizons} if config.horizons else {"answer": 0}


def _some_of(columns: range) -> range:
    """At most MEASURED_SETS of them, evenly spaced."""
    return columns[:: -(-len(columns) // MEASURED_SETS)]


def _ranking(predicted: list[float], truth: list[float]) -> dict[str, float] | None:
    """Tau and overlaps of one trace; None where all labels or all scores are equal and rank nothing."""
    tau = kendall_tau(predicted, truth)
    if tau is None:
        return None
    return {"kendall_tau": tau} | {f"top_{share:.0%}": top_overlap(predicted, truth, share) for share in TOP_SHARES}


def mean_of(by_trace: Sequence[Sequence[dict[str, float]]]) -> dict[str, float]:
    """Mean of each number over the index sets of all traces, and how many traces have any."""
    rankings = [ranking for of_trace in by_trace for ranking in of_trace]
    names = rankings[0] if rankings else {}
    means = {name: fmean(ranking[name] for ranking in rankings) for name in names}
    return means | {"traces": sum(bool(of_trace) for of_trace in by_trace)}
