"""Whether the rows of a part are enough for metrics that compare two classes."""

from __future__ import annotations

FEWEST = 10
"""With fewer rows of a class, an AUC says little: it is shown, but early stopping uses it only if there is no other."""


def tells(rows: int, positive: int) -> bool:
    """Whether each class has enough rows for an informative AUC; `positive` of the `rows` are positive."""
    return min(positive, rows - positive) >= FEWEST
