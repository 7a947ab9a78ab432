"""EPNet: the embedding half of PEPNet (Chang et al., KDD 2023): scenario-specific gates scale the embedding."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from llm4msr.models.batch import Batch, KnowledgeWidths
from llm4msr.models.layers import MLP
from llm4msr.models.registry import ENHANCERS, Backbone, Enhancer, ModelPartConfig


class EPNetConfig(ModelPartConfig):
    """`scenario_dim` of the scenario's embedding, `hidden` width of the gate, and its largest value `scale`."""

    scenario_dim: int = Field(default=16, ge=1)
    hidden: int = Field(default=64, ge=1)
    scale: float = Field(default=2.0, gt=0)


@ENHANCERS.register("epnet", EPNetConfig)
class EPNet(Enhancer):
    """`e' = 2 sigmoid(W' relu(W [s_d, stop(e)] + b) + b') * e`: the gate reads the embedding but does not train it."""

    def __init__(self, config: EPNetConfig, width: int, scenarios: int, knowledge: KnowledgeWidths) -> None:
        super().__init__()
        del knowledge
        self._width, self._scale = width, config.scale
        self.scenario = nn.Embedding(scenarios, config.scenario_dim)
        self.gate = MLP((config.scenario_dim + width, config.hidden, width))

    @property
    def backbone_width(self) -> int:
        """`E`."""
        return self._width

    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, None]:
        """Logits `(B,)`."""
        context = torch.cat([self.scenario(batch.scenario_ids()), e.detach()], 1)
        gate = self._scale * torch.sigmoid(self.gate(context))
        return backbone(gate * e, batch.offsets), None
