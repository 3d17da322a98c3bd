"""Thought and answer while they grow: what was sent joins to what the completion says, wherever the text is cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanthink.data.think_tags import CLOSE_TAG, OPEN_TAG
from leanthink.engine.outputs import Completion, Step
from leanthink.entrypoints.openai.reasoning_parser import ReasoningParser, Trimmed

PIECES = st.lists(st.sampled_from(["a", "b ", " ", "\n", "<", "think>", OPEN_TAG, "é", ""]), max_size=8)


def completion(thought: str, answer: str) -> Completion:
    names = ("prompt_tokens", "thought_tokens", "answer_tokens", "peak_slots", "kept_slots", "slot_steps", "evictions")
    counts: Any = dict.fromkeys((*names, "peak_kv_bytes", "full_kv_bytes", "reserved_kv_bytes"), 0)
    return Completion(text="", thought=thought, answer=answer, token_ids=(), finish_reason="stop", **counts)


def step(text: str, *, in_thought: bool) -> Step:
    return Step(token_id=0, text=text, in_thought=in_thought, slots=0, full_slots=0)


@given(pieces=PIECES)
def test_trimmed_text_has_no_blanks_at_its_ends_whatever_came_when(pieces: list[str]) -> None:
    trimmed, whole = Trimmed(), "".join(pieces).strip()
    sent = "".join(trimmed.push(piece) for piece in pieces)
    assert whole.startswith(sent)
    assert sent + trimmed.rest(whole) == whole


@given(thought=PIECES, answer=PIECES, closed=st.booleans(), late=st.booleans())
def test_thought_and_answer_join_to_those_of_the_completion(
    thought: list[str], answer: list[str], closed: bool, late: bool
) -> None:
    answer = answer if closed else []
    expected = completion("".join(thought).strip().removeprefix(OPEN_TAG).strip(), "".join(answer).strip())
    parts, found = ReasoningParser(plain=False, starts_in_answer=False), ["", ""]
    steps = [step(text, in_thought=True) for text in thought]
    if closed:  # the tag may come in two pieces, where a stop string could have begun in it
        tag = [CLOSE_TAG[:3], CLOSE_TAG[3:]] if late else [CLOSE_TAG]
        steps += [step(text, in_thought=False) for text in (*tag, *answer)]
    for pair in (*(parts.push(one) for one in steps), parts.rest(expected)):
        found = [before + more for before, more in zip(found, pair, strict=True)]
    assert tuple(found) == (expected.thought, expected.answer) == parts.whole(expected)


@given(pieces=PIECES, plain=st.booleans())
def test_without_a_thought_all_is_answer(pieces: list[str], plain: bool) -> None:
    text = "".join(pieces).strip()
    text = text.removeprefix(OPEN_TAG).strip() if plain else text
    expected = completion(text, "") if plain else completion("", text)
    parts = ReasoningParser(plain=plain, starts_in_answer=not plain)
    sent = "".join(parts.push(step(piece, in_thought=plain))[1] for piece in pieces)
    assert sent + parts.rest(expected)[1] == text


@pytest.mark.parametrize("cut", range(len("<think>\nyes")))
def test_an_opening_tag_is_no_part_of_the_thought_however_it_is_cut(cut: int) -> None:
    parts, text = ReasoningParser(plain=False, starts_in_answer=False), "<think>\nyes"
    pieces = [parts.push(step(piece, in_thought=True))[0] for piece in (text[:cut], text[cut:])]
    assert "".join(pieces) == "yes"
