"""STAR: star topology adaptive recommender (Sheng et al., One Model to Serve All, CIKM 2021)."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.distributed as parallel
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional

from llm4msr.models.batch import scenario_of_rows
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
    A slice of a single row has no variance, so there the averages are used while training too. Processes that train
    together take the statistics over the rows of all of them.
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

    def forward(self, z: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Normalise the rows `(B, W)`, which come sorted by scenario."""
        found = self._statistics(z, offsets) if self.training else {}
        parts = []
        for d, (start, stop) in enumerate(pairwise(offsets)):
            if stop > start:
                mean, variance = found.get(d) or (self.mean[d].clone(), self.variance[d].clone())
                scale = self.scale * self.scenario_scale[d] * torch.rsqrt(variance + self.epsilon)
                shift = self.shift + self.scenario_shift[d] - mean * scale
                parts.append(torch.addcmul(shift, z[start:stop], scale))
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _statistics(self, z: Tensor, offsets: tuple[int, ...]) -> dict[int, tuple[Tensor, Tensor]]:
        """The mean and the biased variance of each scenario with more than one row; the averages take them up."""
        slices = [z[start:stop] for start, stop in pairwise(offsets)]
        if parallel.is_available() and parallel.is_initialized():
            whole = _over_all_processes(slices)
        else:
            whole = {d: (len(s), *torch.var_mean(s, 0, correction=0)) for d, s in enumerate(slices) if len(s) > 1}
        with torch.no_grad():
            for d, (count, variance, mean) in whole.items():
                self.updates[d] += 1
                weight = (1 / self.updates[d]).clamp(min=self.momentum)
                self.mean[d].lerp_(mean, weight)
                self.variance[d].lerp_(variance * (count / (count - 1)), weight)
        return {d: (mean, variance) for d, (_, variance, mean) in whole.items()}


def _over_all_processes(slices: list[Tensor]) -> dict[int, tuple[int, Tensor, Tensor]]:
    """Rows, biased variance and mean of each scenario over the rows of all processes that train together."""
    counts = torch.tensor([[float(len(s))] for s in slices], device=slices[0].device)
    parallel.all_reduce(counts)
    means = all_reduce(torch.stack([s.sum(0) for s in slices])) / counts.clamp(min=1)
    squares = torch.stack([(s - mean).square().sum(0) for s, mean in zip(slices, means, strict=True)])
    variances = all_reduce(squares) / counts.clamp(min=1)
    rows = [int(count) for count in counts[:, 0]]
    return {d: (n, variances[d], means[d]) for d, n in enumerate(rows) if n > 1}


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
        normal = x if self.norm is None else self.norm(x, offsets)

        def scenario(d: int, h: Tensor) -> Tensor:
            for place, layer in enumerate(self.layers):
                h = layer(d, h)
                if place < len(self.layers) - 1:
                    h = functional.relu(h)
            return h

        indicator = self.scenario.weight.index_select(0, scenario_of_rows(offsets, x.device))
        beside = cast(Tensor, self.auxiliary(torch.cat([indicator, x], 1)))
        return (by_scenario(normal, offsets, scenario) + beside).view(-1)
