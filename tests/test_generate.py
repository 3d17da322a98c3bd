from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import leanthink.engine.running_batch
from leanthink.data.think_tags import think_tags
from leanthink.engine.cache import SlotCache
from leanthink.engine.engine import Engine
from leanthink.engine.generation import generate, split_by_bound, stream
from leanthink.engine.hidden_states import store_hidden_states
from leanthink.engine.outputs import Completion, Progress
from leanthink.engine.request import make_requests
from leanthink.engine.sampling import Sampling
from leanthink.integrations.transformers import custom_generate
from leanthink.models.loading import kv_shape
from leanthink.models.predictor import Predictor
from leanthink.models.transformers_versions import filled_cache
from leanthink.policies import POLICIES, Policy, make_policy
from leanthink.policies.budget import Budget
from leanthink.policies.window import Window
from leanthink.utils.errors import UnsupportedModel, UsageError
from models import (
    ARCHITECTURES,
    CLOSE,
    END,
    VOCABULARY,
    RandomPredictor,
    endless,
    make_model,
    make_tokenizer,
    stock_tokens,
)
from reference.sampling_slow import sample_slowly

TOKENIZER = make_tokenizer()
PROMPTS = [list(range(10 + i, 15 + i + 3 * i)) for i in range(8)]
BUDGET = Budget(slots=16, recent_window=4, eviction_interval=8)


def make_policies() -> dict[str, Policy]:
    torch.manual_seed(3)
    learned = {
        "dynts": RandomPredictor(64, "answer"),
        "horizon": RandomPredictor(64, "horizon", (4, 8, 16), offsets=(0, 1, 3)),
    }
    return {name: make_policy(name, learned.get(name), TOKENIZER) for name in POLICIES if name != "oracle"}


