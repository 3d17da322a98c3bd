"""What of the adapter to verl needs no verl: settings, advantages, the file of the average, data."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from leanthink.integrations.verl.advantage import DeepCompressAdvantage
from leanthink.integrations.verl.average import FILE, read_average, write_average
from leanthink.integrations.verl.data import columns_of, write_parquet
from leanthink.integrations.verl.settings import REQUIRED, Settings, settings_of
from leanthink.integrations.verl.version import check_version
from leanthink.rl.data import from_tasks, grade
from leanthink.utils.errors import DamagedFile, UsageError
from reference.advantages_slow import advantage_slowly, observed_slowly

EXAMPLES = Path(__file__).parents[2] / "examples" / "verl"


def config(**method: Any) -> dict[str, Any]:
    """What the example says, of verl's whole configuration, with these settings of the method."""
    read: dict[str, Any] = yaml.safe_load((EXAMPLES / "deepcompress.yaml").read_text())
    read["algorithm"] |= {"norm_adv_by_std_in_grpo": True, "deepcompress": method}
    read["trainer"] |= {"use_v1": True, "v1": {"trainer_mode": "sync"}, "resume_mode": "auto"}
    return read


def begun(average: float | None = None, **changes: Any) -> DeepCompressAdvantage:
    estimator = DeepCompressAdvantage()
    estimator.begin(Settings(**{"responses": 2, "max_length": 8, "overlong_buffer": 0, **changes}), average)
    return estimator


