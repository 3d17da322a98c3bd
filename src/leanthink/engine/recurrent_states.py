"""What linear and state-space layers keep of each request, lent to transformers' modules for one forward.

N requests of a forward   L layers with states   S states there are: one for each row, and one that is nobody's
C channels   K latest inputs of a convolution
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from leanthink.models.state_shape import StateShape
from leanthink.models.transformers_versions import CACHE_NAME


class RecurrentStates:
    """The states of all requests, by state index; the last is for rows of a CUDA graph without a request.

    Args:
        shape: of the model's states.
        rows: most requests at a time.
        dtype: of the model, and of what convolutions keep.
        device: where they lie.
    """

    def __init__(self, shape: StateShape, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, layers = shape, len(shape.layers)
        self.conv_LSCK = torch.zeros(layers, rows + 1, *shape.conv, dtype=dtype, device=device)
        # [L, S, ...], or empty where the layers have none.
        recurrent = (rows + 1, *shape.recurrent) if shape.recurrent else (0,)
        self.recurrent_LS = torch.zeros(layers, *recurrent, dtype=torch.float32, device=device)
        self._before: list[tuple[Tensor, Tensor, Tensor]] = []  # a layer's states, which of them, and what they were

    @property
    def tensors(self) -> list[Tensor]:
        """Of convolutions and, where there are any, of recurrences, each [L, S, ...]."""
        return [self.conv_LSCK, self.recurrent_LS] if self.shape.recurrent else [self.conv_LSCK]

    def clear(self, index: int) -> None:
        """The state of a request that has read nothing."""
        for states_LS in self.tensors:
            states_LS[:, index] = 0

    def settle(self) -> None:
        """What has run counts, and is not to be taken back."""
        self._before.clear()

    def rewind(self) -> None:
        """As if the step that has run, whole or in part, had not; nothing where `settle` has been called since."""
        for states_S, states_N, before_N in self._before:
            states_S.index_copy_(0, states_N, before_N)
        self._before.clear()

    @contextmanager
    def lent(
        self, model: Any, states_N: Tensor, *, fresh: bool = False, undoable: bool = False
    ) -> Iterator[dict[str, Any]]:
        """For one forward of these requests: the arguments with which the model's modules continue from their states.

        A layer's states are gathered just before it runs and put back just after, so that those of one layer are held
        twice at a time. All by work on the device, of fixed shapes. Modules update what they are lent in place.

        Args:
            model: whose forward runs inside.
            states_N: a state index for each row of the forward.
            fresh: the requests begin here, and what lies in their states is another's.
            undoable: `rewind` can take it back; until `settle` the states from before are held too.
        """
        if undoable:
            self.settle()
        cache, hooks = _Lent(len(model.base_model.layers), self.shape), []
        for at, index in enumerate(self.shape.layers):
            layer, module = cache.layers[index], model.base_model.layers[index]
            lend, put_back = self._moves(at, layer, states_N, fresh, undoable)
            hooks += [module.register_forward_pre_hook(lend), module.register_forward_hook(put_back)]
        try:
            yield {CACHE_NAME: cache, "use_cache": True}
        finally:
            for hook in hooks:
                hook.remove()

    def _moves(self, at: int, layer: Any, states_N: Tensor, fresh: bool, undoable: bool) -> tuple[Any, Any]:
        """What runs before and after the layer `at` of those with states."""
        of_layer = [states_LS[at] for states_LS in self.tensors]

        def lend(_module: Any, _inputs: Any) -> None:
            lent = [states_S.index_select(0, states_N) for states_S in of_layer]
            if undoable:
                self._before += [(of, states_N, states.clone()) for of, states in zip(of_layer, lent, strict=True)]
            if fresh:
                for states in lent:
                    states.zero_()
            layer.lend(*lent, fresh=fresh)

        def put_back(_module: Any, _inputs: Any, _output: Any) -> None:
            for states_S, states in zip(of_layer, layer.give_back(), strict=False):
                states_S.index_copy_(0, states_N, states)

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
