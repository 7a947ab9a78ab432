"""The data and the knowledge that benchmarks of training share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from llm4msr.data.prepare import prepare
from llm4msr.data.prepared import PreparedData
from llm4msr.data.sources.completejourney import CompleteJourneyConfig, complete_journey
from llm4msr.knowledge.composed import composed_tables
from llm4msr.knowledge.config import KnowledgeConfig
from llm4msr.knowledge.item_vectors import ItemVectors
from llm4msr.knowledge.states import COMPOSED, StateTable
from llm4msr.knowledge.tables import Knowledge

DIMENSIONS = 64


@contextmanager
def prepared(folder: Path | None) -> Iterator[PreparedData]:
    """Open the prepared folder or, if it is None, prepare the full Complete Journey task (2.3 M rows, 14 fields)."""
    if folder is not None:
        yield PreparedData.open(folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield prepare(complete_journey(CompleteJourneyConfig()), Path(scratch) / "data")


def knowledge_of_that_shape(data: PreparedData) -> Knowledge:
    """Composed user states and candidate vectors, from random item vectors: the values do not change the cost."""
    random = np.random.default_rng(0).standard_normal((data.items.height, DIMENSIONS), dtype=np.float32)
    items = ItemVectors.of(random)
    del random
    users = composed_tables(data, items, KnowledgeConfig(), COMPOSED)
    return Knowledge(item=StateTable(items.table, np.asarray(data.item) + np.int32(1)), users=users)
