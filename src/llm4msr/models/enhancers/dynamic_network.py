"""Dynamic Network: attention and a tower whose weights are generated from the scenario (the paper's baseline).

It follows M2M (Zhang et al., Leaving No One Behind, WSDM 2022, meta attention and meta tower), with the low-rank
generation of APG (Yan et al., NeurIPS 2022). The backbone keeps its own tower; the generated one adds a second logit.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from llm4msr.models.batch import Batch, EmbeddingShape, KnowledgeWidths
from llm4msr.models.meta import MetaLayers, Weights
from llm4msr.models.readers import of_scenarios
from llm4msr.models.registry import ENHANCERS, Backbone, Enhancer, ModelPartConfig


class DynamicNetworkConfig(ModelPartConfig):
    """`scenario_dim`: width of the scenario's embedding; the sizes of attention and tower.

    `weights` and `rank` define how the weights of both are generated: see `MetaLayers`.
    """

    scenario_dim: int = Field(default=16, ge=1)
    attention_hidden: int = Field(default=16, ge=1)
    layers: int = Field(default=2, ge=1, le=8)
    hidden: int = Field(default=64, ge=1)
    weights: Weights = "low_rank"
    rank: int = Field(default=8, ge=1)


@ENHANCERS.register("dynamic_network", DynamicNetworkConfig)
class DynamicNetwork(Enhancer):
    """Meta attention over the row's fields, then the backbone and a meta tower:

        a_f = Attention(s_d)(e_f + p_f),   e'_f = F softmax_f(a) e_f          (meta attention over the row's own fields)
        logit = backbone(e') + Tower(s_d)(e')                                  (meta tower)

    `s_d` is the learned embedding of the row's scenario, `e_f` the embedding of the row's field f of F, and `p_f` a
    learned vector for field f. `Attention(s)` and `Tower(s)` are layers generated from s. Rows never attend to each
    other.
    """

    def __init__(
        self, config: DynamicNetworkConfig, shape: EmbeddingShape, scenarios: int, knowledge: KnowledgeWidths
    ) -> None:
        super().__init__()
        del knowledge
        self._shape = shape
        self.scenario = nn.Embedding(scenarios, config.scenario_dim)
        self.field = nn.Parameter(torch.randn(shape.fields, shape.dim) * 0.1)
        attention = (shape.dim, config.attention_hidden, 1)
        self.attention = MetaLayers(config.scenario_dim, attention, weights=config.weights, rank=config.rank)
        tower = (shape.width, *[config.hidden] * (config.layers - 1), 1)
        self.tower = MetaLayers(config.scenario_dim, tower, weights=config.weights, rank=config.rank)

    @property
    def backbone_width(self) -> int:
        """`E`."""
        return self._shape.width

    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, Tensor]:
        """Logits `(B,)`, and the mean squares of the generated weights of attention and tower, added up."""
        fields = e.view(-1, self._shape.fields, self._shape.dim)
        attention, tower = (layers.generate(self.scenario.weight) for layers in (self.attention, self.tower))
        penalty = self.attention.penalty(attention) + self.tower.penalty(tower)
        attention, d = of_scenarios(attention, batch.offsets, e.device)
        tower, _ = of_scenarios(tower, batch.offsets, e.device)
        scores = self.attention((fields + self.field).flatten(0, 1), attention, d.repeat_interleave(self._shape.fields))
        share = torch.softmax(scores.view(-1, self._shape.fields), 1) * self._shape.fields
        attended = (share[:, :, None] * fields).flatten(1)
        return backbone(attended, batch.offsets) + self.tower(attended, tower, d)[:, 0], penalty
