"""LoRA's linear layers as one step of the autograd graph each, in place of peft's twenty.

peft computes a layer as its base layer and two more, with casts, a product with the scaling and a sum around them: with
weights in bfloat16 and adapters in float32 24 kernels, forward and backward, of which 8 are products, and copies of the
input that are kept in between. In small micro-batches the host launches them more slowly than a GPU works them off.
Here they are 14, and what is kept is the input, which layers beside this one keep too, and R numbers of each token.

N tokens   I features in   O features out   R rank
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.compiler import is_compiling

PLAIN = (nn.Parameter, Tensor, FakeTensor)  # no quantised, no distributed ones


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
        plain = None if args or kwargs or is_compiling() else self._plain(x)
        if plain is None:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        result: Tensor = _LoraLinear.apply(x, *plain)  # type: ignore[no-untyped-call]
        return result

    def train(self, mode: bool = True) -> FusedLinear:
        """torch's, with nothing to do where nothing changes: trainers ask for it before each micro-batch.

        Of the ten modules in a layer the mode means something to dropouts alone.
        """
        dropouts = self._modules["lora_dropout"]._modules.values()
        if self.training != mode or any(dropout.training != mode for dropout in dropouts):
            super().train(mode)
        return self

    def _plain(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, float, torch.dtype] | None:
        """What `_LoraLinear` takes beside x; None where the layer is not plain.

        Asked of each layer in each forward, as hooks and adapters come and go: modules and weights are looked up where
        torch keeps them, which takes a tenth of the time that attributes take.
        """
        active, parts = self._active_adapter, self._modules
        if self._disable_adapters or self.merged_adapters or getattr(self, "lora_variant", True):
            return None
        name = active if isinstance(active, str) else active[0] if len(active) == 1 else ""
        dropout = parts["lora_dropout"]._modules.get(name)
        if type(dropout) is not nn.Identity and (type(dropout) is not nn.Dropout or (dropout.training and dropout.p)):
            return None
        weight, bias = _of_plain(parts["base_layer"])
        a, a_bias = _of_plain(parts["lora_A"]._modules.get(name))
        b, b_bias = _of_plain(parts["lora_B"]._modules.get(name))
        if weight is None or a is None or b is None or a_bias is not None or b_bias is not None:
            return None
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return None
        dtype = _compute_dtype(x, weight, a, b)
        return None if dtype is None else (weight, bias, a, b, self.scaling[name], dtype)


def _of_plain(module: Any) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a module that does nothing but multiply, as sharding, offloading and observers come as hooks
    or as other classes; else (None, None).
    """
    if type(module) is not nn.Linear:
        return None, None
    own = vars(module)
    if own["_forward_pre_hooks"] or own["_forward_hooks"] or own["_backward_pre_hooks"] or own["_backward_hooks"]:
        return None, None
    weight = own["_parameters"].get("weight")
    if "forward" in own or type(weight) not in PLAIN:
        return None, None
    return weight, own["_parameters"]["bias"]


def _compute_dtype(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> torch.dtype | None:
    """The type of all products; None where peft would compute in several."""
    if _autocasts(x):
        uncast = torch.float64 in (x.dtype, weight.dtype, a.dtype, b.dtype)
        return None if uncast else torch.get_autocast_dtype(x.device.type)
    return x.dtype if x.dtype == weight.dtype == a.dtype == b.dtype else None


def _autocasts(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


class _LoraLinear(torch.autograd.Function):
    """y = x W' + b + s (x A') B', of a frozen W [O, I] and b [O], trained A [R, I] and B [O, R], and a number s."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        a: Tensor,
        b: Tensor,
        s: float,
        dtype: torch.dtype,
    ) -> Tensor:
        x_NI, w_OI, a_RI, b_OR = x.reshape(-1, x.shape[-1]).to(dtype), weight_OI.to(dtype), a.to(dtype), b.to(dtype)
        y = x_NI.new_empty(*x.shape[:-1], len(w_OI))  # no view of a product: models may change a result in place
        y_NO = y.view(-1, len(w_OI))
        h_NR = x_NI.mm(a_RI.t())
        # The adapter's part, which is the smaller one, is rounded, and the large product is added before it is.
        if bias_O is None:
            y_NO.addmm_(h_NR, b_OR.t(), beta=0, alpha=s)
        else:
            torch.addmm(bias_O.to(dtype), h_NR, b_OR.t(), alpha=s, out=y_NO)
        y_NO.addmm_(x_NI, w_OI.t())
        # Input and weight as they were given: they lie in memory anyway, where copies of another type would be more.
        ctx.save_for_backward(x, weight_OI, a_RI, b_OR, h_NR)
        ctx.s = s
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("fused LoRA layers have no second derivative: leave create_graph out")
        if not _autocasts(grad):
            return _gradients(ctx, grad)
        with torch.autocast(grad.device.type, enabled=False):  # the type of a product is that of the forward
            return _gradients(ctx, grad)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Of x, A and B, in the type of the products; autograd casts each to that of what it is of."""
    x, weight_OI, a_RI, b_OR, h_NR = ctx.saved_tensors
    of_x, _, _, of_a, of_b, _, _ = ctx.needs_input_grad
    s, dx, da, db = ctx.s, None, None, None
    dy_NO = grad.reshape(-1, grad.shape[-1])
    x_NI, dh_NR = x.reshape(-1, x.shape[-1]).to(dy_NO.dtype), dy_NO.mm(b_OR)
    # With beta=0 the first tensor only says the shape: so the scaling costs no step of its own.
    if of_x:
        dx_NI = torch.addmm(x_NI, dh_NR, a_RI, beta=0, alpha=s)
        dx = dx_NI.addmm_(dy_NO, weight_OI.to(dy_NO.dtype)).view(x.shape)
    if of_a:
        da = torch.addmm(a_RI, dh_NR.t(), x_NI, beta=0, alpha=s)
    if of_b:
        db = torch.addmm(b_OR, dy_NO.t(), h_NR, beta=0, alpha=s)
    return dx, None, None, da, db, None, None
