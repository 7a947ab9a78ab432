"""Knowledge of a frozen LLM about scenarios, users and items, and the moment from which each piece of it is true."""

from typing import Literal

Level = Literal["scenario", "user", "item"]
"""What knowledge is about."""
LEVELS: tuple[Level, ...] = ("scenario", "user", "item")
SnapshotProtocol = Literal["slices", "period", "times", "train_start", "train_end", "all"]
"""When users' prompts are made (`history.Snapshots`)."""
