"""The settings of the paper's Table 4, by data set."""

from __future__ import annotations

from typing import Any

from llm4msr.errors import InputError, nearest

_LARGE = {"batch_size": 4096, "learning_rate": 2e-4, "hidden": (256, 128, 64)}
_SMALL = {"batch_size": 1024, "learning_rate": 2e-3, "hidden": (64, 32, 16)}
_SETTINGS: dict[str, dict[str, Any]] = {"kuaisar-small": _LARGE, "kuaisar": _LARGE, "amazon": _SMALL}


def preset(name: str) -> dict[str, Any]:
    """Embedding length, batch size, learning rate and hidden layers of a data set.

    >>> preset("paper-amazon")["batch_size"], preset("paper-amazon")["hidden"]
    (1024, (64, 32, 16))
    """
    known = [f"paper-{data}" for data in _SETTINGS]
    if name not in known:
        raise InputError(f"there is no preset {name!r}; {nearest(name, known)}")
    data = name.removeprefix("paper-")
    return {"embedding_dim": 16, **_SETTINGS[data]}
