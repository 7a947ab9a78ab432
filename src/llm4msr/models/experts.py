"""Groups of experts of one shape, computed together, and the function that mixes their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm4msr.models.layers import relu


class Experts(nn.Module):
    """`count` networks `widths[0] -> ... -> widths[-1]` with ReLU after each layer, computed as batched products.

    `forward(x)` takes one input for all experts, `(B, W)`, or one for each, `(count, B, W)`, and returns
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
        layers = list(zip(self.weight, self.bias, strict=True))
        h = x
        if x.dim() == 2:  # one wide product: x is not copied for each expert, and has one gradient, not `count`
            (weight, bias), *layers = layers
            wide = weight.transpose(0, 1).reshape(x.shape[1], -1)
            h = relu(torch.addmm(bias.reshape(-1), x, wide)).view(x.shape[0], self.count, -1).transpose(0, 1)
        for weight, bias in layers:
            h = relu(torch.baddbmm(bias, h, weight))
        return h


def mix(experts: Tensor, scores: Tensor) -> Tensor:
    """`sum_k softmax(scores)_k experts_k`: experts `(n, B, W)` and scores `(B, n)` give `(B, W)`."""
    return torch.einsum("nbw,bn->bw", experts, functional.softmax(scores, dim=1))
