"""Engines as Ray actors on this machine. Slow, since Ray takes its time to start."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from llm4msr.data.prepared import PreparedData
from llm4msr.errors import InputError
from llm4msr.knowledge.engines import ray as ray_module
from llm4msr.knowledge.engines.base import Answer, Engine, Generation, Refusal
from llm4msr.knowledge.engines.ray import RayEngine
from llm4msr.knowledge.folder import KnowledgeFolder
from llm4msr.knowledge.reason import reason
from tests.conftest import FAST
from tests.knowledge.stub_engine import StubEngine, stub_answer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]


class Mortal(StubEngine):
    """Kills its own process, once in all, when it is asked about item 20; deadly prompts kill it every time."""

    def __init__(self, log: Path) -> None:
        super().__init__(log=log)
        self._died = log.with_name("died")

    def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[list[tuple[int, Answer]]]:
        if any(prompt.startswith("deadly") for prompt in prompts):
            os._exit(1)
        if any(' 20"' in prompt for prompt in prompts) and not self._died.exists():
            self._died.touch()
            os._exit(1)
        yield from super().run(prompts, generation)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "asked.jsonl").touch()
    return tmp_path / "asked.jsonl"


@pytest.fixture
def engine(log: Path) -> Iterator[RayEngine]:
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # actors import the stub from here

    def make() -> Engine:
        return Mortal(log)

    found = RayEngine(make, actors=2, cpus=0.5, piece=8)
    yield found
    found.close()
    import ray

    ray.shutdown()


def test_an_actor_lost_in_the_middle_costs_only_its_piece(
    engine: RayEngine, shop: PreparedData, log: Path, tmp_path: Path
) -> None:
    reason(shop, engine, tmp_path / "k", FAST)
    assert log.with_name("died").exists()
    reason(shop, StubEngine(), tmp_path / "alone", FAST)
    ours, alone = (KnowledgeFolder.open(tmp_path / name, shop) for name in ("k", "alone"))
    assert ours.index.equals(alone.index)
    np.testing.assert_array_equal(ours.level("item")[1], alone.level("item")[1])
    asked = Counter(log.read_text(encoding="utf-8").splitlines())
    assert max(asked.values()) == 1  # the actor died before it noted anything of the piece

    generation = Generation(pooling="last_prompt")
    prompts = [*(f"prompt {i}" for i in range(8)), *(f"deadly {i}" for i in range(8))]
    found = dict(pair for batch in engine.run(prompts, generation) for pair in batch)
    assert sorted(found) == list(range(16))
    first = found[0]
    assert isinstance(first, Answer)
    assert (first.vector == stub_answer("prompt 0", generation).vector).all()
    assert all(isinstance(found[place], Refusal) for place in range(8, 16))


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'llm4msr\[ray\]'"):
        ray_module._import_ray()
