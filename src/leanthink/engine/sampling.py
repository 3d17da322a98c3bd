"""Turns logits into tokens, one row at a time in meaning and all rows at once in cost.

N rows   V vocabulary   S shortlisted tokens
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from leanthink.models.model_sampling import model_sampling
from leanthink.policies.counter_rng import STEP, mix, shift_right
from leanthink.utils.device import to_device
from leanthink.utils.errors import UsageError

MAX_LOGPROBS = 20
SHORTLIST = 1024  # tokens, the most likely ones, among which a row with a small top_k draws
SHORT_TOP_K = 256  # and the largest such top_k: even where many tokens tie with the k-th, they are in the list
GREEDY_BELOW = 1e-5  # a temperature below is 0, as in vLLM: float32 cannot divide by the smallest of them
NO_TOKEN = -1  # stands for the token of a row that has no likeliest one


class Uses(NamedTuple):
    """What any of some rows uses; what nobody uses need not be computed."""

    short: bool  # samples, with a top_k of 1 to SHORT_TOP_K
    long: bool  # samples, with another top_k or none
    top_k: bool  # samples, with a top_k above SHORT_TOP_K
    top_p: bool
    min_p: bool


PLAIN = Uses(short=False, long=True, top_k=False, top_p=False, min_p=False)  # a temperature and nothing else


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one request picks its tokens; `temperature` below 1e-5 is greedy. Raises UsageError for values out of range.

    The knobs mean what they mean in transformers and act in the same order: temperature, top_k (0: off),
    top_p (1: off), min_p (0: off). The same seed gives the same tokens, whatever else is in the batch.
    Generation ends at the first of the strings in `stop`, which is not part of the text. They are looked for in thought
    and answer; without `stop_in_thought`, in the answer alone. `logprobs`: None for none; a number for the
    log-probability of each token and of so many of the likeliest, before temperature and the others. The context ends a
    generation too, where it comes before `max_new_tokens`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 16384
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_in_thought: bool = True
    logprobs: int | None = None

    @classmethod
    def from_model(cls, model: Any, **given: Any) -> Self:
        """As the model's generation config says (see `model_sampling`), but for the fields that are given."""
        return cls(**(model_sampling(model) | given))

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise UsageError(f"stop={self.stop!r}: give a tuple of non-empty strings")
        object.__setattr__(self, "stop", tuple(self.stop))
        checks = {
            "temperature": (self.temperature >= 0 and math.isfinite(self.temperature), "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            "top_k": (isinstance(self.top_k, int) and self.top_k >= 0, "a whole number, 0 (off) or more"),
            "min_p": (0 <= self.min_p <= 1, "from 0 (off) to 1"),
            "max_new_tokens": (isinstance(self.max_new_tokens, int) and self.max_new_tokens >= 1, "1 or more"),
            "logprobs": (
                self.logprobs is None or (type(self.logprobs) is int and 0 <= self.logprobs <= MAX_LOGPROBS),
                f"None, or 0 to {MAX_LOGPROBS}",
            ),
            "seed": (isinstance(self.seed, int) and 0 <= self.seed < 2**63, "a whole number from 0 to 2**63 - 1"),
        }
        for name, (fine, allowed) in checks.items():
            if not fine:
                raise UsageError(f"{name}={getattr(self, name)!r}: must be {allowed}")


def uniform(seeds_N: Tensor, counts_N: Tensor) -> Tensor:
    """One number in [0, 1) per row, float64: a hash of the seed and of how many tokens were generated so far.

    A counter instead of a generator's state: a draw depends on nothing but its own request, on every device.
    """
    stream_N = mix(seeds_N + STEP)
    return shift_right(mix(stream_N + counts_N * STEP), 11).double() * 2.0**-53


class Sampler:
    """The knobs of every row, on the device, and the draw for the active rows."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._knobs = torch.zeros(rows, 3, dtype=torch.float64, device=device)  # temperature, top_p, min_p
        self._top_k = torch.zeros(rows, dtype=torch.int64, device=device)
        self.seeds = torch.zeros(rows, dtype=torch.int64, device=device)
        self._uses = torch.zeros(rows, len(Uses._fields), dtype=torch.bool)  # on the host, in that order

    def assign_rows(self, first: int, samplings: Sequence[Sampling]) -> None:
        """Take the knobs of the requests that now hold rows `first`, `first + 1`, ..."""
        if not samplings:
            return
        rows = slice(first, first + len(samplings))
        knobs = torch.tensor([(_temperature(s), s.top_p, s.min_p) for s in samplings]).double()
        whole = torch.tensor([(s.top_k, s.seed) for s in samplings])
        self._knobs[rows] = to_device(knobs, self.seeds.device)
        self._top_k[rows], self.seeds[rows] = to_device(whole, self.seeds.device).unbind(1)
        self._uses[rows] = torch.tensor([_uses_of(sampling) for sampling in samplings])

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Rows `sources` become rows `targets`."""
        source, target = torch.tensor(sources), torch.tensor(targets)
        self._uses[target] = self._uses[source]
        source, target = (to_device(rows, self.seeds.device) for rows in (source, target))
        for knob in (self._knobs, self._top_k, self.seeds):
            knob[target] = knob[source]

    def uses(self, rows: int) -> Uses:
        """What any of rows 0 to `rows` - 1 uses."""
        return Uses(*self._uses[:rows].any(dim=0).tolist())

    def pick(self, logits_NV: Tensor, counts_N: Tensor, uses: Uses) -> Tensor:
        """The next token of each of rows 0 to N - 1, [N] int64; NO_TOKEN where a logit is NaN or the largest infinite.

        Args:
            logits_NV: theirs.
            counts_N: how many tokens each has generated so far.
            uses: at least what these rows use; what nobody uses is skipped.

        Sorting a whole vocabulary takes longer than reading the cache does. A row with a small top_k draws from a
        shortlist, and does so whatever its neighbours use, so that its tokens are the same alone and in a batch.
        """
        greedy_N = argmax(logits_NV)
        largest_N1 = logits_NV.gather(1, greedy_N[:, None])
        is_finite_N = largest_N1[:, 0].isfinite()
        if not (uses.short or uses.long):
            return greedy_N.where(is_finite_N, NO_TOKEN)
        rows = slice(0, len(logits_NV))
        temperature_N = self._knobs[rows, 0]
        is_greedy_N = temperature_N == 0
        temperature_N = temperature_N.masked_fill(is_greedy_N, 1).float()
        uniform_N = uniform(self.seeds[rows], counts_N)
        if logits_NV.is_cuda and uses == PLAIN:
            from leanthink.engine.kernels import sample

            drawn_N = sample.draw(logits_NV, largest_N1, temperature_N, uniform_N)
        else:
            # At most 0, so that no temperature makes them infinite but for those that it rules out.
            scaled_NV = (logits_NV.float() - largest_N1.float()).div_(temperature_N[:, None])
            drawn_N = self._drawn_by_length(scaled_NV, uniform_N, uses)
        return torch.where(is_greedy_N, greedy_N, drawn_N).where(is_finite_N, NO_TOKEN)

    def _drawn_by_length(self, scaled_NV: Tensor, uniform_N: Tensor, uses: Uses) -> Tensor:
        """The draw of each row: from a shortlist or from the whole vocabulary."""
        if scaled_NV.shape[1] <= SHORTLIST or not uses.short:
            return self._drawn(scaled_NV, uniform_N, uses)
        drawn_N = self._drawn_from_shortlist(scaled_NV, uniform_N, uses)
        if not uses.long:
            return drawn_N
        top_k_N = self._top_k[: len(scaled_NV)]
        is_short_N = (top_k_N > 0) & (top_k_N <= SHORT_TOP_K)
        return drawn_N.where(is_short_N, self._drawn(scaled_NV, uniform_N, uses._replace(short=False)))

    def _drawn_from_shortlist(self, scaled_NV: Tensor, uniform_N: Tensor, uses: Uses) -> Tensor:
        """The draw among each row's SHORTLIST likeliest tokens, in vocabulary order as in `_drawn`."""
        ids_NS = scaled_NV.topk(SHORTLIST, dim=-1, sorted=False).indices.sort(dim=-1).values
        drawn_N = self._drawn(scaled_NV.gather(1, ids_NS), uniform_N, uses)
        return ids_NS.gather(1, drawn_N[:, None])[:, 0]

    def _drawn(self, scaled_NV: Tensor, uniform_N: Tensor, uses: Uses) -> Tensor:
        """Which column of each row is drawn from what its knobs leave."""
        rows = slice(0, len(scaled_NV))
        _, top_p_N, min_p_N = self._knobs[rows].unbind(1)
        if uses.short or uses.top_k:
            scaled_NV = keep_top_k(scaled_NV, self._top_k[rows])
        if uses.top_p:
            scaled_NV = keep_top_p(scaled_NV, top_p_N)
        if uses.min_p:
            scaled_NV = keep_min_p(scaled_NV, min_p_N)
        return draw(scaled_NV, uniform_N)


def _temperature(sampling: Sampling) -> float:
    """One that float32 can divide by; 0 for greedy."""
    return 0.0 if sampling.temperature < GREEDY_BELOW else min(sampling.temperature, torch.finfo(torch.float32).max)


def _uses_of(sampling: Sampling) -> Uses:
    samples, short = _temperature(sampling) > 0, 0 < sampling.top_k <= SHORT_TOP_K
    return Uses(
        short=samples and short,
        long=samples and not short,
        top_k=samples and sampling.top_k > SHORT_TOP_K,
        top_p=samples and sampling.top_p < 1,
        min_p=samples and sampling.min_p > 0,
    )


def argmax(logits_NV: Tensor) -> Tensor:
    """The likeliest token of each row, [N] int64; of a row with a logit that is NaN, one whose logit is not finite."""
    if logits_NV.is_cuda and logits_NV.dtype != torch.float64:
        from leanthink.engine.kernels import sample

        return sample.argmax(logits_NV)
    return logits_NV.argmax(dim=-1)


def keep_top_k(scores_NV: Tensor, top_k_N: Tensor) -> Tensor:
    """Scores below the row's k-th largest become -inf; ties with it stay; k = 0 changes nothing."""
    descending_NV = scores_NV.sort(dim=-1, descending=True).values
    kth_N1 = descending_NV.gather(1, (top_k_N.clamp(1, scores_NV.shape[1]) - 1)[:, None])
    return scores_NV.masked_fill((scores_NV < kth_N1) & (top_k_N > 0)[:, None], -torch.inf)


def keep_top_p(scores_NV: Tensor, top_p_N: Tensor) -> Tensor:
    """The least likely scores, which together hold at most 1 - p, become -inf; p = 1 changes no probability."""
    ascending_NV, order_NV = scores_NV.sort(dim=-1, stable=True)
    tail_N1 = (1 - top_p_N)[:, None].float()
    drop_NV = ascending_NV.softmax(dim=-1).cumsum(dim=-1) <= tail_N1
    drop_NV[:, -1] = False
    return scores_NV.masked_fill(torch.zeros_like(drop_NV).scatter(1, order_NV, drop_NV), -torch.inf)


def keep_min_p(scores_NV: Tensor, min_p_N: Tensor) -> Tensor:
    """Scores less likely than min_p times the likeliest become -inf; min_p = 0 changes nothing."""
    probabilities_NV = scores_NV.softmax(dim=-1)
    floor_N1 = min_p_N[:, None].float() * probabilities_NV.amax(dim=-1, keepdim=True)
    return scores_NV.masked_fill(probabilities_NV < floor_N1, -torch.inf)


def draw(scores_NV: Tensor, uniforms_N: Tensor) -> Tensor:
    """The token at which the cumulative probability, in vocabulary order, passes the row's uniform number.

    Always a column: the last one where a score is NaN.
    """
    cumulative_NV = scores_NV.softmax(dim=-1).double().cumsum(dim=-1)
    target_N1 = uniforms_N[:, None] * cumulative_NV[:, -1:]  # below the total, as a uniform is at most 1 - 2**-53
    return torch.searchsorted(cumulative_NV, target_N1, right=True)[:, 0].clamp(max=scores_NV.shape[1] - 1)


def log_probabilities(logits_NV: Tensor, ids_N: Tensor, alternatives: int) -> Tensor:
    """Of each row's token, then of its K = `alternatives` likeliest, then the ids of these: float64 [N, 1 + 2 K].

    Equally likely tokens come in any order, as topk gives them.
    """
    log_NV = logits_NV.double().log_softmax(dim=-1)
    best_NK, id_NK = log_NV.topk(alternatives, dim=-1)
    return torch.cat([log_NV.gather(1, ids_N[:, None]), best_NK, id_NK.double()], dim=1)
