"""The importance predictor: a small network on a token's states and those that follow, and the file it is shipped in.

Shapes: N tokens, M hidden size of the base model, F = 2 M state size (see `engine.hidden_states`), C numbers per token,
W tokens that the predictor sees of each: the token itself and some that follow it, X index sets that it scores for,
T consecutive tokens of each of R rows, P size of a summary.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from leanthink.models.fingerprint import fingerprint
from leanthink.models.predictor_compatibility import check_borrowing
from leanthink.models.tiny import predictors_path
from leanthink.policies.policy import GRANULARITIES, Granularity
from leanthink.utils.errors import DamagedFile, UsageError, unknown
from leanthink.utils.file_reading import (
    COUNT,
    COUNTS,
    NOT_NEGATIVE,
    OBJECT,
    SIZE,
    STRING,
    Kind,
    check_kinds,
    parse_json,
    reading,
)
from leanthink.utils.file_writing import replacing

VERSION = "2"
TARGETS = ("answer", "horizon")
Target = Literal["answer", "horizon"]
OFFSETS = (0, 1, 2, 4, 8, 12)
MOST_WIDTH = 1024
OLDER = {"granularity": "model", "num_sets": "1", "width": "null", "base_shape": "{}"}  # what files may leave out

SHAPE = ("layers", "kv_heads", "vocab_size")
KINDS = {
    "target": Kind(f"one of {', '.join(TARGETS)}", lambda given: given in TARGETS),
    "granularity": Kind(f"one of {', '.join(GRANULARITIES)}", lambda given: given in GRANULARITIES),
    "fingerprint": STRING,
    **dict.fromkeys(("horizons", "offsets"), COUNTS),
    **dict.fromkeys(("num_sets", "hidden_size"), SIZE),
    "width": SIZE.or_null(),
    "base_shape": Kind(f"empty, or an object of {', '.join(SHAPE)}", lambda given: _is_shape(given)),
    **dict.fromkeys(("data", "metrics"), OBJECT),
}
OF_DATA = {"thought_tokens": NOT_NEGATIVE, "tokens": COUNT, "traces": SIZE, "recipe": OBJECT}


def _kinds_of(data: Mapping[str, Any]) -> dict[str, Kind]:
    """Of what a file says of its data: all of it may be left out, but tokens are tokens of so many traces."""
    return {name: kind for name, kind in OF_DATA.items() if name in data or (name == "traces" and "tokens" in data)}


def _is_shape(given: object) -> bool:
    return isinstance(given, dict) and set(given) in (set(), set(SHAPE))


class AnswerHead(nn.Sequential):
    """The head of arXiv 2601.18383 on the final-norm hidden state: no biases, and a last Softplus keeps it positive."""

    def __init__(self, hidden_size: int) -> None:
        M = hidden_size
        layers = [[nn.Linear(a, b, bias=False), nn.Softplus()] for a, b in pairwise((M, 2 * M, M // 2, 1))]
        super().__init__(*chain(*layers))

    def forward(self, states_NWF: Tensor) -> Tensor:
        """Scores [N, 1]; W = 1, and only the final half of the states is read."""
        read_N = states_NWF[:, 0, : states_NWF.shape[-1] // 2]
        for layer in self:
            read_N = layer(read_N)
        return read_N


class HorizonHead(nn.Module):
    """One logit per horizon from both halves of the token's states, and a summary of the states that follow it.

    A number's first digit or its sign is written before it shows what the number is for; the tokens after it know.
    """

    def __init__(self, hidden_size: int, outputs: int, followers: int, *, width: int | None = None) -> None:
        super().__init__()
        F, width = 2 * hidden_size, width or 2 * hidden_size
        P = max(1, width // 4)
        self.mean_F, self.spread_F = nn.Buffer(torch.zeros(F)), nn.Buffer(torch.ones(F))  # of what it was fitted to
        self.own = nn.Linear(F, width)
        self.summary = nn.Linear(F, P, bias=False) if followers else None
        self.following = nn.Linear(followers * P, width, bias=False) if followers else None
        self.rest = nn.Sequential(nn.Softplus(), nn.Linear(width, P), nn.Softplus(), nn.Linear(P, outputs))

    @torch.no_grad()
    def standardise(self, states_SF: Tensor) -> None:
        """Measure mean and spread of the states that the head is to be fitted to, on a sample of them."""
        sample_SF = states_SF[:: max(1, len(states_SF) // 65536)].float()
        self.mean_F.copy_(sample_SF.mean(dim=0))
        self.spread_F.copy_(sample_SF.std(dim=0, correction=0).clamp(min=1e-6))

    def forward(self, states_NWF: Tensor) -> Tensor:
        """Logits [N, C]."""
        seen_NWF = (states_NWF - self.mean_F) / self.spread_F
        if self.summary is None:
            return self._logits(seen_NWF[:, 0], None)
        # Flattened to one product: a slice of three dims would be multiplied token by token.
        summary_MP = self.summary(seen_NWF[:, 1:].flatten(0, 1))
        return self._logits(seen_NWF[:, 0], summary_MP.view(len(seen_NWF), -1))

    def score_consecutive(self, states_TRF: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits [T - offsets[-1], R, C], each state standardised and summarised once, whoever sees it.

        With the tokens first, those that are scored lie next to one another and need not be copied for their product.
        """
        (T, R, _), scored = states_TRF.shape, len(states_TRF) - offsets[-1]
        seen_MF = (states_TRF.flatten(0, 1) - self.mean_F).div_(self.spread_F)
        summaries = None
        if self.summary is not None:
            summary_TRP = self.summary(seen_MF[offsets[1] * R :]).view(T - offsets[1], R, -1)
            firsts = [offset - offsets[1] for offset in offsets[1:]]
            summaries = torch.cat([summary_TRP[first : first + scored] for first in firsts], dim=-1).flatten(0, 1)
        return self._logits(seen_MF[: scored * R], summaries).view(scored, R, -1)

    def _logits(self, seen_NF: Tensor, summaries: Tensor | None) -> Tensor:
        """Of a token's own states, and the summaries of its followers side by side."""
        read_NX = self.own(seen_NF)
        if self.following is not None:
            read_NX = read_NX + self.following(summaries)
        logits_NC: Tensor = self.rest(read_NX)
        return logits_NC


