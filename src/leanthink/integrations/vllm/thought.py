"""Where a request's thought ends and its answer begins."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from leanthink.integrations.vllm.lengths import NEVER
from leanthink.load import think_tags
from leanthink.request import thought_is_over


class Watch:
    """Looks for `</think>` among the tokens of one request, each of which is looked at once."""

    def __init__(self, prompt_ids: Sequence[int], tokenizer: Any) -> None:
        tags = think_tags(tokenizer)
        self._close_id, self._prompt, self._seen = tags.close_id, len(prompt_ids), 0
        self._answer_at = self._prompt if thought_is_over(tokenizer, prompt_ids, tags) else NEVER

    def answer_at(self, output_ids: Sequence[int]) -> int:
        """Position of `</think>`, or the prompt's length where the prompt has closed the thought; else NEVER."""
        if self._answer_at == NEVER and self._close_id is not None:
            for index in range(self._seen, len(output_ids)):
                if output_ids[index] == self._close_id:
                    self._answer_at = self._prompt + index
                    break
            self._seen = len(output_ids)
        return self._answer_at


@cache
def tokenizer_of(name: str) -> Any:
    """The model's own, by the name or folder that vLLM was given."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
