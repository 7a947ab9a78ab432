"""LLM4MSR at almost the price of its backbone: one generated layer with one output, beside the backbone.

For a user state `z`, and a row with the embeddings `e` and the candidate's vector `v`,

    h = E e + V v + M ((P z) * (Q v)),   logit_u = w(z) . h + c(z) t(v),   w(z) = (1 + s(z)) * u,

where `*` multiplies number by number. So it is a low-rank meta layer (`models.meta`) with a diagonal core, and it reads
the embeddings, the candidate, and how the user and the candidate match. `s` and `c` are generated (equations 4 to 6).
`t` is linear, and 1 at first. `V`, `P`, `Q` and `t` have biases. The backbone stays as it is, and `logit = alpha
logit_u + (1 - alpha) backbone(e)` (equation 9).

All of it is one dot product of a vector of the state and a vector of the row. The state's vector is computed once for
all rows that see the state:

    logit_u = [w(z), (P z) * (M^T w(z)), c(z)] . [E e + V v, Q v, t(v)].
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from llm4msr.models.batch import Batch, EmbeddingShape, KnowledgeWidths
from llm4msr.models.dropout import VectorDropout
from llm4msr.models.enhancers.mixed import Mixed
from llm4msr.models.layers import plus_product_first
from llm4msr.models.readers import USER_TABLES, UserSource, given, of_rows, user_states
from llm4msr.models.registry import ENHANCERS, Backbone, ModelPartConfig


class LightConfig(ModelPartConfig):
    """Settings of the enhancer.

    - `source`: where the user's vector comes from, as in `llm4msr`.
    - `rank`: how many numbers of the row the generated layer weighs (the width of `h`).
    - `match_dim`: how many numbers the user's and the candidate's vector are multiplied in.
    - `alpha`: initial value of the mixing weight, which is learned.
    - `dropout`: share of the numbers of user and item vectors that is dropped in training.

    `rank + match_dim + 1` numbers of each state and of each row are multiplied; a CPU is fastest with multiples of 16.
    """

    source: UserSource = "composed"
    rank: int = Field(default=16, ge=1)
    match_dim: int = Field(default=15, ge=1)
    alpha: float = 0.2
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def needs(self) -> frozenset[str]:
        """All kinds of knowledge that the model reads."""
        return frozenset({*USER_TABLES[self.source], "item"})


@ENHANCERS.register("llm4msr_light", LightConfig, replayable=True)
class LLM4MSRLight(Mixed):
    """One generated layer with one output, beside the backbone (see the module)."""

    alpha: nn.Parameter
    reads_items = True

    def __init__(self, config: LightConfig, shape: EmbeddingShape, scenarios: int, knowledge: KnowledgeWidths) -> None:
        super().__init__()
        del scenarios
        users, item = given(sum(knowledge.users), "user states"), given(knowledge.item, "item vectors")
        rank, match = self._sizes = config.rank, config.match_dim
        self._width = shape.width
        self.drop_users = VectorDropout(knowledge.users, config.dropout)
        self.drop_item = VectorDropout((item,), config.dropout)
        left = nn.init.xavier_uniform_(torch.empty(shape.width + item + match, rank))
        of_embedding, of_item, of_match = left.split([shape.width, item, match])
        self.of_embedding = nn.Parameter(of_embedding.clone())
        self.of_match = nn.Parameter(of_match.clone())
        self.out = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, 1))[:, 0])
        self.user = nn.Linear(users, rank + match + 1)  # s(z), P z, c(z)
        self.item = nn.Linear(item, rank + match + 1)  # V v, Q v, t(v)
        with torch.no_grad():
            for generated in (self.user.weight[:rank], self.user.weight[-1:]):
                nn.init.normal_(generated, std=0.1 / users**0.5)
            self.user.bias[:rank] = self.user.bias[-1] = 0
            self.item.weight[:rank] = of_item.T
            self.item.weight[-1] = self.item.bias[:rank] = 0
            self.item.bias[-1] = 1
        self.alpha = nn.Parameter(torch.tensor([config.alpha]))

    @property
    def backbone_width(self) -> int:
        """`E`."""
        return self._width

    def read_items(self, vectors: Tensor) -> Tensor:
        """The items' part of the rows' vectors, `(n, rank + match_dim + 1)`."""
        read: Tensor = self.item(self.drop_item(vectors))
        return read

    def branches(self, e: Tensor, batch: Batch, backbone: Backbone) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The backbone's logits `(B,)`, those of the user's layer, and the mean square of `s` and `c` in training."""
        rank, match = self._sizes
        states = user_states(batch)
        scale, user, shift = self.user(self.drop_users(states.vectors)).split([rank, match, 1], 1)
        weights = (1 + scale) * self.out
        of_state = torch.cat([weights, user * (weights @ self.of_match.T), shift], 1)
        items = self.items(batch)
        fresh = items if batch.item_read is None else items.clone()  # the batch's own tensors are never changed
        of_row = plus_product_first(fresh, e, self.of_embedding)
        penalty = torch.cat([scale, shift], 1).square().mean() if self.training else None
        return backbone(e, batch.offsets), [_dot(of_row, of_state, states.inverse)], penalty


def _dot(rows: Tensor, states: Tensor, inverse: Tensor | None) -> Tensor:
    """The dot product of each row `(B, n)` with its state's vector, `states[inverse]`, `(B,)`."""
    if states.shape[0] == 1:  # all rows see the same state, as in a request
        return rows @ states[0]
    return (rows * of_rows(states, inverse)).sum(1)