@pytest.fixture
def checked_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Checks every row of every run after every step, and lists the most slots that any row held over its prompt."""
    most: list[int] = []
    step = Engine.step

    def checked(engine: Engine) -> Progress:
        progress = step(engine)
        engine.check_integrity()
        held = engine.cache.host_lengths.tolist()
        for row, request in enumerate(engine.running_batch.requests):
            budget, thinking = (
                request.budget,
                engine.running_batch.answer_start[row] == leanthink.engine.running_batch.NEVER,
            )
            if budget is not None and thinking:
                assert held[row] - len(request.prompt_ids) < budget.slots + budget.eviction_interval
            most.append(held[row] - len(request.prompt_ids))
        return progress

    monkeypatch.setattr(Engine, "step", checked)
    return most


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_a_budget_the_tokens_are_those_of_stock_generate(architecture: str) -> None:
    model = make_model(architecture)
    prompts, sampling = PROMPTS[:4], Sampling(max_new_tokens=200)
    stock = [stock_tokens(model, prompt, 200) for prompt in prompts]
    assert len(set(stock[0])) > 8, "a model that repeats itself proves nothing"
    batch = generate(model, TOKENIZER, prompts, policy="full", sampling=sampling)
    assert [completion.token_ids for completion in batch] == stock
    (alone,) = generate(model, TOKENIZER, prompts[0], policy="full", sampling=sampling)
    assert alone.token_ids == stock[0]
    assert alone.peak_slots == len(prompts[0]) + len(stock[0]) - 1
    assert alone.peak_kv_bytes == alone.full_kv_bytes
    steps = len(stock[0])  # the first holds the prompt, each further one a slot more
    assert alone.slot_steps == steps * len(prompts[0]) + steps * (steps - 1) // 2


@pytest.mark.parametrize(
    ("temperature", "architecture"), [(0.0, "llama"), (0.9, "llama"), (0.9, "gpt_oss"), (0.0, "lfm2")]
)
def test_a_request_gets_the_same_tokens_alone_and_in_any_batch(
    temperature: float, architecture: str, checked_steps: list[int]
) -> None:
    model, policies = make_model(architecture), list(make_policies().values())
    prompts = [list(range(10 + i, 15 + i + 3 * i)) for i in range(len(policies))]
    budgets = [
        None,
        *(Budget(slots=10 + i, recent_window=3, eviction_interval=6 + i % 2) for i in range(len(policies) - 1)),
    ]
    samplings = [
        Sampling(max_new_tokens=90 + i, temperature=temperature, seed=i, top_k=20 * (i % 2), top_p=1 - 0.1 * (i % 3))
        for i in range(len(policies))
    ]
    together = generate(model, TOKENIZER, prompts, policy=policies, budget=budgets, sampling=samplings, max_rows=5)
    assert sum(completion.evictions > 0 for completion in together) > 6
    for i, completion in enumerate(together):
        options = {"policy": policies[i], "budget": budgets[i], "sampling": samplings[i]}
        (alone,) = generate(model, TOKENIZER, prompts[i], **options)
        assert alone.token_ids == completion.token_ids, policies[i].name
        assert (alone.peak_slots, alone.evictions) == (completion.peak_slots, completion.evictions)
        assert alone.slot_steps == completion.slot_steps


@pytest.mark.parametrize("architecture", ["qwen3", "phi3", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize("name", ["horizon", "random-heads"])
def test_other_architectures_evict_alike_alone_and_in_a_batch(architecture: str, name: str) -> None:
    model, policy = endless(architecture), make_policies()[name]
    options: dict[str, Any] = {"policy": policy, "budget": BUDGET, "sampling": Sampling(max_new_tokens=60)}
    batch = generate(model, TOKENIZER, PROMPTS[:3], **options)
    assert [completion.evictions for completion in batch] == [5, 5, 5]
    alone = [generate(model, TOKENIZER, prompt, **options)[0] for prompt in PROMPTS[:3]]
    assert [completion.token_ids for completion in batch] == [completion.token_ids for completion in alone]


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        *((name, "qwen3") for name in ("window", "sinks", "random", "dynts", "horizon")),
        ("horizon", "gpt_oss"),
        ("horizon", "qwen3_5_text"),
        ("random", "bamba"),
    ],
)
def test_eviction_equals_a_full_forward_in_which_each_token_sees_what_was_held(name: str, architecture: str) -> None:
    model, policy = endless(architecture), make_policies()[name]
    prompt = PROMPTS[2]
    sampling = Sampling(max_new_tokens=120)
    (ours,) = generate(model, TOKENIZER, prompt, policy=policy, budget=BUDGET, sampling=sampling, record=True)
    assert ours.evicted_at is not None
    assert ours.evictions > 10
    held_from = [*([None] * len(prompt)), *ours.evicted_at]  # by position: generated tokens after which it is gone
    ids = torch.tensor([[*prompt, *ours.token_ids[:-1]]])
    length = ids.shape[1]
    sees = torch.ones(length, length).tril().bool()
    for position, gone in enumerate(held_from[:length]):
        if gone is not None:
            sees[len(prompt) + gone :, position] = False
    least = torch.finfo(torch.float32).min
    mask: Any = torch.zeros(1, 1, length, length).masked_fill(~sees, least)
    if window := kv_shape(model.config).window:  # whose layers lose nothing else
        near = torch.ones(length, length).tril().triu(1 - window).bool()
        mask = {
            "full_attention": mask,
            "sliding_attention": torch.zeros(1, 1, length, length).masked_fill(~near, least),
        }
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits[0, len(prompt) - 1 :]
    assert tuple(logits.argmax(-1).tolist()) == ours.token_ids
    full = stock_tokens(model, prompt, 120)
    assert ours.token_ids != full, "the eviction changed nothing, so this proves nothing"


@pytest.mark.parametrize(("horizons", "stride"), [((4, 8, 16), 1), ((12, 16, 20), 9), ((40, 60, 80), 16)])
@pytest.mark.parametrize(("num_sets", "offsets"), [(0, (0, 1, 3)), (1, (0, 1, 3)), (4, (0, 3))])
@pytest.mark.parametrize("slots", [2, 16, 40])
def test_every_token_is_scored_from_the_hidden_states_of_its_own_token_and_those_after_it(
    slots: int,
    num_sets: int,
    offsets: tuple[int, ...],
    horizons: tuple[int, ...],
    stride: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the thought's first on, whose scoring is shown tokens of the prompt, too; 0 sets: a predictor not ours."""
    torch.manual_seed(3)
    model, shape = endless(), {"horizons": horizons, "offsets": offsets}
    predictor: Any = RandomPredictor(64, "horizon", **shape)
    if num_sets:
        granularity: Any = "head" if num_sets > 1 else "model"
        predictor = Predictor(target="horizon", hidden_size=64, granularity=granularity, num_sets=num_sets, **shape)
        predictor.head.standardise(torch.randn(9, 128))
    policy = make_policy("horizon", predictor)
    assert policy.stride == stride
    if slots == 16:
        monkeypatch.setattr("leanthink.engine.hidden_states.MAX_GATHERED_BYTES", 1)  # row by row
    tags = think_tags(TOKENIZER)
    options: dict[str, Any] = {
        "policy": policy,
        "budget": Budget(slots=slots, recent_window=1, eviction_interval=5),
        "predictor": None,
        "sampling": [Sampling(max_new_tokens=count) for count in (20, 60, 60)],
    }
    requests = make_requests(model, TOKENIZER, tags, PROMPTS[:3], **options)
    engine = Engine(model, TOKENIZER, slots=200, rows=3, ends=())
    cache = engine.cache
    fed: dict[tuple[int, int], torch.Tensor] = {}  # hidden states by request and position

    def spy(_: SlotCache, states_NF: torch.Tensor) -> None:
        store_hidden_states(cache, states_NF)
        for row, states_F in enumerate(states_NF):
            fed[engine.running_batch.requests[row].index, int(cache.next_positions[row]) - 1] = states_F

    monkeypatch.setattr("leanthink.engine.model_runner.store_hidden_states", spy)
    for request in requests:
        engine.add_request(request)
    checked, wanted = 0, {}
    while engine.unfinished:
        engine.step()  # the first request ends early, so that another takes its row
        for row, request in enumerate(engine.running_batch.requests):
            start, length = cache.allocations[row].start, int(cache.host_lengths[row])
            for slot, index in product(range(start + len(request.prompt_ids), start + length), range(policy.num_sets)):
                position = int(cache.positions.flatten(0, 1)[index, slot])
                if position + 3 + stride - 1 < int(cache.next_positions[row]):
                    if (request.index, position) not in wanted:
                        seen_1WF = torch.stack([fed[request.index, position + offset] for offset in offsets])[None]
                        wanted[request.index, position] = policy.score_tokens(seen_1WF).view(policy.num_sets, -1)
                    scores = cache.token_scores_of(policy, 0)[slot, index]
                    torch.testing.assert_close(scores, wanted[request.index, position][index], rtol=1e-4, atol=1e-5)
                    checked += 1
    assert checked > 100 or slots <= stride, "of a budget so small everything is too young to be scored"


