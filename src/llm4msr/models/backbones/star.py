"""STAR: star topology adaptive recommender (Sheng et al., One Model to Serve All, CIKM 2021)."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from llm4msr.models.layers import MLP, by_scenario
from llm4msr.models.registry import BACKBONES, Backbone, ModelPartConfig, Width


class STARConfig(ModelPartConfig):
    """`hidden` layers of the star network and of the auxiliary network; `momentum` of the kept statistics."""

    hidden: tuple[Width, ...] = Field(default=(256, 128, 64), min_length=1)
    auxiliary_hidden: tuple[Width, ...] = (32,)
    scenario_dim: int = Field(default=16, ge=1)
    partitioned_norm: bool = True
    momentum: float = Field(default=0.1, gt=0, le=1)
    epsilon: float = Field(default=1e-5, gt=0)


class PartitionedNorm(nn.Module):
    """Normalisation with statistics of the row's own scenario (STAR, equations 3 and 4).

    `z' = (gamma * gamma_d) (z - mean_d) / sqrt(var_d + eps) + (beta + beta_d)`. While training, the mean and the
    (biased) variance are those of the scenario's rows in the batch, and moving averages of the mean and the unbiased
    variance are kept for each scenario; evaluation uses the averages, so that a score does not depend on its batch.
    The first updates are plain averages (weight `max(momentum, 1 / updates)`), so that the start is forgotten at once.
    A slice of a single row has no variance, so there the averages are used while training too.
    """

    mean: Tensor
    variance: Tensor
    updates: Tensor

    def __init__(self, width: int, scenarios: int, *, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.scenario_scale = nn.Parameter(torch.ones(scenarios, width))
        self.scenario_shift = nn.Parameter(torch.zeros(scenarios, width))
        self.register_buffer("mean", torch.zeros(scenarios, width))
        self.register_buffer("variance", torch.ones(scenarios, width))
        self.register_buffer("updates", torch.zeros(scenarios))

    def forward(self, d: int, z: Tensor) -> Tensor:
        """Normalise the rows `(b, W)` of scenario d."""
        if self.training and len(z) > 1:
            mean, variance = z.mean(0), z.var(0, unbiased=False)
            with torch.no_grad():
                self.updates[d] += 1
                weight = (1 / self.updates[d]).clamp(min=self.momentum)
                self.mean[d].lerp_(mean, weight)
                self.variance[d].lerp_(variance * (len(z) / (len(z) - 1)), weight)
        else:
            mean, variance = self.mean[d].clone(), self.variance[d].clone()
        scale = self.scale * self.scenario_scale[d] * torch.rsqrt(variance + self.epsilon)
        return z * scale + (self.shift + self.scenario_shift[d] - mean * scale)


class StarLayer(nn.Module):
    """A fully connected layer of the star topology (equation 5): `W_d* = W_shared (x) W_d`, `b_d* = b_shared + b_d`.

    The product is taken element by element. `W_d` starts at one and `b_d` at zero: all scenarios start as the centre.
    """

    def __init__(self, inside: int, outside: int, scenarios: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(outside, inside)))
        self.bias = nn.Parameter(torch.zeros(outside))
        self.scenario_weight = nn.Parameter(torch.ones(scenarios, outside, inside))
        self.scenario_bias = nn.Parameter(torch.zeros(scenarios, outside))

    def forward(self, d: int, x: Tensor) -> Tensor:
        """`(b, inside) -> (b, outside)` for rows of scenario d."""
        return functional.linear(x, self.weight * self.scenario_weight[d], self.bias + self.scenario_bias[d])


@BACKBONES.register("star", STARConfig)
class STAR(Backbone):
    """`logit = star_d(norm_d(x)) + auxiliary([embedding of d, x])` (equations 3 to 7); no activation on either."""

    def __init__(self, config: STARConfig, width: int, scenarios: int) -> None:
        super().__init__()
        self.norm = (
            PartitionedNorm(width, scenarios, momentum=config.momentum, epsilon=config.epsilon)
            if config.partitioned_norm
            else None
        )
        widths = (width, *config.hidden, 1)
        self.layers = nn.ModuleList(StarLayer(inside, outside, scenarios) for inside, outside in pairwise(widths))
        self.scenario = nn.Embedding(scenarios, config.scenario_dim)
        self.auxiliary = MLP((config.scenario_dim + width, *config.auxiliary_hidden, 1))

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`."""
        return by_scenario(x, offsets, self._scenario).view(-1)

    def _scenario(self, d: int, x: Tensor) -> Tensor:
        h = x if self.norm is None else self.norm(d, x)
        for place, layer in enumerate(self.layers):
            h = layer(d, h)
            if place < len(self.layers) - 1:
                h = functional.relu(h)
        indicator = self.scenario.weight[d].expand(len(x), -1)
        return h + cast(Tensor, self.auxiliary(torch.cat([indicator, x], 1)))
