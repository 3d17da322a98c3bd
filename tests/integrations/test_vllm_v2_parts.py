"""The plugin's rows on model runner V2, all at once on the device, beside V1's, one at a time on the host."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interpreted import assert_passes_interpreted
from leanthink.data.think_tags import set_think_tags, think_tags
from leanthink.integrations.vllm.lengths import LATE, NEVER, Lengths
from leanthink.integrations.vllm.row import Row
from leanthink.integrations.vllm.thought import Watch
from leanthink.integrations.vllm.v2.device_rows import Batch, Sampled, physical
from leanthink.integrations.vllm.v2.moves import Caches
from leanthink.integrations.vllm.v2.rows import Request, Rows
from leanthink.integrations.vllm.v2.text_tags import TextTags
from leanthink.models.predictor import Predictor
from leanthink.models.tiny import weights_path
from leanthink.policies import Policy, make_policy
from leanthink.policies.budget import Budget

HIDDEN, BLOCK = 8, 4


def policies(num_sets: int = 1) -> list[Policy]:
    torch.manual_seed(0)
    horizon = Predictor(
        target="horizon", hidden_size=HIDDEN, horizons=(6, 12), offsets=(0, 1, 3), width=8,
        granularity="model" if num_sets == 1 else "head", num_sets=num_sets,
    )  # fmt: skip
    return [make_policy("random"), make_policy("sinks"), make_policy("horizon", horizon.eval())]


def test_physical_lengths_are_those_of_each_request_alone() -> None:
    drawn = random.Random(0)
    for _ in range(300):
        budget = Budget(slots=drawn.randint(1, 20), recent_window=0, eviction_interval=drawn.randint(1, 9))
        prompt, logical = drawn.randint(1, 30), drawn.randint(0, 90)
        answer_at = drawn.choice([NEVER, prompt + drawn.randint(0, 50)])
        numbers = [torch.tensor([n]) for n in (logical, prompt, budget.slots, budget.eviction_interval, answer_at)]
        expected = Lengths(prompt=prompt, budget=budget, answer_at=answer_at).physical(logical)
        assert physical(*numbers).tolist() == [expected]


class Simulated:
    """A batch of requests on `Rows`, and each of them on a `Row` of its own; tokens are positions, states random."""

    def __init__(self, seed: int) -> None:
        self.drawn = random.Random(seed)
        self.policies = policies()
        self.rows = Rows(
            requests=6, most_slots=24, policies=self.policies, state_size=2 * HIDDEN, dtype=torch.float32,
            device=torch.device("cpu"),
        )  # fmt: skip
        self.requests: dict[int, Any] = {}
        self.kept: dict[int, Tensor] = {}

    def enter(self, index: int, *, budget: bool = True, fed: int = 0) -> None:
        drawn = self.drawn
        prompt = drawn.randint(1, 12)
        answer_at = drawn.choice([NEVER, prompt + drawn.randint(0, 60)])
        slots, policy = drawn.randint(2, 16), drawn.choice(self.policies)
        given = Budget(slots=slots, recent_window=drawn.randint(0, slots), eviction_interval=drawn.randint(1, 8))
        watch: Any = SimpleNamespace(answer_at=lambda _: answer_at)
        row = Row(prompt_tokens=prompt, budget=given, policy=policy, seed=index, watch=watch, output_ids=[])
        request = Request(prompt=prompt, budget=given, policy=policy, seed=index,
                          answer_at=answer_at if fed else NEVER)  # fmt: skip
        self.rows.enter(index, request if budget else None)
        self.requests[index] = SimpleNamespace(
            row=row if budget else None, prompt=prompt, fed=0, answer_at=answer_at, replays=fed,
            table=torch.arange(100) + 100 * index,
        )  # fmt: skip

    def step(self) -> None:
        """One step: each request is fed a piece of its prompt, one token, or what it had before it was preempted."""
        chosen = [index for index in self.requests if self.drawn.random() < 0.9]
        self.drawn.shuffle(chosen)
        chosen = chosen or list(self.requests)[:1]
        self.rows.flush()
        tokens, expected_slots, lengths = [], [], []
        for index in chosen:
            one = self.requests[index]
            count = self.drawn.randint(1, one.prompt - one.fed) if one.fed < one.prompt else 1
            if one.row is None:
                first = one.fed
            else:
                if one.fed >= one.prompt and one.fed < one.replays:
                    count = one.replays - one.fed
                (piece, *_) = one.row.pieces(one.fed, count)
                count, first = piece.tokens, piece.first_slot
            tokens.append(count)
            own = torch.arange(first, first + count)
            expected_slots.append(one.table[own // BLOCK] * BLOCK + own % BLOCK)
            lengths.append(first + count)
        states = torch.randn(sum(tokens), 2 * HIDDEN)
        starts = torch.tensor([0, *tokens]).cumsum(0).to(torch.int32)
        before = np.array([self.requests[index].fed for index in chosen])
        batch = Batch(
            indices=np.array(chosen), before=before, tokens=np.array(tokens), indices_n=torch.tensor(chosen),
            computed_R=self._computed(), starts_n1=starts,
            table_n=torch.stack([self.requests[index].table for index in chosen]).int(),
        )  # fmt: skip
        assert self.rows.longest(batch) >= max(lengths)
        slots, seen = torch.full((sum(tokens) + 3,), -1), torch.full((8,), -1, dtype=torch.int32)
        placed = self.rows.device.place(batch, torch.arange(8, dtype=torch.int32), seen, slots, BLOCK)
        assert seen.tolist() == [*lengths, *range(len(chosen), 8)]
        assert torch.equal(slots[:-3], torch.cat(expected_slots))
        assert (slots[-3:] == -1).all()
        moved: dict[int, Tensor] = {}

        def move(tables: Tensor, first: Tensor, kept: Tensor, counts: Tensor) -> None:
            for table, prompt, own, count in zip(tables, first, kept, counts.tolist(), strict=True):
                if count:
                    owner = int(table[1]) // 100  # blocks tell whose they are
                    assert int(prompt) == self.requests[owner].prompt
                    moved[owner] = own[0, :count]

        closes = [self.requests[i].answer_at == self.requests[i].fed + n for i, n in zip(chosen, tokens, strict=True)]
        latest = torch.zeros(6, 1, dtype=torch.int64)
        latest[torch.tensor(chosen), 0] = torch.tensor(closes).long()
        sampled = Sampled(tokens_R1=latest, counts_n=torch.ones(len(chosen), dtype=torch.int32), close_id=1)
        self.rows.note(batch, *placed, states, sampled)
        self.rows.evict(batch, move)
        self._check(chosen, tokens, states, moved)

    def _computed(self) -> Tensor:
        """Tokens fed so far, of all requests."""
        computed = torch.zeros(6, dtype=torch.int32)
        for index, one in self.requests.items():
            computed[index] = one.fed
        return computed

    def _check(self, chosen: list[int], tokens: list[int], states: Tensor, moved: dict[int, Tensor]) -> None:
        first = 0
        for index, count in zip(chosen, tokens, strict=True):
            one = self.requests[index]
            if one.row is not None:
                (piece,) = one.row.pieces(one.fed, count)
                one.row.note(states[first : first + count] if one.row.policy.score_dims else None, count)
                if piece.evicts:
                    assert torch.equal(moved.pop(index), one.row.evict()), one.row.policy
                held = self.rows.device.positions_RXS[index, 0, : one.row.thought].long()
                assert torch.equal(held, one.row.positions_S[: one.row.thought])
            one.fed, first = one.fed + count, first + count
        assert not moved, "nothing else moves"


def simulate(seed: int, steps: int) -> Simulated:
    """Requests come, go, and are preempted; all is checked in every step."""
    torch.manual_seed(seed)
    simulated = Simulated(seed)
    for index in range(5):
        simulated.enter(index, budget=index != 3)
    for step in range(steps):
        simulated.step()
        if step % 40 == 39:
            index = simulated.drawn.randrange(5)
            old = simulated.requests.pop(index)
            simulated.enter(index, budget=index != 3, fed=simulated.drawn.choice([0, 40]) if old.row else 0)
    return simulated


@pytest.mark.parametrize("seed", range(6))
def test_rows_keep_what_one_row_alone_keeps(seed: int) -> None:
    assert simulate(seed, 220).rows.evictions > 40


@pytest.mark.slow
def test_fused_rows_under_the_interpreter() -> None:
    assert_passes_interpreted(Path(__file__).with_name("test_vllm_v2_interpreted.py"))


def numbered(layers: int, blocks: int, heads: int) -> Tensor:
    return torch.arange(layers * blocks * heads * BLOCK * 6).view(layers, blocks, heads, BLOCK, 6).int()


@pytest.mark.parametrize("sets", [1, 3, 6])
def test_slots_move_head_by_head(sets: int) -> None:
    layers, heads = 3, 2
    raw = numbered(layers, 12, heads)
    before = raw.clone()
    table, first = torch.tensor([[7, 3, 9, 1], [4, 0, 2, 8]]), torch.tensor([3, 5])
    kept = torch.stack([torch.randperm(9)[:6].sort().values for _ in range(2 * sets)]).view(2, sets, 6)
    Caches(list(raw)).move(table, first, kept, torch.tensor([6, 4]))
    for layer in range(layers):
        for head in range(heads):
            chosen = 0 if sets == 1 else layer if sets == layers else layer * heads + head
            expected = before[layer, :, head].clone()
            for row, count in enumerate((6, 4)):
                for target in range(count):
                    source, goal = int(first[row] + kept[row, chosen, target]), int(first[row]) + target
                    expected[table[row, goal // BLOCK], goal % BLOCK] = before[
                        layer, table[row, source // BLOCK], head, source % BLOCK
                    ]
            assert torch.equal(raw[layer, :, head], expected)


@pytest.fixture
def tokenizer() -> Any:
    """The embedded reasoner's, with a closing tag of several tokens."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(weights_path())
    set_think_tags(loaded, "<think>", "</think>\nA")
    return loaded


