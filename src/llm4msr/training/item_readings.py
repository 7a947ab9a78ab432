"""What a model reads of items' vectors, computed once for each item before many rows are scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm4msr.knowledge.states import StateTable
from llm4msr.training.columns import flagged

_AT_ONCE = 65_536
"""How many items are read at once."""


class ItemReadings:
    """The readings of the items that occur in some rows, in host memory.

    Args:
        table: the items' vectors and the item of each row of the data.
        chunks: the numbers of the rows.
        read: from items' vectors `(n, d)` to what a model reads of them, `(n, k)`: an enhancer's `read_items`.
    """

    @torch.no_grad()
    def __init__(self, table: StateTable, chunks: Sequence[range], read: Callable[[Tensor], Tensor]) -> None:
        self._index = table.index
        here = np.zeros(len(table.vectors), dtype=np.bool_)
        for rows in chunks:
            here[table.index[rows.start : rows.stop]] = True
        items, self._place = np.flatnonzero(here), np.cumsum(here, dtype=np.int32) - 1
        for start in range(0, max(1, len(items)), _AT_ONCE):
            block = read(torch.from_numpy(flagged([table], [items[start : start + _AT_ONCE]])))
            if start == 0:
                self._readings = block.new_empty(len(items), block.shape[1])
            self._readings[start : start + _AT_ONCE] = block

    def of(self, rows: NDArray[np.int64]) -> Tensor:
        """The reading of the item of each row, `(B, k)`; the rows must be among the chunks."""
        return self._readings.index_select(0, torch.from_numpy(self._place[self._index[rows]]))
