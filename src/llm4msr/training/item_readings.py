"""What a model reads of items' vectors, computed once for each item before many rows are scored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm4msr.knowledge.states import StateTable
from llm4msr.training.columns import flagged, sent

_AT_ONCE = 65_536
"""How many items are read at once."""


class ItemReadings:
    """The readings of the items that occur in some rows.

    Args:
        table: the items' vectors and the item of each row of the data.
        first: number of the first row.
        last: number of the row after the last.
        read: from items' vectors `(n, d)` to what a model reads of them, `(n, k)`: an enhancer's `read_items`.
        device: the device of the readings.
    """

    def __init__(
        self, table: StateTable, first: int, last: int, read: Callable[[Tensor], Tensor], device: torch.device
    ) -> None:
        here = np.zeros(len(table.vectors), dtype=np.bool_)
        here[table.index[first:last]] = True
        items, self._place = np.flatnonzero(here), np.cumsum(here, dtype=np.int32) - 1
        blocks = [items[i : i + _AT_ONCE] for i in range(0, max(1, len(items)), _AT_ONCE)]
        self._readings = torch.cat([read(sent(flagged([table], [block]), device)) for block in blocks])
        self._index, self._device = table.index, device

    def of(self, rows: NDArray[np.int64]) -> Tensor:
        """The reading of the item of each row, `(B, k)`; the rows must be among the first to last."""
        return self._readings.index_select(0, sent(self._place[self._index[rows]], self._device))