def test_which_tags_only_the_text_shows(tokenizer: Any) -> None:
    tags = think_tags(tokenizer)
    assert tags.only_in_text
    alone = replace(tags, close_id=7, in_text=False)
    assert not alone.only_in_text
    assert replace(alone, must_open=True).only_in_text, "a stray tag closes nothing that was not opened"
    assert not replace(alone, close_id=None).only_in_text, "nothing closes"


@pytest.mark.parametrize("seed", range(5))
def test_a_tag_in_the_text_is_known_when_the_second_token_after_it_is_fed(tokenizer: Any, seed: int) -> None:
    drawn, tags = random.Random(seed), TextTags()
    prompt, close = [5, 6, 7], tokenizer.encode("</think>\nA", add_special_tokens=False)
    assert len(close) > 1
    written: dict[int, list[int]] = {}
    texts: dict[int, list[int]] = {}
    found: dict[int, int] = {}
    for index in range(4):
        before = [drawn.randrange(97, 120) for _ in range(drawn.randint(0, 20))]
        texts[index] = [*before, *close, *[drawn.randrange(97, 120) for _ in range(9)]]
        resumed = drawn.choice([0, min(3, len(before))])  # what it had written before it was preempted
        written[index] = texts[index][:resumed]
        tags.enter(index, Watch(prompt, tokenizer, late=LATE), list(written[index]))
    tags.enter(9, None, [])
    while any(len(written[index]) < len(texts[index]) for index in texts):
        found |= dict(tags.found())
        chosen = [index for index in texts if len(written[index]) < len(texts[index]) and drawn.random() < 0.8]
        for index in chosen:  # the step is prepared, and feeds the token that was sampled last
            due = len(prompt) + len(texts[index]) - 9 - 1 + LATE
            assert (index in found) == (found.get(index) == due)
            if len(prompt) + len(written[index]) - 1 > due:
                assert index in found, "an eviction at this length would be one too many"
        if not chosen:
            continue
        latest = torch.zeros(10, 1, dtype=torch.int64)
        counts = torch.tensor([drawn.random() < 0.9 for _ in chosen]).int()  # 0: its prompt is not fed yet
        for index, count in zip(chosen, counts.tolist(), strict=True):
            if count:
                latest[index] = texts[index][len(written[index])]
                written[index].append(int(latest[index]))
        rows = [*chosen, 9]
        batch: Any = SimpleNamespace(indices=np.array(rows), indices_n=torch.tensor(rows))
        tags.note(batch, latest, torch.cat([counts, torch.ones(1).int()]))
    assert dict(found) == {index: len(prompt) + len(text) - 9 - 1 + LATE for index, text in texts.items()}


def test_what_was_sampled_for_one_that_left_is_not_read_for_another(tokenizer: Any) -> None:
    tags, close = TextTags(), tokenizer.encode("</think>\nA", add_special_tokens=False)

    def feed(token: int) -> None:
        batch: Any = SimpleNamespace(indices=np.array([0]), indices_n=torch.tensor([0]))
        tags.note(batch, torch.tensor([[token]]), torch.ones(1).int())

    tags.enter(0, Watch([5], tokenizer, late=LATE), [])
    for token in close:
        feed(token)
    tags.enter(0, Watch([5, 6], tokenizer, late=LATE), [])  # before anybody read the tag of the first
    feed(100)
    feed(101)
    assert not dict(tags.found())
    for token in close:
        feed(token)
        assert not dict(tags.found())
    feed(102)
    assert dict(tags.found()) == {0: 2 + 2 + len(close) - 1 + LATE}
