"""LLM4MSR: hierarchical meta layers made of an LLM's knowledge, around any backbone (equations 4 to 9).

User-level meta layers transform the embeddings below the backbone; scenario-level ones give a logit beside it:

    h = backbone(h_u),   logit = alpha * h_s + (1 - alpha) * h          (equations 8 and 9)

Level, placement and source of the knowledge are settings, so that each variant of the paper's Figure 3 is a config.
Beyond the paper there are the candidate's vector as a field, match features (product and dot of the projected user
state and candidate), which go to the backbone beside the embeddings, and a gate that can close the user's layers.
`llm4msr` has them on, `llm4msr_paper` is the paper's model.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from llm4msr.models.batch import Batch, EmbeddingShape, KnowledgeWidths
from llm4msr.models.meta import MetaLayers, Weights
from llm4msr.models.readers import USER_TABLES, ItemReader, UserReader, UserSource, UserTable, given, scenario_vectors
from llm4msr.models.registry import ENHANCERS, Backbone, Enhancer, ModelPartConfig

Placement = Literal["bottom", "parallel", "none"]


class LLM4MSRConfig(ModelPartConfig):
    """Settings of the enhancer. The defaults are those that validation data chose (docs/results/defaults.md).

    - `source`: what the user's vector is made from: prompts a snapshot, items composed up to the row, or both.
    - `user`, `scenario`: where each level's meta layers are placed; "none" leaves the level out.
    - `layers` (K), `hidden`: number and hidden width of the meta layers. `weights`, `rank`: see `MetaLayers`.
    - `bottleneck`: the user's vector is first mapped to so many numbers, `relu(N z + n)`, of which the weights are
      made: cheaper where every row has a vector of its own. 0 makes them of the vector itself, as the paper does.
    - `residual`: bottom layers are added to their input, `e + f(e)`, and their last layer has no activation.
    - `gate`: what the user's bottom layers add is scaled, for each state and scenario, by a learned number between 0
      and 1, so that they can be closed where they do not help: `e + sigmoid(G z + g)_d f(e)`, where `g` starts at
      `gate_start`. Other layers have no gate.
    - `alpha`: where the mixing weight starts; it is learned.
    - `candidate`, `match`: features beyond the paper, of `match_dim + 1` numbers each; both need item vectors.
    - `dropout`: share of the numbers of users' and items' vectors that is dropped while training.
    """

    source: UserSource = "composed"
    user: Placement = "bottom"
    scenario: Placement = "none"
    layers: int = Field(default=2, ge=1, le=8)
    hidden: int = Field(default=64, ge=1)
    weights: Weights = "factored"
    rank: int = Field(default=16, ge=1)
    factors: int = Field(default=64, ge=1)
    bottleneck: int = Field(default=0, ge=0)
    residual: bool = True
    gate: bool = True
    gate_start: float = -4.0
    alpha: float = 0.2
    candidate: bool = True
    match: bool = True
    match_dim: int = Field(default=15, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _does_something(self) -> LLM4MSRConfig:
        if self.user == "none" and self.scenario == "none" and not (self.candidate or self.match):
            raise ValueError("user, scenario, candidate and match are all off: take the enhancer 'none' instead")
        return self

    @property
    def gated(self) -> bool:
        """Whether there is something that the gate scales."""
        return self.gate and self.user == "bottom" and self.residual

    @property
    def user_sources(self) -> tuple[UserTable, ...]:
        """The user-level tables that the model reads, in the order in which their vectors stand side by side."""
        if self.user == "none" and not self.match:
            return ()
        return USER_TABLES[self.source]

    @property
    def needs(self) -> frozenset[str]:
        """Every kind of knowledge that the model reads."""
        item = {"item"} if self.candidate or self.match else set()
        scenario = {"scenario"} if self.scenario != "none" else set()
        return frozenset({*self.user_sources, *item, *scenario})


@ENHANCERS.register("llm4msr", LLM4MSRConfig)
class LLM4MSR(Enhancer):
    """The paper's enhancer, and ours beyond it."""

    scenario_vectors: Tensor

    def __init__(
        self, config: LLM4MSRConfig, shape: EmbeddingShape, scenarios: int, knowledge: KnowledgeWidths
    ) -> None:
        super().__init__()
        self.config = config
        width = shape.width
        self.item = ItemReader(knowledge) if "item" in config.needs else None
        if config.candidate:
            self.candidate = nn.Linear(knowledge.item, config.match_dim + 1)
            width += config.match_dim + 1
        self._width = width
        user_width = sum(knowledge.users)
        self.user = UserReader(knowledge) if config.user_sources else None
        squeezed = config.bottleneck and config.user != "none"
        self.narrow = nn.Sequential(nn.Linear(user_width, config.bottleneck), nn.ReLU()) if squeezed else None
        self.user_layers = self._layers(config.user, config.bottleneck or user_width, width)
        if config.gated:
            self.gate = nn.Linear(user_width, scenarios)
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, config.gate_start)
        if config.scenario != "none":
            self.register_buffer("scenario_vectors", scenario_vectors(knowledge))
        scenario_width = 0 if knowledge.scenario is None else knowledge.scenario.shape[1]
        self.scenario_layers = self._layers(config.scenario, scenario_width, width)
        if config.match:
            self.match_user = nn.Linear(user_width, config.match_dim)
            self.match_item = nn.Linear(knowledge.item, config.match_dim)
        parallel = [level for level in (config.user, config.scenario) if level == "parallel"]
        self.alpha = nn.Parameter(torch.full((len(parallel),), config.alpha)) if parallel else None

    def _dropped(self, vectors: Tensor) -> Tensor:
        return functional.dropout(vectors, self.config.dropout, self.training)

    def _layers(self, placement: Placement, knowledge: int, width: int) -> MetaLayers | None:
        if placement == "none":
            return None
        c = self.config
        outside = width if placement == "bottom" else 1
        return MetaLayers(
            knowledge,
            (width, *[c.hidden] * (c.layers - 1), outside),
            weights=c.weights,
            rank=c.rank,
            factors=c.factors,
            activate_last=placement == "bottom" and not c.residual,
            last_scale=0.1 if placement == "bottom" and c.residual else 1.0,
        )

    @property
    def backbone_width(self) -> int:
        """`E`, and the widths of candidate and match features where they are on."""
        return self._width + (self.config.match_dim + 1 if self.config.match else 0)

    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, Tensor | None]:
        """Logits `(B,)`, and the mean square of the generated weights."""
        c = self.config
        item = None if self.item is None else self._dropped(self.item(batch))
        user = None
        if self.user is not None:
            states, inverse = self.user(batch)
            user = self._dropped(states), inverse
        parts = [e]
        if c.candidate:
            parts.append(self.candidate(item))
        if c.match:
            z, inverse = given(user, "user states")
            product = self.match_user(z).index_select(0, inverse) * self.match_item(item)
            parts += [product, product.sum(1, keepdim=True)]
        x = torch.cat(parts, 1) if len(parts) > 1 else e
        below, beside, penalty = x, [], e.new_zeros(())
        if self.user_layers is not None:
            z, inverse = given(user, "user states")
            gate = None
            if c.gated:
                gate = torch.sigmoid(self.gate(z))[inverse, batch.scenario_ids()][:, None]
            made = z if self.narrow is None else self.narrow(z)
            if c.user == "bottom":
                below, generated = self._bottom(self.user_layers, x, made, inverse, gate)
            else:
                h, generated = self.user_layers(x[:, : self._width], made, inverse)
                beside.append(h[:, 0])
            penalty = penalty + generated
        if self.scenario_layers is not None:
            # A scenario at the bottom takes what the user's layers gave; beside the backbone it takes what they took.
            vectors, ids = self.scenario_vectors, batch.scenario_ids()
            if c.scenario == "bottom":
                below, generated = self._bottom(self.scenario_layers, below, vectors, ids, None)
            else:
                h, generated = self.scenario_layers(x[:, : self._width], vectors, ids)
                beside.append(h[:, 0])
            penalty = penalty + generated
        logit = backbone(below, batch.offsets)
        if self.alpha is None:
            return logit, penalty
        return self.alpha @ torch.stack(beside) + (1 - self.alpha.sum()) * logit, penalty

    def _bottom(
        self, layers: MetaLayers, x: Tensor, z: Tensor, inverse: Tensor, gate: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`x` after meta layers below the backbone; match features pass them by."""
        if self.config.residual:
            return layers.added(x, z, inverse, gate)
        h, generated = layers(x[:, : self._width], z, inverse)
        return torch.cat([h, x[:, self._width :]], 1), generated


class PaperConfig(LLM4MSRConfig):
    """The same settings, by default the paper's."""

    source: UserSource = "prompted"
    scenario: Placement = "parallel"
    weights: Weights = "full"
    residual: bool = False
    gate: bool = False
    candidate: bool = False
    match: bool = False


@ENHANCERS.register("llm4msr_paper", PaperConfig)
class LLM4MSRPaper(LLM4MSR):
    """The paper's enhancer: prompted knowledge, user layers at the bottom, scenario layers beside, full weights."""
