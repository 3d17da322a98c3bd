"""A predictor that was fitted to one model and is used on a relative of it: only if asked for, told, and recorded."""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from command_line import refused
from leanthink.data.think_tags import think_tags
from leanthink.engine.engine import Engine
from leanthink.engine.generation import generate, stream
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints.openai.request_parsing import RequestParser
from leanthink.entrypoints.openai.run import make_engine
from leanthink.entrypoints.openai.settings import Settings
from leanthink.importance.dataset import gather, split_by_problem
from leanthink.importance.fit import fit
from leanthink.importance.fit_config import FitConfig
from leanthink.importance.inference_backend import LoadedModel
from leanthink.importance.label_file import label_traces, read_labels
from leanthink.importance.labels import unpacked
from leanthink.importance.rank_metrics import kendall_tau, top_overlap
from leanthink.integrations.transformers import custom_generate
from leanthink.models.fingerprint import fingerprint
from leanthink.models.loading import load
from leanthink.models.predictor import Predictor, load_predictor, read_metadata, save_predictor
from leanthink.models.predictor_compatibility import base_shape
from leanthink.policies.budget import Budget
from leanthink.utils.errors import LeanThinkWarning, PredictorMismatch, UsageError
from models import make_model, make_tokenizer
from recorded import HORIZONS, TRACES, small_model

BUDGET, SHORT = Budget(slots=12, recent_window=4, eviction_interval=6), Sampling(max_new_tokens=40)
SLOTS = ["--recent-window", 4, "--eviction-interval", 6, "--max-new-tokens", 40]
BORROWED = "borrowed from another model"
SCRIPTS = Path(__file__).parent.parent / "bench"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        import relatives

        return relatives


def written(path: Path, base: Any, **changes: Any) -> Path:
    """A predictor with random weights, as it would have been fitted to this model."""
    torch.manual_seed(1)
    shape: dict[str, Any] = {"target": "horizon", "horizons": (4, 16), "hidden_size": base.config.hidden_size}
    facts: dict[str, Any] = {"base_fingerprint": fingerprint(base), "base_shape": base_shape(base.config)}
    save_predictor(Predictor(**shape | changes), path, **facts, data={}, metrics={})
    return path


@pytest.fixture(scope="module")
def base() -> Any:
    return make_model()


@pytest.fixture(scope="module")
def relative(base: Any, script: ModuleType) -> Any:
    model = copy.deepcopy(base)
    assert script.round_weights(model) == 2 * 7
    return model


@pytest.fixture(scope="module")
def path(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("borrowed") / "p.safetensors", base)


