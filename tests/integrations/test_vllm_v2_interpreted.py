"""The fused kernels of the plugin's rows, beside torch's operations and V1's rows: interpreted, or on a GPU.

Triton chooses between compiler and interpreter when it is first imported. So these tests run in a process of their
own: `test_vllm_v2_parts.py` starts it with TRITON_INTERPRET=1, and on a GPU `bench/vllm_gpu.py` does so without.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.importorskip("triton", minversion="3.7", reason="the interpreter of Triton 3.6 fails with NumPy 2.4")
elif os.environ.get("LEANTHINK_TEST_GPU") != "1":
    pytest.skip("run by test_vllm_v2_parts.py, with TRITON_INTERPRET=1", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))
from test_vllm_v2_parts import Simulated, numbered, policies, simulate

from leanthink.engine.kernels import paged_rows
from leanthink.integrations.vllm.lengths import NEVER
from leanthink.integrations.vllm.v2 import rows
from leanthink.integrations.vllm.v2.device_rows import SLOTS, Batch, DeviceRows, Due, Sampled
from leanthink.integrations.vllm.v2.fused_rows import FusedRows
from leanthink.integrations.vllm.v2.moves import Caches
from leanthink.policies import Policy

ON_GPU = os.environ.get("TRITON_INTERPRET") != "1"
BLOCK, REQUESTS, SLOTS_EACH, FEATURES, MEMORY = 4, 6, 40, 1030, 16
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(autouse=True)
def _tensors_lie_on_the_device() -> Iterator[None]:
    with DEVICE:
        yield


@pytest.mark.skipif(ON_GPU, reason="V1's rows are on the CPU")
@pytest.mark.parametrize("seed", range(2))
def test_fused_rows_keep_what_one_row_alone_keeps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "kind_for", lambda _: FusedRows)
    assert simulate(seed, 130).rows.evictions > 20


def compiled_for(kernel: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """What Triton compiles a launch for: dtypes, alignment, numbers that are 1 or divisible by 16, constants."""
    free, found = kernel.kwargs["do_not_specialize"] or (), []
    for name, one in zip(kernel.arg_names, given, strict=False):
        if isinstance(one, Tensor):
            found.append((name, one.dtype, name not in free and one.data_ptr() % 16 == 0))
        else:
            found.append((name, name not in free and (one == 1, one % 16 == 0)))
    return kernel.__name__, *found, *sorted(named.items())


@pytest.mark.skipif(ON_GPU, reason="V1's rows are on the CPU")
def test_no_step_launches_what_warm_up_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "kind_for", lambda _: FusedRows)
    launched: set[tuple[Any, ...]] = set()
    for name in ("place_rows", "note_rows", "recall_states", "store_scores", "show_rows", "keep_rows"):
        kernel = getattr(paged_rows, name)

        def noted(*given: Any, kernel: Any = kernel, **named: Any) -> None:
            launched.add(compiled_for(kernel, given, named))

        monkeypatch.setattr(kernel, "pre_run_hooks", [noted])
    simulated = Simulated(0)
    simulated.rows.warm_up(lambda *_: None, BLOCK)
    warm = launched.copy()
    for index in range(5):
        simulated.enter(index)
    for _ in range(20):
        simulated.step()
    assert launched == warm


def both(sets: int, channels: int, seed: int) -> tuple[DeviceRows, FusedRows]:
    """Two of the same random state: positions that ascend, requests amid their prompts, thoughts and answers."""
    torch.manual_seed(seed)
    made = [
        kind(
            requests=REQUESTS, most_slots=SLOTS_EACH, sets=sets, channels=channels, memory=MEMORY, state_size=FEATURES,
            dtype=torch.bfloat16, score_dtype=torch.bfloat16, device=DEVICE,
        )
        for kind in (DeviceRows, FusedRows)
    ]  # fmt: skip
    slow, fast = made
    prompt, slots = torch.randint(1, 30, (REQUESTS,)), torch.randint(8, 24, (REQUESTS,))
    slow.asked_5R[:] = torch.stack(
        [prompt, slots, torch.randint(1, 16, (REQUESTS,)), torch.randint(0, 99, (REQUESTS,)), slots // 3]
    )
    slow.answer_at_R[:] = torch.tensor([NEVER, NEVER, NEVER, 20, 60, NEVER])
    steps = torch.randint(1, 4, slow.positions_RXS.shape).cumsum(-1)
    slow.positions_RXS.copy_(steps - steps[..., -1:] + 99)
    for name in ("scores_RXSC", "states_RWF"):
        if getattr(slow, name) is not None:
            getattr(slow, name).normal_()
    for name in ("asked_5R", "answer_at_R", "positions_RXS", "scores_RXSC", "states_RWF"):
        if getattr(slow, name) is not None:
            getattr(fast, name).copy_(getattr(slow, name))
    assert isinstance(fast, FusedRows)
    return slow, fast


def same(slow: DeviceRows, fast: DeviceRows) -> None:
    for name in ("asked_5R", "answer_at_R", "scores_RXSC", "states_RWF"):
        one, other = getattr(slow, name), getattr(fast, name)
        assert one is other or torch.equal(one, other), name
    assert torch.equal(slow.positions_RXS[..., :-1], fast.positions_RXS[..., :-1])


@pytest.mark.parametrize("sets", [1, 6])
@pytest.mark.parametrize("tokens", [[1, 1, 1, 1], [1, 300, 1, 7]])
def test_a_step(sets: int, tokens: list[int]) -> None:
    slow, fast = both(sets, 3, len(tokens))
    indices, starts = torch.tensor([4, 0, 3, 2]), torch.tensor([0, *tokens]).cumsum(0).int()
    computed = torch.tensor([50, 3, 61, 45, 44, 0], dtype=torch.int32)
    states = torch.randn(sum(tokens), FEATURES).bfloat16()
    sampled = Sampled(
        tokens_R1=torch.tensor([[7], [1], [7], [7], [1], [1]]), counts_n=torch.tensor([1, 1, 1, 0]).int(), close_id=7
    )
    batch = Batch(
        indices=indices.cpu().numpy(), before=computed[indices].cpu().numpy().astype(np.int64), tokens=np.array(tokens),
        indices_n=indices, computed_R=computed, starts_n1=starts,
        table_n=torch.randperm(4 * 200).view(4, 200).int(),
    )  # fmt: skip
    found = []
    for kind in (slow, fast):
        lengths, slots = torch.full((7,), -1, dtype=torch.int32), torch.full((sum(tokens) + 5,), -1)
        placed = kind.place(batch, torch.arange(7, dtype=torch.int32), lengths, slots, BLOCK)
        kind.note(batch, *placed, states, sampled)
        kind.note(batch, *placed, None, None)
        found.append([lengths, slots, *placed])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    same(slow, fast)
    assert fast.answer_at_R[0] < NEVER
    assert fast.answer_at_R[2] == NEVER


@pytest.mark.parametrize("sets", [1, 6])
@pytest.mark.parametrize("policy_sets", ["one", "all"])
def test_scores_are_stored_where_their_tokens_lie(sets: int, policy_sets: str) -> None:
    for seed in range(5):
        slow, fast = both(sets, 3, seed)
        chosen, offsets, stride, channels = torch.tensor([[0, 2, 4, 5], [100, 101, 98, 33]]), (0, 1, 5), 4, 2
        own = 1 if policy_sets == "one" else sets
        for kind in (slow, fast):  # as many slots as `after` says, the youngest of them last
            held = rows_thought(kind, chosen)
            for index, after, count in zip(*chosen.tolist(), held.tolist(), strict=True):
                kind.positions_RXS[index, :, :count] = torch.arange(after - count, after)
        seen = [kind.recall(chosen, offsets, stride) for kind in (slow, fast)]
        assert torch.equal(*seen)
        # In bfloat16 as the cache holds them: the interpreter cuts bits off where a GPU rounds.
        scores = torch.randn(len(seen[0]), own, channels).bfloat16().float()
        for kind in (slow, fast):
            kind.store_scores(chosen, scores, offsets[-1], stride)
        for index, count in zip(chosen[0].tolist(), rows_thought(slow, chosen).tolist(), strict=True):
            assert slow.scores_RXSC is not None
            assert fast.scores_RXSC is not None
            assert torch.equal(slow.scores_RXSC[index, :, :count], fast.scores_RXSC[index, :, :count])


def rows_thought(kind: DeviceRows, chosen: Tensor) -> Tensor:
    from leanthink.integrations.vllm.v2.device_rows import thought_slots

    indices, after = chosen
    prompt, slots, interval = kind.asked_5R[:3, indices]
    return thought_slots(after - 1, prompt, slots, interval, kind.answer_at_R[indices]) + 1


@pytest.mark.parametrize("sets", [1, 6])
@pytest.mark.parametrize("channels", [0, 3])
def test_an_eviction(sets: int, channels: int) -> None:
    for seed in range(5):
        slow, fast = both(sets, channels, seed)
        chosen = torch.tensor([[5, 1, 3, 0], [100, 100, 100, 100]])
        most, most_kept = int(slow.asked_5R[1:3].sum(0).max()), int(slow.asked_5R[SLOTS].max())
        due: list[Due] = [kind.show(chosen, sets, most, channels) for kind in (slow, fast)]
        held = (slow.asked_5R[1] + slow.asked_5R[2])[chosen[0]]
        for one, other in zip(vars(due[0]).values(), vars(due[1]).values(), strict=True):
            if one is due[0].scores_gXSC and one is not None:
                for row, count in enumerate(held.tolist()):
                    assert torch.equal(one[row, :, :count], other[row, :, :count])
            else:
                assert one is other or torch.equal(one, other)
        scores = torch.randn(4, sets, most).mul(2).round() / 2  # with ties
        kept = [kind.choose(due[0], scores, most_kept) for kind in (slow, fast)]
        assert due[0].num_kept_g.tolist()[2] == 0, "this one answers"
        for row, count in enumerate(due[0].asked_5g[SLOTS].tolist()):
            assert torch.equal(kept[0][row, :, :count], kept[1][row, :, :count])
        for kind in (slow, fast):
            kind.keep(chosen, due[0].num_kept_g, kept[0])
        same(slow, fast)


@pytest.mark.parametrize("sets", [1, 3, 6])
def test_slots_move(sets: int) -> None:
    raw = numbered(3, 12, 2)
    twin = raw.clone()
    table, first = torch.tensor([[7, 3, 9, 1], [4, 0, 2, 8]]), torch.tensor([3, 5])
    kept = torch.stack([torch.randperm(9)[:6].sort().values for _ in range(2 * sets)]).view(2, sets, 6)
    for counts in ([6, 4], [0, 6]):
        Caches(list(raw)).move_at_once(table, first, kept, torch.tensor(counts))
        Caches(list(twin)).move_plainly(table, first, kept, torch.tensor(counts))
        assert torch.equal(raw, twin)


def move_to_device(policy: Policy) -> Policy:
    predictor = getattr(policy, "predictor", None)
    if predictor is not None:
        predictor.to(DEVICE)
    return policy


@pytest.mark.parametrize("num_sets", [1, 4])
def test_warm_up_changes_nothing(num_sets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "kind_for", lambda _: FusedRows)
    made = rows.Rows(
        requests=5, most_slots=24, policies=[move_to_device(one) for one in policies(num_sets)], state_size=16,
        dtype=torch.float32, device=DEVICE,
    )  # fmt: skip
    before = {name: value.clone() for name, value in vars(made.device).items() if isinstance(value, Tensor)}
    counts = []
    made.warm_up(lambda _table, _first, _kept, count: counts.append(int(count.max())), BLOCK)
    assert counts
    assert set(counts) == {0}
    for name, value in before.items():
        assert torch.equal(getattr(made.device, name), value), name
