"""Muon with the orthogonalisation of same-shaped matrices batched: a few large matrix products instead of hundreds."""

# M matrices of one shape, R rows, C columns
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Keller Jordan, "Muon: an optimizer for hidden layers" (2024)


class BatchedMuon(Optimizer):
    """`torch.optim.Muon` with Nesterov momentum and `adjust_lr_fn="match_rms_adamw"`; each shape in one batch."""

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix from its gradient, which each must have; gradients are left as they are."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                shapes.setdefault(matrix.shape, []).append(matrix)
            for matrices in shapes.values():
                self._update(matrices, **{name: group[name] for name in ("lr", "weight_decay", "momentum")})

    def _update(self, matrices: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        gradients_MRC = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
        assert len(gradients_MRC) == len(matrices)
        state = self.state[matrices[0]]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradients_MRC)
        state["momentum"].lerp_(gradients_MRC, 1 - momentum)
        update_MRC = orthogonalized(gradients_MRC.lerp(state["momentum"], momentum)).to(gradients_MRC.dtype)
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        # 0.2 is the size of AdamW's usual step, so that one learning rate serves both (Moonlight, arXiv 2502.16982).
        scale = 0.2 * max(matrices[0].shape) ** 0.5
        torch._foreach_add_(matrices, list(update_MRC.unbind()), alpha=-lr * scale)


def orthogonalized(matrices_MRC: Tensor, steps: int = 5) -> Tensor:
    """bf16 [M, R, C]: each matrix with its singular values pushed towards 1, by a quintic Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    tall = matrices_MRC.shape[1] > matrices_MRC.shape[2]
    x = matrices_MRC.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
