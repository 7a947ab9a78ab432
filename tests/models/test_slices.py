"""Towers, gates and experts on slices against a plain reference: every tower on every row, then masked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llm4msr.models.registry import BACKBONES
from tests.models.zoo import BACKBONES as SETTINGS


@pytest.mark.parametrize("sizes", [[4, 3, 2], [0, 5, 1], [6, 0, 0], [0, 0, 3]])
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_slices_equal_a_masked_reference_forward_and_backward(name: str, sizes: list[int]) -> None:
    torch.manual_seed(0)
    model = BACKBONES.get(name)(BACKBONES.config(name, SETTINGS[name]), 5, 3).double().eval()
    count = sum(sizes)
    x = torch.randn(count, 5, dtype=torch.float64)
    offsets = tuple(int(o) for o in torch.tensor([0, *sizes]).cumsum(0))
    scenario = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))

    def masked() -> Tensor:
        whole = [model(x, tuple(0 if e <= d else count for e in range(4))) for d in range(3)]
        return torch.stack([w * (scenario == d) for d, w in enumerate(whole)]).sum(0)

    torch.testing.assert_close(model(x, offsets), masked())
    gradients = []
    for logits in (model(x, offsets), masked()):
        model.zero_grad()
        logits.square().sum().backward()
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
