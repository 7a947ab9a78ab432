"""LLM4MSR: hierarchical meta layers made of an LLM's knowledge, around any backbone (equations 4 to 9).

User-level meta layers transform the embeddings below the backbone; scenario-level ones give a logit beside it:

    h = backbone(h_u),   logit = alpha * h_s + (1 - alpha) * h          (equations 8 and 9)

Level, placement and source of the knowledge are settings, so that each variant of the paper's Figure 3 is a config.
Beyond the paper there are the candidate's vector as a field, match features (product and dot of the projected user
state and candidate), which go to the backbone beside the embeddings, and a gate that can close the user's layers.
`llm4msr` has them on, `llm4msr_paper` is the paper's model.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from llm4msr.models.batch import Batch, EmbeddingShape, KnowledgeWidths
from llm4msr.models.meta import MetaLayers, Weights
from llm4msr.models.readers import (
    USER_TABLES,
    UserSource,
    UserTable,
    given,
    of_rows,
    of_scenarios,
    scenario_vectors,
    together,
    user_states,
)
from llm4msr.models.registry import ENHANCERS, Backbone, Enhancer, ModelPartConfig

Placement = Literal["bottom", "parallel", "none"]


class LLM4MSRConfig(ModelPartConfig):
    """Settings of the enhancer. The defaults are those that validation data chose (docs/results/defaults.md).

    - `source`: what the user's vector is made from: prompts a snapshot, items composed up to the row, or both.
    - `user`, `scenario`: where each level's meta layers are placed; "none" leaves the level out.
    - `layers` (K), `hidden`: number and hidden width of the meta layers; `weights`, `rank`, `factors`: see there.
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
    factors: int = Field(default=32, ge=1)
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
        if "item" in config.needs:
            given(knowledge.item, "item vectors")
        if config.candidate:
            self.candidate = nn.Linear(knowledge.item, config.match_dim + 1)
            width += config.match_dim + 1
        self._width = width
        user_width = given(sum(knowledge.users), "user states") if config.user_sources else 0
        self.user_layers = self._layers(config.user, user_width, width)
        if config.gated:
            self.gate = nn.Linear(user_width, scenarios)
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, config.gate_start)
        self.reads_scenarios = config.scenario != "none"
        if self.reads_scenarios:
            self.register_buffer("scenario_vectors", scenario_vectors(knowledge))
        scenario_width = 0 if knowledge.scenario is None else knowledge.scenario.shape[1]
        self.scenario_layers = self._layers(config.scenario, scenario_width, width)
        if config.match:
            self.match_user = nn.Linear(user_width, config.match_dim)
            self.match_item = nn.Linear(knowledge.item, config.match_dim)
        parallel = [level for level in (config.user, config.scenario) if level == "parallel"]
        self.alpha = nn.Parameter(torch.full((len(parallel),), config.alpha)) if parallel else None

    def _dropped(self, vectors: Tensor) -> Tensor:
        if not self.config.dropout:
            return vectors
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

    @torch.no_grad()
    def freeze(self) -> None:
        """Make constants of the scenarios' meta layers, and of those of the mean scenario as one more."""
        if self.scenario_layers is not None:
            mean = self.scenario_vectors.mean(0, keepdim=True)
            self.scenario_layers.fix(torch.cat([self.scenario_vectors, mean]))
            del self.scenario_vectors

    @torch.no_grad()
    def blur_scenarios(self) -> None:
        """Give every scenario the layers of the mean scenario; the model must be frozen."""
        if self.scenario_layers is not None:
            for part in self.scenario_layers.fixed():
                part.copy_(part[-1:].clone().expand_as(part))

    def _of_scenarios(self, layers: MetaLayers) -> list[Tensor]:
        frozen = not hasattr(layers, "generators")
        return layers.fixed() if frozen else layers.generate(self.scenario_vectors)

    def forward(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, Tensor | None]:
        """Logits `(B,)` and, while training, the mean square of the generated weights."""
        logit, beside, penalty = self.branches(e, batch, backbone)
        if self.alpha is None:
            return logit, penalty
        return self.alpha @ torch.stack(beside) + (1 - self.alpha.sum()) * logit, penalty

    def branches(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The backbone's logits `(B,)`, those of each level beside it (user, scenario), and the penalty."""
        c = self.config
        z, inverse = e, None
        if c.user_sources:
            states = user_states(batch)
            z, inverse = self._dropped(states.vectors), states.inverse
        made = self._made(z)
        parts = [e]
        if "item" in c.needs:
            item = self._dropped(given(batch.item, "item vectors"))
            readers = ([self.candidate] if c.candidate else []) + ([self.match_item] if c.match else [])
            read = together(item, readers)
            parts += read[: len(read) - c.match]
            if c.match:
                product = of_rows(made["match"], inverse) * read[-1]
                parts += [product, product.sum(1, keepdim=True)]
        x = torch.cat(parts, 1) if len(parts) > 1 else e
        below, beside = x, []
        made_for_rows: list[tuple[MetaLayers, list[Tensor]]] = []
        if self.user_layers is not None:
            generated = made["layers"]
            gate = None
            if c.gated:
                opened = torch.sigmoid(made["gate"])
                ids = batch.scenario_ids()
                gate = opened.gather(1, ids[:, None]) if inverse is None else opened[inverse, ids][:, None]
            if c.user == "bottom":
                below = self._bottom(self.user_layers, x, generated, inverse, gate)
            else:
                beside.append(self.user_layers(x[:, : self._width], generated, inverse)[:, 0])
            made_for_rows.append((self.user_layers, generated))
        if self.scenario_layers is not None:
            # A scenario at the bottom takes what the user's layers gave; beside the backbone it takes what they took.
            generated = self._of_scenarios(self.scenario_layers)
            seen, ids = of_scenarios(generated, batch.offsets, e.device)
            if c.scenario == "bottom":
                below = self._bottom(self.scenario_layers, below, seen, ids, None)
            else:
                beside.append(self.scenario_layers(x[:, : self._width], seen, ids)[:, 0])
            made_for_rows.append((self.scenario_layers, generated))
        logit = backbone(below, batch.offsets)
        penalty = None
        if self.training:
            penalty = sum((layers.penalty(generated) for layers, generated in made_for_rows), e.new_zeros(()))
        return logit, beside, penalty

    def _made(self, z: Tensor) -> dict[str, Any]:
        """What is made of the users' states: the layers' weights, the gate, and the side of the match."""
        c, layers = self.config, self.user_layers
        small = {"gate": self.gate} if c.gated else {}
        small |= {"match": self.match_user} if c.match else {}
        if layers is None or layers.weights == "full":
            found: dict[str, Any] = {name: layer(z) for name, layer in small.items()}
            return found if layers is None else found | {"layers": layers.generate(z)}
        generators = [cast(nn.Linear, generator) for generator in layers.generators]
        read = together(z, [*generators, *small.values()])
        return {"layers": read[: len(generators)], **dict(zip(small, read[len(generators) :], strict=True))}

    def _bottom(
        self, layers: MetaLayers, x: Tensor, generated: list[Tensor], inverse: Tensor | None, gate: Tensor | None
    ) -> Tensor:
        """`x` after meta layers below the backbone; match features pass them by."""
        if self.config.residual:
            return layers.added(x, generated, inverse, gate)
        return torch.cat([layers(x[:, : self._width], generated, inverse), x[:, self._width :]], 1)


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