@pytest.mark.parametrize("name", ["random", "random-heads", "snapkv"])
def test_a_kept_slot_holds_the_keys_and_values_that_were_written_at_its_position(name: str) -> None:
    model, policy = endless(), make_policies()[name]
    sampling = Sampling(max_new_tokens=80)
    tags = think_tags(TOKENIZER)
    options: dict[str, Any] = {"policy": policy, "budget": BUDGET, "predictor": None, "sampling": sampling}
    requests = make_requests(model, TOKENIZER, tags, PROMPTS[:2], **options)
    engine = Engine(model, TOKENIZER, slots=200, rows=2, tags=tags, ends=())
    for request in requests:
        engine.add_request(request)
    cache = engine.cache
    written: dict[tuple[int, int, int, int], tuple[float, ...]] = {}
    evictions: list[int] = []
    while engine.unfinished:
        evictions += [done.evictions for done in engine.step().finished.values()]
        for row, request in enumerate(engine.running_batch.requests):
            start = cache.allocations[row].start
            for layer, sets in enumerate(cache.positions.expand(2, 2, -1)):
                for head, positions_T in enumerate(sets):
                    for slot in range(start, start + int(cache.host_lengths[row])):
                        where = request.index, layer, head, int(positions_T[slot])
                        held = tuple(cache.kv_LPHTD[layer, :, head, slot].flatten().tolist())
                        assert written.setdefault(where, held) == held
    assert evictions == [(79 - 16) // 8] * 2


def test_memory_is_reserved_for_the_bound_and_not_for_max_new_tokens() -> None:
    model = endless(max_position_embeddings=200_000)
    policy = make_policies()["window"]
    budget = Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=32)
    reserved = []
    for tokens in (1_000, 100_000):
        steps = stream(
            model, TOKENIZER, PROMPTS[0], policy=policy, budget=budget, sampling=Sampling(max_new_tokens=tokens)
        )
        next(steps)
        stats = steps.gi_frame.f_locals["self"].stats()  # type: ignore[attr-defined]
        reserved.append(stats.slots_reserved)
        assert reserved[-1] == stats.slots_total == 5 + 16 + 8 + 32
    assert reserved[0] == reserved[1]


