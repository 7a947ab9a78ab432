from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llm4msr.errors import InputError
from llm4msr.models.batch import EmbeddingShape, KnowledgeWidths
from llm4msr.models.enhancers.knowledge_input import KnowledgeAdded, KnowledgeField, KnowledgeInputConfig
from llm4msr.models.registry import ENHANCERS, Backbone
from tests.models.zoo import WIDTHS, make_rows

SHAPE = EmbeddingShape(fields=2, dim=3)


class Recorder(Backbone):
    """A backbone that keeps what it was given."""

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        del offsets
        self.given = x
        return x.sum(1)


def test_a_vector_becomes_a_field_by_a_linear_map() -> None:
    torch.manual_seed(0)
    enhancer = KnowledgeField(KnowledgeInputConfig(), SHAPE, 3, WIDTHS)
    e, batch, backbone = torch.randn(3, 6), make_rows([1, 0, 2]), Recorder()
    enhancer(e, batch, backbone)
    assert batch.users is not None
    assert batch.users.inverse is not None
    assert isinstance(enhancer.user_map, torch.nn.Linear)
    assert isinstance(enhancer.scenario_map, torch.nn.Linear)
    z, inverse = batch.users.vectors, batch.users.inverse
    vectors = enhancer.scenario_vectors
    assert isinstance(vectors, Tensor)
    for place, d in enumerate([0, 2, 2]):
        user = enhancer.user_map.weight @ z[inverse[place]] + enhancer.user_map.bias
        scenario = enhancer.scenario_map.weight @ vectors[d] + enhancer.scenario_map.bias
        torch.testing.assert_close(backbone.given[place], torch.cat([e[place], user, scenario]))
    assert enhancer.backbone_width == 6 + 3 + 3


def test_an_aligned_vector_is_added() -> None:
    torch.manual_seed(0)
    enhancer = KnowledgeAdded(KnowledgeInputConfig(hidden=4), SHAPE, 3, WIDTHS)
    e, batch, backbone = torch.randn(3, 6), make_rows([1, 0, 2]), Recorder()
    enhancer(e, batch, backbone)
    assert batch.users is not None
    assert batch.users.inverse is not None
    assert enhancer.user_map is not None
    assert enhancer.scenario_map is not None
    z, inverse = batch.users.vectors, batch.users.inverse
    scenario = enhancer.scenario_map(enhancer.scenario_vectors)[[0, 2, 2]]
    torch.testing.assert_close(backbone.given, e + enhancer.user_map(z)[inverse] + scenario)


def test_what_is_read_follows_the_settings() -> None:
    assert KnowledgeInputConfig().needs == {"own", "others", "scenario"}
    assert KnowledgeInputConfig(source="prompted", scenario=False).needs == {"prompted"}
    assert KnowledgeField(KnowledgeInputConfig(user=False), SHAPE, 3, WIDTHS).backbone_width == 9
    with pytest.raises(InputError, match="user and scenario are both off"):
        ENHANCERS.config("knowledge_field", {"user": False, "scenario": False})


def test_missing_knowledge_is_an_error() -> None:
    with pytest.raises(ValueError, match="need user states"):
        KnowledgeAdded(KnowledgeInputConfig(), SHAPE, 3, KnowledgeWidths())
