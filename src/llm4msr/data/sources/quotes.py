"""Quotes that are opened and never closed: such a value swallows the rows up to the next quote."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc

_TELLING = 5
"""A line of prose seldom has this many values by chance. For fewer columns, more lines must look like rows."""


class RowsInside:
    """Finds texts whose inner lines look like rows: several lines, each with as many values as the header.

    Args:
        separator: between values.
        values: how many the header has.
    """

    def __init__(self, separator: str, values: int) -> None:
        self._separator, self._values = separator, values
        self._least = 2 if values >= _TELLING else 5

    def has(self, text: str) -> bool:
        """Whether a text has such lines."""
        inside = text.split("\n")[1:-1]
        if len(inside) < self._least:
            return False
        try:
            return all(len(row) == self._values for row in csv.reader(inside, delimiter=self._separator))
        except csv.Error:  # a line too long for the reader is not a row
            return False

    def of(self, columns: Sequence[pa.Array]) -> Iterator[int]:
        """The rows that have such a value. Most columns have no line break, so their buffer is searched first."""
        for column in columns:
            text = column.buffers()[2]
            if text is not None and b"\n" in text.to_pybytes():
                there = pc.match_substring(column, "\n").fill_null(False)
                for row in np.flatnonzero(there.to_numpy(zero_copy_only=False)).tolist():
                    if self.has(column[row].cast(pa.binary()).as_py().decode(errors="replace")):
                        yield row
