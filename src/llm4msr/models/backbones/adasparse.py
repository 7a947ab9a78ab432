"""AdaSparse: one network whose units are scaled and pruned for each scenario (Yang et al., CIKM 2022)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from llm4msr.models.batch import scenario_of_rows
from llm4msr.models.layers import MLP
from llm4msr.models.registry import BACKBONES, Backbone, ModelPartConfig, Width


class AdaSparseConfig(ModelPartConfig):
    """`hidden`: widths of the layers; `scenario_dim`: width of the scenario's embedding; the rest sets the factors."""

    hidden: tuple[Width, ...] = Field(default=(256, 128, 64), min_length=1)
    scenario_dim: int = Field(default=16, ge=1)
    scale: float = Field(default=2.0, gt=0)
    slope: float = Field(default=1.0, gt=0)
    threshold: float = Field(default=0.25, ge=0)


@BACKBONES.register("adasparse", AdaSparseConfig, replayable=True)
class AdaSparse(Backbone):
    """Before each layer l, the units `h_l` are multiplied by the factors of a pruner that reads the scenario:

        v_l = scale sigmoid(slope (P_l [s_d, h_l] + p_l)),   pi_l = v_l where v_l > threshold, else 0,
        h_(l+1) = relu(W_l (pi_l * h_l) + b_l)

    `s_d` is the scenario's embedding. This is the paper's "fusion": units whose factor is not above the threshold are
    pruned, the others scaled. All factors start near `scale / 2`. In the paper, the slope grows during training and an
    extra loss keeps the share of pruned units between two bounds; here the slope is constant and the share is free.
    """

    def __init__(self, config: AdaSparseConfig, width: int, scenarios: int) -> None:
        super().__init__()
        self._config = config
        inside = (width, *config.hidden)
        self.scenario = nn.Embedding(scenarios, config.scenario_dim)
        self.layers = nn.ModuleList(MLP((i, o)) for i, o in zip(inside, (*config.hidden, 1), strict=True))
        self.pruners = nn.ModuleList(nn.Linear(config.scenario_dim + i, i) for i in inside)

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`."""
        s = self.scenario(scenario_of_rows(offsets, x.device))
        h = x
        for place, (layer, pruner) in enumerate(zip(self.layers, self.pruners, strict=True)):
            h = functional.relu(h) if place else h
            h = layer(self.factors(pruner(torch.cat([s, h], 1))) * h)
        return h[:, 0]

    def factors(self, scores: Tensor) -> Tensor:
        """The factors of the units, from their pruner scores."""
        c = self._config
        v = c.scale * torch.sigmoid(c.slope * scores)
        return torch.where(v > c.threshold, v, 0.0)
