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

Weights = Literal["full", "low_rank", "factored", "diagonal"]


class MetaLayers(nn.Module):
    """K generated layers `widths[0] -> ... -> widths[K]`, applied to `(B, widths[0])`.

    `full` is the paper's: one fully connected meta network gives every weight and bias (equations 4 to 6),

        W_i = reshape(M_w z + m_w),   b_i = reshape(M_b z + m_b),   h_i = relu(W_i h_(i-1) + b_i).

    `low_rank` generates only a `rank x rank` core and a shift between two shared projections,

        W_i = U_i (I + S_i(z)) V_i,   b_i = c_i(z) V_i + b_i0,

    so that all layers start as one shared network and depart from it as far as the knowledge helps. `factored` is the
    same with `S_i(z) = P_i diag(s_i(z)) Q_i`, of which only `factors` numbers `s_i` are generated: there is no product
    with weights of one `z` alone, which makes it fast where every row has a `z` of its own. `diagonal` has
    `S_i(z) = diag(s_i(z))`.

    Args:
        knowledge: width of `z`.
        widths: input, hidden and output widths of the layers.
        weights: `full`, `low_rank`, `factored` or `diagonal`.
        rank: of the cores.
        factors: numbers that a `factored` core is made of.
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
        factors: int = 64,
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
            if weights != "low_rank":
                core, std = (factors if weights == "factored" else rank), 0.1 / knowledge**0.5
            if weights == "factored":
                self.inner = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(rank, core)) for _ in shapes)
                self.outer = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(core, rank)) for _ in shapes)
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
        h, generated, penalty = self._below_last(x, z, inverse)
        out = self._layer(len(self.generators) - 1, h, generated, inverse)
        return functional.relu(out) if self.activate_last else out, penalty

    def added(self, x: Tensor, z: Tensor, inverse: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`x + gate * layers(x)`: the layers read, and add to, the first columns of `x` `(B, at least widths[0])`.

        `gate` `(B, 1)` is 1 where not given. Returns the sum, as wide as `x`, and the mean square of what was made.
        """
        place, beside = len(self.generators) - 1, x.shape[1] - self.widths[-1]
        if self.weights == "full" or self.activate_last:
            h, generated, penalty = self._below_last(x[:, : self.widths[0]], z, inverse)
            out = self._layer(place, h, generated, inverse)
            out = functional.relu(out) if self.activate_last else out
            return x + functional.pad(out if gate is None else gate * out, (0, beside)), penalty
        # Products with zeros for the columns beside, and one that adds to x: no other pass over wide rows.
        h, generated, penalty = self._below_last(x, z, inverse)
        turned = self._turned(place, h, generated, inverse)
        one = turned.new_ones(len(turned), 1) if gate is None else gate
        weight = torch.cat([self.right[place], self.bias[place][None]])
        turned = torch.cat([turned if gate is None else turned * gate, one], 1)
        return torch.addmm(x, turned, functional.pad(weight, (0, beside))), penalty

    def _below_last(self, x: Tensor, z: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the last layer reads, what it is made of, and the mean square of what was generated."""
        penalty, h = x.new_zeros(()), x
        for place, generator in enumerate(self.generators):
            generated = generator(z)
            penalty = penalty + generated.square().mean()
            if place < len(self.generators) - 1:
                h = functional.relu(self._layer(place, h, generated, inverse))
        return h, generated, penalty / len(self.generators)

    def _layer(self, place: int, h: Tensor, generated: Tensor, inverse: Tensor) -> Tensor:
        if self.weights != "full":
            return torch.addmm(self.bias[place], self._turned(place, h, generated, inverse), self.right[place])
        inside, outside = self.widths[place], self.widths[place + 1]
        weight = generated[:, : inside * outside].reshape(-1, inside, outside)
        return grouped_matmul(h, weight, inverse) + generated[:, inside * outside :].index_select(0, inverse)

    def _turned(self, place: int, h: Tensor, generated: Tensor, inverse: Tensor) -> Tensor:
        """The row between the two shared projections, `(B, rank)`: after the core, with the shift."""
        r = self.rank
        left: Tensor = self.left[place]
        inner = h @ functional.pad(left, (0, 0, 0, h.shape[1] - len(left)))
        if self.weights == "low_rank":
            core = generated[:, : r * r].reshape(-1, r, r)
            return inner + grouped_matmul(inner, core, inverse) + generated[:, r * r :].index_select(0, inverse)
        scale, shift = generated.index_select(0, inverse).split([generated.shape[1] - r, r], 1)
        if self.weights == "diagonal":
            return torch.addcmul(inner + shift, inner, scale)
        return torch.addmm(inner + shift, (inner @ self.inner[place]) * scale, self.outer[place])


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
