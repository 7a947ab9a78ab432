"""The input of a model: the rows of a batch, sorted by scenario, and the states that they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class FieldLayout:
    """The fields of a data set as the models see them.

    `categorical`: the number of ids of each field. `multi`: (number of ids, largest number of values in a row) of each
    field. `numeric`: the number of fields. A field's embedding is `(dim,)`; `E = fields x dim`, in this order.
    """

    categorical: tuple[int, ...] = ()
    multi: tuple[tuple[int, int], ...] = ()
    numeric: int = 0

    @property
    def fields(self) -> int:
        """The number of fields."""
        return len(self.categorical) + len(self.multi) + self.numeric


@dataclass(frozen=True)
class EmbeddingShape:
    """The shape of a row's embedding: `fields` vectors of length `dim`, concatenated."""

    fields: int
    dim: int

    @property
    def width(self) -> int:
        """`E`."""
        return self.fields * self.dim


@dataclass(frozen=True)
class UserStates:
    """The distinct user states of a batch.

    `vectors` `(S, d)`: the sources' vectors, concatenated. Each is followed by a flag: 1 if the source knows nothing of
    the user, else 0. An unknown user's vector is zero, so a network's weights for the flag are what it learns about
    unknown users. `inverse` `(B,)`: each row's index into `vectors`; None if row b has state b.
    """

    vectors: Tensor
    inverse: Tensor | None


class PaddedOffsets(tuple[int, ...]):
    """Offsets of slices that end in padding rows, so that all batches have the same shape.

    `counts` `(D,)` int64: the number of real rows of each slice. Padding rows repeat a real row; they have no loss and
    do not count in statistics of the batch. `scenario` `(B,)` int64: each row's scenario.
    """

    counts: Tensor
    scenario: Tensor
    _place: Tensor

    @classmethod
    def of(cls, offsets: Sequence[int], counts: Tensor) -> PaddedOffsets:
        """Make them of `D + 1` offsets. `counts` is kept by reference: its values may be changed later."""
        padded = cls(offsets)
        starts, sizes = torch.tensor(offsets[:-1]), torch.tensor([b - a for a, b in pairwise(offsets)])
        place = torch.arange(offsets[-1]) - torch.repeat_interleave(starts, sizes)
        padded.counts, padded._place = counts, place.to(counts.device)
        padded.scenario = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(counts.device)
        return padded

    def real(self) -> Tensor:
        """1 for a real row and 0 for padding, `(B,)` float32."""
        return (self._place < self.counts.index_select(0, self.scenario)).float()


@dataclass(frozen=True)
class Batch:
    """`B` rows sorted by scenario.

    `categorical` `(B, Fc)` int64; `multi` `(B, sum of lengths)` int64 padded with -1; `numeric` `(B, Fn)` float32, NaN
    where missing; `offsets`: `D + 1` positions, scenario d has the rows `offsets[d]:offsets[d + 1]`; `label` `(B,)`
    float32; `rows` `(B,)`: the rows' numbers in the data; `item` `(B, d)`: the candidate's vector, followed by a flag,
    1 if it has none; `item_read` `(B, k)`: in its place, where many rows are scored, what the enhancer reads of it
    (`Enhancer.read_items`).
    """

    categorical: Tensor
    multi: Tensor
    numeric: Tensor
    offsets: tuple[int, ...]
    label: Tensor
    rows: Tensor
    users: UserStates | None = None
    item: Tensor | None = None
    item_read: Tensor | None = None

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def scenario_ids(self) -> Tensor:
        """The scenario's index of each row, `(B,)` int64."""
        return scenario_of_rows(self.offsets, self.rows.device)


def only_scenario(offsets: Sequence[int]) -> int | None:
    """The scenario of all rows if they have the same one, as in a request; else None."""
    found = [d for d, (a, b) in enumerate(pairwise(offsets)) if a != b]
    return found[0] if len(found) == 1 else None


def scenario_of_rows(offsets: Sequence[int], device: torch.device) -> Tensor:
    """The scenario's index of each row, `(B,)` int64, for rows sorted by scenario."""
    if isinstance(offsets, PaddedOffsets):
        return offsets.scenario
    only = only_scenario(offsets)
    if only is not None:
        return torch.full((offsets[-1],), only, device=device)
    sizes = torch.tensor([b - a for a, b in pairwise(offsets)])
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device, non_blocking=True)


@dataclass(frozen=True)
class KnowledgeWidths:
    """The widths of the vectors of each user-level source and of the item, each with its `unknown` flag.

    `item` is 0 if there are no item vectors.
    """

    users: tuple[int, ...] = ()
    item: int = 0
    scenario: NDArray[np.float32] | None = None
    """The scenarios' vectors themselves, `(D, d)` float32, or None. They become constants of the model."""
