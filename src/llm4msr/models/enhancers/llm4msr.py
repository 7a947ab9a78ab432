"""LLM4MSR: hierarchical meta layers made of an LLM's knowledge, around any backbone (equations 4 to 9).

User-level meta layers transform the embeddings below the backbone; scenario-level ones give a logit beside it:

    h = backbone(h_u),   logit = alpha * h_s + (1 - alpha) * h          (equations 8 and 9)

Level, placement and source of the knowledge are settings, so that each variant of the paper's Figure 3 is a config.
Two things that the paper does not have can be added, both off by default: the candidate's vector as a field, and match
features (product and dot of the projected user state and candidate), which go to the backbone beside the embeddings.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from llm4msr.models.batch import Batch, KnowledgeWidths
from llm4msr.models.meta import MetaLayers, Weights
from llm4msr.models.registry import ENHANCERS, Backbone, Enhancer, ModelPartConfig

T = TypeVar("T")
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
        del scenarios
        self.config = config
        self._splits = knowledge.users
        if "item" in config.needs:
            self.unknown_item = nn.Parameter(torch.zeros(_given(knowledge.item, "item vectors")))
        if config.candidate:
            self.candidate = nn.Linear(knowledge.item, config.match_dim)
            width += config.match_dim
        self._width = width
        user_width = sum(knowledge.users)
        if config.user_sources:
            self.unknown_user = nn.Parameter(torch.zeros(_given(user_width, "user states")))
        self.user_layers = self._layers(config.user, user_width, width)
        if config.scenario != "none":
            vectors = _given(knowledge.scenario, "scenario vectors")
            self.register_buffer("scenario_vectors", torch.from_numpy(np.ascontiguousarray(vectors)))
        scenario_width = 0 if knowledge.scenario is None else knowledge.scenario.shape[1]
        self.scenario_layers = self._layers(config.scenario, scenario_width, width)
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
        if c.candidate:
            e = torch.cat([e, self.candidate(self._item(batch))], 1)
        user = self._user(batch) if c.user_sources else None
        x, beside, penalty = e, [], e.new_zeros(())
        if self.user_layers is not None:
            z, inverse = _given(user, "user states")
            h, generated = self.user_layers(e, z, inverse)
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
        if c.match:
            z, inverse = _given(user, "user states")
            product = self.match_user(z).index_select(0, inverse) * self.match_item(self._item(batch))
            x = torch.cat([x, product, product.sum(1, keepdim=True)], 1)
        logit = backbone(x, batch.offsets)
        if self.alpha is None:
            return logit, penalty
        return self.alpha @ torch.stack(beside) + (1 - self.alpha.sum()) * logit, penalty

    def _user(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The batch's user states `(S, d)`, with the learned vector where a source knows nothing, and their inverse."""
        users = _given(batch.users, "user states")
        splits = torch.tensor(self._splits, device=users.known.device)
        known = torch.repeat_interleave(users.known, splits, dim=1)
        return torch.where(known, users.vectors, self.unknown_user), users.inverse

    def _item(self, batch: Batch) -> Tensor:
        """The candidates' vectors `(B, d)`, with the learned vector where there is none."""
        item, known = _given(batch.item, "item vectors"), _given(batch.item_known, "item vectors")
        return torch.where(known[:, None], item, self.unknown_item)


def _given(value: T | None, what: str) -> T:
    """The value, or `ValueError` where what the settings need was not given."""
    if value is None or (isinstance(value, int) and value == 0):
        raise ValueError(f"the settings of llm4msr need {what}, and none were given")
    return value
