"""LLM4MSR: hierarchical meta layers made of an LLM's knowledge, around any backbone (equations 4 to 9).

User-level meta layers transform the embeddings below the backbone; scenario-level ones give a logit beside it:

    h = backbone(h_u),   logit = alpha * h_s + (1 - alpha) * h          (equations 8 and 9)

Level, placement and source of the knowledge are settings, so that each variant of the paper's Figure 3 is a config.
Two things that the paper does not have can be added, both off by default: the candidate's vector as a field, and match
features (product and dot of the projected user state and candidate), which go to the backbone beside the embeddings.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from llm4msr.models.batch import Batch, KnowledgeWidths
from llm4msr.models.meta import MetaLayers, Weights
from llm4msr.models.registry import ENHANCERS, Backbone, Enhancer, ModelPartConfig

Placement = Literal["bottom", "parallel", "none"]
UserSource = Literal["prompted", "composed", "both"]


class LLM4MSRConfig(ModelPartConfig):
    """Settings of the enhancer; the paper's model is `source="prompted"`, `weights="full"`, `residual=False`.

    - `source`: what the user's vector is made from: prompts a snapshot, items composed up to the row, or both.
    - `user`, `scenario`: where each level's meta layers are placed; "none" leaves the level out.
    - `layers` (K), `hidden`: number and hidden width of the meta layers. `weights`, `rank`: see `MetaLayers`.
    - `residual`: bottom layers are added to their input, `e + f(e)`, and their last layer has no activation.
    - `alpha`: where the mixing weight starts; it is learned.
    - `candidate`, `match`, `match_dim`: features beyond the paper; both need item vectors.
    """

    source: UserSource = "composed"
    user: Placement = "bottom"
    scenario: Placement = "parallel"
    layers: int = Field(default=2, ge=1, le=8)
    hidden: int = Field(default=64, ge=1)
    weights: Weights = "low_rank"
    rank: int = Field(default=16, ge=1)
    residual: bool = True
    alpha: float = 0.2
    candidate: bool = False
    match: bool = False
    match_dim: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _does_something(self) -> LLM4MSRConfig:
        if self.user == "none" and self.scenario == "none" and not (self.candidate or self.match):
            raise ValueError("user, scenario, candidate and match are all off: take the enhancer 'none' instead")
        return self

    @property
    def user_sources(self) -> tuple[Literal["prompted", "own", "others"], ...]:
        """The user-level tables that the model reads, in the order in which their vectors stand side by side."""
        if self.user == "none" and not self.match:
            return ()
        return {
            "prompted": ("prompted",),
            "composed": ("own", "others"),
            "both": ("prompted", "own", "others"),
        }[self.source]  # type: ignore[return-value]

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

    def __init__(self, config: LLM4MSRConfig, width: int, scenarios: int, knowledge: KnowledgeWidths) -> None:
        super().__init__()
        self.config = config
        self._splits = knowledge.users
        if config.candidate or config.match:
            self.unknown_item = nn.Parameter(torch.zeros(knowledge.item))
        if config.candidate:
            self.candidate = nn.Linear(knowledge.item, config.match_dim)
            width += config.match_dim
        self._width = width
        user_width = sum(knowledge.users) if config.user_sources else 0
        if user_width:
            self.unknown_user = nn.Parameter(torch.zeros(user_width))
        self.user_layers = self._layers(config.user, user_width, width)
        if config.scenario != "none":
            vectors = np.zeros((scenarios, 1), np.float32) if knowledge.scenario is None else knowledge.scenario
            self.register_buffer("scenario_vectors", torch.from_numpy(np.ascontiguousarray(vectors)))
            self.scenario_layers = self._layers(config.scenario, self.scenario_vectors.shape[1], width)
        else:
            self.scenario_layers = None
        if config.match:
            self.match_user = nn.Linear(user_width, config.match_dim)
            self.match_item = nn.Linear(knowledge.item, config.match_dim)
        parallel = [level for level in (config.user, config.scenario) if level == "parallel"]
        self.alpha = nn.Parameter(torch.full((len(parallel),), config.alpha)) if parallel else None

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
        item = self._item(batch)
        if c.candidate and item is not None:
            e = torch.cat([e, self.candidate(item)], 1)
        z = self._user(batch)
        x, beside, penalty = e, [], e.new_zeros(())
        if self.user_layers is not None and z is not None and batch.users is not None:
            h, generated = self.user_layers(e, z, batch.users.inverse)
            penalty = penalty + generated
            if c.user == "bottom":
                x = e + h if c.residual else h
            else:
                beside.append(h[:, 0])
        if self.scenario_layers is not None:
            # A scenario at the bottom takes what the user's layers gave; beside the backbone it takes e itself.
            h, generated = self.scenario_layers(
                x if c.scenario == "bottom" else e, self.scenario_vectors, batch.scenario_ids()
            )
            penalty = penalty + generated
            if c.scenario == "bottom":
                x = x + h if c.residual else h
            else:
                beside.append(h[:, 0])
        if c.match and item is not None and z is not None and batch.users is not None:
            product = self.match_user(z).index_select(0, batch.users.inverse) * self.match_item(item)
            x = torch.cat([x, product, product.sum(1, keepdim=True)], 1)
        logit = backbone(x, batch.offsets)
        if self.alpha is None:
            return logit, penalty
        return self.alpha @ torch.stack(beside) + (1 - self.alpha.sum()) * logit, penalty

    def _user(self, batch: Batch) -> Tensor | None:
        """The vectors of the batch's user states `(S, d)`, with the learned vector where a source knows nothing."""
        if batch.users is None or not self.config.user_sources:
            return None
        known = torch.repeat_interleave(
            batch.users.known, torch.tensor(self._splits, device=batch.users.known.device), dim=1
        )
        return torch.where(known, batch.users.vectors, self.unknown_user)

    def _item(self, batch: Batch) -> Tensor | None:
        if batch.item is None or batch.item_known is None or not (self.config.candidate or self.config.match):
            return None
        return torch.where(batch.item_known[:, None], batch.item, self.unknown_item)