class Predictor(nn.Module):
    """Scores every token by its states; a higher score means more important.

    `answer`: one number, the attention that the answer will pay the token. `horizon`: one logit for each horizon,
    sigmoid of which is the label of `leanthink.importance.labels`: how much tokens at least so far away will read it;
    with `num_sets` so many for each index set, those of one set side by side.

    Attributes:
        granularity: of the index sets: one for the whole model, one a layer, or one a kv head ("head").
        num_sets: X, how many these are.
        width: size of the first layer; None: twice the hidden size. It decides the size of the file.
        offsets: which tokens it sees of each: 0 the token itself, o the one written o tokens later. A token can be
            scored once the last of them is written, which is always before the first horizon.
        thought_tokens: mean thought of the traces that it was fitted to; None where its file does not say.
        borrowed_from: fingerprint of the model that it was fitted to, where it was loaded for another; else None.

    Raises:
        UsageError: an unknown target, horizons or following tokens given to `answer`, no horizons given to `horizon`,
            or offsets that do not begin with 0, ascend and stay below the first horizon.
    """

    thought_tokens: float | None = None
    borrowed_from: str | None = None

    def __init__(
        self,
        *,
        target: Target,
        hidden_size: int,
        horizons: tuple[int, ...] = (),
        offsets: tuple[int, ...] = (0,),
        granularity: Granularity = "model",
        num_sets: int = 1,
        width: int | None = None,
    ) -> None:
        super().__init__()
        if target not in TARGETS:
            raise unknown("predictor target", target, TARGETS)
        if (target == "horizon") != bool(horizons):
            raise UsageError(f"target {target!r} with horizons {list(horizons)}: only, and always, 'horizon' has them")
        if offsets[:1] != (0,) or any(a >= b for a, b in pairwise(offsets)):
            raise UsageError(f"offsets must ascend from 0, the token itself, got {list(offsets)}")
        if offsets[-1] >= (horizons or (1,))[0]:
            raise UsageError(
                f"offsets {list(offsets)} with horizons {list(horizons)}: offsets must stay below the first horizon, "
                "and 'answer' sees the token alone"
            )
        if granularity not in GRANULARITIES:
            raise unknown("granularity", granularity, GRANULARITIES)
        if num_sets < 1 or (num_sets > 1 and (granularity == "model" or target == "answer")):
            raise UsageError(f"num_sets={num_sets} with target {target!r} and granularity {granularity!r}: must be 1")
        self.target, self.hidden_size, self.horizons, self.offsets = target, hidden_size, horizons, offsets
        self.granularity, self.num_sets, self.width = granularity, num_sets, width
        self.head: nn.Module = (
            AnswerHead(hidden_size)
            if target == "answer"
            else HorizonHead(hidden_size, num_sets * len(horizons), followers=len(offsets) - 1, width=width)
        )

    def forward(self, states_NWF: Tensor) -> Tensor:
        """Scores [N, X C], in the weights' dtype, C = 1 for `answer` and one per horizon for `horizon`."""
        scores_NC: Tensor = self.head(states_NWF.to(next(self.parameters()).dtype))
        return scores_NC

    def score_consecutive(self, states_TRF: Tensor) -> Tensor:
        """Those of consecutive tokens, [T - offsets[-1], R, X C], of a predictor of target `horizon`."""
        assert isinstance(self.head, HorizonHead), "'answer' sees each token alone"
        return self.head.score_consecutive(states_TRF.to(next(self.parameters()).dtype), self.offsets)


