"""Where answers begin that no think tag announces: among tokens, in labels, in a fit and on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from command_line import refused
from leanthink.data.traces.trace import Trace, read_traces, to_line
from leanthink.importance.answer_start import AnswerFrom, as_answer_from, check_answer_from, with_answers
from leanthink.importance.dataset import gather, usable
from leanthink.importance.fit import fit
from leanthink.importance.fit_config import FitConfig
from leanthink.importance.inference_backend import LoadedModel
from leanthink.importance.label_file import label_traces, read_labels
from leanthink.models.tiny.tokenizer import byte_symbols
from leanthink.utils.errors import UsageError
from models import END, make_model
from recorded import HORIZONS, trace
from reference.labels_slow import label_trace_slow
from test_tags import TEMPLATE, bytes_of
from test_tags import make_tokenizer as make_byte_tokenizer

ALPHABET = "ab \\b答案é🙂}{"


def byte_level() -> Any:
    """A byte-level BPE with tokens that end in one character and begin in the next, as trained ones have them."""
    signs = byte_symbols()
    pairs = [b"\x94\xe6", b"\x88\xe7", b"\x82\xc3", b"\xa9\\", b" \xe7", b"\x99\x82", b" \\", b"\\b", b"ab", b"b}"]
    merges = [(signs[first], signs[second]) for first, second in pairs]
    vocabulary = {piece: index for index, piece in enumerate([*signs, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def byte_fallback() -> Any:
    """As of SentencePiece: blanks are signs, the first is cut off, and unknown characters are a token for each byte."""
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"ab\\}{答", "▁a", "\\b", "ab"]
    merges = [("▁", "a"), ("\\", "b"), ("a", "b")]
    vocabulary = {piece: index for index, piece in enumerate(["<|end|>", *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}


def written(kind: str, text: str) -> Trace:
    """A trace of all this text and the end token."""
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    shown = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    ids = (*ids, tokenizer.eos_token_id)
    return trace("t", token_ids=ids, text=shown, thought_tokens=len(ids), answer_tokens=0)


def bytes_of_token(kind: str, token: int) -> int:
    sign = TOKENIZERS[kind].convert_ids_to_tokens(token)
    if kind == "byte level":
        return len(sign)  # a sign stands for each byte
    return 1 if sign.startswith("<0x") else len(sign.replace("▁", " ").encode())


def start_slow(kind: str, one: Trace, text: str) -> int | None:
    """Count bytes, token by token, up to the one that holds the first byte of the last occurrence."""
    at = one.text.rfind(text)
    if at < 0:
        return None
    first = len(one.text[:at].encode())
    if kind == "byte fallback":
        first += 1  # the blank that is cut off
    for index, token in enumerate(one.token_ids):
        first -= bytes_of_token(kind, token)
        if first < 0:
            return index
    raise AssertionError


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=st.text(ALPHABET, max_size=40), sought=st.text(ALPHABET, min_size=1, max_size=3))
def test_an_answer_begins_with_the_token_that_holds_the_first_byte_of_its_last_text(
    kind: str, text: str, sought: str
) -> None:
    one = written(kind, text)
    expected = start_slow(kind, one, sought)
    found = with_answers([one], sought, TOKENIZERS[kind])
    assert [each.thought_tokens for each in found] == ([] if expected is None else [expected])
    for each in found:
        assert each == replace(one, thought_tokens=expected, answer_tokens=len(one.token_ids) - (expected or 0))


def test_a_token_that_only_ends_in_the_text_is_the_first_of_the_answer() -> None:
    tokenizer = make_byte_tokenizer(pieces=(" so \\", "boxed"))
    ids = (*bytes_of("\\boxed"), 260, 261, *bytes_of("{4}"), END)
    one = trace("t", token_ids=ids, text="\\boxed so \\boxed{4}", thought_tokens=len(ids), answer_tokens=0)
    assert tokenizer.decode(ids[:-1]) == one.text
    assert [each.thought_tokens for each in with_answers([one], "\\boxed", tokenizer)] == [6]
    assert [each.thought_tokens for each in with_answers([one], "\\boxed so", tokenizer)] == [0]
    assert [each.thought_tokens for each in with_answers([one], "{", tokenizer)] == [8]
    cut = replace(one, text=one.text[: -len("4}")])  # the stop string is generated, and not in the text
    assert [each.thought_tokens for each in with_answers([cut], "\\boxed", tokenizer)] == [6]
    assert with_answers([cut], "4", tokenizer) == []


@pytest.mark.parametrize(
    ("tokens", "share", "start"),
    [(10, 0.9, 9), (100, 0.29, 29), (3, 0.5, 2), (3, 0.9, None), (3, 0.1, 0), (0, 0.5, None)],
)
def test_an_answer_begins_after_a_share_of_the_tokens(tokens: int, share: float, start: int | None) -> None:
    one = trace("t", thought=tokens, answer=0)
    found = with_answers([one], share, None)
    assert [each.thought_tokens for each in found] == ([] if start is None else [start])


@pytest.mark.parametrize(
    ("text", "meant"), [("\\boxed", "\\boxed"), (" 0.9", 0.9), ("nan", "nan"), ("1/2", "1/2"), (" ", " ")]
)
def test_a_number_on_the_command_line_is_a_share_and_all_else_a_text(text: str, meant: AnswerFrom) -> None:
    assert as_answer_from(text) == meant


@pytest.mark.parametrize("text", ["", "0", "1", "1.0", "-0.5", "90", "inf"])
def test_no_answer_begins_at_an_empty_text_or_outside_the_trace(text: str) -> None:
    with pytest.raises(UsageError, match=r"such as \\boxed, or a share .* above 0 and below 1"):
        as_answer_from(text)


def test_a_number_is_a_text_where_it_is_given_as_one() -> None:
    assert check_answer_from("42") == "42"


def test_traces_with_an_answer_of_their_own_or_of_other_tokens_are_refused() -> None:
    one, tokenizer = written("byte level", "ab \\boxed{4}"), TOKENIZERS["byte level"]
    with pytest.raises(UsageError, match="1 of 2 traces, the first 'own#0', have an answer of their own"):
        with_answers([one, trace("own")], 0.9, None)
    with pytest.raises(UsageError, match="'t#0' is not what this tokenizer makes of its tokens"):
        with_answers([replace(one, text="ba \\boxed{4}")], "\\boxed", tokenizer)
    with pytest.raises(UsageError, match="takes the tokenizer"):
        with_answers([one], "\\boxed", None)


# -- labels and fits ---------------------------------------------------------------------------------------------------

PROBLEMS = {f"p{n}": f"ab {'ab é' * n}答案 \\boxed{{4}} or \\boxed{{{'ab' * n}}}" for n in range(2, 8)}
BOXED = [replace(written("byte level", text), id=name) for name, text in PROBLEMS.items()]
ODD = [
    replace(written("byte level", "\\boxed at once"), id="at once"),
    replace(written("byte level", "never"), id="never"),
]


@pytest.fixture(scope="module")
def backend() -> LoadedModel:
    return LoadedModel(make_model(vocab_size=340), TOKENIZERS["byte level"], {})


def test_labels_are_of_what_the_answer_from_there_on_reads(backend: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    counts = label_traces(None, [*BOXED, *ODD], path, horizons=HORIZONS, answer_from="\\boxed", backend=backend)
    assert (counts.labelled, counts.no_thought, counts.no_answer_start, counts.no_answer) == (6, 1, 1, 0)
    found = read_labels(path)
    assert found.answer_from == "\\boxed"
    assert set(found.labels) == {one.key for one in BOXED}
    for one in BOXED[:3]:
        start, prompt = start_slow("byte level", one, "\\boxed"), len(one.prompt_ids)
        assert start is not None
        ids = [*one.prompt_ids, *one.token_ids]
        slow_TC = torch.tensor(label_trace_slow(backend.model, ids, prompt, prompt + start, HORIZONS, 0))
        labels_TC = found.of(one)
        assert labels_TC is not None
        torch.testing.assert_close(labels_TC, slow_TC, rtol=1e-4, atol=1e-6)


def test_a_file_of_labels_is_resumed_only_from_the_same_start(backend: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"

    def label(traces: list[Trace], answer_from: AnswerFrom | None) -> Any:
        return label_traces(None, traces, path, horizons=HORIZONS, answer_from=answer_from, backend=backend)

    label(BOXED[:2], "\\boxed")
    before = path.read_bytes()
    for other in (0.9, "or", None):
        with pytest.raises(UsageError, match=r"answer_from '\\\\boxed', asked for is .*: give another file"):
            label(BOXED, other)
    with pytest.raises(UsageError, match="have an answer of their own"):
        label([*BOXED, trace("own")], "\\boxed")
    assert path.read_bytes() == before
    again = label([*BOXED, *ODD], "\\boxed")
    assert (again.labelled, again.done_before, again.no_thought, again.no_answer_start) == (4, 2, 1, 1)


@pytest.mark.parametrize("answer_from", ["\\boxed", 0.8])
@pytest.mark.parametrize("target", ["answer", "horizon"])
def test_a_fit_reads_where_thoughts_end_from_their_labels(
    target: Any, answer_from: AnswerFrom, backend: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "l.safetensors"
    label_traces(None, BOXED, path, horizons=HORIZONS, answer_from=answer_from, backend=backend)
    labels = read_labels(path)
    split = with_answers(BOXED, answer_from, backend.tokenizer)
    kept = usable([*BOXED, *ODD], labels, only_correct=True, need_answer=target == "answer")
    assert kept == split
    (first, *_) = gather(backend.model, kept[:1], labels, offsets=(0,), tokens_per_trace=None, seed=0)
    assert len(first.states_NF) == len(first.labels_TY) == split[0].thought_tokens
    # Later tokens still read them, those of the answer too.
    assert first.tokens_after_T.tolist() == list(range(len(BOXED[0].token_ids)))[::-1][: split[0].thought_tokens]
    fitted = fit(backend.model, BOXED, labels, FitConfig(target=target, steps=5, batch=16, val_share=0))
    assert fitted.data["tokens"] == sum(one.thought_tokens for one in split)
    assert fitted.data["answer_from"] == answer_from
    # What runs will be ranked of: a model without tags never ends its thought.
    assert fitted.predictor.thought_tokens == sum(len(one.token_ids) for one in BOXED) / len(BOXED)


def test_a_fit_without_answers_says_how_to_give_them_one(backend: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    label_traces(None, BOXED, path, horizons=HORIZONS, backend=backend)
    with pytest.raises(UsageError, match=r"6 without answer; .* with answer_from where the model writes no think tags"):
        fit(backend.model, BOXED, read_labels(path), FitConfig(target="answer"))


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random model whose tokenizer has no think tags."""
    folder: Path = tmp_path_factory.mktemp("tagless")
    make_model().save_pretrained(folder)
    make_byte_tokenizer(template=TEMPLATE, pieces=()).save_pretrained(folder)
    return folder


