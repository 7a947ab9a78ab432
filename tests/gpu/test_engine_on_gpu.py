"""PyTorch's engine gives on a GPU what it gives on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm4msr.knowledge.engines import Pooling
from llm4msr.knowledge.engines.base import Answer, Generation
from llm4msr.knowledge.engines.transformers import TransformersEngine
from tests.knowledge.tiny_models import FAMILIES, of_family

PROMPTS = ["tea", "a longer prompt about coffee and buns", "x", "Zwölf Brötchen, bitte!", "tea and a bun"] * 3
POOLINGS: list[Pooling] = ["last_prompt", "mean_prompt", "last_generated", "mean_generated", "closing"]


def answers(engine: TransformersEngine, generation: Generation) -> list[Answer]:
    found = dict(pair for batch in engine.run(PROMPTS, generation) for pair in batch)
    kept = [found[i] for i in range(len(PROMPTS))]
    return [answer for answer in kept if isinstance(answer, Answer)]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_and_vectors_are_those_of_a_cpu(family: str, pooling: Pooling, tiny_llm: Path, tmp_path: Path) -> None:
    folder = of_family(family, tiny_llm, tmp_path / family)
    generation = Generation(pooling=pooling, max_new_tokens=8)
    here, there = (answers(TransformersEngine(folder, dtype="float32", device=d), generation) for d in ("cpu", "cuda"))
    assert len(here) == len(there) == len(PROMPTS)
    for mine, theirs in zip(here, there, strict=True):
        assert theirs.text == mine.text
        np.testing.assert_allclose(theirs.vector, mine.vector, rtol=0.02, atol=0.02)


def test_bfloat16_is_near_float32(tiny_llm: Path, tmp_path: Path) -> None:
    folder = of_family("llama", tiny_llm, tmp_path / "llama")
    generation = Generation(pooling="mean_prompt")
    exact, short = (
        np.stack([a.vector for a in answers(TransformersEngine(folder, dtype=d, device="cuda"), generation)])
        for d in ("float32", "bfloat16")
    )
    exact, short = exact.astype(np.float64), short.astype(np.float64)
    cosine = (exact * short).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(short, axis=1)
    assert cosine.min() > 0.98
