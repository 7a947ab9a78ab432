"""Vectors in 8 bits per number: standardised, then rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_REACH = 6.0
"""The code 127 is this many standard deviations above the mean; values farther from the mean are clipped."""


@dataclass(frozen=True)
class Scale:
    """`vector = mean + step * code`, with integer codes from -127 to 127.

    `mean` and `step` are `(d,)` float32. A hidden state has a few dimensions that are hundreds of times larger than the
    others, so each dimension has its own step: 6 standard deviations / 127.
    """

    mean: NDArray[np.float32]
    step: NDArray[np.float32]

    @classmethod
    def fit(cls, vectors: NDArray[Any]) -> Scale:
        """The scale that fits the vectors `(n, d)`."""
        wide = vectors.astype(np.float32)
        step = np.maximum(wide.std(0) * (_REACH / 127), 1e-6)
        return cls(wide.mean(0), step.astype(np.float32))

    def encode(self, vectors: NDArray[Any]) -> NDArray[np.int8]:
        """The codes of vectors `(..., d)`."""
        codes = np.clip(np.rint((vectors - self.mean) / self.step), -127, 127)
        return np.asarray(codes, dtype=np.int8)

    def decode(self, codes: NDArray[np.int8]) -> NDArray[np.float16]:
        """The vectors of codes `(..., d)`: within half a step of the encoded ones, except for clipped values."""
        limit = float(np.finfo(np.float16).max)
        return np.clip(self.mean + self.step * codes, -limit, limit).astype(np.float16)
