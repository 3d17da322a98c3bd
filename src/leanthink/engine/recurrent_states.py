"""What linear and state-space layers keep of each request, lent to transformers' modules for one forward.

N requests of a forward   L layers with states   S states there are: one for each row, and one that is nobody's
C channels   K latest inputs of a convolution
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from leanthink.models.state_shape import StateShape
from leanthink.models.transformers_versions import CACHE_NAMES
from leanthink.utils.errors import UsageError


class RecurrentStates:
    """The states of all requests, by state index; the last is for rows of a CUDA graph without a request.

    Args:
        shape: of the model's states.
        rows: most requests at a time.
        dtype: of the model, and of what convolutions keep.
        device: where they lie.

    Raises:
        UsageError: the device has no room for them.
    """

    def __init__(self, shape: StateShape, *, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, layers = shape, len(shape.layers)
        try:
            self.conv_LSCK = torch.zeros(layers, rows + 1, *shape.conv, dtype=dtype, device=device)
            # [L, S, ...], or empty where the layers have none.
            recurrent = (rows + 1, *shape.recurrent) if shape.recurrent else (0,)
            self.recurrent_LS = torch.zeros(layers, *recurrent, device=device)
        except RuntimeError as error:
            size = (rows + 1) * shape.bytes_per_request(dtype) / 2**30
            raise UsageError(
                f"{device} has no room for the states of {rows} requests ({size:.1f} GiB in the model's linear or "
                "state-space layers): lower max_rows"
            ) from error
        self._before: tuple[Tensor, list[Tensor]] | None = None

    @property
    def _all(self) -> list[Tensor]:
        """The tensors, each [L, S, ...]."""
        return [self.conv_LSCK, self.recurrent_LS] if self.shape.recurrent else [self.conv_LSCK]

    def clear(self, index: int) -> None:
        """The state of a request that has read nothing."""
        for states_LS in self._all:
            states_LS[:, index] = 0

    def begin(self, states_N: Tensor) -> None:
        """A step begins that may be taken back: remember these states, until `settle`."""
        self._before = states_N, [states_LS.index_select(1, states_N) for states_LS in self._all]

    def settle(self) -> None:
        """The step counts."""
        self._before = None

    def rewind(self) -> None:
        """As if the step that began had not."""
        if self._before is not None:
            states_N, before = self._before
            for states_LS, before_LN in zip(self._all, before, strict=True):
                states_LS.index_copy_(1, states_N, before_LN)
            self._before = None

    @contextmanager
    def lent(self, model: Any, states_N: Tensor, *, fresh: bool = False) -> Iterator[dict[str, Any]]:
        """For one forward of these requests: the arguments with which the model's modules continue from their states.

        A layer's states are gathered just before it runs and put back just after, so that those of one layer are held
        twice at a time. All by work on the device, of fixed shapes. Modules update what they are lent in place.

        Args:
            model: whose forward runs inside.
            states_N: a state index for each row of the forward.
            fresh: the requests begin here, and what lies in their states is another's.
        """
        cache, hooks = _Lent(len(model.base_model.layers), self.shape), []
        for at, index in enumerate(self.shape.layers):
            layer, module = cache.layers[index], model.base_model.layers[index]
            lend, put_back = self._moves(at, layer, states_N, fresh)
            hooks += [module.register_forward_pre_hook(lend), module.register_forward_hook(put_back)]
        name = next(name for name in CACHE_NAMES if name in inspect.signature(model.forward).parameters)
        try:
            yield {name: cache, "use_cache": True}
        finally:
            for hook in hooks:
                hook.remove()

    def _moves(self, at: int, layer: Any, states_N: Tensor, fresh: bool) -> tuple[Any, Any]:
        """What runs before and after the layer `at` of those with states."""

        def lend(_module: Any, _inputs: Any) -> None:
            lent = [states_LS[at].index_select(0, states_N) for states_LS in self._all]
            if fresh:
                for states in lent:
                    states.zero_()
            layer.lend(*lent, fresh=fresh)

        def put_back(_module: Any, _inputs: Any, _output: Any) -> None:
            for states_LS, states in zip(self._all, layer.give_back(), strict=False):
                states_LS[at].index_copy_(0, states_N, states)

        return lend, put_back


class _LentLayer(LinearAttentionLayer):  # type: ignore[misc]
    """transformers' cache of a layer's states, on tensors that are lent to it."""

    def lend(self, conv_NCK: Tensor, recurrent_N: Tensor | None = None, *, fresh: bool) -> None:
        """Take the states of N requests; of `fresh` ones modules are told that there are none yet."""
        self.conv_states[0], self.is_conv_states_initialized[0] = conv_NCK, True
        self.conv_kernel_size[0], self.has_previous_state[0] = conv_NCK.shape[-1], not fresh
        if recurrent_N is not None:
            self.recurrent_states[0], self.is_recurrent_states_initialized[0] = recurrent_N, True

    def give_back(self) -> list[Tensor]:
        """The states, of which nothing is kept."""
        states = [self.conv_states[0], self.recurrent_states[0]]
        self.conv_states[0] = self.recurrent_states[0] = None
        return states


class _Lent(Cache):  # type: ignore[misc]
    """A cache for one forward, in which attention layers keep nothing: their keys and values go into slots."""

    def __init__(self, layers: int, shape: StateShape) -> None:
        super().__init__(layers=[_LentLayer() if index in shape.layers else DynamicLayer() for index in range(layers)])

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What attention has just computed, and nothing from before."""
        return key_states, value_states
