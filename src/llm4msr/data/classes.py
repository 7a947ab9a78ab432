"""Which scenarios have enough rows of both classes for an AUC that says something."""

from __future__ import annotations

from collections.abc import Sequence

FEWEST = 30
"""With fewer rows of a class, an AUC says little: it is shown, but early stopping uses it only if there is no other."""


def tells(rows: int, positive: int) -> bool:
    """Whether each class has enough rows for an informative AUC; `positive` of the `rows` are positive."""
    return min(positive, rows - positive) >= FEWEST


def averaged(sizes: Sequence[tuple[int, int]]) -> list[bool]:
    """Which scenarios a mean AUC is over, from each one's rows and positives: those that tell or, if none does, all
    that have an AUC.

    >>> averaged([(100, 30), (40, 3), (5, 0)]), averaged([(40, 3), (5, 0)])
    ([True, False, False], [True, False])
    """
    telling = [tells(rows, positive) for rows, positive in sizes]
    return telling if any(telling) else [0 < positive < rows for rows, positive in sizes]