def test_requests_with_very_different_bounds_run_apart() -> None:
    model, tags = endless(), think_tags(TOKENIZER)
    options: dict[str, Any] = {"predictor": None, "sampling": Sampling(max_new_tokens=3000)}
    budget = Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=32)
    choices = ["full", "window", "full", "sinks"]
    requests = make_requests(
        model, TOKENIZER, tags, PROMPTS[:4], policy=choices, budget=[None, budget, None, budget], **options
    )
    groups = split_by_bound(requests)
    assert [[request.index for request in group] for group in groups] == [[1, 3], [0, 2]]


def test_peak_and_kept_slots_are_those_of_the_budget(checked_steps: list[int]) -> None:
    model = endless()
    options: dict[str, Any] = {"policy": "window", "budget": BUDGET}
    (done,) = generate(model, TOKENIZER, PROMPTS[0], **options, sampling=Sampling(max_new_tokens=101))
    assert done.prompt_tokens == 5
    assert done.peak_slots == 5 + 16 + 8
    assert done.evictions == (100 - 16) // 8
    assert done.kept_slots == 5 + 16 + (100 - 16) % 8
    assert done.full_kv_bytes == 105 * kv_shape(model.config).bytes_per_slot(torch.float32)
    assert done.peak_kv_bytes == 29 * kv_shape(model.config).bytes_per_slot(torch.float32)
    assert max(checked_steps) == 16 + 7  # after a step the eviction has been done
    # Thought slots at the 101 steps: 0 to 24, nine times 17 to 24, and 17 to 20; with the 5 of the prompt each time.
    assert done.slot_steps == 300 + 9 * 164 + 74 + 101 * 5 == 2355


class _Script:
    """Stands in for a model's head: makes a chosen token follow, whatever the hidden state."""

    def __init__(self, model: Any, tokens: list[int]) -> None:
        self.model, self.tokens, self.at = model, tokens, 0
        self.hook = model.get_output_embeddings().register_forward_hook(self.say)

    def say(self, _module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        token = self.tokens[min(self.at, len(self.tokens) - 1)]
        self.at += 1
        return torch.nn.functional.one_hot(torch.tensor(token), VOCABULARY).to(logits).expand_as(logits) * 1.0


def scripted(text: str | list[int], **options: Any) -> Completion:
    model = make_model()
    _Script(model, TOKENIZER(text).input_ids if isinstance(text, str) else text)
    settings: dict[str, Any] = {"policy": "full", "sampling": Sampling(max_new_tokens=60), **options}
    (done,) = generate(model, TOKENIZER, settings.pop("prompt", "Say: <think>"), **settings)
    return done


def test_thought_and_answer_are_told_apart_by_the_tag() -> None:
    done = scripted("carry the one\n</think>\n42<|end|>")
    assert (done.thought, done.answer) == ("carry the one", "42")
    assert done.text == "carry the one\n</think>\n42"
    assert (done.thought_tokens, done.answer_tokens, done.finish_reason) == (14, 5, "stop")
    assert done.token_ids[-1] == END


def test_a_thought_that_opens_its_own_tag_is_a_thought_too() -> None:
    done = scripted("<think>hm</think>yes<|end|>", prompt="Say: ")
    assert (done.thought, done.answer, done.text) == ("hm", "yes", "<think>hm</think>yes")


def test_a_prompt_that_closes_its_thought_gets_an_answer_only() -> None:
    done = scripted("yes<|end|>", prompt="Say: <think>\n\n</think>\n\n", policy="window", budget=BUDGET)
    assert (done.thought, done.answer, done.thought_tokens, done.answer_tokens) == ("", "yes", 0, 4)


def test_text_without_the_closing_tag_is_all_thought() -> None:
    done = scripted("and so on")
    assert (done.answer, done.finish_reason, done.answer_tokens, done.thought_tokens) == ("", "length", 0, 60)
    assert done.thought.startswith("and so on")


def test_nothing_is_evicted_from_the_closing_tag_on(checked_steps: list[int]) -> None:
    thought = TOKENIZER("x" * 23).input_ids
    budget = Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=30)
    done = scripted([*thought, CLOSE, *thought, *thought], policy="window", budget=budget)
    assert (done.evictions, done.thought_tokens) == (0, 23)
    later = scripted([*thought, thought[0], CLOSE, *thought, *thought], policy="window", budget=budget)
    assert (later.evictions, later.thought_tokens) == (1, 24)