def offsets_below(horizon: int) -> tuple[int, ...]:
    """The usual offsets, as many of them as stay below the first horizon."""
    return tuple(offset for offset in OFFSETS if offset < horizon)


def usual_width(hidden_size: int) -> int:
    """The usual width of the first layer: a larger one makes larger files and no better ranking."""
    return min(2 * hidden_size, MOST_WIDTH)


def save_predictor(
    predictor: Predictor,
    path: str | os.PathLike[str],
    *,
    base_fingerprint: str,
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
    base_shape: Mapping[str, int] | None = None,
) -> None:
    """Write the sidecar: bfloat16 weights, and as metadata what they were fitted on, to and with what result.

    `base_shape` is that of `leanthink.models.predictor_compatibility`, of the model that it was fitted to; None: not
    known.
    """
    path = Path(path)
    metadata = {
        "leanthink": "predictor",
        "version": VERSION,
        "target": predictor.target,
        "horizons": json.dumps(predictor.horizons),
        "offsets": json.dumps(predictor.offsets),
        "granularity": predictor.granularity,
        "num_sets": json.dumps(predictor.num_sets),
        "width": json.dumps(predictor.width),
        "hidden_size": str(predictor.hidden_size),
        "fingerprint": base_fingerprint,
        "base_shape": json.dumps(dict(base_shape or {})),
        "data": json.dumps(data, allow_nan=False),
        "metrics": json.dumps(metrics, allow_nan=False),
    }
    weights = {name: value.to("cpu", torch.bfloat16).contiguous() for name, value in predictor.state_dict().items()}
    with replacing(path) as draft:
        save_file(weights, draft, metadata=metadata)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a sidecar says about itself: version, target, horizons, offsets, hidden_size, fingerprint, data, metrics.

    Also granularity, num_sets, width, and base_shape, which is empty in older files.

    Raises:
        UsageError: no such file, a safetensors file that is no predictor, or another version.
        DamagedFile: truncated, or no safetensors file at all.
    """
    return _read(Path(path))[0]


def load_predictor(path: str | os.PathLike[str], model: Any, *, ignore_predictor_mismatch: bool = False) -> Predictor:
    """The predictor of a file, ready for this model: on its device, in its dtype on a GPU and in float32 on a CPU.

    With `ignore_predictor_mismatch` also one that was fitted to a relative of it: the same model in another precision,
    quantized, or lightly trained on. Whether it is one the caller must know; `borrowed_from` of the result then tells
    whose it is.

    Raises:
        UsageError: no such file, a safetensors file that is no predictor, or another version.
        DamagedFile: truncated, no safetensors file at all, or weights that do not fit its own metadata.
        PredictorMismatch: fitted for another model, or, where that is to be ignored, for one of another hidden size or
            vocabulary, or with other layers or kv heads than the index sets that it ranks.
    """
    ours = fingerprint(model)
    found = predictor_of(path, ours, model.config, ignore_predictor_mismatch=ignore_predictor_mismatch)
    return made_ready(found, model)


def load_shipped(policy: str, model: Any) -> Predictor | None:
    """The predictor that is shipped for this policy and this model, ready; None where there is none."""
    ours = fingerprint(model)
    path = shipped_predictor(policy, ours)
    return None if path is None else made_ready(predictor_of(path, ours, model.config), model)


def shipped_predictor(policy: str, ours: str) -> Path | None:
    """The file that is shipped for this policy and the model with this fingerprint; None where there is none."""
    path = predictors_path() / f"{policy}.safetensors"
    return path if path.is_file() and read_metadata(path)["fingerprint"] == ours else None


def predictor_of(
    path: str | os.PathLike[str], ours: str, config: Any, *, ignore_predictor_mismatch: bool = False
) -> Predictor:
    """The predictor of a file as it was fitted, for the model with this fingerprint and config.

    Errors are those of `load_predictor`.
    """
    path = Path(path)
    metadata, weights = _read(path)
    is_borrowed = metadata["fingerprint"] != ours
    if is_borrowed:
        check_borrowing(path, metadata, ours, config, ignored=ignore_predictor_mismatch)
    try:
        with torch.device("meta"):  # no memory for what its metadata may say, before the weights are seen to fit
            predictor = Predictor(
                target=metadata["target"],
                hidden_size=metadata["hidden_size"],
                horizons=tuple(metadata["horizons"]),
                offsets=tuple(metadata["offsets"]),
                granularity=metadata["granularity"],
                num_sets=metadata["num_sets"],
                width=metadata["width"],
            )
        predictor.load_state_dict(weights, assign=True)
        predictor.float()
    except (RuntimeError, UsageError) as error:
        raise DamagedFile(f"{path}: the weights do not fit its own metadata ({error})") from None
    predictor.thought_tokens = mean_thought(metadata["data"])
    predictor.borrowed_from = metadata["fingerprint"] if is_borrowed else None
    return predictor


def mean_thought(data: Mapping[str, Any]) -> float | None:
    """Mean thought of the traces that a predictor was fitted to, of what its file says of its `data`."""
    if "thought_tokens" in data:
        return float(data["thought_tokens"])
    sampled = data.get("recipe", {}).get("tokens_per_trace") is not None  # then `tokens` are not whole thoughts
    return None if sampled or "tokens" not in data else data["tokens"] / data["traces"]


def made_ready(predictor: Predictor, model: Any) -> Predictor:
    """The predictor on the model's device, frozen, in the model's dtype on a GPU and in float32 on a CPU."""
    dtype = model.dtype if model.device.type != "cpu" else torch.float32
    return predictor.to(model.device, dtype).eval().requires_grad_(False)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise UsageError(f"no predictor at {path}: fit one with `leanthink fit`")
    with reading(path, "safetensors file", "fit or download it again"), safe_open(str(path), framework="pt") as file:
        metadata: dict[str, Any] = file.metadata() or {}
        if metadata.get("leanthink") != "predictor":
            raise UsageError(f"{path} is a safetensors file but no predictor: fit one with `leanthink fit`")
        if metadata.get("version") != VERSION:
            version = metadata.get("version")
            raise UsageError(f"{path} has version {version}, this LeanThink reads {VERSION}: fit it again")
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        metadata = OLDER | metadata
        names = ("horizons", "offsets", "num_sets", "width", "hidden_size", "base_shape", "data", "metrics")
        metadata |= {name: parse_json(metadata[name]) for name in names}
        check_kinds(metadata, KINDS)
        check_kinds(metadata["base_shape"], dict.fromkeys(SHAPE if metadata["base_shape"] else (), SIZE))
        check_kinds(metadata["data"], _kinds_of(metadata["data"]))
    return metadata, weights