def test_dynts_of_a_model_without_tags_is_labelled_fitted_and_run(tagless: Path, inside: Any, tmp_path: Path) -> None:
    traces, labels, out = tmp_path / "t.jsonl", tmp_path / "l.safetensors", tmp_path / "p.safetensors"
    common = ["--model", tagless]
    sampled = ["--tasks", "multiply", "--levels", 1, "--count", 2, "--samples", 2, "--temperature", 1]
    assert inside("collect", *sampled, "--max-new-tokens", 40, "--out", traces, *common).code == 0
    assert {one.answer_tokens for one in read_traces(traces)} == {0}
    label = ["label", "--traces", traces, "--all", "--horizons", "4,16", *common, "--out"]
    result = inside(*label, tmp_path / "none")
    assert result.out.rstrip().endswith("0 not correct, 0 without a thought; 4 of the new ones have no answer")
    result = inside(*label, labels, "--answer-from", "0.8")
    assert result.out == (f"4 labelled traces in {labels} (4 new); left out: 0 not correct, 0 without a thought\n")
    refused(inside(*label, labels, "--answer-from", "0.7", "--resume"), 2, "answer_from 0.8, asked for is 0.7")
    recipe = ["--target", "answer", "--all", "--steps", 5, "--batch", 16, "--val-share", 0]
    result = inside("fit", "--traces", traces, "--labels", labels, *recipe, "--out", out, *common, "--json")
    assert json.loads(result.out)["data"]["answer_from"] == 0.8
    budget = ["--policy", "dynts", "--predictor", out, "--budget", 12, "--recent-window", 4, "--eviction-interval", 6]
    done = tmp_path / "done.jsonl"
    assert inside("generate", "hi", *budget, "--max-new-tokens", 60, "--trace", done, *common).code == 0
    (one,) = read_traces(done)
    assert one.evictions == (len(one.token_ids) - 1 - 12) // 6  # all that it wrote was ranked
    assert one.kept_slots - len(one.prompt_ids) < 18


def test_a_text_that_a_trace_lacks_is_told_and_a_bad_start_refused(tagless: Path, inside: Any, tmp_path: Path) -> None:
    traces, labels = tmp_path / "t.jsonl", tmp_path / "l.safetensors"
    texts = {"a": "so 4", "b": "4 is 4", "c": "none"}
    made = [
        trace(name, token_ids=tuple(bytes_of(text)), text=text, thought_tokens=len(text), answer_tokens=0)
        for name, text in texts.items()
    ]
    traces.write_text("".join(to_line(one) + "\n" for one in made))
    label = ["label", "--traces", traces, "--model", tagless, "--out", labels, "--answer-from"]
    refused(inside(*label, "1.5"), 2, "cannot begin from 1.5", "above 0 and below 1")
    refused(inside(*label, ""), 2, "cannot begin from ''")
    assert not labels.exists()
    result = inside(*label, "is")
    assert "1 labelled traces" in result.out
    assert result.out.rstrip().endswith("0 not correct, 0 without a thought, 2 in which no answer begins")
    traces.write_text("".join(to_line(one) + "\n" for one in [*made, trace("own")]))
    refused(inside(*label, "is", "--resume"), 2, "1 of 4 traces, the first 'own#0', have an answer of their own")
