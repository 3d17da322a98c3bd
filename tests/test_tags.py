"""Where a thought ends: tags of one token and of several, found by themselves or given, whole and streamed."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from leanthink import set_think_tags, think_tags
from leanthink.data.think_tags import KNOWN_TAGS, ThinkTags, beginning, close_index
from leanthink.engine.generation import generate, stream
from leanthink.engine.outputs import Completion
from leanthink.engine.sampling import Sampling
from leanthink.entrypoints.openai.reasoning_parser import ReasoningParser
from leanthink.integrations.transformers import custom_generate
from leanthink.integrations.vllm.lengths import NEVER
from leanthink.integrations.vllm.thought import Watch
from leanthink.policies.budget import Budget
from leanthink.utils.errors import UsageError
from models import END, VOCABULARY, make_model

PIECES = ("</", "think", ">\n\n", ".</", "<think", ">", "[/THINK", "]4")  # tokens that cut tags in odd places
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def make_tokenizer(*special: str, template: str | None = None, pieces: Sequence[str] = PIECES) -> Any:
    """Bytes, two tokens that nobody writes, the end and the padding; then special tokens and pieces of text."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    ends = [AddedToken(text, special=True) for text in ("<|0|>", "<|1|>", "<|end|>", "<|pad|>", *special)]
    tokenizer.add_tokens(ends)
    tokenizer.add_tokens([*pieces])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = template
    assert fast.eos_token_id == END
    return fast


def bytes_of(text: str) -> list[int]:
    """A token for each byte, whatever longer tokens there are."""
    return make_tokenizer(pieces=())(text).input_ids


def play(model: Any, ids: Sequence[int]) -> None:
    """Makes a model write these tokens, whatever it is asked."""
    left = [*ids]

    def say(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        token = left.pop(0) if left else END
        return torch.nn.functional.one_hot(torch.tensor(token), VOCABULARY).to(logits).expand_as(logits) * 1.0

    model.get_output_embeddings().register_forward_hook(say)


def write(tokenizer: Any, ids: Sequence[int], prompt: str = "Say: ", **options: Any) -> Completion:
    """What comes of these tokens; streamed it is the same."""
    given: dict[str, Any] = {"policy": "full", "sampling": Sampling(max_new_tokens=200), **options}
    for model in (streamed := make_model(), whole := make_model()):
        play(model, ids)
    (done,) = generate(whole, tokenizer, tokenizer(prompt).input_ids, **given)
    steps = list(stream(streamed, tokenizer, tokenizer(prompt).input_ids, **given))
    assert "".join(step.text for step in steps) == done.text
    assert [step.in_thought for step in steps] == [i < done.thought_tokens for i in range(len(steps))]
    assert steps[-1].completion == done
    tags = think_tags(tokenizer)
    begins = beginning(tokenizer, tokenizer(prompt).input_ids, tags)
    parts = ReasoningParser(plain=not tags.closes, starts_in_answer=begins["starts_in_answer"], tags=tags,
                  must_open=begins["must_open"])  # fmt: skip
    told = [*(parts.push(step) for step in steps), parts.rest(done)]
    assert tuple("".join(side) for side in zip(*told, strict=True)) == parts.whole(done)
    watch = Watch(tokenizer(prompt).input_ids, tokenizer)
    seen = [watch.answer_at(done.token_ids[:n]) for n in range(1, len(done.token_ids) + 1)][-1]
    closed = done.answer_tokens > 0 or begins["starts_in_answer"]
    assert seen == (done.prompt_tokens + done.thought_tokens if closed else NEVER)
    return done


# -- which tags --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", KNOWN_TAGS)
def test_the_tags_that_a_chat_template_names_are_found(pair: tuple[str, str]) -> None:
    template = TEMPLATE + "{% if add_generation_prompt %}" + pair[0] + "{% endif %}"
    tags = think_tags(make_tokenizer(template=template, pieces=()))
    assert ((tags.open, tags.close), tags.in_text, tags.must_open) == (pair, True, False)
    tags = think_tags(make_tokenizer(*pair, template=template, pieces=()))
    assert ((tags.open, tags.close), tags.close_id, tags.in_text) == (pair, 261, False)


def test_tags_that_are_tokens_go_before_those_that_nothing_announces() -> None:
    tags = think_tags(make_tokenizer("<think>", "</think>", "[THINK]", "[/THINK]"))
    assert (tags.close, tags.open_id, tags.close_id, tags.must_open) == ("</think>", 260, 261, False)
    other = think_tags(make_tokenizer("[THINK]", "[/THINK]", template=TEMPLATE))
    assert (other.close, other.close_id, other.must_open) == ("[/THINK]", 261, True)
    plain = think_tags(make_tokenizer())
    assert (plain.close, plain.close_id, plain.in_text, plain.must_open) == ("</think>", None, True, True)


def test_given_tags_win_and_are_saved_with_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("<think>", "</think>")
    set_think_tags(tokenizer, "<reason>", "</reason>")
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), AutoTokenizer.from_pretrained(tmp_path)):
        tags = think_tags(each)
        assert (tags.open, tags.close, tags.in_text, tags.must_open) == ("<reason>", "</reason>", True, False)


