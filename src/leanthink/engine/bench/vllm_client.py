"""vLLM as its users run it, driven with token ids: its core in a process of its own, and when each token was ready.

Imported only where vLLM is installed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


class Client:
    """Greedy requests to an engine core; nothing ends them early, and tokens are not turned into text.

    Attributes:
        results: of each step, when it was ready by the core's own clock, which is `time.monotonic`, and the requests
            that got a token.
        came: when the first token of each request was, in their order.
    """

    def __init__(self, llm: Any) -> None:
        self.llm, self.engine, self.count = llm, llm.llm_engine, 0
        self.results: list[tuple[float, list[str]]] = []
        self.came: dict[str, float] = {}
        core, receive = self.engine.engine_core, self.engine.engine_core.get_output

        def noted() -> Any:
            outputs = receive()
            if outputs.outputs:
                names = [output.request_id for output in outputs.outputs if output.new_token_ids]
                self.results.append((outputs.timestamp, names))
                for name in names:
                    self.came.setdefault(name, outputs.timestamp)
            return outputs

        core.get_output = noted

    def send(self, prompt_ids: Sequence[int], tokens: int, extra_args: dict[str, Any] | None = None) -> None:
        """One request, for so many tokens."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=extra_args,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        self.engine.add_request(str(self.count), {"prompt_token_ids": list(prompt_ids)}, params)
        self.count += 1

    @property
    def unfinished(self) -> bool:
        """Whether a request has not ended."""
        return bool(self.engine.has_unfinished_requests())

    def finish(self) -> None:
        """Serve all that was sent."""
        while self.unfinished:
            self.engine.step()

    def abort(self) -> None:
        """End all that was sent."""
        self.engine.abort_request([str(index) for index in range(self.count)])

    def first_tokens_ms(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[float]:
        """Milliseconds from the first request's sending to the first token of each; all are served to their ends."""
        before, start = len(self.came), time.monotonic()
        for prompt_ids in prompts:
            self.send(prompt_ids, tokens)
        self.finish()
        return [1e3 * (moment - start) for moment in [*self.came.values()][before:]]

    def steps_of_all(self, rows: int) -> list[tuple[int, float]]:
        """The steps in which so many requests decode, and nothing else runs: their places and their milliseconds."""
        neighbours = enumerate(pairwise(self.results), 1)
        return [
            (place, 1e3 * (after - before))
            for place, ((before, some), (after, others)) in neighbours
            if len(some) == len(others) == rows
        ]
