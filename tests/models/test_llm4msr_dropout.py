"""Dropout of knowledge vectors: while training alone, and never of the flags that say that nothing is known."""

from __future__ import annotations

import torch

from llm4msr.models.batch import EmbeddingShape
from llm4msr.models.enhancers.llm4msr import LLM4MSR
from llm4msr.models.enhancers.llm4msr_config import LLM4MSRConfig
from tests.models.zoo import WIDTHS


def enhancer() -> LLM4MSR:
    return LLM4MSR(LLM4MSRConfig(dropout=0.5), EmbeddingShape(4, 4), 3, WIDTHS)


def test_flags_are_never_dropped() -> None:
    made = enhancer().train()
    users, item = torch.ones(200, 12), torch.ones(200, 6)
    for vectors, flags, found in (
        (users, [5, 11], made._dropped(users, made.user_flags)),
        (item, [5], made._dropped(item, made.item_flags)),
    ):
        others = [n for n in range(vectors.shape[1]) if n not in flags]
        assert (found[:, flags] == 1).all()
        assert set(found[:, others].unique().tolist()) == {0.0, 2.0}


def test_nothing_is_dropped_after_training() -> None:
    made = enhancer().eval()
    vectors = torch.randn(5, 12)
    assert torch.equal(made._dropped(vectors, made.user_flags), vectors)
