from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from leanthink.engine.decoder import LeanDecoder
from leanthink.engine.fused_weights import fuse
from models import make_model


def test_the_whole_is_the_parameters_and_the_parameters_are_the_whole() -> None:
    parts = [nn.Parameter(torch.randn(rows, 5)) for rows in (4, 1, 2)]
    before = [part.detach().clone() for part in parts]
    whole = fuse(parts)
    assert torch.equal(whole, torch.cat(before))
    assert all(isinstance(part, nn.Parameter) and part.requires_grad for part in parts)
    with torch.no_grad():
        parts[1].fill_(7)
    assert torch.equal(whole[4], torch.full((5,), 7.0))
    whole[0] = 3
    assert torch.equal(parts[0][0].detach(), torch.full((5,), 3.0))


def test_what_lies_side_by_side_stays_where_it_is() -> None:
    parts = [nn.Parameter(torch.randn(rows)) for rows in (4, 1, 2)]
    whole = fuse(parts)
    again = fuse(parts)
    assert again.data_ptr() == whole.data_ptr()
    assert fuse(parts[1:]).data_ptr() == parts[1].data_ptr()
    assert fuse(parts[::-1]).data_ptr() != whole.data_ptr(), "another order is another tensor"
    assert torch.equal(fuse(parts), whole)


def test_parameters_moved_in_inference_mode_can_still_be_trained() -> None:
    parts = [nn.Parameter(torch.randn(2, 3)) for _ in range(2)]
    with torch.inference_mode():
        fuse(parts)
    sum(part.square().sum() for part in parts).backward()
    torch.optim.SGD(parts, lr=0.5).step()
    assert all(not part.any() for part in parts), "x - 0.5 * 2 x"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_decoder_leaves_a_model_that_computes_trains_and_saves_as_before(architecture: str, tmp_path: Path) -> None:
    model, ids = make_model(architecture), torch.arange(12)[None]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        logits = model(ids).logits
        decoder = LeanDecoder(model)
        assert torch.equal(model(ids).logits, logits)
    assert {name: value.shape for name, value in model.state_dict().items()} == {n: v.shape for n, v in before.items()}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())
    model(ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    weight, _ = decoder.layers[0].qkv
    projections = model.model.layers[0].self_attn
    trained = torch.cat([part.weight.detach() for part in (projections.q_proj, projections.k_proj, projections.v_proj)])
    assert torch.equal(weight, trained), "the decoder sees what training changed"
    assert not torch.equal(trained[: len(projections.q_proj.weight)], before["model.layers.0.self_attn.q_proj.weight"])
