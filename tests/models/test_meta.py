"""Meta layers and LLM4MSR by hand (equations 4 to 9), and the fast paths against plain loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from llm4msr.errors import InputError
from llm4msr.models.batch import EmbeddingShape, KnowledgeWidths, UserStates
from llm4msr.models.enhancers.llm4msr import LLM4MSR
from llm4msr.models.enhancers.llm4msr_config import LLM4MSRConfig
from llm4msr.models.meta import MetaLayers, grouped_matmul
from llm4msr.models.registry import BACKBONES, ENHANCERS, Backbone
from tests.models.zoo import WIDTHS, make_rows


class SumOfInputs(Backbone):
    """A backbone simple enough to compute by hand."""

    def forward(self, x: Tensor, offsets: tuple[int, ...]) -> Tensor:
        del offsets
        return x.sum(1)


def applied(layers: MetaLayers, x: Tensor, z: Tensor, inverse: Tensor | None) -> Tensor:
    """The layers made of `z[inverse]`, applied to `x`."""
    found: Tensor = layers(x, layers.generate(z), inverse)
    return found


def plain(**settings: Any) -> LLM4MSRConfig:
    """Settings with everything that is beyond the paper off."""
    off = {"scenario": "parallel", "gate": False, "candidate": False, "match": False}
    return LLM4MSRConfig.model_validate({**off, **settings})


def test_full_meta_layers_by_hand() -> None:
    layers = MetaLayers(1, (2, 1), weights="full")
    (generator,) = layers.generators
    with torch.no_grad():
        generator.weight.copy_(torch.tensor([[1.0], [2.0], [3.0]]))  # type: ignore[operator]
        generator.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))  # type: ignore[operator]
    z = torch.tensor([[1.0], [2.0]])
    x = torch.tensor([[1.0, 1.0], [10.0, 1.0]])
    generated = layers.generate(z)
    out, penalty = layers(x, generated, torch.tensor([0, 1])), layers.penalty(generated)
    # W = z * (1, 2) + (0, 1), b = 3 z - 1
    assert out.tolist() == [[1.0 * 1 + 3.0 * 1 + 2.0], [2.0 * 10 + 5.0 * 1 + 5.0]]
    assert penalty.item() == pytest.approx((1 + 9 + 4 + 4 + 25 + 25) / 6)


def test_relu_follows_each_layer_of_equation_7_and_never_a_logit() -> None:
    x, z, inverse = torch.randn(50, 3), torch.randn(4, 2), torch.randint(0, 4, (50,))
    torch.manual_seed(0)
    paper = applied(MetaLayers(2, (3, 5, 3), weights="full", activate_last=True), x, z, inverse)
    torch.manual_seed(0)
    linear = applied(MetaLayers(2, (3, 5, 3), weights="full"), x, z, inverse)
    torch.testing.assert_close(paper, functional.relu(linear))
    assert bool((linear < 0).any())


@pytest.mark.parametrize("weights", ["full", "low_rank", "factored"])
def test_meta_layers_equal_a_loop_over_rows(weights: str) -> None:
    torch.manual_seed(0)
    layers = MetaLayers(3, (4, 6, 2), weights=weights, rank=2, factors=5).double()  # type: ignore[arg-type]
    x, z = torch.randn(7, 4, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    inverse = torch.tensor([0, 2, 2, 1, 0, 2, 1])
    rows = []
    for row, state in zip(x, inverse, strict=True):
        h = row
        for place, (inside, outside) in enumerate([(4, 6), (6, 2)]):
            generated = layers.generators[place](z[state])
            if weights == "full":
                matrix, bias = generated[: inside * outside].view(inside, outside), generated[inside * outside :]
            else:
                size = {"low_rank": 4, "factored": 5}[weights]
                added = generated[:4].view(2, 2) if weights == "low_rank" else torch.diag(generated[:size])
                if weights == "factored":
                    added = layers.inner[place] @ added @ layers.outer[place]
                core = torch.eye(2, dtype=torch.float64) + added
                matrix = layers.left[place] @ core @ layers.right[place]
                bias = generated[size:] @ layers.right[place] + layers.bias[place]
            h = h @ matrix + bias
            h = functional.relu(h) if place == 0 else h
        rows.append(h)
    torch.testing.assert_close(applied(layers, x, z, inverse), torch.stack(rows))
    each = applied(layers, x, z[inverse], None)
    torch.testing.assert_close(each, torch.stack(rows))
    same = applied(layers, x, z[:1], torch.zeros(7, dtype=torch.int64))  # as in a request of one user
    torch.testing.assert_close(same, applied(layers, x, z[:1].expand(7, -1), None))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("weights", ["full", "low_rank", "factored"])
def test_what_is_added_to_the_first_columns_is_what_the_layers_give(weights: Any, gated: bool) -> None:
    torch.manual_seed(0)
    layers = MetaLayers(3, (4, 6, 4), weights=weights, rank=2).double()
    with torch.no_grad():
        for bias in () if weights == "full" else layers.bias:
            bias.normal_()
    x, z = torch.randn(7, 6, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    inverse = torch.tensor([0, 2, 2, 1, 0, 2, 1])
    gate = torch.rand(7, 1, dtype=torch.float64) if gated else None
    expected = x.clone()
    expected[:, :4] += applied(layers, x[:, :4], z, inverse) * (1 if gate is None else gate)
    torch.testing.assert_close(layers.added(x, layers.generate(z), inverse, gate), expected)


def test_low_rank_layers_start_close_to_one_shared_network() -> None:
    torch.manual_seed(0)
    layers = MetaLayers(64, (20, 16, 20), rank=8)
    x = torch.randn(1, 20).expand(10, -1)
    out = applied(layers, x, torch.randn(10, 64), torch.arange(10))
    assert (out.std(0) / out.abs().mean()).max() < 0.5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 100))
def test_grouped_matmul_equals_a_product_for_each_row(groups: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(groups), 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 3, 2, generator=generator, dtype=torch.float64)
    group = torch.tensor(groups)
    torch.testing.assert_close(grouped_matmul(x, weight, group), torch.einsum("bi,bio->bo", x, weight[group]))


def test_prediction_mixes_backbone_and_parallel_layers_by_alpha() -> None:
    config = plain(user="none", scenario="parallel", layers=1, weights="full", alpha=0.25)
    enhancer = LLM4MSR(config, EmbeddingShape(1, 2), 3, WIDTHS)
    batch = make_rows([1, 1, 1])
    e = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert enhancer.scenario_layers is not None
    beside = applied(enhancer.scenario_layers, e, enhancer.scenario_vectors, torch.arange(3))[:, 0]
    logits, _ = enhancer(e, batch, SumOfInputs())
    torch.testing.assert_close(logits, 0.25 * beside + 0.75 * e.sum(1))


def test_the_whole_prediction_by_hand() -> None:
    config = plain(layers=1, weights="full", residual=False, alpha=0.25)
    scenario = np.array([[1.0], [2.0], [3.0]], dtype=np.float32)
    enhancer = LLM4MSR(config, EmbeddingShape(1, 2), 3, KnowledgeWidths(users=(1,), scenario=scenario))
    assert enhancer.user_layers is not None
    assert enhancer.scenario_layers is not None
    with torch.no_grad():
        below, beside = (dict(m.named_parameters()) for m in (enhancer.user_layers, enhancer.scenario_layers))
        # below: W = z diag(1, -1), b = z (0, .5); beside: W = z (1, 1), b = 1
        below["generators.0.weight"].copy_(torch.tensor([[1.0], [0.0], [0.0], [-1.0], [0.0], [0.5]]))
        below["generators.0.bias"].zero_()
        beside["generators.0.weight"].copy_(torch.tensor([[1.0], [1.0], [0.0]]))
        beside["generators.0.bias"].copy_(torch.tensor([0.0, 0.0, 1.0]))
    batch = replace(
        make_rows([0, 1, 0]),
        users=UserStates(torch.tensor([[2.0]]), torch.tensor([0])),
    )
    e = torch.tensor([[3.0, 0.25]])
    # h_u = relu(2 * 3, -2 * .25 + 1) = (6, .5); h = 6.5; h_s = 2 * 3 + 2 * .25 + 1 = 7.5
    assert enhancer(e, batch, SumOfInputs())[0].item() == pytest.approx(0.25 * 7.5 + 0.75 * 6.5)


def test_two_parallel_levels_have_an_alpha_each() -> None:
    enhancer = LLM4MSR(plain(user="parallel", layers=1), EmbeddingShape(1, 2), 3, WIDTHS)
    assert enhancer.alpha is not None
    assert enhancer.user_layers is not None
    assert enhancer.scenario_layers is not None
    with torch.no_grad():
        enhancer.alpha.copy_(torch.tensor([0.3, 0.1]))
    batch, e = make_rows([2, 1, 1]), torch.randn(4, 2)
    assert batch.users is not None
    user = applied(enhancer.user_layers, e, batch.users.vectors, batch.users.inverse)[:, 0]
    scenario = applied(enhancer.scenario_layers, e, enhancer.scenario_vectors, torch.tensor([0, 0, 1, 2]))[:, 0]
    torch.testing.assert_close(enhancer(e, batch, SumOfInputs())[0], 0.3 * user + 0.1 * scenario + 0.6 * e.sum(1))


def test_missing_knowledge_is_an_error_and_never_a_plain_backbone() -> None:
    with pytest.raises(ValueError, match="need user states"):
        LLM4MSR(plain(scenario="none"), EmbeddingShape(1, 2), 3, KnowledgeWidths())
    with pytest.raises(ValueError, match="need scenario vectors"):
        LLM4MSR(plain(user="none"), EmbeddingShape(1, 2), 3, KnowledgeWidths())
    enhancer = LLM4MSR(plain(scenario="none"), EmbeddingShape(1, 2), 3, WIDTHS)
    with pytest.raises(ValueError, match="need user states"):
        enhancer(torch.randn(1, 2), replace(make_rows([1, 0, 0]), users=None), SumOfInputs())


def test_one_large_group_pads_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    padded: list[int] = []
    bmm = torch.bmm

    def watched(x: Tensor, weight: Tensor) -> Tensor:
        padded.append(x.shape[0] * x.shape[1])
        return bmm(x, weight)

    monkeypatch.setattr(torch, "bmm", watched)
    group = torch.cat([torch.zeros(1000, dtype=torch.int64), torch.arange(200)])
    grouped_matmul(torch.randn(1200, 3), torch.randn(200, 3, 2), group)
    assert padded[0] <= 2 * 1200 + 200


def test_user_layers_feed_the_backbone() -> None:
    config = plain(user="bottom", scenario="none", layers=2, hidden=3, weights="full", residual=False)
    enhancer = LLM4MSR(config, EmbeddingShape(1, 2), 3, WIDTHS)
    batch = make_rows([2, 0, 2])
    assert batch.users is not None
    assert enhancer.user_layers is not None
    e = torch.randn(4, 2)
    below = applied(enhancer.user_layers, e, batch.users.vectors, batch.users.inverse)
    assert bool((below >= 0).all())
    torch.testing.assert_close(enhancer(e, batch, SumOfInputs())[0], below.sum(1))


def test_a_gate_scales_what_the_users_layers_add_for_each_state_and_scenario() -> None:
    config = plain(scenario="none", layers=2, hidden=3, rank=2, gate=True)
    enhancer = LLM4MSR(config, EmbeddingShape(1, 2), 3, WIDTHS)
    batch = make_rows([2, 1, 2])
    assert batch.users is not None
    assert batch.users.inverse is not None
    assert enhancer.user_layers is not None
    with torch.no_grad():
        enhancer.gate.weight.normal_()
    e, z, inverse = torch.randn(5, 2), batch.users.vectors, batch.users.inverse
    added = applied(enhancer.user_layers, e, z, inverse)
    opened = torch.stack([torch.sigmoid(enhancer.gate(z[inverse[b]])[d]) for b, d in enumerate([0, 0, 1, 2, 2])])
    expected = (e + opened[:, None] * added).sum(1)
    torch.testing.assert_close(enhancer(e, batch, SumOfInputs())[0], expected)
    own = replace(batch, users=UserStates(z[inverse], None))  # the same, each row with a state of its own
    torch.testing.assert_close(enhancer(e, own, SumOfInputs())[0], expected)
    with torch.no_grad():
        enhancer.gate.weight.zero_()
        enhancer.gate.bias.fill_(-100)  # closed: the backbone alone
    torch.testing.assert_close(enhancer(e, batch, SumOfInputs())[0], e.sum(1))


def test_only_bottom_layers_that_add_have_a_gate() -> None:
    assert plain(gate=True).gated
    for change in ({"residual": False}, {"user": "parallel"}, {"user": "none", "match": True}):
        assert not plain(gate=True, **change).gated


def test_without_knowledge_there_is_something_learned_in_its_place() -> None:
    enhancer = LLM4MSR(plain(scenario="none"), EmbeddingShape(1, 2), 3, WIDTHS)
    batch = make_rows([4, 0, 0])
    nothing = torch.tensor([[0.0] * 5 + [1.0]] * 4).repeat(1, 2)
    batch = replace(batch, users=UserStates(nothing, None))
    e = torch.randn(4, 2)
    before = enhancer(e, batch, SumOfInputs())[0]
    assert enhancer.user_layers is not None
    (first, *_) = enhancer.user_layers.generators
    with torch.no_grad():
        first.weight[:, :5] += 1.0  # type: ignore[index, operator]
    assert torch.equal(before, enhancer(e, batch, SumOfInputs())[0])
    with torch.no_grad():
        first.weight[:, 5] += 1.0  # type: ignore[index, operator]
    assert not torch.equal(before, enhancer(e, batch, SumOfInputs())[0])


def test_match_features_are_product_and_dot() -> None:
    config = plain(user="none", scenario="none", match=True, match_dim=2)
    enhancer = LLM4MSR(config, EmbeddingShape(1, 1), 3, WIDTHS)
    batch = make_rows([1, 0, 0])
    assert batch.users is not None
    assert batch.item is not None
    assert batch.users.inverse is not None
    product = enhancer.match_user(batch.users.vectors)[batch.users.inverse] * enhancer.match_item(batch.item)
    logits, _ = enhancer(torch.tensor([[1.5]]), batch, SumOfInputs())
    torch.testing.assert_close(logits, 1.5 + product.sum(1) + product.sum(1))
    assert enhancer.backbone_width == 1 + 2 + 1


@pytest.mark.parametrize(
    ("settings_", "needs"),
    [
        ({}, {"own", "others", "item"}),
        ({"match": False}, {"own", "others", "item"}),
        ({"match": False, "candidate": False, "scenario": "parallel"}, {"own", "others", "scenario"}),
        ({"source": "both", "match": False, "candidate": False}, {"prompted", "own", "others"}),
        ({"user": "none"}, {"own", "others", "item"}),
        ({"user": "none", "match": False}, {"item"}),
    ],
)
def test_a_config_says_which_knowledge_it_needs(settings_: dict[str, object], needs: set[str]) -> None:
    assert LLM4MSRConfig.model_validate(settings_).needs == needs


def test_the_papers_model_reads_prompts_of_users_and_scenarios_alone() -> None:
    config = ENHANCERS.config("llm4msr_paper", {})
    assert config.needs == {"prompted", "scenario"}
    assert (config.user, config.scenario, config.layers, config.weights) == ("bottom", "parallel", 2, "full")


def test_an_enhancer_that_does_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="take the enhancer 'none' instead"):
        plain(user="none", scenario="none")


def test_unknown_names_and_settings_are_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="there is no backbone 'stat'; did you mean 'star'"):
        BACKBONES.get("stat")
    with pytest.raises(InputError, match="backbone star: unknown key 'hiden'"):
        BACKBONES.config("star", {"hiden": [3]})


def test_full_weights_may_have_layers_of_one_number() -> None:
    layers = MetaLayers(6, (4, 1, 1), weights="full")
    out = layers(torch.randn(5, 4), layers.generate(torch.randn(5, 6)), None)
    assert out.shape == (5, 1)
    assert all(torch.isfinite(p).all() for p in layers.parameters())
