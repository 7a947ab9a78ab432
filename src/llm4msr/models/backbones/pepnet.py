"""PPNet and PEPNet: towers whose hidden units are scaled for each user (Chang et al., KDD 2023)."""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from llm4msr.models.batch import scenario_of_rows
from llm4msr.models.layers import MLP, EmbeddingGate, by_scenario
from llm4msr.models.registry import BACKBONES, Backbone, ModelPartConfig, Width


class PPNetConfig(ModelPartConfig):
    """`hidden`: widths of a tower's layers; `gate_hidden`: hidden width of the gates; `scale`: their largest value."""

    hidden: tuple[Width, ...] = Field(default=(256, 128, 64), min_length=1)
    gate_hidden: int = Field(default=64, ge=1)
    scale: float = Field(default=2.0, gt=0)


class PEPNetConfig(PPNetConfig):
    """PPNet's settings, and `scenario_dim`: width of the scenario's embedding in EPNet's gate."""

    scenario_dim: int = Field(default=16, ge=1)


class _GatedTower(nn.Module):
    """`h_l = relu(W_l (g_(l-1) * h_(l-1)) + b_l)` with `g_l = scale sigmoid(MLP_l(stop(x)))`, `h_0 = x`, `g_0 = 1`."""

    def __init__(self, width: int, config: PPNetConfig) -> None:
        super().__init__()
        self._scale = config.scale
        inside = (width, *config.hidden)
        self.layers = nn.ModuleList(MLP((i, o)) for i, o in zip(inside, (*config.hidden, 1), strict=True))
        self.gates = nn.ModuleList(MLP((width, config.gate_hidden, hidden)) for hidden in config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        prior = x.detach() if self.training else x
        h: Tensor = self.layers[0](x)
        for layer, gate in zip(list(self.layers)[1:], self.gates, strict=True):
            h = layer(self._scale * torch.sigmoid(gate(prior)) * functional.relu(h))
        return h


@BACKBONES.register("ppnet", PPNetConfig, replayable=True)
class PPNet(Backbone):
    """A gated tower for each scenario; the paper has one for each task.

    The published gates read the embeddings of user, item and author in addition to the detached input. Here the input
    contains all of these, so the gates read only the input, and send no gradient into the embeddings. It is detached
    during training only, so that gradient explanations of a trained model include the gates.
    """

    def __init__(self, config: PPNetConfig, width: int, scenarios: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(_GatedTower(width, config) for _ in range(scenarios))

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`."""
        return by_scenario(x, offsets, lambda d, rows: cast(Tensor, self.towers[d](rows))).view(-1)


@BACKBONES.register("pepnet", PEPNetConfig, replayable=True)
class PEPNet(PPNet):
    """EPNet's gate on the embedding, then PPNet. The same model as the backbone `ppnet` with the enhancer `epnet`."""

    def __init__(self, config: PEPNetConfig, width: int, scenarios: int) -> None:
        super().__init__(config, width, scenarios)
        self.gate = EmbeddingGate(width, scenarios, config.scenario_dim, config.gate_hidden, config.scale)

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`."""
        d = scenario_of_rows(offsets, x.device)
        return super().forward(self.gate(x, d), offsets)
