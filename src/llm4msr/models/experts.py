"""Groups of experts of one shape, run together, and the gates that mix them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class Experts(nn.Module):
    """`count` networks `widths[0] -> ... -> widths[-1]` of one shape with ReLU after each layer, as stacked products.

    `forward(x)` takes one input for all experts, `(B, W)`, or one for each, `(count, B, W)`, and gives
    `(count, B, widths[-1])`.
    """

    def __init__(self, count: int, widths: Sequence[int]) -> None:
        super().__init__()
        shapes = list(pairwise(widths))
        self.count = count
        self.weight = nn.ParameterList(
            torch.stack([nn.init.xavier_uniform_(torch.empty(inside, outside)) for _ in range(count)])
            for inside, outside in shapes
        )
        self.bias = nn.ParameterList(torch.zeros(count, 1, outside) for _, outside in shapes)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all experts, `(count, B, widths[-1])`."""
        h = x if x.dim() == 3 else x.expand(self.count, *x.shape)
        for weight, bias in zip(self.weight, self.bias, strict=True):
            h = functional.relu(torch.baddbmm(bias, h, weight))
        return h


def mix(experts: Tensor, scores: Tensor) -> Tensor:
    """`sum_k softmax(scores)_k experts_k`: experts `(n, B, W)` and scores `(B, n)` give `(B, W)`."""
    return torch.einsum("nbw,bn->bw", experts, functional.softmax(scores, dim=1))
