"""Meta networks and the meta layers they generate (LLM4MSR, equations 4 to 7).

A meta network maps a knowledge vector `z` to the weights of K small layers. The layers are generated once for each
vector; rows with the same vector share them: `layers(x, layers.generate(z), inverse)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm4msr.models.layers import plus_product, relu
from llm4msr.models.readers import of_rows, together

Weights = Literal["full", "low_rank", "factored"]


class MetaLayers(nn.Module):
    """K generated layers `widths[0] -> ... -> widths[K]`, applied to `(B, widths[0])`.

    `full` is the paper's: a fully connected meta network generates every weight and bias (equations 4 to 6),

        W_i = reshape(M_w z + m_w),   b_i = reshape(M_b z + m_b),   h_i = relu(W_i h_(i-1) + b_i).

    `low_rank` generates only a `rank x rank` core and a shift between two shared projections,

        W_i = U_i (I + S_i(z)) V_i,   b_i = c_i(z) V_i + b_i0,

    so that the layers of all `z` start close to one shared network and depart from it as far as the knowledge helps.
    `factored` is the same with `S_i(z) = P_i diag(s_i(z)) Q_i`, where only `s_i` (`factors` numbers) is generated. It
    multiplies by no matrix of a single `z`, so it is fast if every row has its own `z`.

    Args:
        knowledge: width of `z`.
        widths: input, hidden and output widths of the layers.
        weights: `full`, `low_rank` or `factored`.
        rank: rank of the cores.
        factors: how many numbers are generated for a `factored` core.
        activate_last: whether ReLU follows the last layer too, as in equation 7. Never for a logit.
        last_scale: factor on the last layer's initial weights; small if the output is added to the input.
    """

    def __init__(
        self,
        knowledge: int,
        widths: Sequence[int],
        *,
        weights: Weights = "low_rank",
        rank: int = 16,
        factors: int = 32,
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
                std = float(start.std(correction=min(1, i * o - 1)))
                nn.init.normal_(generator.weight, std=0.1 * std / knowledge**0.5)
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
            core, std = rank * rank, 0.1 / (knowledge * rank) ** 0.5
            if weights == "factored":
                core, std = factors, 0.1 / knowledge**0.5
                self.inner = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(rank, core)) for _ in shapes)
                self.outer = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(core, rank)) for _ in shapes)
            for _ in shapes:
                generator = nn.Linear(knowledge, core + rank)
                nn.init.normal_(generator.weight, std=std)
                nn.init.zeros_(generator.bias)
                generators.append(generator)
        self.generators = nn.ModuleList(generators)

    def generate(self, z: Tensor) -> list[Tensor]:
        """The generated tensor of each layer, `(S, ...)`, for knowledge `z` `(S, knowledge)`."""
        if self.weights == "full":  # one product would copy the weights, which are large
            return [generator(z) for generator in self.generators]
        return together(z, [cast(nn.Linear, generator) for generator in self.generators])

    @torch.no_grad()
    def fix(self, z: Tensor) -> None:
        """Store the layers of `z` `(S, knowledge)` as constants (see `fixed`) and delete the meta networks."""
        for place, part in enumerate(self.generate(z)):
            self.register_buffer(f"fixed_{place}", part.clone())
        del self.generators

    def fixed(self) -> list[Tensor]:
        """The tensors that `fix` stored."""
        return [cast(Tensor, getattr(self, f"fixed_{place}")) for place in range(len(self.widths) - 1)]

    @staticmethod
    def penalty(generated: Sequence[Tensor]) -> Tensor:
        """The mean square of each generated tensor, averaged over the tensors."""
        return torch.stack([part.square().mean() for part in generated]).mean()

    def forward(self, x: Tensor, generated: Sequence[Tensor], inverse: Tensor | None) -> Tensor:
        """Apply to each row of `x` `(B, widths[0])` the layers `generated[inverse]`; returns `(B, widths[K])`."""
        h = x
        for place, made in enumerate(generated):
            h = self._layer(place, h, made, inverse)
            if place < len(generated) - 1 or self.activate_last:
                h = relu(h)
        return h

    def added(
        self,
        x: Tensor,
        generated: Sequence[Tensor],
        inverse: Tensor | None,
        gate: Tensor | None = None,
    ) -> Tensor:
        """`x + gate * layers(x)`. Only the first columns of `x` `(B, at least widths[0])` are read and changed.

        `gate` `(B, 1)` is 1 by default.
        """
        last, beside = len(generated) - 1, x.shape[1] - self.widths[-1]
        if self.weights == "full" or self.activate_last:
            out = self(x[:, : self.widths[0]], generated, inverse)
            return x + functional.pad(out if gate is None else gate * out, (0, beside))
        # Pad the matrices with zeros for the other columns, and add to x in the product: no other pass over wide rows.
        h = x
        for place, made in enumerate(generated[:-1]):
            h = relu(self._layer(place, h, made, inverse))
        turned = self._turned(last, h, generated[last], inverse)
        one = turned.new_ones(turned.shape[0], 1) if gate is None else gate
        left = torch.cat([turned if gate is None else turned * gate, one], 1)
        right = torch.cat([self.right[last], self.bias[last][None]])
        return plus_product(x, left, functional.pad(right, (0, beside)))

    def _layer(self, place: int, h: Tensor, made: Tensor, inverse: Tensor | None) -> Tensor:
        if self.weights != "full":
            return torch.addmm(self.bias[place], self._turned(place, h, made, inverse), self.right[place])
        inside, outside = self.widths[place], self.widths[place + 1]
        weight = made[:, : inside * outside].reshape(-1, inside, outside)
        return grouped_matmul(h, weight, inverse) + of_rows(made[:, inside * outside :], inverse)

    def _turned(self, place: int, h: Tensor, made: Tensor, inverse: Tensor | None) -> Tensor:
        """The rows between the two shared projections, `(B, rank)`: after the core and with the shift added."""
        r, left = self.rank, cast(Tensor, self.left[place])
        left = functional.pad(left, (0, 0, 0, h.shape[1] - left.shape[0]))  # further columns of `h` are not read
        if self.weights == "factored" and made.shape[0] == 1:  # one z for all rows, as in a request: one product over B
            scale, shift = made.split([made.shape[1] - r, r], 1)
            turned = torch.addmm(left, (left @ self.inner[place]) * scale, self.outer[place])
            return torch.addmm(shift, h, turned)
        inner = h @ left
        if self.weights == "low_rank":
            core = made[:, : r * r].reshape(-1, r, r)
            return inner + grouped_matmul(inner, core, inverse) + of_rows(made[:, r * r :], inverse)
        scale, shift = of_rows(made, inverse).split([made.shape[1] - r, r], 1)
        return torch.addmm(inner + shift, (inner @ self.inner[place]) * scale, self.outer[place])


def grouped_matmul(x: Tensor, weight: Tensor, group: Tensor | None) -> Tensor:
    """`x[b] @ weight[group[b]]` for each row, in one batched product: `(B, I), (S, I, O), (B,) -> (B, O)`.

    Without `group`, row b has weight b.

    Weights are not copied for each row. Instead, the rows of each group are cut into tiles of `ceil(B / S)` rows. There
    are fewer than `2 S` tiles, so the padding and the copied weights stay proportional to the input, however large the
    largest group is.
    """
    if weight.shape[0] == 1:  # one weight for all rows, as in a request
        return x @ weight[0]
    if group is None:
        return torch.bmm(x[:, None], weight)[:, 0]
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
