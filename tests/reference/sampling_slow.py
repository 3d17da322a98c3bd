"""The reference implementation of the sampler: one row at a time, in plain Python."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from leanthink.engine.sampling import Sampling

WORD = 2**64 - 1


def mix_slowly(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def uniform_slowly(seed: int, count: int) -> float:
    golden = 0x9E3779B97F4A7C15
    stream = mix_slowly((seed + golden) & WORD)
    return (mix_slowly((stream + count * golden) & WORD) >> 11) / 2**53


def sample_slowly(logits: list[float], sampling: Sampling, count: int) -> int:
    """One row in plain Python: temperature, top_k, top_p, min_p, then the inverse of the cumulative distribution."""
    if sampling.temperature == 0:
        return max(range(len(logits)), key=lambda token: logits[token])
    scores = {token: logit / sampling.temperature for token, logit in enumerate(logits)}
    if sampling.top_k:
        kth = sorted(scores.values(), reverse=True)[: sampling.top_k][-1]
        scores = {token: score for token, score in scores.items() if score >= kth}
    weights = {token: math.exp(score) for token, score in scores.items()}
    if sampling.top_p < 1:
        total, below = sum(weights.values()), 0.0
        for token in sorted(weights, key=lambda token: weights[token])[:-1]:
            below += weights[token] / total
            if below <= 1 - sampling.top_p:
                scores.pop(token)
    most = max(weights[token] for token in scores)
    allowed = [token for token in sorted(scores) if weights[token] >= sampling.min_p * most]
    target = uniform_slowly(sampling.seed, count) * sum(weights[token] for token in allowed)
    for token in allowed:
        target -= weights[token]
        if target < 0:
            return token
    return allowed[-1]


def bounds_of(logits_NV: Tensor, temperature_N: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row, the share of probability in front of this token and up to its end, float64 [N]."""
    ends_NV = (logits_NV.double() / temperature_N[:, None]).softmax(dim=1).cumsum(dim=1)
    starts_NV = torch.cat([torch.zeros_like(ends_NV[:, :1]), ends_NV[:, :-1]], dim=1)
    row = torch.arange(len(ids_N), device=ids_N.device)
    return starts_NV[row, ids_N], ends_NV[row, ids_N]
