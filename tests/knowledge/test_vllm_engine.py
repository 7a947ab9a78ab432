"""The vLLM engine over a stand-in with vLLM's signatures, which runs the tiny model plainly."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llm4msr.errors import InputError
from llm4msr.knowledge.engines import Pooling
from llm4msr.knowledge.engines.base import Answer, Generation
from llm4msr.knowledge.engines.vllm import VLLMEngine
from tests.knowledge.reference_llm import Reference
from tests.knowledge.tiny_models import attentive, stopping_at

PROMPTS = ["tea", "a longer prompt about coffee and buns", "x", "tea and a bun"]


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    repetition_penalty: float
    stop_token_ids: list[int]


@dataclass
class PoolingParams:
    use_activation: bool


@dataclass
class PoolerConfig:
    seq_pooling_type: str
    use_activation: bool


class LLM:
    """What the engine uses of `vllm.LLM`."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        gpu_memory_utilization: float,
        enable_prefix_caching: bool,
        trust_remote_code: bool,
        runner: str = "auto",
        convert: str = "auto",
        pooler_config: PoolerConfig | None = None,
    ) -> None:
        assert (dtype, enable_prefix_caching, trust_remote_code) == ("float32", True, False)
        assert 0 < gpu_memory_utilization < 1
        self._pools = runner == "pooling"
        assert self._pools == (convert == "embed")
        if self._pools:
            assert pooler_config == PoolerConfig("LAST", use_activation=False)
        self._reference = Reference(Path(model))

    def generate(self, prompts: list[dict[str, list[int]]], sampling: SamplingParams, use_tqdm: bool) -> list[Any]:
        assert not self._pools
        assert not use_tqdm
        assert sampling.temperature == 0
        assert set(sampling.stop_token_ids) >= self._reference.stops
        settings = Generation(
            pooling="last_generated",
            max_new_tokens=sampling.max_tokens,
            repetition_penalty=sampling.repetition_penalty,
        )
        found = []
        for prompt in prompts:
            tokens, reason = self._reference.continued(prompt["prompt_token_ids"], settings)
            ended = [*tokens, min(self._reference.stops)] if reason == "stop" else tokens  # as vLLM keeps it
            found.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=ended, finish_reason=reason)]))
        return found

    def embed(self, prompts: list[dict[str, list[int]]], pooling_params: PoolingParams, use_tqdm: bool) -> list[Any]:
        states = self._states(prompts, pooling_params, use_tqdm)
        return [SimpleNamespace(outputs=SimpleNamespace(embedding=s[-1].tolist())) for s in states]

    def encode(
        self, prompts: list[dict[str, list[int]]], pooling_params: PoolingParams, pooling_task: str, use_tqdm: bool
    ) -> list[Any]:
        assert pooling_task == "token_embed"
        states = self._states(prompts, pooling_params, use_tqdm)
        return [SimpleNamespace(outputs=SimpleNamespace(data=s)) for s in states]

    def _states(self, prompts: list[dict[str, list[int]]], raw: PoolingParams, use_tqdm: bool) -> list[Any]:
        assert self._pools
        assert not raw.use_activation
        assert not use_tqdm
        return [self._reference.states(prompt["prompt_token_ids"]) for prompt in prompts]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module, config = ModuleType("vllm"), ModuleType("vllm.config")
    for kind in (LLM, SamplingParams, PoolingParams):
        setattr(module, kind.__name__, kind)
    config.PoolerConfig = PoolerConfig  # type: ignore[attr-defined]
    module.config = config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.config", config)


@pytest.fixture(scope="module")
def llm(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which one prompt's text ends at once, and another's after four tokens."""
    folder = attentive(tiny_llm, tmp_path_factory.mktemp("attentive"))
    reference = Reference(folder)
    free = Generation(pooling="last_generated", max_new_tokens=8, chat=False)
    first, third = (reference.continued(reference.ids(PROMPTS[i], chat=False), free)[0] for i in (0, 2))
    return stopping_at(folder, tmp_path_factory.mktemp("stopping"), tokens=[1, first[0], third[4]])


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("batch_tokens", [1, 100_000])
@pytest.mark.parametrize("close_cut", [True, False])
@pytest.mark.parametrize("pooling", ["last_prompt", "mean_prompt", "last_generated", "mean_generated", "closing"])
def test_an_answer_is_what_the_model_gives_to_the_prompt_alone(
    llm: Path, pooling: Pooling, close_cut: bool, batch_tokens: int
) -> None:
    generation = Generation(pooling=pooling, max_new_tokens=8, chat=False, close_cut=close_cut)
    engine = VLLMEngine(llm, dtype="float32", batch_tokens=batch_tokens)
    found = dict(pair for batch in engine.run(PROMPTS, generation) for pair in batch)
    reference = Reference(llm)
    for place, prompt in enumerate(PROMPTS):
        ours, expected = found[place], reference.answer(prompt, generation)
        assert isinstance(ours, Answer)
        assert (ours.text, ours.finish_reason, ours.prompt_tokens, ours.generated_tokens) == (
            *(expected.text, expected.finish_reason, expected.prompt_tokens, expected.generated_tokens),
        )
        np.testing.assert_allclose(ours.vector, expected.vector, rtol=2e-3, atol=2e-3)


def test_without_vllm_the_message_says_what_to_install(llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"pip install 'llm4msr\[vllm\]'"):
        VLLMEngine(llm)
