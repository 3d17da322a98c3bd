"""One token for every row, step after step: forward → score tokens → sample → if due: evict → read the tokens.

With async scheduling, as in vLLM, a step is launched before the tokens of the one before are read: the device needs
nothing of what the host makes of them, and goes on without waiting for it. A row that turns out to have ended was then
fed once more in vain, and what that wrote is gone with it. Everything else the host does in the same order.
"""

from __future__ import annotations

from functools import partial

from leanthink.engine.eviction import Evictor
from leanthink.engine.faults import Faults
from leanthink.engine.known_policies import KnownPolicies
from leanthink.engine.model_runner import TokenScoring
from leanthink.engine.rows import Rows
from leanthink.engine.scheduler import Scheduler
from leanthink.policies import Policy


class DecodeLoop:
    """Decodes all rows together.

    Args:
        rows: of the engine.
        known: its policies, and where their token scores lie.
        scheduler, evictor, faults: of the engine.
        async_scheduling: whether a step is launched before the tokens of the one before are read.
    """

    def __init__(
        self,
        rows: Rows,
        known: KnownPolicies,
        scheduler: Scheduler,
        evictor: Evictor,
        faults: Faults,
        *,
        async_scheduling: bool,
    ) -> None:
        self.cache, self.batch, self.model_runner = rows.cache, rows.batch, rows.model_runner
        self.policies, self.columns = known.policies, known.columns
        self.scheduler, self.evictor, self.faults = scheduler, evictor, faults
        self.async_scheduling = async_scheduling
        self._decoded = 0  # steps so far in which rows decoded

    def step(self) -> bool:
        """Admit what fits, and a token for every row that decodes; the host looks after evictions meanwhile.

        False if there are none, as no row decodes, or as the forward or a token's scores raised.
        """
        batch, runner = self.batch, self.model_runner
        if not self._take_launched() and not self._launch():
            return False
        n, logprobs = self.cache.active, batch.num_logprobs
        self.cache.advance()
        self._score_strided()
        self._decoded += 1
        self.evictor.accumulate_attention()
        self.evictor.evict()
        raised = self._may_launch_ahead() and not self._launch_ahead()
        if logprobs >= 0:
            batch.note_logprobs(runner.logprobs(n))
        ids_N = runner.ids(n)
        self.faults.note_ids(ids_N)
        batch.note_tokens(ids_N.clamp(min=0))
        if raised:
            self._feed_prompts_alone()
        for row, unread in batch.unread.items():
            self.faults.note(batch.requests[row], unread)
        return True

    def token_scoring(self, *, strided: bool) -> list[TokenScoring]:
        """The policies that score tokens in this step, of those that do in every step or of the others, and rows."""
        return [
            (policy, column, self.batch.rows_of(index))
            for index, (policy, column) in enumerate(zip(self.policies, self.columns, strict=True))
            if policy.score_dims and (policy.stride > 1) == strided and self._decoded % policy.stride == 0
        ]

    def _take_launched(self) -> bool:
        """Whether this step is launched already, for a row that is still here."""
        launched, self.cache.steps_ahead = self.cache.steps_ahead > 0 and self.cache.active > 0, 0
        if not launched:
            self.model_runner.drop_unread()
            if self.cache.recurrent is not None:
                self.cache.recurrent.settle()
        return launched

    def _launch(self) -> bool:
        """Admit, and launch a step; False if there are no rows, or if those raised."""
        self.scheduler.schedule()
        return self.cache.active > 0 and self._launch_rows()

    def _launch_rows(self) -> bool:
        """`_launch_step`; False if it raised without prompts that ride along."""
        try:
            self._launch_step()
        except Exception as error:
            if not self.scheduler.chunks:
                self.faults.find(error, self.token_scoring(strided=False), logprobs=self.batch.num_logprobs)
                return False
            self.faults.check_device(error)
            self._feed_prompts_alone()
            return self._launch_rows()
        return True

    def _launch_step(self) -> None:
        """Launch a step of all rows, and of the prompts that ride along."""
        scoring, logprobs = self.token_scoring(strided=False), self.batch.num_logprobs
        self.scheduler.launch(self.cache.active, scoring, logprobs=logprobs)

    def _feed_prompts_alone(self) -> None:
        """A forward has raised: feed its prompts without rows, so that whoever made it raise is found."""
        self.faults.rewind()
        self.scheduler.feed_alone()

    def _may_launch_ahead(self) -> bool:
        """Whether nothing that the next step needs or overwrites depends on this one's tokens, as far as is known.

        It would be in vain for a row whose last token this one is, and it overwrites log-probabilities, and what is
        recorded of a row when it ends.
        """
        batch = self.batch
        return (
            self.async_scheduling
            and batch.num_logprobs < 0
            and not bool(batch.recorded[: self.cache.active].any())
            and not self.faults.failed
            and not batch.any_ends_by_length()
        )

    def _launch_ahead(self) -> bool:
        """Admit, and launch the next step; False if that raised: it begins again when this one's tokens are known."""
        self.scheduler.schedule()
        try:
            self._launch_step()
        except Exception as error:
            self.faults.check_device(error)
            return False
        self.cache.steps_ahead = 1
        return True

    def _score_strided(self) -> None:
        """Score the tokens of the policies that do not in every step."""
        for policy, column, rows_R in self.token_scoring(strided=True):
            if len(rows_R):
                self.faults.row_by_row(partial(self._score_tokens, policy, column), rows_R.tolist())

    def _score_tokens(self, policy: Policy, column: int, rows: list[int]) -> None:
        self.model_runner.score_tokens(policy, column, self.cache.indices(rows))
