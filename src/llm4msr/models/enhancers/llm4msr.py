"""LLM4MSR: hierarchical meta layers generated from an LLM's knowledge, around any backbone (equations 4 to 9).

User-level meta layers transform the embeddings below the backbone. Scenario-level ones give a logit parallel to it:

    h = backbone(h_u),   logit = alpha * h_s + (1 - alpha) * h          (equations 8 and 9)

Additions to the paper: the candidate's vector as a field; match features (product and dot product of the projected
user state and candidate); a gate that can close the user's layers below the backbone. By default `llm4msr` has the
additions on; `llm4msr_paper` is the paper's model.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from llm4msr.models.batch import Batch, EmbeddingShape, KnowledgeWidths
from llm4msr.models.dropout import VectorDropout
from llm4msr.models.enhancers.llm4msr_config import LLM4MSRConfig, PaperConfig, Placement
from llm4msr.models.enhancers.mixed import Mixed
from llm4msr.models.meta import MetaLayers
from llm4msr.models.readers import (
    apart,
    given,
    of_rows,
    of_scenarios,
    scenario_vectors,
    side_by_side,
    together,
    user_states,
)
from llm4msr.models.registry import ENHANCERS, Backbone

_SMALL = 0.1
"""Factor on the initial weights of layers whose output is added to the embeddings."""


class _Users(NamedTuple):
    """What the networks give for the user states (`layers`, `gate`, `match`), and each row's state (`UserStates`)."""

    made: dict[str, Any]
    inverse: Tensor | None


class _Level(NamedTuple):
    """The meta layers of a level.

    `generated` are the tensors generated for them, `of_rows` each row's index into these (None: row b has number b),
    `penalised` the tensors that the penalty counts, `gate` `(B, 1)` the factor on the layers' output.
    """

    layers: MetaLayers
    placement: Placement
    generated: list[Tensor]
    of_rows: Tensor | None
    penalised: list[Tensor]
    gate: Tensor | None = None


