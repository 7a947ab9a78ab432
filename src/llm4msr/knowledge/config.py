"""How stored vectors become states."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError, nearest
from llm4msr.knowledge.controls import NO_CONTROL, Control
from llm4msr.validation import Settings


class KnowledgeConfig(Settings):
    """How stored vectors become states.

    Users' and items' vectors are reduced to `dimensions` numbers. `vectors` are the kinds of item vectors that are
    joined (see `item_vectors`), each with an equal share of the dimensions. In composed states an event weighs half
    after `half_life_days` or, if given, after `half_life_events` further events. `behaviour_weights` gives behaviours
    another weight than 1. `counts` adds the logarithm of the number of events to each state. `control` replaces the
    knowledge, to see whether the knowledge is the reason for a gain: see `llm4msr.knowledge.controls`.
    """

    dimensions: int = Field(default=64, ge=1, le=4096)
    vectors: tuple[str, ...] = Field(default=("llm",), min_length=1)
    half_life_days: float = Field(default=30.0, gt=0)
    half_life_events: float | None = Field(default=None, gt=0)
    behaviour_weights: dict[str, float] = Field(default_factory=dict)
    counts: bool = False
    control: str = NO_CONTROL
    control_seed: int = Field(default=0, ge=0, lt=2**63)

    @property
    def replacement(self) -> Control:
        """What replaces the knowledge."""
        return Control(self.control)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


def behaviour_weights(data: PreparedData, config: KnowledgeConfig) -> NDArray[np.float64]:
    """The weight of each behaviour. Raises `InputError` for an unknown behaviour, or a weight below 0 or infinite."""
    names = [b.name for b in data.schema.behaviours]
    for name, value in config.behaviour_weights.items():
        if name not in names:
            raise InputError(f"behaviour_weights: there is no behaviour {name!r}; {nearest(name, names)}")
        if not 0 <= value < np.inf:
            raise InputError(f"behaviour_weights: {name!r} weighs {value}; expected a number of at least 0")
    return np.array([config.behaviour_weights.get(name, 1.0) for name in names])
