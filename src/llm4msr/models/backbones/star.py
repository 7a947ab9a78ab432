"""STAR: star topology adaptive recommender (Sheng et al., One Model to Serve All, CIKM 2021)."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.distributed as parallel
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from llm4msr.models.batch import PaddedOffsets, scenario_of_rows
from llm4msr.models.layers import MLP, by_scenario, relu
from llm4msr.models.registry import BACKBONES, Backbone, ModelPartConfig, Width


class STARConfig(ModelPartConfig):
    """Widths of the star network's and the auxiliary network's layers; `momentum` of the moving averages."""

    hidden: tuple[Width, ...] = Field(default=(256, 128, 64), min_length=1)
    auxiliary_hidden: tuple[Width, ...] = (32,)
    scenario_dim: int = Field(default=16, ge=1)
    partitioned_norm: bool = True
    momentum: float = Field(default=0.1, gt=0, le=1)
    epsilon: float = Field(default=1e-5, gt=0)


class PartitionedNorm(nn.Module):
    """Normalise with the statistics of the row's own scenario (STAR, equations 3 and 4).

    `z' = (gamma * gamma_d) (z - mean_d) / sqrt(var_d + eps) + (beta + beta_d)`. Training uses the mean and the biased
    variance of the scenario's rows in the batch. It also keeps moving averages of both for each scenario. Evaluation
    uses these averages, so that a score does not depend on its batch.
    The first updates are plain averages (weight `max(momentum, 1 / updates)`), so that the initial values have no
    influence. Changes of the mean from batch to batch add to the averaged variance. Otherwise a feature that is
    constant within a scenario would have a variance near zero, and its values would be scaled far too much as soon as
    the average of its mean lags behind.
    A slice of a single row has no variance, so it uses the averages in training too. Processes that train together
    compute the statistics over the rows of all of them.
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
        """Normalise the rows `(B, W)`, sorted by scenario."""
        if self.training and isinstance(offsets, PaddedOffsets):
            return self._of_real_rows(z, offsets)
        slices = [z[start:stop] for start, stop in pairwise(offsets)]
        if self.training and parallel.is_available() and parallel.is_initialized():
            parts = self._by_all_processes(slices)
        else:
            parts = [self._normalised(d, rows) for d, rows in enumerate(slices) if rows.shape[0]]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _normalised(self, d: int, rows: Tensor) -> Tensor:
        scale, shift = self.scale * self.scenario_scale[d], self.shift + self.scenario_shift[d]
        if not self.training or rows.shape[0] == 1:
            mean, variance = self.mean[d].clone(), self.variance[d].clone()
            return functional.batch_norm(rows, mean, variance, scale, shift, eps=self.epsilon)
        normal, mean, inverse = torch.native_batch_norm(rows, scale, shift, None, None, True, 0.0, self.epsilon)
        self._take_up(d, mean.detach(), inverse.detach() ** -2 - self.epsilon)
        return normal

    def _of_real_rows(self, z: Tensor, offsets: PaddedOffsets) -> Tensor:
        """Normalise padded slices in training: all scenarios at once, and no value is read on the host."""
        with torch.autocast(z.device.type, enabled=False):  # the statistics are matrix products here: keep float32
            return self._of_counted_rows(z.float(), offsets.scenario, offsets.counts[:, None].float(), offsets.real())

    def _of_counted_rows(self, z: Tensor, scenario: Tensor, counts: Tensor, real: Tensor) -> Tensor:
        ids, enough = torch.arange(len(counts), device=z.device), counts > 1
        share = (scenario == ids[:, None]) * real / counts.clamp(min=1)  # (D, B)
        mean = torch.where(enough, share @ z, self.mean)
        centred = z - mean.index_select(0, scenario)
        variance = torch.where(enough, share @ centred.square(), self.variance)
        scale = torch.rsqrt(variance + self.epsilon) * self.scale * self.scenario_scale
        shift = self.shift + self.scenario_shift
        self._take_up(slice(None), mean.detach(), variance.detach(), enough[:, 0].float())
        return torch.addcmul(shift.index_select(0, scenario), centred, scale.index_select(0, scenario))

    @torch.no_grad()
    def _take_up(self, d: int | slice, mean: Tensor, biased: Tensor, taken: Tensor | float = 1.0) -> None:
        """Update the moving averages of scenario `d`, or of all, with the mean and biased variance of some rows.

        The variance over several batches is the mean of their biased variances plus the variance of their means. That
        has the expected value of the rows' own variance, however few rows of a scenario a batch has. Scenarios with
        `taken` `(D,)` = 0 are unchanged. No value is read on the host, so the GPU is not synchronised.
        """
        self.updates[d] += taken
        weight = (self.updates[d].clamp(min=1).reciprocal().clamp(min=self.momentum) * taken)[..., None]
        moved = mean - self.mean[d]
        self.mean[d] += weight * moved
        spread = self.variance[d] + weight * moved.square()  # a moving mean adds to the variance
        self.variance[d] = (1 - weight) * spread + weight * biased

    def _by_all_processes(self, slices: list[Tensor]) -> list[Tensor]:
        parts = []
        for d, (count, variance, mean) in enumerate(_over_all_processes(slices)):
            if count > 1 and variance.any():  # one row that every process has (`Group.share`) has no variance
                self._take_up(d, mean, variance)
            else:
                variance, mean = self.variance[d].clone(), self.mean[d].clone()
            scale = self.scale * self.scenario_scale[d] * torch.rsqrt(variance + self.epsilon)
            parts.append((slices[d] - mean) * scale + (self.shift + self.scenario_shift[d]))
        return parts


