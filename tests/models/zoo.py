"""Every backbone with every enhancer, and random batches for them. A new model adds its line here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llm4msr.models.batch import Batch, FieldLayout, KnowledgeWidths, UserStates
from llm4msr.models.model import ModelConfig, MultiScenarioModel, PartChoice, build_model

BACKBONES: dict[str, dict[str, Any]] = {
    "adasparse": {"hidden": [12, 8], "scenario_dim": 3},
    "aitm": {"hidden": [12, 8]},
    "apg": {"hidden": [12, 8], "rank": 3, "scenario_dim": 3},
    "mmoe": {"hidden": [12, 8], "experts": 3},
    "omoe": {"hidden": [12, 8], "experts": 3},
    "pepnet": {"hidden": [12, 8], "gate_hidden": 6, "scenario_dim": 3},
    "ple": {"hidden": [12, 8], "levels": 2, "shared_experts": 1, "specific_experts": 2},
    "ppnet": {"hidden": [12, 8], "gate_hidden": 6},
    "shared_bottom": {"hidden": [12, 8]},
    "star": {"hidden": [12, 8], "auxiliary_hidden": [4], "scenario_dim": 3},
}
_SIZES = {"hidden": 6, "rank": 3, "match_dim": 3}
_SMALL = {**_SIZES, "scenario": "parallel", "gate": False, "candidate": False, "match": False}
ENHANCERS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "dynamic-network": (
        "dynamic_network",
        {"attention_hidden": 3, "hidden": 6, "rank": 3, "scenario_dim": 3},
    ),
    "dynamic-network-full": ("dynamic_network", {"weights": "full", "layers": 3, "hidden": 6, "scenario_dim": 3}),
    "epnet": ("epnet", {"hidden": 6, "scenario_dim": 3}),
    "knowledge-added": ("knowledge_added", {"hidden": 6}),
    "knowledge-field": ("knowledge_field", {}),
    "knowledge-field-scenario": ("knowledge_field", {"user": False}),
    "llm4msr": ("llm4msr", _SIZES),
    "llm4msr-ungated": ("llm4msr", _SMALL),
    "llm4msr-full": ("llm4msr", {**_SMALL, "weights": "full"}),
    "llm4msr-paper": ("llm4msr_paper", {"hidden": 6, "source": "composed"}),
    "llm4msr-gate": ("llm4msr", {**_SMALL, "gate": True}),
    "llm4msr-user-parallel": ("llm4msr", {**_SMALL, "user": "parallel", "scenario": "none"}),
    "llm4msr-scenario-bottom": ("llm4msr", {**_SMALL, "user": "none", "scenario": "bottom"}),
    "llm4msr-both-parallel": ("llm4msr", {**_SMALL, "user": "parallel", "layers": 1}),
    "llm4msr-candidate-match": ("llm4msr", {**_SMALL, "candidate": True, "match": True, "layers": 3}),
    "llm4msr-match-only": ("llm4msr", {**_SMALL, "match": True, "user": "none", "scenario": "none"}),
    "llm4msr-light": ("llm4msr_light", {"rank": 3, "match_dim": 4}),
}
PAIRS = [(backbone, enhancer) for backbone in BACKBONES for enhancer in ENHANCERS]

LAYOUT = FieldLayout(categorical=(7, 5), multi=((6, 3),), numeric=2)
SCENARIOS = 3
DIM = 4
WIDTHS = KnowledgeWidths(
    users=(6, 6), item=6, scenario=np.random.default_rng(1).standard_normal((SCENARIOS, 6)).astype(np.float32)
)


def make_model(backbone: str, enhancer: str, seed: int = 0) -> MultiScenarioModel:
    name, settings = ENHANCERS[enhancer]
    config = ModelConfig(
        embedding_dim=DIM,
        backbone=PartChoice(name=backbone, settings=BACKBONES[backbone]),
        enhancer=PartChoice(name=name, settings=settings),
    )
    model = build_model(config, LAYOUT, SCENARIOS, WIDTHS, seed)
    with torch.no_grad():  # embeddings start tiny; larger ones make differences visible
        model.embedding.table.weight.mul_(50)
    return model


def make_rows(sizes: Sequence[int], seed: int = 0) -> Batch:
    """A random batch with the given number of rows in each scenario."""
    random = np.random.default_rng(seed)
    count = sum(sizes)
    multi = random.integers(-1, 6, (count, 3))
    numeric = random.standard_normal((count, 2)).astype(np.float32)
    numeric[random.random((count, 2)) < 0.2] = np.nan
    states = max(1, count // 2)
    return Batch(
        categorical=torch.from_numpy(np.stack([random.integers(0, n, count) for n in LAYOUT.categorical], 1)),
        multi=torch.from_numpy(multi),
        numeric=torch.from_numpy(numeric),
        offsets=tuple(int(o) for o in np.cumsum([0, *sizes])),
        label=torch.from_numpy(random.integers(0, 2, count).astype(np.float32)),
        rows=torch.arange(count),
        users=UserStates(
            vectors=torch.cat([flagged(random, states), flagged(random, states)], 1),
            inverse=torch.from_numpy(random.integers(0, states, count)),
        ),
        item=flagged(random, count),
    )


def flagged(random: np.random.Generator, count: int, unknown: float = 0.2) -> torch.Tensor:
    """Vectors of 5 numbers `(count, 6)`; of an unknown one there is only the last number, which says so."""
    vectors = random.standard_normal((count, 6)).astype(np.float32)
    vectors[:, 5] = random.random(count) < unknown
    vectors[:, :5] *= 1 - vectors[:, 5:]
    return torch.from_numpy(vectors)


def pick(batch: Batch, rows: Sequence[int]) -> Batch:
    """The given rows as a batch of their own, which must keep the scenarios in order."""
    chosen = torch.tensor(list(rows))
    scenario = batch.scenario_ids()[chosen]
    assert bool((scenario.diff() >= 0).all())
    assert batch.users is not None
    assert batch.item is not None
    assert batch.users.inverse is not None
    kept, inverse = torch.unique(batch.users.inverse[chosen], return_inverse=True)
    return Batch(
        categorical=batch.categorical[chosen],
        multi=batch.multi[chosen],
        numeric=batch.numeric[chosen],
        offsets=tuple(int((scenario < d).sum()) for d in range(SCENARIOS + 1)),
        label=batch.label[chosen],
        rows=batch.rows[chosen],
        users=UserStates(batch.users.vectors[kept], inverse),
        item=batch.item[chosen],
    )
