"""Another predictor beside a fresh one: what a borrowed or an older one is worth on the same held-out traces."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leanthink.importance.dataset import Examples
from leanthink.importance.fit_config import FitConfig
from leanthink.importance.held_out_metrics import TOP_SHARES, mean_of, measure, of_horizons, ranked, scores
from leanthink.importance.rank_metrics import top_overlap
from leanthink.models.predictor import Predictor, predictor_of, read_metadata
from leanthink.utils.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Other:
    """A predictor to compare with, and what is said of it in the result.

    Attributes:
        predictor: on the device that it is measured on, in float32 as fresh ones are measured.
        horizons: those that it has in common with the config of the fresh one; None of target "answer".
        about: its file's name, and the name and fingerprint of the model that it was fitted to.
    """

    predictor: Predictor
    horizons: tuple[int, ...] | None
    about: dict[str, Any]


def read_compared(path: str | os.PathLike[str], model: Any, ours: str, config: FitConfig) -> Other:
    """The predictor of a file, to be compared with one that is fitted by this config, its horizons spelt out.

    Args:
        path: of its file.
        model: the model that is fitted to.
        ours: its fingerprint.
        config: of the fresh one.

    Raises:
        UsageError: the two measure different things, or the config holds nothing out to measure them on; or as
            `load_predictor`.
        PredictorMismatch: it does not fit this model.
        DamagedFile: as of `load_predictor`.
    """
    if not config.val_share:
        raise UsageError("predictors are compared on held-out traces, and val_share=0 holds none out: leave it out")
    predictor = predictor_of(path, ours, model.config, ignore_predictor_mismatch=True)
    metadata = read_metadata(path)
    transform = metadata["data"].get("recipe", {}).get("transform", config.transform)
    facts = {
        "target": (predictor.target, config.target),
        "granularity": (predictor.granularity, config.granularity),
        "transform": (transform if config.target == "answer" else config.transform, config.transform),
    }
    for name, (theirs, fresh) in facts.items():
        if theirs != fresh:
            raise UsageError(f"{path} has {name} {theirs!r}, this fit {fresh!r}: fit with {name} {theirs!r} to compare")
    common = tuple(horizon for horizon in config.horizons or () if horizon in predictor.horizons)
    if config.horizons and not common:
        raise UsageError(
            f"{path} has the horizons {list(predictor.horizons)}, this fit {list(config.horizons)}, and none is in "
            "both: fit some of the same to compare"
        )
    return Other(
        predictor=predictor.to(model.device).eval().requires_grad_(False),
        horizons=common or None,
        about={
            "file": Path(path).name,
            "model": metadata["data"].get("model"),
            "fingerprint": metadata["fingerprint"],
            "horizons": list(common),
        },
    )


def compare_with(
    other: Other, other_examples: Sequence[Examples], fresh: Predictor, examples: Sequence[Examples], config: FitConfig
) -> dict[str, Any]:
    """Both predictors on the same held-out tokens, at the horizons that both have.

    Args:
        other: as of `read_compared`.
        other_examples: the held-out traces as the other predictor sees their tokens.
        fresh: the predictor of the config.
        examples: the same traces as it sees them.
        config: its config, which says the horizons that both examples are labelled for.

    Returns:
        What the other is, loss and ranking of each ("fresh", "other"), and by channel how much of the top shares of
        one the other has ("agreement").
    """
    at = replace(config, horizons=other.horizons)
    seen, other_seen = (_labelled_for(given, config, at) for given in (examples, other_examples))
    measured = {"fresh": measure(fresh, seen, at), "other": measure(other.predictor, other_seen, at)}
    agreement: dict[str, list[list[dict[str, float]]]] = {name: [] for name in measured["fresh"]["ranking"]}
    for one, as_other in zip(seen, other_seen, strict=True):
        for of_traces in agreement.values():
            of_traces.append([])
        for name, first, second in ranked(one, at, scores(fresh, one, at), scores(other.predictor, as_other, at)):
            shares = {f"top_{share:.0%}": top_overlap(first, second, share) for share in TOP_SHARES if first}
            agreement[name][-1] += [shares] if shares else []
    return {
        **other.about,
        **{name: {key: found[key] for key in ("held_out_loss", "ranking")} for name, found in measured.items()},
        "agreement": {name: mean_of(found) for name, found in agreement.items()},
    }


def _labelled_for(examples: Sequence[Examples], config: FitConfig, at: FitConfig) -> list[Examples]:
    known, wanted = config.horizons or (), at.horizons or ()
    return [replace(one, labels_TY=of_horizons(one.labels_TY, known, wanted)) for one in examples]
