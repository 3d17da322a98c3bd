"""Which policy is taken where none is named, in Python, on the command line and by the server, and what is said."""

from __future__ import annotations

import json
import shlex
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from leanthink.data.think_tags import think_tags
from leanthink.data.traces.trace import read_traces
from leanthink.engine.engine import Engine
from leanthink.engine.generation import generate, stream
from leanthink.engine.request import PolicyMaker
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints.openai.request_parsing import RequestParser
from leanthink.entrypoints.openai.settings import Settings
from leanthink.integrations.transformers import custom_generate
from leanthink.models.default_policy import default_policy, how_to_fit
from leanthink.models.loading import load
from leanthink.policies.budget import Budget
from leanthink.utils.errors import LeanThinkWarning
from models import make_model, make_tokenizer

BUDGET = Budget(slots=12, recent_window=4, eviction_interval=6)
SMALL = ["--budget", "12", "--recent-window", "4", "--eviction-interval", "6", "--max-new-tokens", "40"]


def said(err: str) -> list[str]:
    """The lines on standard error that say which policy was taken."""
    return [line for line in err.splitlines() if "no predictor" in line]


def test_the_default_is_the_fitted_policy_where_there_is_a_predictor_and_else_the_best_without(folder: Path) -> None:
    assert default_policy(load("tiny", device="cpu")[0], None) == "horizon"
    model, _ = load(folder, device="cpu")
    assert default_policy(model, None) == "r-kv"
    assert default_policy(model, folder / "own.safetensors") == "horizon"


def test_a_model_without_a_predictor_generates_at_once_and_is_told_how_one_is_fitted() -> None:
    model, tokenizer, short = make_model(), make_tokenizer(), Sampling(max_new_tokens=40)
    with pytest.warns(LeanThinkWarning, match="policy 'r-kv' ranks.*leanthink predictor --model MODEL"):
        (completion,) = generate(model, tokenizer, "hi", budget=BUDGET, sampling=short)
    with pytest.warns(LeanThinkWarning, match="r-kv"):
        *_, last = stream(model, tokenizer, "hi", budget=BUDGET, sampling=short)
    assert last.completion == completion
    expected = generate(model, tokenizer, "hi", policy="r-kv", budget=BUDGET, sampling=short)
    assert [completion] == expected
    engine = Engine(model, tokenizer, slots=100)
    with pytest.warns(LeanThinkWarning, match="r-kv"):
        engine.add("hi", budget=BUDGET, sampling=short)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.add("hi", budget=BUDGET, sampling=short)  # said once
    assert engine.step().finished == {}
    assert {policy.name for policy in engine.policies} == {"r-kv"}


def test_custom_generate_takes_the_same_default() -> None:
    model, ids = make_model(), torch.tensor([[1, 2, 3]])
    given: dict[str, Any] = {
        "custom_generate": custom_generate,
        "max_new_tokens": 30,
        "do_sample": False,
        "budget": BUDGET,
        "think_ids": think_tags(make_tokenizer()),
    }
    with pytest.warns(LeanThinkWarning, match="r-kv"):
        tokens = model.generate(ids, **given)
    assert tokens.tolist() == model.generate(ids, policy="r-kv", **given).tolist()


def test_a_policy_that_is_named_is_taken_without_a_word() -> None:
    short = Sampling(max_new_tokens=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(make_model(), make_tokenizer(), "hi", policy="r-kv", budget=BUDGET, sampling=short)


def test_the_default_may_stand_beside_named_policies() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    maker = PolicyMaker(model, tokenizer)
    with pytest.warns(LeanThinkWarning):
        assert maker.make(None, None).name == "r-kv"
    with pytest.warns(LeanThinkWarning):
        both = generate(
            model, tokenizer, ["hi", "hi"], policy=["sinks", None], budget=BUDGET, sampling=Sampling(max_new_tokens=40)
        )
    assert both[1].evictions > 0


def test_the_command_that_fits_a_predictor_is_understood(inside: Any) -> None:
    words = shlex.split(how_to_fit("a folder/model").partition("--predictor: ")[2])
    assert words[:2] == ["leanthink", "predictor"]
    assert words[words.index("--model") + 1] == "a folder/model"
    assert inside(*words[1:], "--help").code == 0


def test_the_command_line_says_in_one_line_which_policy_was_taken(folder: Path, inside: Any, tmp_path: Path) -> None:
    run = inside("generate", "hi", "--model", folder, *SMALL, "--trace", tmp_path / "t.jsonl")
    assert run.code == 0
    (line,) = said(run.err)
    assert line.startswith("leanthink: no predictor is fitted for this model: policy 'r-kv' ranks")
    assert f"leanthink predictor --model {folder}" in line
    assert read_traces(tmp_path / "t.jsonl")[0].policy == "r-kv"
    assert run.out == inside("generate", "hi", "--model", folder, *SMALL, "--policy", "r-kv").out
    fitted = inside("generate", "hi", "--model", folder, *SMALL, "--predictor", folder / "own.safetensors")
    assert said(fitted.err) == []


def test_eval_compares_the_default_with_the_full_cache(folder: Path, inside: Any, tmp_path: Path) -> None:
    asked = ["--tasks", "sums", "--levels", 1, "--count", 1, "--model", folder, "--max-new-tokens", 40]
    run: SimpleNamespace = inside("eval", *asked, "--budgets", "40", "--out", tmp_path / "run", "--json")
    assert run.code == 0, run.err
    assert len(said(run.err)) == 1
    document = json.loads(run.out)
    assert [cell["policy"] for cell in document["cells"]] == ["full", "r-kv"]
    assert document["settings"]["policies"] == ["full", "r-kv"]


def test_a_server_takes_the_default_and_still_offers_horizon_with_its_predictor(folder: Path) -> None:
    model, tokenizer = load(folder, device="cpu")
    with pytest.warns(LeanThinkWarning, match="r-kv"):
        parser = RequestParser(model, tokenizer, Settings(name="m"), largest=1000)
    assert parser.policy == "r-kv"
    assert "horizon" not in parser.policies
    own = Settings(name="m", predictor=folder / "own.safetensors")
    assert RequestParser(model, tokenizer, own, largest=1000).policy == "horizon"
    named = Settings(name="m", policy="sinks", predictor=folder / "own.safetensors")
    parser = RequestParser(model, tokenizer, named, largest=1000)
    assert (parser.policy, "horizon" in parser.policies) == ("sinks", True)


def test_help_names_the_policies_that_the_rule_takes(inside: Any) -> None:
    for command in ("generate", "serve"):
        assert "[horizon, r-kv where no predictor is fitted]" in " ".join(inside(command, "--help").out.split())