def test_an_answer_ends_when_its_slots_are_full(checked_steps: list[int]) -> None:
    budget = Budget(slots=16, recent_window=4, eviction_interval=8, max_answer_slots=10)
    done = scripted(TOKENIZER("abc</think>" + 100 * "y").input_ids, policy="window", budget=budget)
    assert (done.answer_tokens, done.finish_reason, done.answer) == (10, "length", "y" * 9)
    assert done.peak_slots <= done.prompt_tokens + 3 + 10


@pytest.mark.parametrize("stop", [("world",), ("w", "world"), ("nowhere", "o w")])
def test_generation_ends_at_a_stop_string_and_the_text_before_it(stop: tuple[str, ...]) -> None:
    text = "hello world, hello"
    done = scripted(text, sampling=Sampling(max_new_tokens=60, stop=stop))
    assert done.finish_reason == "stop"
    assert done.text == text[: min(text.index(end) for end in stop if end in text)]
    assert TOKENIZER.decode(done.token_ids).endswith(stop)


@pytest.mark.parametrize("stop", [(), ("world",), ("</think>",), ("ж",)])
def test_streamed_pieces_join_to_the_text_and_the_last_step_has_the_completion(stop: tuple[str, ...]) -> None:
    text = "grüße жук, 世界</think> hello world<|end|>"
    sampling = Sampling(max_new_tokens=80, stop=stop)
    at_once = scripted(text, sampling=sampling)
    model = make_model()
    _Script(model, TOKENIZER(text).input_ids)
    steps = list(stream(model, TOKENIZER, "Say: <think>", policy="full", sampling=sampling))
    assert "".join(step.text for step in steps) == at_once.text
    assert not any("\ufffd" in step.text for step in steps)
    assert tuple(step.token_id for step in steps) == at_once.token_ids
    assert [step.completion for step in steps[:-1]] == [None] * (len(steps) - 1)
    assert steps[-1].completion == at_once
    assert sum(step.in_thought for step in steps) == at_once.thought_tokens
    assert [step.slots for step in steps] == [step.full_slots for step in steps]


def test_a_streamed_request_shows_the_slots_it_holds() -> None:
    sampling = Sampling(max_new_tokens=40)
    steps = list(stream(endless(), TOKENIZER, PROMPTS[0], policy="window", budget=BUDGET, sampling=sampling))
    assert [step.full_slots for step in steps] == list(range(5, 45))
    assert max(step.slots for step in steps) == 5 + 16 + 7
    assert steps[24].slots == 5 + 16


def test_requests_beyond_the_rows_wait_and_finish_one_by_one() -> None:
    model = make_model()
    finished: list[int] = []
    samplings = [Sampling(max_new_tokens=5 + 7 * i) for i in range(8)]
    batch = generate(
        model,
        TOKENIZER,
        PROMPTS,
        policy="full",
        sampling=samplings,
        max_rows=2,
        on_finish=lambda i, _: finished.append(i),
    )
    assert sorted(finished) == list(range(8))
    assert finished.index(0) < finished.index(7)
    for prompt, sampling, completion in zip(PROMPTS, samplings, batch, strict=True):
        assert completion.token_ids == stock_tokens(model, prompt, sampling.max_new_tokens)


