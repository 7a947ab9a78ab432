"""AITM: adaptive information transfer along a sequence of towers (Xi et al., KDD 2021), one for each scenario."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from llm4msr.models.layers import MLP
from llm4msr.models.registry import BACKBONES, Backbone, ModelPartConfig, Width


class AITMConfig(ModelPartConfig):
    """`hidden`: widths of a tower's layers; the transferred information has the width of the last one."""

    hidden: tuple[Width, ...] = Field(default=(256, 128, 64), min_length=1)


class Transfer(nn.Module):
    """The adaptive information transfer module (equations 4 to 6).

    `z = sum_u w_u h3(u)` over `u` in the transferred `p` and the tower's own `q`, with
    `w_u = softmax_u(<h1(u), h2(u)> / sqrt(k))`. A row attends only to its own two vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        """`(B, k)` and `(B, k)` give `(B, k)`."""
        both = torch.stack([p, q], 1)
        score = (self.key(both) * self.query(both)).sum(2) / both.shape[2] ** 0.5
        return torch.einsum("bu,buk->bk", functional.softmax(score, dim=1), self.value(both))


@BACKBONES.register("aitm", AITMConfig, replayable=True)
class AITM(Backbone):
    """Towers in the schema's order of the scenarios; each tower passes information on to the next.

    `q_t = tower_t(x)`, `z_1 = q_1`, `z_t = transfer_t(relu(G_t z_(t-1)), q_t)`, `logit = w_d z_d + b_d`. A row of
    scenario d needs only the towers up to d. The paper's calibrator compares the conversions of one row; it has no
    meaning across scenarios and is left out.
    """

    def __init__(self, config: AITMConfig, width: int, scenarios: int) -> None:
        super().__init__()
        k = config.hidden[-1]
        self.towers = nn.ModuleList(MLP((width, *config.hidden), activate_last=True) for _ in range(scenarios))
        self.passes = nn.ModuleList(MLP((k, k), activate_last=True) for _ in range(scenarios - 1))
        self.transfers = nn.ModuleList(Transfer(k) for _ in range(scenarios - 1))
        self.heads = nn.ModuleList(nn.Linear(k, 1) for _ in range(scenarios))

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        """Logits `(B,)`."""
        logits = []
        z = x
        for d, tower in enumerate(self.towers):
            if offsets[d] == x.shape[0]:
                break  # no row of this scenario or of a later one
            q = tower(x[offsets[d] :])
            z = self.transfers[d - 1](self.passes[d - 1](z), q) if d > 0 else q
            here = offsets[d + 1] - offsets[d]
            logits.append(self.heads[d](z[:here])[:, 0])
            z = z[here:]
        return torch.cat(logits)