def _over_all_processes(slices: list[Tensor]) -> list[tuple[int, Tensor, Tensor]]:
    """Row count, biased variance and mean of each scenario, over the rows of all processes that train together."""
    from torch.distributed.nn.functional import all_reduce  # not in every build of PyTorch

    counts = torch.tensor([[float(len(s))] for s in slices], device=slices[0].device)
    parallel.all_reduce(counts)
    means = all_reduce(torch.stack([s.sum(0) for s in slices])) / counts.clamp(min=1)
    squares = torch.stack([(s - mean).square().sum(0) for s, mean in zip(slices, means, strict=True)])
    variances = all_reduce(squares) / counts.clamp(min=1)
    return [(int(counts[d]), variances[d], means[d]) for d in range(len(slices))]


class StarLayer(nn.Module):
    """A fully connected layer of the star topology (equation 5): `W_d* = W_shared (x) W_d`, `b_d* = b_shared + b_d`.

    The product is element by element. `W_d` starts at one and `b_d` at zero: all scenarios start as the shared centre.
    A frozen layer stores only each scenario's final weights `W_d*` and `b_d*`.
    """

    def __init__(self, inside: int, outside: int, scenarios: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(outside, inside)))
        self.bias = nn.Parameter(torch.zeros(outside))
        self.scenario_weight = nn.Parameter(torch.ones(scenarios, outside, inside))
        self.scenario_bias = nn.Parameter(torch.zeros(scenarios, outside))

    def of_scenarios(self) -> list[tuple[Tensor, Tensor]]:
        """The weight `(outside, inside)` and the bias `(outside,)` of each scenario's layer."""
        weights, biases = self.weight * self.scenario_weight, self.bias + self.scenario_bias
        return list(zip(weights.unbind(), biases.unbind(), strict=True))

    def of_scenario(self, d: int) -> tuple[Tensor, Tensor]:
        """The weight `(outside, inside)` and the bias `(outside,)` of scenario d's layer."""
        if not hasattr(self, "weight"):
            return self.scenario_weight[d], self.scenario_bias[d]
        return self.weight * self.scenario_weight[d], self.bias + self.scenario_bias[d]

    @torch.no_grad()
    def freeze(self) -> None:
        """Fold the shared weights into each scenario's weights."""
        self.scenario_weight.mul_(self.weight)
        self.scenario_bias.add_(self.bias)
        del self.weight, self.bias


@BACKBONES.register("star", STARConfig, replayable=True)
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

    def freeze(self) -> None:
        """Compute each scenario's final layers once."""
        for layer in self.layers:
            cast(StarLayer, layer).freeze()

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`."""
        normal = x if self.norm is None else self.norm(x, offsets)
        layers = [cast(StarLayer, layer) for layer in self.layers]
        of_all = [layer.of_scenarios() for layer in layers] if self.training else None

        def scenario(d: int, h: Tensor) -> Tensor:
            for place, layer in enumerate(layers):
                h = functional.linear(h, *(layer.of_scenario(d) if of_all is None else of_all[place][d]))
                if place < len(self.layers) - 1:
                    h = relu(h)
            return h

        indicator = self.scenario.weight.index_select(0, scenario_of_rows(offsets, x.device))
        beside = cast(Tensor, self.auxiliary(torch.cat([indicator, x], 1)))
        return (by_scenario(normal, offsets, scenario) + beside).view(-1)