def test_generation_ends_at_the_models_context() -> None:
    model = endless(max_position_embeddings=20)
    (done,) = generate(model, TOKENIZER, PROMPTS[0], policy="full", sampling=Sampling(max_new_tokens=100))
    assert (done.prompt_tokens + len(done.token_ids), done.finish_reason) == (20, "length")
    with pytest.raises(UsageError, match="prompt 0 has 20 tokens, and the model's context ends at 20"):
        generate(model, TOKENIZER, list(range(20)), policy="full")


def test_a_chat_that_the_template_refuses_is_an_error_with_its_words() -> None:
    picky = make_tokenizer("{{ raise_exception('no role ' + messages[0]['role']) }}")
    with pytest.raises(UsageError, match="prompt 0 is refused by the model's chat template: no role system"):
        generate(make_model(), picky, [[{"role": "system", "content": "hi"}]], policy="full")


def test_a_text_goes_through_the_chat_template_as_the_users_message() -> None:
    turns = "{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}{% endfor %}"
    template = turns + "{% if add_generation_prompt %}<think>{% endif %}"
    chatty, model = make_tokenizer(template), make_model()
    options: dict[str, Any] = {"policy": "full", "sampling": Sampling(max_new_tokens=20)}
    as_text, as_chat = generate(model, chatty, ["hi", [{"role": "user", "content": "hi"}]], **options)
    as_ids, plain = (generate(model, tok, "[user]hi<think>", **options)[0] for tok in (TOKENIZER, TOKENIZER))
    assert as_text == as_chat == as_ids == plain
    (single,) = generate(model, chatty, [{"role": "user", "content": "hi"}], **options)
    assert single == as_chat


def test_tokens_that_the_embedding_does_not_know_are_named_with_what_to_do() -> None:
    larger = make_tokenizer()
    larger.add_tokens([f"<x{number}>" for number in range(100)])
    with pytest.raises(UsageError, match=r"prompt 1 has token 350, .* 0 to 299; .*'<x90>'.*resize_token_embeddings"):
        generate(make_model(), larger, ["hi", "hi <x90>"], policy="full")
    with pytest.raises(UsageError, match=r"prompt 0 has token -3, .* give other ids"):
        generate(make_model(), TOKENIZER, [[5, -3]], policy="full")


def test_no_prompts_give_no_completions() -> None:
    assert generate(make_model(), TOKENIZER, [], policy="full") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ""}, "prompt 0 is empty"),
        ({"prompts": ["a", []]}, "prompt 1 is"),
        ({"prompts": [3.5]}, "prompt 0 is"),
        ({"prompts": [[{"role": "user", "content": "hi"}]]}, "no chat template"),
        ({"policy": "windo", "budget": BUDGET}, "Did you mean 'window'"),
        ({"policy": 3}, "unknown policy 3"),
        ({"policy": "window"}, "needs a budget"),
        ({"budget": BUDGET}, "takes no budget"),
        ({"policy": ["full", "full"]}, "policy is a list of 2 for 1 prompts"),
        ({"policy": "window", "budget": [BUDGET, BUDGET]}, "budget is a list of 2 for 1 prompts"),
        ({"sampling": [Sampling(), Sampling()]}, "sampling is a list of 2 for 1 prompts"),
        ({"policy": "window", "budget": 64}, "budget=64: must be a Budget or None"),
        ({"sampling": 0.7}, "sampling=0.7: must be a Sampling"),
        ({"predictor": "x.safetensors"}, "no policy here ranks by one"),
        ({"policy": "horizon", "budget": BUDGET}, "fitted importance predictor"),
        ({"max_rows": 0}, "max_rows=0"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    arguments = {"prompts": "hi", "policy": "full", **options}
    with pytest.raises(UsageError, match=message):
        generate(make_model(), TOKENIZER, arguments.pop("prompts"), **arguments)


def test_an_unsupported_model_is_refused_before_anything_runs() -> None:
    model = make_model("mistral", sliding_window=64)
    with pytest.raises(UnsupportedModel, match="sliding window of 64"):
        generate(model, TOKENIZER, "hi", policy="full")


def test_a_failing_listener_leaves_the_model_as_it_was() -> None:
    model = make_model()

    def interrupt(_index: int, _completion: Completion) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, TOKENIZER, PROMPTS[:3], policy="full", sampling=Sampling(max_new_tokens=5), on_finish=interrupt)
    assert model.config._attn_implementation == "sdpa"
    assert not model.get_output_embeddings()._forward_pre_hooks


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[259] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_custom_generate_without_a_budget_returns_what_generate_returns(architecture: str) -> None:
    model, inputs = make_model(architecture), left_padded(PROMPTS[:4])
    stock = model.generate(**inputs, do_sample=False, max_new_tokens=70)
    ours = model.generate(**inputs, do_sample=False, max_new_tokens=70, custom_generate=custom_generate, policy="full")
    assert ours.dtype == torch.int64
    assert torch.equal(ours, stock)


