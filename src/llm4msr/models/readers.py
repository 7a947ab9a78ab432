"""How enhancers read the knowledge of a batch: with a learned vector where nothing is known."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from llm4msr.models.batch import Batch, KnowledgeWidths

T = TypeVar("T")
UserSource = Literal["prompted", "composed", "both"]
UserTable = Literal["prompted", "own", "others"]

USER_TABLES: dict[UserSource, tuple[UserTable, ...]] = {
    "prompted": ("prompted",),
    "composed": ("own", "others"),
    "both": ("prompted", "own", "others"),
}
"""The user-level tables of each source, in the order in which their vectors stand side by side."""


class UserReader(nn.Module):
    """The batch's user states. `width` is that of all sources side by side."""

    def __init__(self, knowledge: KnowledgeWidths) -> None:
        super().__init__()
        self._splits = knowledge.users
        self.width: int = given(sum(knowledge.users), "user states")
        self.unknown = nn.Parameter(torch.zeros(self.width))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The different states `(S, width)`, and the state of each row `(B,)`."""
        users = given(batch.users, "user states")
        splits = torch.tensor(self._splits, device=users.known.device)
        known = torch.repeat_interleave(users.known, splits, dim=1)
        return torch.where(known, users.vectors, self.unknown), users.inverse


class ItemReader(nn.Module):
    """The candidates' vectors, `width` wide."""

    def __init__(self, knowledge: KnowledgeWidths) -> None:
        super().__init__()
        self.width: int = given(knowledge.item, "item vectors")
        self.unknown = nn.Parameter(torch.zeros(self.width))

    def forward(self, batch: Batch) -> Tensor:
        """`(B, width)`."""
        item, known = given(batch.item, "item vectors"), given(batch.item_known, "item vectors")
        return torch.where(known[:, None], item, self.unknown)


def scenario_vectors(knowledge: KnowledgeWidths) -> Tensor:
    """The scenarios' vectors `(D, width)`: constants of the model."""
    return torch.from_numpy(np.ascontiguousarray(given(knowledge.scenario, "scenario vectors")))


def given(value: T | None, what: str) -> T:
    """The value, or `ValueError` where what the settings need was not given."""
    if value is None or (isinstance(value, int) and value == 0):
        raise ValueError(f"the enhancer's settings need {what}, and none were given")
    return value