def batch(tokens: list[int], right: list[bool], width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards and mask [N, T] as verl makes them: the reward stands on the last token."""
    mask_NT = torch.tensor([[int(i < count) for i in range(width)] for count in tokens])
    rewards_NT = torch.zeros(len(tokens), width)
    for row, count in enumerate(tokens):
        if count:
            rewards_NT[row, count - 1] = 1.0 if right[row] else -1.0
    return rewards_NT, mask_NT


def test_advantages_of_two_groups_worked_out_by_hand() -> None:
    estimator = begun(ema_decay=0.0, alpha=0.2, responses=3)
    rewards, mask = batch([2, 4, 3, 5, 5], [True, True, False, True, True])
    # p: right, 2 tokens; right, 4; wrong, 3. P_g 2/3, P_b = (2/3 + 1) / 2 = 5/6, β = -1/6, z = -1.2247, 1.2247, 0
    # length rewards 0.2 * sigmoid(β z up to sign): 0.0899 and 0.1101; q is all right: 0
    found, returns = estimator(rewards, mask, index=["p", "p", "p", "q", "q"])
    assert estimator.average == pytest.approx(5 / 6)
    assert found is returns
    assert found[:, 0].tolist() == pytest.approx([0.5689, 0.5856, -1.1546, 0, 0], abs=2e-4)
    torch.testing.assert_close(found, found[:, :1] * mask)


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5).filter(lambda sizes: max(sizes) > 1))
    keys = [f"prompt-{i}" for i, size in enumerate(sizes) for _ in range(size)]
    padding = draw(st.integers(0, 3))
    tokens = [draw(st.integers(1, 24)) for _ in keys] + [0] * padding
    keys += ["padding"] * padding
    order = draw(st.permutations(range(len(keys))))
    return {"keys": [keys[i] for i in order], "tokens": [tokens[i] for i in order], "right": [
        draw(st.booleans()) for _ in keys
    ]}  # fmt: skip


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    rows=batches(),
    rule=st.sampled_from(["dual", "penalty", "bonus", "none"]),
    weight=st.sampled_from([0.0, 0.2, 1.0]),
    buffer=st.sampled_from([0, 7, None]),
    before=st.sampled_from([None, 0.3]),
    start=st.sampled_from([1.0, "observed"]),
    target=st.sampled_from([None, 9]),
)
def test_advantages_are_those_of_the_reference_implementation_for_ragged_shuffled_and_padded_batches(
    rows: dict[str, Any], rule: Any, weight: float, buffer: int | None, before: float | None, start: Any, target: Any
) -> None:
    keys, tokens, right = rows["keys"], rows["tokens"], rows["right"]
    estimator = begun(
        before, responses=5, max_length=24, length_reward_mode=rule, all_correct_weight=weight, overlong_buffer=buffer,
        ema_decay=0.9, ema_initial_value=start, target_length=None if rule == "none" else target,
    )  # fmt: skip
    rewards, mask = batch(tokens, right, width=24)
    found, _ = estimator(rewards, mask, keys)
    observed = observed_slowly(keys, tokens, right)
    begins = observed if before is None and start == "observed" else (1.0 if before is None else before)
    average = 0.9 * begins + 0.1 * observed
    assert estimator.average == pytest.approx(average)
    assert estimator.settings is not None
    wanted = [advantage_slowly(i, keys, tokens, right, average, estimator.settings) for i in range(len(keys))]
    torch.testing.assert_close(found, torch.tensor(wanted)[:, None] * mask, rtol=1e-4, atol=1e-4)


def test_the_order_of_rows_does_not_matter() -> None:
    rewards, mask = batch([1, 5, 3, 7], [True, False, True, True])
    keys, order = ["a", "a", "b", "b"], [2, 0, 3, 1]
    straight, _ = begun(all_correct_weight=0.5)(rewards, mask, keys)
    shuffled, _ = begun(all_correct_weight=0.5)(rewards[order], mask[order], [keys[i] for i in order])
    torch.testing.assert_close(shuffled, straight[order])
    assert straight[2, 0] > 0 > straight[3, 0]  # all right: the shorter one is to be preferred


def test_each_call_advances_the_average_and_a_run_goes_on_from_the_one_it_is_given() -> None:
    first = begun(ema_decay=0.5)
    ran = batch([1, 2], [True, False])
    first(*ran, ["a", "a"])
    assert first.average == 0.75
    first(*ran, ["a", "a"])
    resumed = begun(0.75, ema_decay=0.5)
    resumed(*ran, ["a", "a"])
    assert resumed.average == first.average == 0.625


def test_a_batch_that_cannot_be_scored_is_refused() -> None:
    rewards, mask = batch([1, 2], [True, False])
    with pytest.raises(UsageError, match="checkpoint_callback_class"):
        DeepCompressAdvantage()(rewards, mask, ["a", "a"])
    with pytest.raises(UsageError, match=r"reward 0\.5: only \+1"):
        begun()(rewards / 2, mask, ["a", "a"])
    with pytest.raises(UsageError, match="prompt a has 3 outputs"):
        begun()(*batch([1, 2, 3], [True] * 3), ["a"] * 3)
    estimator = begun()
    with pytest.raises(UsageError, match="reward -2"):
        estimator(rewards * torch.tensor([[1.0], [2.0]]), mask, ["a", "a"])
    assert estimator.average is None, "a refused batch must not move the average"


def test_the_example_is_accepted_and_its_comment_tells_settings_that_are_known() -> None:
    assert settings_of(config()) == Settings(responses=16, max_length=10240)
    assert settings_of(config()).buffer == 2048
    ours = (EXAMPLES / "deepcompress.yaml").read_text().split("ours is ")[1].split(" for")[0]
    assert settings_of(config(**yaml.safe_load(ours))).all_correct_weight == 0.15


@pytest.mark.parametrize("path", REQUIRED)
def test_what_the_method_depends_on_must_be_as_it_is(path: str) -> None:
    changed = copy.deepcopy(config())
    *parents, last = path.split(".")
    place = changed
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = "other"
    with pytest.raises(UsageError, match=rf"{path}='other': must be .* with DeepCompress, as "):
        settings_of(changed)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alhpa": 0.1}, "unknown setting of algorithm.deepcompress 'alhpa'.*mean 'alpha'"),
        ({"max_length": 5}, "unknown setting"),
        ({"decay": 0.9}, "unknown setting of algorithm.deepcompress 'decay'.*ema_decay"),
        ({"alpha": -1}, "alpha=-1"),
        ({"ema_decay": 1.5}, "ema_decay=1.5"),
        ({"length_reward_mode": "duel"}, "mean 'dual'"),
        ({"ema_initial_value": "now"}, "ema_initial_value='now'"),
        ({"all_correct_weight": 2}, "all_correct_weight=2"),
        ({"overlong_buffer": 20000}, "buffer=20000"),
        ({"target_length": 10240}, "target_length=10240: .*below the longest response"),
    ],
)
def test_bad_settings_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings_of(config(**given))


def test_a_group_of_one_is_refused() -> None:
    changed = config()
    changed["actor_rollout_ref"]["rollout"]["n"] = 1
    with pytest.raises(UsageError, match=r"rollout\.n=1"):
        settings_of(changed)


def test_the_average_survives_its_file_and_a_missing_or_broken_one_is_refused(tmp_path: Path) -> None:
    write_average(tmp_path, 0.1 + 0.2, 40)
    assert read_average(tmp_path) == 0.1 + 0.2
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    for text in ("{", "[]", "{}", '{"average": "high"}', '{"average": NaN}', '{"average": true}', '{"average": 2}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(DamagedFile, match=FILE):
            read_average(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(UsageError, match="resume_mode=disable"):
        read_average(tmp_path)


@pytest.mark.parametrize("version", ["0.8.0", "0.9.0", "0.10.0", "0.10.0.dev0"])
def test_versions_that_nobody_has_looked_at_are_refused(version: str) -> None:
    with pytest.raises(UsageError, match=f"verl {version} is installed, and the adapter is tested with verl"):
        check_version(version)
    check_version("0.9.1")


def test_problems_come_back_from_a_file_as_they_went_in(tmp_path: Path) -> None:
    from datasets import Dataset

    problems = from_tasks(["sums", "ledger"], [1], 3)
    write_parquet(problems, tmp_path / "deep" / "train.parquet")
    rows = list(Dataset.from_parquet(str(tmp_path / "deep" / "train.parquet"), cache_dir=str(tmp_path)))
    for row, problem in zip(rows, problems, strict=True):
        assert row["prompt"] == problem["prompt"]
        columns = columns_of(row)
        assert columns == {name: problem[name] for name in columns}
        for answer, right in ((problem["answer"], True), ("no", False)):
            text = f"thinking</think>\\boxed{{{answer}}}"
            assert grade(columns, text, think_tags=True) is grade(problem, text, think_tags=True) is right
    with pytest.raises(UsageError, match="exists"):
        write_parquet(problems, tmp_path / "deep" / "train.parquet")


@pytest.mark.parametrize("row", [{}, {"reward_model": {"ground_truth": " "}}, {"reward_model": {"ground_truth": 5}}])
def test_a_row_without_a_right_answer_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="ground_truth"):
        columns_of(row)


def test_the_pure_parts_import_no_verl_and_no_ray() -> None:
    names = "settings, advantage, average, data, version"
    code = (
        f"import sys; from leanthink.integrations.verl import {names}; assert not {{'verl', 'ray'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("script", ["one_node.sh", "several_nodes.sh"])
def test_the_scripts_are_shell(script: str) -> None:
    subprocess.run(["bash", "-n", str(EXAMPLES / script)], check=True)
