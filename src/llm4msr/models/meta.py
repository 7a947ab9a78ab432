"""Meta networks and the meta layers they generate (LLM4MSR, equations 4 to 7).

A meta network maps a knowledge vector `z` to the weights of K small layers; rows that share a knowledge vector share
the layers, which are made once for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Weights = Literal["full", "low_rank", "diagonal"]


class MetaLayers(nn.Module):
    """K generated layers `widths[0] -> ... -> widths[K]`, applied to `(B, widths[0])`.

    `full` is the paper's: one fully connected meta network gives every weight and bias (equations 4 to 6),

        W_i = reshape(M_w z + m_w),   b_i = reshape(M_b z + m_b),   h_i = relu(W_i h_(i-1) + b_i).

    `low_rank` generates only a `rank x rank` core and a shift between two shared projections,

        W_i = U_i (I + S_i(z)) V_i,   b_i = c_i(z) V_i + b_i0,

    so that all layers start as one shared network and depart from it as far as the knowledge helps. `diagonal` is the
    same with a core that has a diagonal alone: `2 rank` numbers are generated in place of `rank (rank + 1)`, and no
    product is needed for each `z`, which is what makes it fast where every row has a `z` of its own.

    Args:
        knowledge: width of `z`.
        widths: input, hidden and output widths of the layers.
        weights: `full`, `low_rank` or `diagonal`.
        rank: of the cores.
        activate_last: whether ReLU follows the last layer too, as in equation 7. Never for a logit.
        last_scale: factor on the last layer's initial weights; small where a residual is added.
    """

    def __init__(
        self,
        knowledge: int,
        widths: Sequence[int],
        *,
        weights: Weights = "low_rank",
        rank: int = 16,
        activate_last: bool = False,
        last_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.weights = weights
        self.rank = rank
        self.activate_last = activate_last
        shapes = list(pairwise(self.widths))
        scales = [1.0] * (len(shapes) - 1) + [last_scale]
        generators = []
        if weights == "full":
            for (i, o), scale in zip(shapes, scales, strict=True):
                generator = nn.Linear(knowledge, i * o + o)
                start = nn.init.xavier_uniform_(torch.empty(i, o)) * scale
                nn.init.normal_(generator.weight, std=0.1 * float(start.std()) / knowledge**0.5)
                with torch.no_grad():
                    generator.bias.copy_(torch.cat([start.reshape(-1), torch.zeros(o)]))
                generators.append(generator)
        else:
            self.left = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(i, rank)) for i, _ in shapes)
            self.right = nn.ParameterList(
                nn.init.xavier_uniform_(torch.empty(rank, o)) * scale
                for (_, o), scale in zip(shapes, scales, strict=True)
            )
            self.bias = nn.ParameterList(torch.zeros(o) for _, o in shapes)
            core, std = (rank * rank, 0.1 / (knowledge * rank) ** 0.5)
            if weights == "diagonal":
                core, std = rank, 0.1 / knowledge**0.5
            for _ in shapes:
                generator = nn.Linear(knowledge, core + rank)
                nn.init.normal_(generator.weight, std=std)
                nn.init.zeros_(generator.bias)
                generators.append(generator)
        self.generators = nn.ModuleList(generators)

    def forward(self, x: Tensor, z: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """Apply to each row of `x` `(B, widths[0])` the layers made of `z[inverse]`, `z` being `(S, knowledge)`.

        Returns `(B, widths[K])` and the mean square of what was generated.
        """
        penalty = x.new_zeros(())
        h = x
        for place, generator in enumerate(self.generators):
            generated = generator(z)
            penalty = penalty + generated.square().mean()
            apply = self._full if self.weights == "full" else self._low_rank
            h = apply(place, h, generated, inverse)
            if place < len(self.generators) - 1 or self.activate_last:
                h = functional.relu(h)
        return h, penalty / len(self.generators)

    def _low_rank(self, place: int, h: Tensor, generated: Tensor, inverse: Tensor) -> Tensor:
        r = self.rank
        inner = h @ self.left[place]
        if self.weights == "diagonal":
            scale, shift = generated.index_select(0, inverse).split(r, 1)
            turned = torch.addcmul(shift, inner, scale)
        else:
            core = generated[:, : r * r].reshape(-1, r, r)
            turned = grouped_matmul(inner, core, inverse) + generated[:, r * r :].index_select(0, inverse)
        return torch.addmm(self.bias[place], inner + turned, self.right[place])

    def _full(self, place: int, h: Tensor, generated: Tensor, inverse: Tensor) -> Tensor:
        inside, outside = self.widths[place], self.widths[place + 1]
        weight = generated[:, : inside * outside].reshape(-1, inside, outside)
        return grouped_matmul(h, weight, inverse) + generated[:, inside * outside :].index_select(0, inverse)


def grouped_matmul(x: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    """`x[b] @ weight[group[b]]` for each row, in one batched product: `(B, I), (S, I, O), (B,) -> (B, O)`.

    No row's own copy of its weights is made. The rows of a group are cut into tiles of `ceil(B / S)` rows; there are
    fewer than `2 S` tiles, so padding and copied weights stay in proportion to what was given, whatever the largest
    group is.
    """
    groups = weight.shape[0]
    tile = -(-len(group) // groups)
    sizes = torch.bincount(group, minlength=groups)
    tiles = (sizes + tile - 1) // tile
    order = torch.argsort(group, stable=True)
    sorted_group = group[order]
    place = torch.arange(len(group), device=x.device) - (torch.cumsum(sizes, 0) - sizes)[sorted_group]
    slot = torch.empty_like(order)
    slot[order] = (torch.cumsum(tiles, 0) - tiles)[sorted_group] * tile + place
    owner = torch.repeat_interleave(torch.arange(groups, device=x.device), tiles)
    padded = x.new_zeros(len(owner) * tile, x.shape[1]).index_copy(0, slot, x)
    product = torch.bmm(padded.view(len(owner), tile, -1), weight.index_select(0, owner))
    return product.view(len(owner) * tile, -1).index_select(0, slot)