@pytest.mark.parametrize("pair", [("", "</a>"), (" <a>", "</a>"), ("<a>", "<a>"), ("<a>", 3)])
def test_what_is_no_pair_of_tags_is_refused(pair: Any) -> None:
    with pytest.raises(UsageError, match=r"think tags"):
        set_think_tags(make_tokenizer(), *pair)


# -- where they stand --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", KNOWN_TAGS)
@pytest.mark.parametrize("tokens", ["one", "bytes", "pieces"])
def test_a_thought_ends_at_its_tag_however_that_is_cut_into_tokens(pair: tuple[str, str], tokens: str) -> None:
    start, end = pair
    special = pair if tokens == "one" else ()
    template = TEMPLATE + "{% if add_generation_prompt %}" + start + "{% endif %}"
    tokenizer = make_tokenizer(*special, template=template, pieces=PIECES if tokens == "pieces" else ())
    text = f"{start}\ncarry the one.{end}\n\n42"
    done = write(tokenizer, [*tokenizer(text).input_ids, END])
    assert (done.thought, done.answer, done.text) == ("carry the one.", "42", text)
    assert close_index(think_tags(tokenizer), done.token_ids) == done.thought_tokens


def test_a_token_may_hold_the_end_of_the_thought_and_another_the_beginning_of_the_answer() -> None:
    tokenizer = make_tokenizer(template="<think>")
    ids = tokenizer.convert_tokens_to_ids([".</", "think", ">\n\n"])
    done = write(tokenizer, [*bytes_of("so"), *ids, *bytes_of("42"), END])
    assert (done.thought, done.answer, done.thought_tokens, done.answer_tokens) == ("so.", "42", 4, 4)


def test_a_tag_that_nothing_announces_counts_where_the_text_begins_with_one() -> None:
    tokenizer = make_tokenizer()
    done = write(tokenizer, bytes_of("\n <think>hm</think>yes"))
    assert (done.thought, done.answer) == ("hm", "yes")
    plain = write(tokenizer, bytes_of("The tag </think> ends it."))
    assert (plain.thought, plain.answer, plain.answer_tokens) == ("The tag </think> ends it.", "", 0)
    short = write(tokenizer, bytes_of("<thi"))
    assert short.text == "<thi"


@pytest.mark.parametrize("prompt", ["Say: <think>", "Say: <think>\n"])
def test_the_prompt_may_have_opened_the_thought(prompt: str) -> None:
    done = write(make_tokenizer(), bytes_of("hm</think>yes"), prompt)
    assert (done.thought, done.answer) == ("hm", "yes")


@pytest.mark.parametrize("special", [(), ("<think>", "</think>")])
def test_the_prompt_may_have_closed_the_thought(special: tuple[str, ...]) -> None:
    done = write(make_tokenizer(*special), bytes_of("yes</think>!"), "Say: <think>\n\n</think>\n\n")
    assert (done.thought, done.answer, done.thought_tokens) == ("", "yes</think>!", 0)


def test_nothing_is_evicted_once_a_tag_of_several_tokens_is_complete() -> None:
    tokenizer, budget = (
        make_tokenizer(template="<think>"),
        Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=40),
    )
    for thought, evictions in ((16, 0), (17, 1)):
        ids = bytes_of("x" * thought + "</think>" + "y" * 36)  # the last byte of the tag is the answer's first token
        done = write(tokenizer, ids, policy="window", budget=budget, record=True)
        assert (done.evictions, done.thought_tokens, done.answer) == (evictions, thought + 7, "y" * 36)
        assert done.evicted_at is not None
        assert all(at is None for at in done.evicted_at[done.thought_tokens :])
        assert done.peak_kv_bytes <= done.reserved_kv_bytes


def test_generate_of_transformers_finds_tags_in_the_text_without_the_tokenizer() -> None:
    tokenizer, model = make_tokenizer(template="<think>"), make_model()
    play(model, bytes_of("x" * 15 + "</think>" + "y" * 100))
    budget = Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=20)
    ids = torch.tensor([tokenizer("Say: ").input_ids])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=90,
                         custom_generate=custom_generate, policy="window", budget=budget,
                         think_ids=think_tags(tokenizer))  # fmt: skip
    assert tokenizer.decode(out[0, ids.shape[1] :]) == "x" * 15 + "</think>" + "y" * 19  # the answer's slots are full