def test_custom_generate_gives_the_same_tokens_as_our_generate_under_a_budget() -> None:
    model, policy = make_model(), make_policies()["horizon"]
    options: dict[str, Any] = {"policy": policy, "budget": BUDGET}
    out = model.generate(
        **left_padded(PROMPTS[:4]),
        max_new_tokens=70,
        custom_generate=custom_generate,
        think_ids=think_tags(TOKENIZER),
        **options,
    )
    ours = generate(model, TOKENIZER, PROMPTS[:4], sampling=Sampling(max_new_tokens=70), **options)
    for row, completion in zip(out[:, len(PROMPTS[3]) :].tolist(), ours, strict=True):
        assert row == [*completion.token_ids, *[259] * (len(row) - len(completion.token_ids))]


def test_custom_generate_samples_by_torchs_seed_and_differently_for_each_returned_sequence() -> None:
    model = make_model()
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 30, "policy": "full"}
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model.generate(torch.tensor([PROMPTS[0]]), custom_generate=custom_generate, **options))
    assert torch.equal(runs[0], runs[1])
    assert runs[0].tolist() != runs[2].tolist()
    assert len({tuple(row) for row in runs[0].tolist()}) == 3


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"repetition_penalty": 1.2}, "RepetitionPenalty"),
        ({"no_repeat_ngram_size": 3}, "NoRepeatNGram"),
        ({"min_new_tokens": 3}, "MinNewTokens"),
        ({"max_time": 3.0}, "MaxTime"),
        ({"do_sample": True, "typical_p": 0.5}, "Typical"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"position_ids": torch.arange(1, 6)[None]}, "position_ids"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 0]])}, "pad on the left"),
        ({"policy": "window", "budget": BUDGET}, "think_ids"),
        ({"budget": BUDGET, "think_ids": think_tags(TOKENIZER)}, "takes no budget"),
    ],
)
def test_custom_generate_refuses_by_name(option: dict[str, Any], name: str) -> None:
    options = {"policy": "full", "max_new_tokens": 4, **option}
    with pytest.raises(UsageError, match=name):
        make_model().generate(torch.tensor([PROMPTS[0]]), custom_generate=custom_generate, **options)


def filled_with(tokens: int) -> DynamicCache:
    cache = DynamicCache()
    if tokens:
        cache.update(torch.zeros(1, 2, tokens, 16), torch.zeros(1, 2, tokens, 16), 0)
    return cache


# Since 5.24 transformers renames the argument, with a warning, before custom_generate sees it.
@pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning")
def test_custom_generate_takes_an_empty_cache_and_refuses_one_with_tokens() -> None:
    model, ids = make_model(), torch.tensor([PROMPTS[0]])
    options: dict[str, Any] = {"policy": "full", "max_new_tokens": 4, "custom_generate": custom_generate}
    plain = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, past_key_values=filled_with(0), **options), plain)
    with pytest.raises(UsageError, match=r"(cache|past_key_values) with tokens in it"):
        model.generate(ids, past_key_values=filled_with(2), **options)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_with_tokens_is_seen_under_each_name_that_transformers_gives_it(name: str) -> None:
    assert filled_cache({"attention_mask": None, name: filled_with(2)}) == name
    assert filled_cache({name: filled_with(0)}) is None
    assert filled_cache({name: None}) is None


