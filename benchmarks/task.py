"""The task that benchmarks of training share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.completejourney import CompleteJourneyConfig, complete_journey
from llm4msr.knowledge.item_vectors import ItemVectors
from llm4msr.knowledge.sources import Knowledge, KnowledgeConfig, composed_table
from llm4msr.knowledge.states import StateTable

DIMENSIONS = 64


@contextmanager
def prepared(folder: Path | None) -> Iterator[PreparedData]:
    """The prepared folder or, where none is named, the full Complete Journey task (2.3 M rows, 14 fields)."""
    if folder is not None:
        yield PreparedData.open(folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield prepare(complete_journey(CompleteJourneyConfig()), Path(scratch) / "data")


def knowledge_of_that_shape(data: PreparedData) -> Knowledge:
    """Composed states and candidates of random item vectors: what they say does not change what they cost."""
    random = np.random.default_rng(0).standard_normal((data.items.height, DIMENSIONS), dtype=np.float32)
    items = ItemVectors(random, np.ones(len(random), dtype=bool), {})
    own, others = (composed_table(data, items, KnowledgeConfig(), source) for source in ("own", "others"))
    table = np.concatenate([np.zeros((1, DIMENSIONS), np.float32), random])
    return Knowledge(item=StateTable(table, np.asarray(data.item) + np.int32(1)), users={"own": own, "others": others})
