"""Layers that several models share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def relu(x: Tensor) -> Tensor:
    """ReLU of a tensor that nothing else reads: without gradients in place, which saves memory and a pass over it."""
    return functional.relu(x) if torch.is_grad_enabled() else x.relu_()


def plus_product(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`x + left @ right`, `(B, W)`, `(B, n)` and `(n, W)`. Under autocast only the product is rounded, not `x`."""
    if torch.is_autocast_enabled(x.device.type):
        return x + left @ right
    return torch.addmm(x, left, right)


def plus_product_first(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`plus_product` of the first `n` columns of `x` `(B, W)` with `right` `(m, n)`; the other columns stay.

    Nothing else may read `x`: without gradients it is changed in place, which saves a pass over it.
    """
    width = right.shape[1]
    if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return torch.cat([plus_product(x[:, :width], left, right), x[:, width:]], 1)
    x[:, :width].addmm_(left, right)
    return x


class ReLU(nn.ReLU):
    """`relu` as a module; its input must be read by nothing else."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the base class's name
        """Shape `(...)` to the same shape."""
        return relu(input)


class MLP(nn.Sequential):
    """Fully connected layers with ReLU between them: `widths[0] -> ... -> widths[-1]`.

    Args:
        widths: input width, hidden widths, output width.
        activate_last: whether ReLU follows the last layer too. Never for a logit.
        dropout: share of hidden units dropped while training.
    """

    def __init__(self, widths: Sequence[int], *, activate_last: bool = False, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = []
        for place, (inside, outside) in enumerate(pairwise(widths)):
            linear = nn.Linear(inside, outside)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers.append(linear)
            if place < len(widths) - 2 or activate_last:
                layers.append(ReLU())
                if dropout:
                    layers.append(nn.Dropout(dropout))
        super().__init__(*layers)


class EmbeddingGate(nn.Module):
    """EPNet's gate (Chang et al., KDD 2023): scales an embedding `(B, E)` for its scenario.

    `e' = scale sigmoid(W' relu(W [s_d, stop(e)] + b) + b') * e`: the gate's gradient does not reach the embedding that
    it reads. In evaluation mode nothing is stopped, so that gradient explanations include the gate.
    """

    def __init__(self, width: int, scenarios: int, scenario_dim: int, hidden: int, scale: float) -> None:
        super().__init__()
        self._scale = scale
        self.scenario = nn.Embedding(scenarios, scenario_dim)
        self.gate = MLP((scenario_dim + width, hidden, width))

    def forward(self, e: Tensor, d: Tensor) -> Tensor:
        """The scaled embedding `(B, E)`; `d` `(B,)`: the rows' scenarios."""
        context = torch.cat([self.scenario(d), e.detach() if self.training else e], 1)
        return self._scale * torch.sigmoid(self.gate(context)) * e


def by_scenario(x: Tensor, offsets: Sequence[int], tower: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Run `tower(d, rows of scenario d)` on each slice that has rows, and concatenate the results.

    `x` is `(B, W)` sorted by scenario; no tower sees a row of another scenario. Returns `(B, ...)`.
    """
    results = [tower(d, x[start:stop]) for d, (start, stop) in enumerate(pairwise(offsets)) if stop > start]
    return torch.cat(results) if len(results) != 1 else results[0]
