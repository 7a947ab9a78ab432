"""APG: adaptive parameter generation (Yan et al., NeurIPS 2022), with the scenario as the condition."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from llm4msr.models.meta import MetaLayers
from llm4msr.models.readers import of_scenarios
from llm4msr.models.registry import BACKBONES, Backbone, ModelPartConfig, Width


class APGConfig(ModelPartConfig):
    """`hidden`: widths of the layers; `rank`: rank of the generated cores; `scenario_dim`: width of the condition."""

    hidden: tuple[Width, ...] = Field(default=(256, 128, 64), min_length=1)
    rank: int = Field(default=16, ge=1)
    scenario_dim: int = Field(default=16, ge=1)


@BACKBONES.register("apg", APGConfig)
class APG(Backbone):
    """`h_l = relu(U_l (I + S_l(s_d)) V_l h_(l-1) + b_l(s_d))`: the core `S`, `rank x rank`, and the bias are generated.

    This is the published low-rank parameterisation with shared `U` and `V`. The core starts near the identity (see
    `MetaLayers`). The optional over-parameterisation of `U` and `V` is left out, and the generated part of the bias
    has `rank` numbers, which the second shared projection maps to the layer's width.
    """

    def __init__(self, config: APGConfig, width: int, scenarios: int) -> None:
        super().__init__()
        self.scenario = nn.Embedding(scenarios, config.scenario_dim)
        self.layers = MetaLayers(config.scenario_dim, (width, *config.hidden, 1), rank=config.rank)

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`."""
        generated, d = of_scenarios(self.layers.generate(self.scenario.weight), offsets, x.device)
        logits: Tensor = self.layers(x, generated, d)
        return logits[:, 0]