def test_a_policy_that_asks_for_what_it_is_not_shown_is_refused() -> None:
    class Curious(Window):
        num_queries = 4

    with pytest.raises(UsageError, match="queries and attention to policies per head"):
        generate(make_model(), TOKENIZER, "hi", policy=Curious(), budget=BUDGET)


def test_evictions_are_recorded_on_request_and_only_for_shared_sets() -> None:
    model, sampling = endless(), Sampling(max_new_tokens=30)
    done = generate(
        model,
        TOKENIZER,
        PROMPTS[:3],
        policy=["full", "window", "random-heads"],
        budget=[None, BUDGET, BUDGET],
        sampling=sampling,
        record=True,
    )
    assert done[0].evicted_at == (None,) * 30
    assert done[1].evicted_at == (*(24,) * 8, *(None,) * 22)
    assert done[2].evicted_at is None
    (unasked,) = generate(model, TOKENIZER, PROMPTS[1], policy="window", budget=BUDGET, sampling=sampling)
    assert unasked.evicted_at is None


def test_sampled_tokens_are_those_of_a_plain_loop_over_the_stock_model() -> None:
    model, prompt = endless("qwen3"), PROMPTS[3]
    sampling = Sampling(max_new_tokens=40, temperature=0.8, top_k=30, top_p=0.9, min_p=0.01, seed=12)
    expected: list[int] = []
    for count in range(40):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *expected]])).logits[0, -1]
        expected.append(sample_slowly(logits.tolist(), sampling, count))
    (ours,) = generate(model, TOKENIZER, prompt, policy="full", sampling=sampling)
    assert list(ours.token_ids) == expected


def test_requests_due_at_the_same_step_each_keep_to_their_own_policy_and_budget() -> None:
    model, shared = endless(), make_policy("window")
    wide, narrow = (
        Budget(slots=16, recent_window=4, eviction_interval=8),
        Budget(slots=10, recent_window=4, eviction_interval=14),
    )
    policies = [shared, shared, make_policy("sinks"), make_policy("random")]
    budgets = [wide, narrow, wide, wide]
    options: dict[str, Any] = {"sampling": Sampling(max_new_tokens=80), "record": True}
    together = generate(model, TOKENIZER, [PROMPTS[1]] * 4, policy=policies, budget=budgets, **options)
    for policy, budget, completion in zip(policies, budgets, together, strict=True):
        assert generate(model, TOKENIZER, PROMPTS[1], policy=policy, budget=budget, **options) == [completion]
    assert len({completion.evicted_at for completion in together}) == 4


def test_a_random_policy_follows_the_seed_of_its_request() -> None:
    model, samplings = endless(), [Sampling(max_new_tokens=40, seed=seed) for seed in (1, 1, 2)]
    options: dict[str, Any] = {"policy": "random", "budget": BUDGET, "record": True}
    one, same, other = generate(model, TOKENIZER, [PROMPTS[0]] * 3, sampling=samplings, **options)
    assert one == same
    assert one.evicted_at != other.evicted_at


def test_a_reused_or_moved_row_keeps_its_own_record_of_evictions() -> None:
    model, budgets = endless(), [BUDGET, None, BUDGET]
    samplings = [Sampling(max_new_tokens=tokens) for tokens in (40, 60, 70)]
    options: dict[str, Any] = {"policy": ["window", "full", "sinks"], "budget": budgets, "sampling": samplings}
    alone = generate(model, TOKENIZER, PROMPTS[:3], max_rows=1, record=True, **options)
    assert alone[1].evicted_at == (None,) * 60
    assert generate(model, TOKENIZER, PROMPTS[:3], max_rows=3, record=True, **options)[2] == alone[2]


def test_a_long_generation_outgrows_the_first_room_for_its_tokens() -> None:
    tokens = [40 + i % 97 for i in range(600)]
    done = scripted(tokens, policy="window", budget=BUDGET, sampling=Sampling(max_new_tokens=600), record=True)
    assert list(done.token_ids) == tokens
    assert done.evicted_at is not None
    assert all(at is not None and 0 < at - i <= 24 for i, at in enumerate(done.evicted_at[:570]))
