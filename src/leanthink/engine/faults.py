"""What becomes of an exception in a step: the request that made it is found and ends with an error, the others go on.

Numbers that are NaN or infinite raise nothing: the device says of each row whether it has a token (see `ModelRunner`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from leanthink.engine.cache import SlotCache
from leanthink.engine.model_runner import NO_RANKING, ModelRunner, TokenScoring
from leanthink.engine.request import Request
from leanthink.engine.running_batch import RunningBatch
from leanthink.engine.sampling import NO_TOKEN
from leanthink.utils.errors import DeviceLost, LeanThinkError, RequestFailed

WHY = {
    NO_TOKEN: "the model's logits are NaN or infinite; run it in bfloat16 or float32, and check its weights",
    NO_RANKING: "a policy returned a score that is NaN or infinite: no slot can be ranked by it. The model's or the "
    "predictor's numbers have overflowed; run the model in bfloat16 or float32 and check the predictor",
}


class Faults:
    """Notes which requests fail in a step, and finds those that made it raise.

    Args:
        cache, batch, model_runner: of the engine.
    """

    def __init__(self, cache: SlotCache, batch: RunningBatch, model_runner: ModelRunner) -> None:
        self.cache, self.batch, self.model_runner = cache, batch, model_runner
        self.failed: dict[int, RequestFailed] = {}  # by id, since the last `take`

    def take(self) -> dict[int, RequestFailed]:
        """What has failed since the last call, by id."""
        failed, self.failed = self.failed, {}
        return failed

    def rows(self) -> list[int]:
        """The rows of what has failed."""
        if not self.failed:
            return []
        return [row for row, request in enumerate(self.batch.requests) if request.index in self.failed]

    def note(self, request: Request, error: Exception) -> None:
        """This request ends with this error; the first one counts."""
        why = str(error) if isinstance(error, LeanThinkError) else f"{type(error).__name__}: {error}"
        failure = RequestFailed(request.index, why)
        failure.__cause__ = error
        self.failed.setdefault(request.index, failure)

    def note_ids(self, ids_N: Tensor) -> None:
        """The rows that have no token fail."""
        for row in (ids_N < 0).nonzero()[:, 0].tolist():
            request = self.batch.requests[row]
            self.failed.setdefault(request.index, RequestFailed(request.index, WHY[int(ids_N[row])]))

    def check_device(self, error: Exception) -> None:
        """Raise DeviceLost if it was the device that this error came from, and not a request."""
        device = self.model_runner.last_ids.device
        try:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except RuntimeError as lost:
            raise DeviceLost(f"{device} answers no more ({lost}): start the process again") from error

    def row_by_row(self, work: Callable[[list[int]], None], rows: list[int]) -> None:
        """Do this for all rows at once; if it raises, for each of them alone, and those fail for which it raises."""
        try:
            work(rows)
        except Exception as error:
            self.check_device(error)
            if len(rows) == 1:
                self.note(self.batch.requests[rows[0]], error)
                return
            for row in rows:
                self.row_by_row(work, [row])

    def find(self, error: Exception, scoring: Sequence[TokenScoring], *, logprobs: int) -> None:
        """The device's part of a step raised: run it for each row alone, and those fail for which it raises again.

        All fail if none does so alone. For the others it is as if the step had not begun.
        """
        self.check_device(error)
        self.rewind()
        found = {row: again for row in range(self.cache.active) if (again := self._alone(row, scoring, logprobs))}
        blamed: Mapping[int, Exception] = found or dict.fromkeys(range(self.cache.active), error)
        for row, raised in blamed.items():
            self.note(self.batch.requests[row], raised)

    def _alone(self, row: int, scoring: Sequence[TokenScoring], logprobs: int) -> Exception | None:
        """What a step raises in which only this row lives; the others feed token 0 and leave no trace."""
        others = [other for other in range(self.cache.active) if other != row]
        self.cache.live[others] = 0
        self.model_runner.last_ids[others] = 0
        own = [(policy, column, rows_R[rows_R == row]) for policy, column, rows_R in scoring]
        try:
            self.model_runner.launch_plain(self.cache.active, own, logprobs=logprobs)
        except Exception as error:
            self.check_device(error)
            return error
        finally:
            self.rewind()
        return None

    def rewind(self) -> None:
        """The device stands again where the host stands: before the step."""
        batch, generated = self.batch, self.batch.generated.tolist()
        rows = list(zip(batch.requests, generated, strict=False))
        self.cache.rewind([len(request.prompt_ids) - 1 + tokens for request, tokens in rows])
        last = [
            int(batch.ids[row, tokens - 1]) if tokens else request.prompt_ids[-1]
            for row, (request, tokens) in enumerate(rows)
        ]
        self.model_runner.feed(0, last)