def test_generate_of_transformers_knows_a_thought_that_the_prompt_has_closed() -> None:
    tokenizer, model = make_tokenizer("<think>", "</think>", template=TEMPLATE), make_model()
    play(model, bytes_of("y" * 100))
    ids = torch.tensor([tokenizer("Say: <think>\n\n</think>\n\n").input_ids])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=90,
                         custom_generate=custom_generate, policy="window", think_ids=think_tags(tokenizer),
                         budget=Budget(slots=16, recent_window=4, eviction_interval=8,
                                       max_answer_slots=20))  # fmt: skip
    assert tokenizer.decode(out[0, ids.shape[1] :]) == "y" * 20  # the answer's slots are full


LETTERS = st.text(alphabet="ab\n<>/thinké", max_size=12)


@settings(max_examples=12, deadline=None)
@given(thought=LETTERS, answer=LETTERS, stop=st.sampled_from(["", "a", "\n", "k>", "<"]), in_thought=st.booleans())
def test_streamed_and_whole_agree_whatever_is_written(thought: str, answer: str, stop: str, in_thought: bool) -> None:
    tokenizer = make_tokenizer()
    text = f"<think>{thought}</think>{answer}"
    sampling = Sampling(max_new_tokens=80, stop=(stop,) if stop else (), stop_in_thought=in_thought)
    for ids in (bytes_of(text), tokenizer(text).input_ids, bytes_of(thought + answer)):
        write(tokenizer, [*ids, END], sampling=sampling)


# -- stop strings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", [(), ("<think>", "</think>")])
def test_stop_strings_can_be_looked_for_in_the_answer_alone(special: tuple[str, ...]) -> None:
    tokenizer = make_tokenizer(*special, template="<think>")
    ids = tokenizer("a END b</think>c END d").input_ids
    both = write(tokenizer, ids, sampling=Sampling(max_new_tokens=80, stop=("END",)))
    assert (both.text, both.finish_reason) == ("a ", "stop")
    alone = write(tokenizer, ids, sampling=Sampling(max_new_tokens=80, stop=("END",), stop_in_thought=False))
    assert (alone.thought, alone.answer, alone.finish_reason) == ("a END b", "c", "stop")


def test_a_stop_string_does_not_begin_in_the_tag() -> None:
    tokenizer = make_tokenizer(template="<think>")
    sampling = Sampling(max_new_tokens=80, stop=(">\n",), stop_in_thought=False)
    done = write(tokenizer, tokenizer("hm.</think>\n\nc>\nd").input_ids, sampling=sampling)
    assert (done.thought, done.answer) == ("hm.", "c")


@pytest.mark.parametrize("text", ["\n\nyes", "<thx", "so be it, END"])
def test_a_text_without_a_thought_is_all_answer_for_stop_strings(text: str) -> None:
    sampling = Sampling(max_new_tokens=80, stop=("\n\n", "<t", "END"), stop_in_thought=False)
    done = write(make_tokenizer(), bytes_of(text), sampling=sampling)
    assert (done.text, done.finish_reason) == ({"s": "so be it, "}.get(text[0], ""), "stop")


# -- graders -----------------------------------------------------------------------------------------------------------


def test_graders_see_the_usual_tags() -> None:
    tags = ThinkTags(open_id=None, close_id=None, open="[THINK]", close="[/THINK]", in_text=True)
    assert tags.usual("[THINK]a[/THINK]b") == "<think>a</think>b"
    assert tags.must_close("a")
    assert not ThinkTags(open_id=None, close_id=None).must_close("a")


# -- where a text ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of_model", "of_tokenizer"), [("<|0|>", "<|end|>"), ("<|end|>", "<|0|>"), (None, "<|end|>")])
def test_a_text_ends_where_the_model_or_the_tokenizer_says(of_model: str | None, of_tokenizer: str) -> None:
    tokenizer, model = make_tokenizer("<think>", "</think>"), make_model()
    model.generation_config.eos_token_id = of_model and tokenizer.convert_tokens_to_ids(of_model)
    model.config.eos_token_id = model.generation_config.eos_token_id
    tokenizer.eos_token = of_tokenizer
    play(model, tokenizer("hm</think>yes<|end|>and on").input_ids)
    (done,) = generate(model, tokenizer, "Say: ", policy="full", sampling=Sampling(max_new_tokens=50))
    assert (done.answer, done.text, done.finish_reason) == ("yes", "hm</think>yes", "stop")
