"""The GPU kernels against their twins in plain PyTorch. Run by hand on a GPU: pytest -m gpu."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

triton = pytest.importorskip("triton", reason="Triton comes with the CUDA builds of torch")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "group", "dim"), [(2, 3, 64), (8, 4, 128), (4, 7, 96), (1, 1, 256)])
def test_decode_attention_equals_masked_sdpa_on_ragged_rows(
    heads: int, group: int, dim: int, dtype: torch.dtype
) -> None:
    from leanthink.kernels.decode import decode_attention

    torch.manual_seed(dim)
    rows, slots = 9, 200
    keys, values = (torch.randn(rows, heads, slots, dim, device="cuda", dtype=dtype) for _ in range(2))
    q = torch.randn(rows, heads, group, dim, device="cuda", dtype=dtype)
    last = torch.tensor([0, 1, 15, 16, 63, 64, 65, 128, 199], device="cuda")
    behind = torch.arange(slots, device="cuda") > last[:, None]
    bias = torch.zeros(rows, slots, device="cuda").masked_fill(behind, -torch.inf)[:, None, None]
    wanted = F.scaled_dot_product_attention(q.double(), keys.double(), values.double(), attn_mask=bias.double())
    keys[behind[:, None, :, None].expand_as(keys)] = torch.nan  # what lies behind a row's length is never read
    values[behind[:, None, :, None].expand_as(values)] = torch.nan
    got = decode_attention(q, keys, values, last, dim**-0.5)
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    assert (got.double() - wanted).norm() / wanted.norm() < bound