@ENHANCERS.register("llm4msr", LLM4MSRConfig, replayable=True)
class LLM4MSR(Mixed):
    """The paper's enhancer with our additions (see the module)."""

    scenario_vectors: Tensor

    def __init__(
        self, config: LLM4MSRConfig, shape: EmbeddingShape, scenarios: int, knowledge: KnowledgeWidths
    ) -> None:
        super().__init__()
        self.config = config
        self.reads_items = "item" in config.needs
        if self.reads_items:
            given(knowledge.item, "item vectors")
        of_one = config.match_dim + 1
        if config.candidate:
            self.candidate = nn.Linear(knowledge.item, of_one)
        width = self._width = shape.width + of_one * config.candidate
        user_width = given(sum(knowledge.users), "user states") if config.user_sources else 0
        self.drop_users = VectorDropout(knowledge.users, config.dropout)
        self.drop_item = VectorDropout((knowledge.item,), config.dropout)
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

    def replays(self) -> bool:
        """False if rows must be grouped by scenario to apply the layers, or if each row's own layers are too large."""
        weights = self.config.weights
        return super().replays() and (weights == "factored" or (weights == "low_rank" and not self.reads_scenarios))

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
            last_scale=_SMALL if placement == "bottom" and c.residual else 1.0,
        )

    @property
    def backbone_width(self) -> int:
        """`E`, plus the widths of the candidate and match features that are concatenated with the embeddings."""
        return self._width + (self.config.match_dim + 1) * self.config.match

    @torch.no_grad()
    def freeze(self) -> None:
        """Store the scenarios' meta layers as constants, and after them those of the mean scenario."""
        if self.scenario_layers is not None:
            mean = self.scenario_vectors.mean(0, keepdim=True)
            self.scenario_layers.fix(torch.cat([self.scenario_vectors, mean]))
            del self.scenario_vectors

    @torch.no_grad()
    def blur_scenarios(self) -> None:
        """Give every scenario the meta layers of the mean scenario; the model must be frozen."""
        if self.scenario_layers is not None:
            for part in self.scenario_layers.fixed():
                part.copy_(part[-1:].clone().expand_as(part))

    def branches(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The backbone's logits `(B,)`, those of each parallel level (user, scenario), and the penalty.

        The penalty is the mean squares of each level's generated weights, added up.
        """
        users = self._read_users(batch)
        features = self._features(users, batch)
        x = torch.cat([e, *features], 1) if features else e
        below, beside = x, []
        levels = [*self._user_level(users, batch), *self._scenario_level(batch)]
        for level in levels:
            if level.placement == "bottom":  # the scenario's layers read the output of the user's
                below = self._bottom(level, below)
            else:  # each parallel level reads the input of the first bottom level
                inside = x[:, : self._width]
                beside.append(level.layers(inside, level.generated, level.of_rows)[:, 0])
        logit = backbone(below, batch.offsets)
        penalty = None
        if self.training:
            penalty = sum((level.layers.penalty(level.penalised) for level in levels), e.new_zeros(()))
        return logit, beside, penalty

    def _read_users(self, batch: Batch) -> _Users:
        """Apply the networks to the batch's user states, in one product for `low_rank` and `factored` layers."""
        c, layers = self.config, self.user_layers
        if not c.user_sources:
            return _Users({}, None)
        states = user_states(batch)
        z = self.drop_users(states.vectors)
        small = {"gate": self.gate} if c.gated else {}
        small |= {"match": self.match_user} if c.match else {}
        if layers is None or layers.weights == "full":
            made: dict[str, Any] = {name: layer(z) for name, layer in small.items()}
            return _Users(made if layers is None else made | {"layers": layers.generate(z)}, states.inverse)
        generators = [cast(nn.Linear, generator) for generator in layers.generators]
        read = together(z, [*generators, *small.values()])
        made = {"layers": read[: len(generators)], **dict(zip(small, read[len(generators) :], strict=True))}
        return _Users(made, states.inverse)

    @property
    def _item_readers(self) -> list[nn.Linear]:
        return ([self.candidate] if self.config.candidate else []) + ([self.match_item] if self.config.match else [])

    def read_items(self, vectors: Tensor) -> Tensor:
        """The candidates' features, and their part of the match features."""
        return side_by_side(self.drop_item(vectors), self._item_readers)

    def _features(self, users: _Users, batch: Batch) -> list[Tensor]:
        """The candidate's features and the match features, each `(B, n)`; none if the model has neither."""
        if not self.reads_items:
            return []
        read = apart(self.items(batch), self._item_readers)
        features = read[: len(read) - self.config.match]
        if self.config.match:
            product = of_rows(users.made["match"], users.inverse) * read[-1]
            features += [product, product.sum(1, keepdim=True)]
        return features

    def _user_level(self, users: _Users, batch: Batch) -> list[_Level]:
        """The user level, if there is one."""
        if self.user_layers is None:
            return []
        made, inverse, gate = users.made["layers"], users.inverse, None
        if self.config.gated:
            opened, ids = torch.sigmoid(users.made["gate"]), batch.scenario_ids()
            gate = opened.gather(1, ids[:, None]) if inverse is None else opened[inverse, ids][:, None]
        return [_Level(self.user_layers, self.config.user, made, inverse, made, gate)]

    def _scenario_level(self, batch: Batch) -> list[_Level]:
        """The scenario level, if there is one."""
        layers = self.scenario_layers
        if layers is None:
            return []
        frozen = not hasattr(layers, "generators")
        made = layers.fixed() if frozen else layers.generate(self.scenario_vectors)
        seen, ids = of_scenarios(made, batch.offsets, batch.rows.device)
        return [_Level(layers, self.config.scenario, seen, ids, made)]

    def _bottom(self, level: _Level, x: Tensor) -> Tensor:
        """`x` after the layers of a bottom level. Match features bypass the layers."""
        layers, made, of_rows = level.layers, level.generated, level.of_rows
        if self.config.residual:
            return layers.added(x, made, of_rows, level.gate)
        return torch.cat([layers(x[:, : self._width], made, of_rows), x[:, self._width :]], 1)


@ENHANCERS.register("llm4msr_paper", PaperConfig, replayable=True)
class LLM4MSRPaper(LLM4MSR):
    """The paper's enhancer: prompted knowledge, user layers at the bottom, scenario layers beside, full weights."""
