"""Model runner V2's logits processor that changes no logit: the public way by which a wrong request is refused."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from leanthink.integrations.vllm.settings import asked_of, settings_here


class Checks(LogitsProcessor):  # type: ignore[misc]  # vLLM is not there when types are checked
    """Looks at what requests ask for before they reach the engine."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request (UsageError, which is a ValueError and so a 400)."""
        asked_of(sampling_params.extra_args, settings_here())

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """False: no request's logits are changed, so `apply` is never called for one."""
        return False

    def apply(self, logits: Any, ctx: Any) -> Any:
        """The same logits."""
        return logits
