"""From a run's config to its data, its knowledge, its batches and its model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.states import Source
from llm4msr.knowledge.tables import NO_KNOWLEDGE, Knowledge, fingerprint, load_knowledge
from llm4msr.models.model import MultiScenarioModel, build_model
from llm4msr.training.batches import BatchSource
from llm4msr.training.columns import columns_of
from llm4msr.training.config import RunConfig


def open_run(config: RunConfig, *, trains: bool = False) -> tuple[PreparedData, BatchSource, MultiScenarioModel]:
    """The data, the batches and the untrained model of a config; see `build`."""
    data = PreparedData.open(config.data)
    knowledge = read_knowledge(config, data, open_knowledge(config, data))
    return data, *build(config, data, knowledge, trains=trains)


def open_knowledge(config: RunConfig, data: PreparedData) -> KnowledgeFolder | None:
    """The knowledge folder, or None if the model reads no knowledge.

    Raises `InputError` if the folder is needed but not named, or if there is a control but no knowledge to replace.
    """
    if not config.needs:
        if config.knowledge.replacement.replaces:
            raise InputError(
                f"the enhancer {config.model.enhancer.name!r} reads no knowledge that the control "
                f"{config.knowledge.control!r} could replace"
            )
        return None
    if config.knowledge_folder is None:
        raise InputError(
            f"the enhancer {config.model.enhancer.name!r} reads {', '.join(sorted(config.needs))} knowledge; "
            "name the folder that `llm4msr reason` wrote"
        )
    return KnowledgeFolder.open(config.knowledge_folder, data)


def read_knowledge(config: RunConfig, data: PreparedData, folder: KnowledgeFolder | None) -> Knowledge:
    """The tables of states that the model reads."""
    if folder is None:
        return NO_KNOWLEDGE
    known = fingerprint(folder, config.knowledge)
    return _cached(data.path, data.fingerprint, folder.path, known, config.knowledge, config.needs)


@lru_cache(maxsize=1)
def _cached(
    path: Path, fingerprint: str, folder: Path, reasoned: str, config: KnowledgeConfig, needs: frozenset[Source]
) -> Knowledge:
    """The tables of states, cached for the next run on the same data and knowledge."""
    del fingerprint, reasoned  # only cache keys: they identify the content of the two folders
    data = PreparedData.open(path, check=False)
    return load_knowledge(KnowledgeFolder.open(folder, data), data, config, set(needs))


def build(
    config: RunConfig, data: PreparedData, knowledge: Knowledge, *, trains: bool = False
) -> tuple[BatchSource, MultiScenarioModel]:
    """The batches, and the untrained model on the device of the config.

    With `trains`, a GPU may hold all columns, since training reads every row many times.
    """
    device = config.train.torch_device()
    source = BatchSource(data, knowledge, device, columns_of(data, knowledge, device) if trains else None)
    model = build_model(config.model, source.layout, data.scenario_count, source.widths, config.train.seed)
    if config.model.item_start:
        _start_from_items(model, data, knowledge)
    return source, model.to(device)


def _start_from_items(model: MultiScenarioModel, data: PreparedData, knowledge: Knowledge) -> None:
    """Initialise the embeddings of the items in training rows with their knowledge vectors, if these are known."""
    assert knowledge.item is not None
    train, key = slice(0, data.split.valid), data.schema.columns.item
    own = [(n, f) for n, f in enumerate(data.fields_of("categorical")) if f.side == "item" and f.source == key]
    if not own:
        raise InputError(
            f"{data.path}: item_start needs a categorical field of the item's id (column {key!r}); the schema has none"
        )
    for place, spec in own:
        ids, first = np.unique(np.asarray(data.field(spec.name)[train]), return_index=True)
        state = knowledge.item.index[train][first]
        usable = (ids > 0) & (state > 0)
        vectors = torch.from_numpy(knowledge.item.vectors[state[usable]])
        model.embedding.start_from(place, torch.from_numpy(ids[usable].astype(np.int64)), vectors)
