"""The knowledge in a bundle: item vectors, the sums of composed states, and prompted states."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llm4msr.knowledge.config import behaviour_weights
from llm4msr.knowledge.item_vectors import ItemVectors
from llm4msr.knowledge.states import COMPOSED, UNKNOWN
from llm4msr.knowledge.tables import items_of, prompted_states
from llm4msr.models.readers import UserTable
from llm4msr.serving.bundle import Sources
from llm4msr.serving.states import StateRule, sums_of_users
from llm4msr.serving.trained import Trained
from llm4msr.training.checkpoint import read_tensors


def write_knowledge(trained: Trained, folder: Path) -> tuple[Sources, StateRule]:
    """Write item vectors, the sums of composed states, and the latest prompted state of each user."""
    data, config = trained.data, trained.config.knowledge
    composed = tuple(source for source in COMPOSED if source in trained.needs)
    users: list[UserTable] = [*composed]
    items = ItemVectors.of(np.zeros((data.items.height, 0), np.float32), np.zeros(data.items.height, bool))
    if trained.needs & {*COMPOSED, "item"}:
        assert trained.folder is not None
        items = items_of(trained.folder, data, config)
    known = np.append(items.known, [False])
    table = np.concatenate([items.vectors, np.zeros((1, items.vectors.shape[1]), np.float32)])
    np.save(folder / "items" / "vectors.npy", np.concatenate([table, ~known[:, None]], 1).astype(np.float32))
    rule = StateRule(
        sources=composed,
        scenarios=data.scenario_count,
        width=items.vectors.shape[1],
        half_life_days=config.half_life_days,
        half_life_events=config.half_life_events,
        behaviour_weights=tuple(behaviour_weights(data, config).tolist()),
        counts=_count_scales(trained, composed) if config.counts else (),
    )
    events = trained.events()
    usable = (np.asarray(rule.behaviour_weights)[events.behaviour] > 0) & known[events.item]
    keys, sums = sums_of_users(events[usable], items.vectors, rule)
    whose, streams = np.divmod(keys, max(1, rule.streams))
    offsets = np.searchsorted(whose, np.arange(data.users.height + 1))
    np.save(folder / "users" / "state_offsets.npy", offsets.astype(np.int64))
    np.save(folder / "users" / "state_stream.npy", streams.astype(np.int32))
    for name, part in vars(sums).items():
        np.save(folder / "users" / f"state_{name}.npy", part)
    prompted = 0
    if "prompted" in trained.needs:
        assert trained.folder is not None
        users.insert(0, "prompted")
        states, _ = prompted_states(trained.folder, data, config)
        everyone = np.arange(data.users.height, dtype=np.int32)
        latest = states.seen_by(everyone, np.full(len(everyone), trained.moment))
        prompted = states.vectors.shape[1]
        index = np.append(latest.index, UNKNOWN)[:, None]
        vectors = np.concatenate([latest.vectors[index[:, 0]], index == UNKNOWN], 1)
        np.save(folder / "users" / "prompted.npy", vectors.astype(np.float32))
    scenario = trained.source.widths.scenario
    sources = Sources(
        users=tuple(users),
        prompted=prompted,
        item=items.vectors.shape[1] if "item" in trained.needs else 0,
        scenario=0 if scenario is None else scenario.shape[1],
    )
    return sources, rule


def _count_scales(trained: Trained, composed: tuple[str, ...]) -> tuple[tuple[float, float], ...]:
    tensors, _ = read_tensors(trained.result.folder / "knowledge.safetensors")
    names = [f"counts {source}" for source in composed]
    return tuple((float(tensors[f"{n}/mean"][0]), float(tensors[f"{n}/deviation"][0])) for n in names)