@pytest.fixture(scope="module")
def relative_folder(folder: Path, script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved small model with rounded weights."""
    out = tmp_path_factory.mktemp("relative")
    script.main([str(folder), str(out), "--dtype", "float32"])
    return out


def test_weights_are_rounded_to_255_values_of_each_row(script: ModuleType) -> None:
    weight = torch.tensor([[127.0, -2.4, 0.6], [0.0, 0.0, 0.0]])
    assert script.in_eight_bits(weight).tolist() == [[127.0, -2.0, 1.0], [0.0, 0.0, 0.0]]


# -- one option ------------------------------------------------------------------------------------------------------


def test_a_relative_is_refused_by_default_and_the_message_names_the_way_out(
    base: Any, relative: Any, path: Path
) -> None:
    with pytest.raises(PredictorMismatch, match=r"--ignore-predictor-mismatch \(ignore_predictor_mismatch=True"):
        load_predictor(path, relative)
    borrowed = load_predictor(path, relative, ignore_predictor_mismatch=True)
    assert borrowed.borrowed_from == fingerprint(base)
    own = load_predictor(path, base, ignore_predictor_mismatch=True)
    assert own.borrowed_from is None
    hidden_states_NWF = torch.randn(3, 1, 128)
    assert torch.equal(borrowed(hidden_states_NWF), own(hidden_states_NWF))


@pytest.mark.parametrize(
    ("granularity", "sets", "changes", "message"),
    [
        ("model", 1, {"hidden_size": 128}, "hidden states of size 64, and this model's have 128"),
        ("model", 1, {"vocab_size": 400}, "a vocabulary of 300 tokens, and this one of 400"),
        (
            "layer",
            2,
            {"num_hidden_layers": 3},
            r"each layer, 2 in all \(2 layers of 2 kv heads\), and this model has 3 layers",
        ),
        ("head", 4, {"num_hidden_layers": 3}, r"each head, 4 in all .*, and this model has 3 layers of 2 kv heads"),
        ("head", 4, {"num_key_value_heads": 4}, "each head, 4 in all .*, and this model has 2 layers of 4 kv heads"),
        (
            "head",
            4,
            {"num_hidden_layers": 1, "num_key_value_heads": 4},  # as many sets, but others
            "each head, 4 in all .*, and this model has 1 layers of 4 kv heads",
        ),
    ],
)
def test_a_model_of_another_shape_is_no_relative_whatever_is_ignored(
    granularity: Any, sets: int, changes: dict[str, int], message: str, base: Any, tmp_path: Path
) -> None:
    file, other = written(tmp_path / "p", base, granularity=granularity, num_sets=sets), make_model(**changes)
    for ignored in (False, True):
        with pytest.raises(PredictorMismatch, match=f"no relative of it: .*{message}") as caught:
            load_predictor(file, other, ignore_predictor_mismatch=ignored)
        assert "mismatch" not in str(caught.value), "the option would not help"


def test_padding_other_depths_of_a_shared_set_and_older_files_are_borrowed(base: Any, tmp_path: Path) -> None:
    shared = written(tmp_path / "shared", base)
    for changes in ({"vocab_size": 302}, {"num_hidden_layers": 3}, {"num_key_value_heads": 4}):
        assert load_predictor(shared, make_model(**changes), ignore_predictor_mismatch=True).borrowed_from
    heads = written(tmp_path / "heads", base, granularity="head", num_sets=4)
    with safe_open(str(heads), framework="pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    assert json.loads(metadata.pop("base_shape")) == {"layers": 2, "kv_heads": 2, "vocab_size": 300}
    save_file(weights, tmp_path / "older", metadata=metadata)
    assert read_metadata(tmp_path / "older")["base_shape"] == {}
    other = make_model(vocab_size=400)
    assert load_predictor(tmp_path / "older", other, ignore_predictor_mismatch=True).borrowed_from
    with pytest.raises(PredictorMismatch, match="4 in all, and this model has 3 layers"):
        load_predictor(tmp_path / "older", make_model(num_hidden_layers=3), ignore_predictor_mismatch=True)


def test_every_way_to_generate_takes_the_option_and_says_that_the_predictor_is_borrowed(
    base: Any, relative: Any, path: Path
) -> None:
    tokenizer = make_tokenizer()
    given: dict[str, Any] = {"policy": "horizon", "budget": BUDGET, "predictor": path}
    ignoring = {"ignore_predictor_mismatch": True}
    in_transformers = {
        "custom_generate": custom_generate,
        "max_new_tokens": 40,
        "do_sample": False,
        "think_ids": think_tags(tokenizer),
    }
    ids = torch.tensor([tokenizer("hi").input_ids])
    engine = Engine(relative, tokenizer, slots=200)
    ways: list[Any] = [
        lambda **more: generate(relative, tokenizer, "hi", sampling=SHORT, **given, **more),
        lambda **more: list(stream(relative, tokenizer, "hi", sampling=SHORT, **given, **more)),
        lambda **more: engine.add("hi", sampling=SHORT, **given, **more),
        lambda **more: relative.generate(ids, **in_transformers, **given, **more),
    ]
    for way in ways:
        with pytest.raises(PredictorMismatch):
            way()
        with pytest.warns(LeanThinkWarning, match=f"{BORROWED}.*leanthink fit --compare {path}"):
            way(**ignoring)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(base, tokenizer, "hi", sampling=SHORT, **given, **ignoring)  # its own: nothing to say


def test_what_is_borrowed_stands_among_what_decides_the_results(base: Any, relative: Any, path: Path) -> None:
    predictors: dict[str | None, Any] = {"full": None, None: path}
    with pytest.raises(PredictorMismatch):
        LoadedModel(relative, None, predictors)
    with pytest.warns(LeanThinkWarning, match=BORROWED):
        about = LoadedModel(relative, None, predictors, ignore_predictor_mismatch=True).model_info
    assert about.borrowed == {"horizon": fingerprint(base)}
    own = LoadedModel(base, None, predictors, ignore_predictor_mismatch=True).model_info
    assert own.borrowed == {}
    assert own.predictors == about.predictors


def test_a_server_offers_a_borrowed_predictor(relative_folder: Path, folder: Path) -> None:
    model, tokenizer = load(relative_folder, device="cpu")
    given: dict[str, Any] = {"name": "m", "predictor": folder / "own.safetensors"}
    with pytest.raises(PredictorMismatch):
        RequestParser(model, tokenizer, Settings(**given), largest=1000)
    with pytest.warns(LeanThinkWarning, match=BORROWED):
        parser = RequestParser(model, tokenizer, Settings(**given, ignore_predictor_mismatch=True), largest=1000)
    assert parser.policy == "horizon"


def test_a_server_begins_with_a_borrowed_predictor_and_says_so_once(relative_folder: Path, folder: Path) -> None:
    model, tokenizer = load(relative_folder, device="cpu")
    given: dict[str, Any] = {"name": "m", "predictor": folder / "own.safetensors", "kv_gib": 0.001}
    with pytest.raises(PredictorMismatch):
        make_engine(model, tokenizer, Settings(**given))
    settings = Settings(**given, ignore_predictor_mismatch=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", LeanThinkWarning)  # as the command line has it
        engine = make_engine(model, tokenizer, settings)
        RequestParser(model, tokenizer, settings, largest=engine.cache.allocator.max_allocation)
    assert [BORROWED in str(one.message) for one in caught] == [True]


def test_the_command_line_says_in_one_line_that_a_predictor_is_borrowed(
    relative_folder: Path, folder: Path, inside: Any
) -> None:
    asked = ["generate", "hi", "--model", relative_folder, "--budget", 12, *SLOTS]
    given = ["--predictor", folder / "own.safetensors"]
    refused(inside(*asked, *given), 2, "own.safetensors", "--ignore-predictor-mismatch")
    run = inside(*asked, *given, "--ignore-predictor-mismatch")
    assert run.code == 0, run.err
    assert len([line for line in run.err.splitlines() if BORROWED in line]) == 1


def test_an_evaluation_records_what_was_borrowed(
    relative_folder: Path, folder: Path, inside: Any, tmp_path: Path
) -> None:
    asked = ["eval", "--tasks", "sums", "--levels", 1, "--count", 1, "--budgets", 40, *SLOTS]
    given = ["--predictor", folder / "own.safetensors", "--ignore-predictor-mismatch", "--json"]
    run = inside(*asked, "--model", relative_folder, *given, "--out", tmp_path / "relative")
    assert run.code == 0, run.err
    assert len([line for line in run.err.splitlines() if BORROWED in line]) == 1
    wanted = {"horizon": read_metadata(folder / "own.safetensors")["fingerprint"]}
    for name in ("run.json", "result.json"):
        settings = json.loads((tmp_path / "relative" / name).read_text())["settings"]
        assert settings["borrowed_predictors"] == wanted
    own = inside(*asked, "--model", folder, *given, "--out", tmp_path / "own")
    assert own.code == 0, own.err
    assert "borrowed_predictors" not in json.loads(own.out)["settings"]


def test_traces_are_collected_under_a_borrowed_predictor(
    relative_folder: Path, folder: Path, inside: Any, tmp_path: Path
) -> None:
    asked = ["collect", "--tasks", "sums", "--levels", 1, "--count", 1, "--policy", "horizon", "--budget", 12, *SLOTS]
    given = ["--model", relative_folder, "--predictor", folder / "own.safetensors", "--out", tmp_path / "t.jsonl"]
    refused(inside(*asked, *given), 2, "--ignore-predictor-mismatch")
    run = inside(*asked, *given, "--ignore-predictor-mismatch", "--json")
    assert json.loads(run.out)["written"] == 1
    assert BORROWED in run.err


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "hi"],
        ["serve"],
        ["collect", "--tasks", "sums", "--out", "OUT"],
        ["eval", "--tasks", "sums", "--out", "OUT"],
        ["train", "--tasks", "sums", "--out", "OUT"],
    ],
)
def test_the_option_without_a_predictor_is_refused_before_a_model_is_loaded(
    words: list[str], inside: Any, tmp_path: Path
) -> None:
    asked = [str(tmp_path / "out") if word == "OUT" else word for word in words]
    refused(inside(*asked, "--model", tmp_path, "--ignore-predictor-mismatch"), 2, "predictor", "leave it out")


# -- what it is worth ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_of_traces() -> Any:
    return small_model()


@pytest.fixture(scope="module")
def relative_of_traces(base_of_traces: Any, script: ModuleType) -> Any:
    model = copy.deepcopy(base_of_traces)
    script.round_weights(model)
    return model


def labelled(model: Any, path: Path, granularity: Any) -> Any:
    label_traces(model, TRACES, path, horizons=HORIZONS, granularity=granularity)
    return read_labels(path)


def by_hand(predictor: Predictor, model: Any, labels: Any, recipe: FitConfig, horizon: int) -> dict[str, float]:
    """Loss and ranking at one horizon on the held-out traces, one trace, index set and token at a time."""
    _, held_out = split_by_problem(TRACES, share=recipe.val_share, seed=recipe.seed)
    losses, taus, tops = [], [], []
    for one in held_out:
        (seen,) = gather(model, [one], labels, offsets=predictor.offsets, tokens_per_trace=None, seed=0)
        counted = [t for t in range(one.thought_tokens) if len(one.token_ids) - 1 - t >= horizon]
        logits_TXC = predictor(seen.states_NF[seen.seen_TW]).unflatten(1, (predictor.num_sets, -1))
        each = []
        for index in range(predictor.num_sets):
            if predictor.granularity == "model":
                wanted_T = labels.labels[one.key][:, 1 + HORIZONS.index(horizon)]
            else:
                wanted_T = unpacked(labels.sets[one.key][index, :, HORIZONS.index(horizon)])
            logits_T = logits_TXC[:, index, predictor.horizons.index(horizon)]
            said, truth = logits_T[counted].tolist(), wanted_T[counted].tolist()
            each.append(nn.functional.binary_cross_entropy_with_logits(logits_T[counted], wanted_T[counted]).item())
            tau = kendall_tau(said, truth)
            assert tau is not None
            taus.append(tau)
            tops.append(top_overlap(said, truth, 0.3))
        losses.append(fmean(each))
    return {"loss": fmean(losses), "kendall_tau": fmean(taus), "top_30%": fmean(tops)}


@pytest.mark.parametrize("granularity", ["model", "head"])
def test_a_borrowed_predictor_is_measured_beside_a_fresh_one_on_the_same_held_out_traces(
    granularity: Any, base_of_traces: Any, relative_of_traces: Any, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"granularity": granularity, "width": 16, "batch": 64, "val_share": 0.4}
    # The borrowed one has another horizon more, and sees other tokens.
    old = FitConfig(**how, steps=60, offsets=(0, 1), seed=5)
    fit(base_of_traces, TRACES, labelled(base_of_traces, tmp_path / "l", granularity), old, out_path=tmp_path / "old")
    labels = labelled(relative_of_traces, tmp_path / "m", granularity)
    fresh = FitConfig(**how, steps=20, horizons=(8,), offsets=(0, 3))
    alone = fit(relative_of_traces, TRACES, labels, fresh)
    fitted = fit(relative_of_traces, TRACES, labels, fresh, out_path=tmp_path / "new", compare=tmp_path / "old")
    compared = fitted.metrics["compared"]
    assert {name: value for name, value in fitted.metrics.items() if name != "compared"} == alone.metrics
    assert read_metadata(tmp_path / "new")["metrics"]["compared"] == compared
    assert (compared["file"], compared["horizons"]) == ("old", [8])
    assert compared["fingerprint"] == fingerprint(base_of_traces)
    assert compared["fresh"]["ranking"] == fitted.metrics["ranking"]
    borrowed = load_predictor(tmp_path / "old", relative_of_traces, ignore_predictor_mismatch=True)
    for name, predictor in (("fresh", fitted.predictor), ("other", borrowed)):
        wanted = by_hand(predictor, relative_of_traces, labels, fresh, 8)
        assert compared[name]["held_out_loss"] == pytest.approx(wanted["loss"], rel=1e-4)
        for key in ("kendall_tau", "top_30%"):
            assert compared[name]["ranking"]["8"][key] == pytest.approx(wanted[key], abs=1e-6)
    assert 0 <= compared["agreement"]["8"]["top_20%"] < 1
    assert compared["agreement"]["8"]["traces"] == fitted.metrics["held_out_traces"]


def test_a_predictor_compared_with_itself_is_as_good_and_agrees(base_of_traces: Any, tmp_path: Path) -> None:
    labels = labelled(base_of_traces, tmp_path / "l", "model")
    for target in ("horizon", "answer"):
        recipe, file = FitConfig(target=target, steps=20, batch=64, val_share=0.4), tmp_path / target
        fit(base_of_traces, TRACES, labels, recipe, out_path=file)
        compared = fit(base_of_traces, TRACES, labels, recipe, compare=file).metrics["compared"]
        assert compared["fresh"] == compared["other"]
        for shares in compared["agreement"].values():
            assert (shares["top_20%"], shares["top_30%"]) == (1, 1)
            assert shares["traces"] == 4
        assert not math.isnan(compared["fresh"]["held_out_loss"])


def test_what_cannot_be_compared_is_refused_before_anything_is_read(base_of_traces: Any, tmp_path: Path) -> None:
    labels = labelled(base_of_traces, tmp_path / "l", "head")
    file = written(tmp_path / "p", base_of_traces)
    read: list[Any] = []
    for recipe, message in (
        (
            FitConfig(granularity="model", horizons=(2,), steps=1),
            r"the horizons \[4, 16\], this fit \[2\], and none is",
        ),
        (FitConfig(granularity="head", steps=1), "has granularity 'model', this fit 'head'"),
        (FitConfig(target="answer", steps=1), "has target 'horizon', this fit 'answer'"),
        (FitConfig(granularity="model", steps=1, val_share=0), "val_share=0 holds none out"),
    ):
        with pytest.raises(UsageError, match=message):
            fit(base_of_traces, TRACES, labels, recipe, compare=file, progress=lambda *now: read.append(now))
    scaled = tmp_path / "scaled"
    fit(
        base_of_traces, TRACES, labels, FitConfig(target="answer", transform="scale", steps=1, batch=8), out_path=scaled
    )
    with pytest.raises(UsageError, match="has transform 'scale', this fit 'power'"):
        fit(base_of_traces, TRACES, labels, FitConfig(target="answer", steps=1), compare=scaled)
    stranger = written(tmp_path / "stranger", make_model(hidden_size=128))
    with pytest.raises(PredictorMismatch, match="hidden states of size 128"):
        fit(base_of_traces, TRACES, labels, FitConfig(granularity="model", steps=1), compare=stranger)
    assert read == []


def test_the_command_prints_both_side_by_side(relative_folder: Path, folder: Path, inside: Any, tmp_path: Path) -> None:
    traces, labels = tmp_path / "t.jsonl", tmp_path / "l.safetensors"
    on = ["--model", relative_folder, "--json"]
    sampled = ["--tasks", "multiply", "--levels", "1,2", "--count", 2, "--temperature", 1, "--max-new-tokens", 40]
    assert inside("collect", *sampled, "--out", traces, *on).code == 0
    assert inside("label", "--traces", traces, "--horizons", "4,16", "--all", "--out", labels, *on).code == 0
    recipe = ["--traces", traces, "--labels", labels, "--all", "--steps", 5, "--batch", 64, "--val-share", 0.5]
    recipe += ["--granularity", "model", "--model", relative_folder, "--out", tmp_path / "p.safetensors", "--overwrite"]
    refused(inside("fit", *recipe, "--compare", tmp_path / "nowhere"), 2, "no predictor at")
    borrowed = folder / "own.safetensors"
    run = inside("fit", *recipe, "--compare", borrowed)
    assert run.code == 0, run.err
    assert "borrowed from" not in run.err
    document = json.loads(inside("fit", *recipe, "--compare", borrowed, "--json").out)["metrics"]["compared"]
    assert document["file"] == "own.safetensors"
    lines = run.out.splitlines()
    assert f"{document['other']['held_out_loss']:.5f} own.safetensors" in run.out
    (head,) = [at for at, line in enumerate(lines) if line.split()[:2] == ["predictor", "kendall_tau"]]
    rows = [line.split() for line in lines[head + 1 :]]
    assert [row[0] for row in rows] == ["4"] * 3 + ["16"] * 3
    assert rows[1][1:] == [
        "own.safetensors",
        *(f"{document['other']['ranking']['4'][key]:.3f}" for key in ("kendall_tau", "top_20%", "top_30%")),
    ]
    assert rows[2][1:] == ["agreement", "–", *(f"{document['agreement']['4'][k]:.3f}" for k in ("top_20%", "top_30%"))]
