"""LoRA's linear layers as one step of the autograd graph, in place of peft's dozen.

peft computes a layer as its base layer and two more, with a cast, a product with the scaling and a sum around them: a
dozen kernels forward, more backward, and copies of the input and the result that are kept in between. In micro-batches
of usual size the host cannot launch them as fast as a GPU works them off. The same sum takes three products here, five
backward, and keeps of each token the input, which layers beside this one keep too, and r numbers.

N tokens   I features in   O features out   R rank
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PLAIN = (nn.Parameter, Tensor, FakeTensor)  # no quantised, no distributed ones
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
CAST = {torch.float32, torch.bfloat16, torch.float16}  # by autocast


def fuse_lora(model: nn.Module) -> int:
    """Let the linear layers of LoRA in this model compute as `FusedLinear`; returns how many there are.

    Nothing else about them changes: parameters, names, files, merging. Layers of other classes stay as they are.
    """
    layers = [module for module in model.modules() if type(module) is Linear]
    for layer in layers:
        layer.__class__ = FusedLinear
    return len(layers)


class FusedLinear(Linear):  # type: ignore[misc]  # peft has no types
    """peft's layer, in one step where it is plain, and as peft computes it where it is not.

    Plain is a frozen `nn.Linear` with one active adapter of two more, without dropout, bias or a variant such as DoRA,
    not merged, all of them without hooks and of types that can be computed in one: that of autocast, or their own.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's result [..., O] for x [..., I]."""
        adapter = None if args or kwargs or torch.compiler.is_compiling() else self._plain_adapter()
        if adapter is not None:
            base, down, up = self.base_layer, self.lora_A[adapter].weight, self.lora_B[adapter].weight
            dtype = _compute_dtype(x, base.weight, down, up)
            if dtype is not None:
                scaling = self.scaling[adapter]
                result: Tensor = _LoraLinear.apply(x, base.weight, base.bias, down, up, scaling, dtype)  # type: ignore[no-untyped-call]
                return result
        found: Tensor = super().forward(x, *args, **kwargs)
        return found

    def _plain_adapter(self) -> str | None:
        """The name of the only active adapter; None where the layer is not plain."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (adapter,) = self.active_adapters
        if adapter not in self.lora_A or getattr(self, "lora_variant", ()) or self.use_dora.get(adapter):
            return None
        base, down, up, dropout = self.base_layer, self.lora_A[adapter], self.lora_B[adapter], self.lora_dropout[adapter]
        drops = not isinstance(dropout, nn.Identity) and (dropout.training or type(dropout) is not nn.Dropout)
        if drops and getattr(dropout, "p", None) != 0:
            return None
        if not (_is_plain(base) and _is_plain(down) and _is_plain(up)) or down.bias is not None or up.bias is not None:
            return None
        trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
        return None if trained else adapter


def _is_plain(module: Any) -> bool:
    """Whether the module does nothing but multiply: sharding, offloading and observers come as hooks or classes."""
    if type(module) is not nn.Linear or type(module.weight) not in PLAIN:
        return False
    own = vars(module)
    return "forward" not in own and not any(own.get(name) for name in HOOKS)


def _compute_dtype(*tensors: Tensor) -> torch.dtype | None:
    """The type of all products; None where peft would compute in several."""
    dtypes = {tensor.dtype for tensor in tensors}
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device) if dtypes <= CAST else None
    return dtypes.pop() if len(dtypes) == 1 else None


class _LoraLinear(torch.autograd.Function):
    """y = x W' + b + s (x A') B', of a frozen W [O, I] and b [O], trained A [R, I] and B [O, R], and a number s."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a: Tensor, b: Tensor, s: float, dtype: torch.dtype
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1]).to(dtype)
        a_RI, b_OR = a.to(dtype), b.to(dtype)
        bias_O = None if bias_O is None else bias_O.to(dtype)
        h_NR = F.linear(x_NI, a_RI)
        y_NO = F.linear(x_NI, weight_OI.to(dtype), bias_O)
        y_NO.addmm_(h_NR, b_OR.t(), alpha=s)
        # As they were given: a cast copy would be memory of its own, where the input and the weight lie there anyway.
        ctx.save_for_backward(x, weight_OI, a_RI, b_OR, h_NR)
        ctx.s, ctx.dtypes = s, (a.dtype, b.dtype)
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI, a_RI, b_OR, h_NR = ctx.saved_tensors
        s, dtype = ctx.s, h_NR.dtype
        of_x, _, _, of_a, of_b, _, _ = ctx.needs_input_grad
        dx = da = db = None
        with torch.autocast(grad.device.type, enabled=False):  # all is in the type of the forward
            dy_NO = grad.reshape(-1, grad.shape[-1])
            dh_NR = dy_NO.mm(b_OR) if of_x or of_a else None
            if of_x:
                dx = dy_NO.mm(weight_OI.to(dtype)).addmm_(dh_NR, a_RI, alpha=s).view_as(x).to(x.dtype)
            # With beta=0 the first tensor only says the shape: the scaling costs no step of its own.
            if of_a:
                x_NI = x.reshape(-1, x.shape[-1]).to(dtype)
                da = torch.addmm(a_RI, dh_NR.t(), x_NI, beta=0, alpha=s).to(ctx.dtypes[0])
            if of_b:
                db = torch.addmm(b_OR, dy_NO.t(), h_NR, beta=0, alpha=s).to(ctx.dtypes[1])
        return dx, None, None, da, db, None, None
