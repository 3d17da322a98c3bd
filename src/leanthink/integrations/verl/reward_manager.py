"""Tells right responses from wrong ones, one at a time, as verl's reward workers ask."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from leanthink.data.think_tags import CLOSE_TAG, close_index, think_tags
from leanthink.engine.outputs import decode
from leanthink.integrations.verl.data import columns_of
from leanthink.integrations.verl.settings import settings_of
from leanthink.rl.data import grade


class DeepCompressRewardManager(RewardManagerBase):  # type: ignore[misc]  # verl is not there when types are checked
    """The outcome reward of DeepCompress: +1 if a response closes its thought and what follows is right, else -1.

    Length and overlong rewards are added where advantages are made. verl logs what comes along, in validation by its
    mean: `acc`, `tokens`, `thought_tokens` and `closed`.

    Args:
        config: verl's whole configuration.
        tokenizer: of the policy.
        compute_score: verl's own grader, not used.
        reward_router_address, reward_model_tokenizer: of a reward model, which is refused.

    Raises:
        UsageError: a setting that DeepCompress cannot bear.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tokenizer: Any,
        compute_score: Any,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        self._think_tags = settings_of(config).think_tags
        self._tags = think_tags(tokenizer)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The reward of the one response in this DataProto.

        Raises UsageError for a row without a right answer.
        """
        item = data[-1]
        response_T = item.batch["responses"]
        num_tokens = int(item.batch["attention_mask"][-len(response_T) :].sum())
        ids = response_T[:num_tokens].tolist()
        text = self._tags.usual(decode(self.tokenizer, ids, self._tags))
        graded = partial(grade, columns_of(item.non_tensor_batch), text, think_tags=self._think_tags)
        correct = await asyncio.get_running_loop().run_in_executor(None, graded)
        ends = close_index(self._tags, ids)
        thought_tokens = num_tokens if ends is None else ends
        logged = {"acc": float(bool(correct)), "tokens": num_tokens, "thought_tokens": thought_tokens}
        return {
            "reward_score": 1.0 if correct else -1.0,
            "reward_extra_info": {**logged, "closed": float(CLOSE_TAG in text)},
        }
