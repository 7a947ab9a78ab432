"""Hidden states made fit for learning: standardised, clipped, and reduced by statistics of the training part.

A raw hidden state has a few dimensions that hold most of its energy, and all states point the same way; after
standardising they do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLIP = 4.0
FARTHEST, _FEW = 2.5, 16
"""The greatest length of a reduced vector, in square roots of its dimensions, of which it counts 16 at the least. Items
of the training part have about 1 and hardly any more than 2; what is unlike all of them, of which the LLM read but an
id, may have 10, and would drive every score of whoever liked it to 0 or 1. Such a vector keeps its direction."""


@dataclass(frozen=True)
class Reduction:
    """`x -> clip((x - mean) / deviation, -4, 4) @ components + offset`, whitened when it was fitted so, and shortened
    where it is far from all that was fitted on.

    `mean` and `deviation` are `(d,)`, `components` is `(d, k)` and `offset` `(k,)`, all float32.
    """

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    components: NDArray[np.float32]
    offset: NDArray[np.float32]

    @classmethod
    def fit(cls, training: NDArray[np.float16] | NDArray[np.float32], dimensions: int) -> Reduction:
        """Fit on the vectors of the training part, `(n, d)`: standardise, clip, whiten to `dimensions` by PCA.

        Fewer dimensions come out where there are fewer vectors, and those stay 0 in whose direction no vector varies.
        With `dimensions` 0, or fewer than 3 vectors, nothing is projected.
        """
        x = training.astype(np.float64)
        mean, deviation = x.mean(0), x.std(0)
        deviation[deviation < 1e-6] = 1.0
        standard = np.clip((x - mean) / deviation, -CLIP, CLIP)
        width = x.shape[1]
        if dimensions == 0 or len(x) < 3:
            components, offset = np.eye(width), np.zeros(width)
        else:
            from sklearn.decomposition import PCA  # serving applies reductions and starts without it

            pca = PCA(min(dimensions, len(x) - 1, width), svd_solver="covariance_eigh").fit(standard)
            varies = pca.explained_variance_ > 1e-6  # whitening a direction without variance would blow up new vectors
            scale = np.where(varies, 1.0 / np.sqrt(np.where(varies, pca.explained_variance_, 1.0)), 0.0)
            components = pca.components_.T * scale
            offset = -(pca.mean_ @ components)
        arrays = (mean, deviation, components, offset)
        return cls(*(np.ascontiguousarray(a, dtype=np.float32) for a in arrays))

    def apply(self, vectors: NDArray[np.float16] | NDArray[np.float32], block: int = 65536) -> NDArray[np.float32]:
        """Reduce vectors `(n, d)` to `(n, k)`."""
        out = np.empty((len(vectors), self.components.shape[1]), dtype=np.float32)
        for start in range(0, len(vectors), block):
            x = (vectors[start : start + block].astype(np.float32) - self.mean) / self.deviation
            out[start : start + block] = np.clip(x, -CLIP, CLIP) @ self.components + self.offset
        length = np.linalg.norm(out, axis=1, keepdims=True)
        most = np.float32(FARTHEST * max(out.shape[1], _FEW) ** 0.5)
        np.multiply(out, most / np.maximum(length, most), out=out)
        return out
