"""What a model is given: the rows of a batch, sorted by scenario, and the states that they see."""

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

    `categorical`: the number of ids of each field. `multi`: (number of ids, most values a row) of each.
    `numeric`: how many there are. A field's embedding is `(dim,)`; `E = fields x dim`, in this order.
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
    """The shape of a row's embedding: `fields` of length `dim` side by side."""

    fields: int
    dim: int

    @property
    def width(self) -> int:
        """`E`."""
        return self.fields * self.dim


@dataclass(frozen=True)
class UserStates:
    """The different user states of a batch.

    `vectors` `(S, d)` has the sources' vectors side by side. After each there is one number more: 1 where the source
    knows nothing of the user, whose vector is then zero; a network's weight for that number is what it learns of the
    unknown. `inverse` `(B,)` gives each row its state; it is None where row b has state b.
    """

    vectors: Tensor
    inverse: Tensor | None


class PaddedOffsets(tuple[int, ...]):
    """Offsets of slices of which each ends in padding, so that all batches have one shape.

    `counts` `(D,)` int64 says how many rows of each slice are real. The padding repeats rows; it has no loss, and no
    part in statistics of the batch. `scenario` `(B,)` int64 is each row's scenario.
    """

    counts: Tensor
    scenario: Tensor
    _place: Tensor

    @classmethod
    def of(cls, offsets: Sequence[int], counts: Tensor) -> PaddedOffsets:
        """The offsets `D + 1` with the counts, which may change afterwards."""
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
    where missing; `offsets` `D + 1` positions, so that scenario d has the rows `offsets[d]:offsets[d + 1]`;
    `label` `(B,)` float32; `rows` `(B,)` the rows' numbers in the data. `item` `(B, d)` is the candidate's vector and,
    last, 1 where it has none.
    """

    categorical: Tensor
    multi: Tensor
    numeric: Tensor
    offsets: tuple[int, ...]
    label: Tensor
    rows: Tensor
    users: UserStates | None = None
    item: Tensor | None = None

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def scenario_ids(self) -> Tensor:
        """The scenario's index of each row, `(B,)` int64."""
        return scenario_of_rows(self.offsets, self.rows.device)


def only_scenario(offsets: Sequence[int]) -> int | None:
    """The scenario that all rows are of, as in a request, or None where there are several."""
    found = [d for d, (a, b) in enumerate(pairwise(offsets)) if a != b]
    return found[0] if len(found) == 1 else None


def scenario_of_rows(offsets: Sequence[int], device: torch.device) -> Tensor:
    """The scenario's index of each row, `(B,)` int64, of rows sorted by scenario."""
    if isinstance(offsets, PaddedOffsets):
        return offsets.scenario
    only = only_scenario(offsets)
    if only is not None:
        return torch.full((offsets[-1],), only, device=device)
    sizes = torch.tensor([b - a for a, b in pairwise(offsets)])
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device, non_blocking=True)


@dataclass(frozen=True)
class KnowledgeWidths:
    """How wide the knowledge is, with the numbers that say `unknown`: each user-level source, and the item's vector.

    0 stands for none. The scenarios' vectors are given themselves.
    """

    users: tuple[int, ...] = ()
    item: int = 0
    scenario: NDArray[np.float32] | None = None
    """The scenarios' vectors themselves, `(D, d)` float32, or None: they are constants of the model."""
