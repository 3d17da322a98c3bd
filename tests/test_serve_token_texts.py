"""Tokens in log-probabilities: their bytes are theirs, and alternatives that read alike stay apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from leanthink.data.think_tags import think_tags
from leanthink.engine.request import make_request
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints.openai.choices import ChatChoice, TextChoice
from leanthink.entrypoints.openai.token_texts import TokenTexts
from leanthink.models.tiny.tokenizer import build_tokenizer
from leanthink.policies import make_policy

BYTE_LEVEL = build_tokenizer()


def with_byte_fallback() -> Any:
    """As Llama 2's: words begin with a blank that is written `▁`, and what no word spells comes byte by byte."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "a", "▁the", "the", "\ufffd"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


FALLBACK = with_byte_fallback()


def fallback_id(word: str) -> int:
    found: int = FALLBACK.convert_tokens_to_ids(word)
    return found


@given(text=st.text(max_size=6))
def test_the_bytes_of_a_text_s_tokens_join_to_it(text: str) -> None:
    for tokenizer, ids in (
        (BYTE_LEVEL, list(text.encode())),
        (FALLBACK, [fallback_id(f"<0x{byte:02X}>") for byte in text.encode()]),
    ):
        texts = TokenTexts(tokenizer)
        assert b"".join(texts[token].utf8 or b"" for token in ids) == text.encode()


@pytest.mark.parametrize(
    ("tokenizer", "token", "expected"),
    [
        (BYTE_LEVEL, 0xC3, ("\\xc3", b"\xc3", False)),
        (BYTE_LEVEL, ord("I"), ("I", b"I", True)),
        (BYTE_LEVEL, 259, ("<think>", b"<think>", True)),
        (BYTE_LEVEL, 263, ("", b"", True)),  # no token at all: the vocabulary is padded
        (FALLBACK, 1 + 0xE2, ("\\xe2", b"\xe2", False)),
        (FALLBACK, fallback_id("▁the"), (" the", b" the", True)),
        (FALLBACK, fallback_id("the"), ("the", b"the", True)),
        (FALLBACK, fallback_id("\ufffd"), ("\ufffd", "\ufffd".encode(), True)),
    ],
)
def test_a_token_is_told_by_its_text_or_else_by_its_bytes(tokenizer: Any, token: int, expected: Any) -> None:
    assert TokenTexts(tokenizer)[token] == expected


def told(kind: Any, ids: list[int], top: list[list[tuple[int, float]]]) -> Any:
    """The log-probabilities of a choice that generated these tokens."""
    request = make_request(0, [1], policy=make_policy("full"), budget=None, sampling=Sampling(), context=99,
                           starts_in_answer=True)  # fmt: skip
    completion: Any = SimpleNamespace(
        text=BYTE_LEVEL.decode(ids), thought="", answer="", thought_tokens=0, token_ids=tuple(ids),
        logprobs=tuple(-0.5 for _ in ids), top_logprobs=tuple(tuple(pairs) for pairs in top),
    )  # fmt: skip
    return kind(request, BYTE_LEVEL, think_tags(BYTE_LEVEL)).whole(completion)["logprobs"]


def test_a_completion_names_pieces_of_characters_by_their_bytes() -> None:
    found = told(TextChoice, list("é!".encode()), [[(0xC3, -0.5), (0xC2, -1.0)], [(0xA9, -0.5)], [(33, -0.5)]])
    assert found["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
    assert found["top_logprobs"] == [{"bytes:\\xc3": -0.5, "bytes:\\xc2": -1.0}, {"bytes:\\xa9": -0.5}, {"!": -0.5}]
    assert found["text_offset"] == [0, 0, 1]


def test_a_chat_tells_the_bytes_of_pieces_of_characters() -> None:
    (first, second) = told(ChatChoice, list("é".encode()), [[(0xC3, -0.5)], [(0xA9, -0.5)]])["content"]
    assert (first["token"], first["bytes"], second["bytes"]) == ("\\xc3", [0xC3], [0xA9])
    assert bytes(first["bytes"] + second["bytes"]).decode() == "é"


def test_five_alternatives_stay_five_though_their_texts_are_equal() -> None:
    five = [(262, -0.5), (33, -1.0), (263, -1.5), (0xE2, -2.0), (0xE3, -2.5)]  # 262 and 263 are no tokens: no text
    (found,) = told(TextChoice, [33], [five])["top_logprobs"]
    assert found == {"": -0.5, "!": -1.0, "token_id:263": -1.5, "bytes:\\xe2": -2.0, "bytes:\\xe3": -2.5}
