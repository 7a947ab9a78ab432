"""Prepare hidden states for learning: standardise, clip and reduce them, with statistics of the training part.

In raw hidden states a few dimensions hold most of the energy, and all states point in about the same direction.
Standardising removes both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLIP = 4.0
FARTHEST, _FEW = 2.5, 16
"""Reduced vectors of k dimensions are shortened to at most 2.5 * sqrt(max(k, 16)); their direction stays.

Training items have a length of about sqrt(k), and hardly any has more than 2 sqrt(k). Outliers, such as an item of
which the LLM read only an id, may have 10 sqrt(k), which would saturate every score of the users who liked them.
"""


@dataclass(frozen=True)
class Reduction:
    """`x -> clip((x - mean) / deviation, -4, 4) @ components + offset`, then shortened if it is too long (`FARTHEST`).

    `components` whiten, unless it was fitted without a projection. `mean` and `deviation` are `(d,)`, `components` is
    `(d, k)` and `offset` `(k,)`, all float32.
    """

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    components: NDArray[np.float32]
    offset: NDArray[np.float32]

    @classmethod
    def fit(cls, training: NDArray[np.float16] | NDArray[np.float32], dimensions: int) -> Reduction:
        """Fit on the vectors of the training part, `(n, d)`: standardise, clip, whiten to `dimensions` by PCA.

        `k` is less than `dimensions` if `n - 1` or `d` is. A component without variance becomes 0. With `dimensions` 0,
        or fewer than 3 vectors, nothing is projected: the vectors are only standardised and clipped.
        """
        x = training.astype(np.float64)
        mean, deviation = x.mean(0), x.std(0)
        deviation[deviation < 1e-6] = 1.0
        standard = np.clip((x - mean) / deviation, -CLIP, CLIP)
        width = x.shape[1]
        if dimensions == 0 or len(x) < 3:
            components, offset = np.eye(width), np.zeros(width)
        else:
            from sklearn.decomposition import PCA  # imported here, so that `apply` does not need it

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
