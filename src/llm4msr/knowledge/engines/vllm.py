"""vLLM: large causal language models on GPUs (extra `vllm`).

There are two passes. The generating runner writes the texts. Then the pooling runner reads prompt and text again and
gives the state after the model's final norm, not scaled to unit length. vLLM itself caches prefixes that prompts share.
For several GPUs or machines, run one engine per GPU with `llm4msr reason --ray`.

The tests run it with a stand-in for vLLM.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm4msr.errors import InputError
from llm4msr.knowledge.engines import DType
from llm4msr.knowledge.engines.base import Answer, Generation, Outcome
from llm4msr.knowledge.engines.decoding import Tokens
from llm4msr.knowledge.engines.local import PromptEngine, half

_MEMORY = 0.45
"""The share of the GPU's memory for each of the two runners."""


class VLLMEngine(PromptEngine):
    """A frozen causal LM from a local folder, run by vLLM.

    Args:
        folder: config, tokenizer and safetensors weights.
        dtype: number format of the weights and the arithmetic.
        batch_tokens: the most tokens per call of vLLM, after which answers are stored; vLLM makes its own batches.

    Raises `InputError` if vLLM is not installed, or the folder holds no model.
    """

    def __init__(self, folder: Path, *, dtype: DType = "bfloat16", batch_tokens: int = 262_144) -> None:
        super().__init__("vllm", folder, dtype, batch_tokens)
        self._vllm = _import_vllm()
        self._folder, self._dtype = folder, dtype

    @cached_property
    def configs(self) -> tuple[Any, Any]:
        """The model's config and its generation config."""
        from llm4msr.knowledge.engines.model_folder import read_configs

        return read_configs(self._folder)

    def answers(self, batch: Tokens, generation: Generation) -> list[Outcome]:
        """The outcome of each prompt of a batch."""
        prompts = [batch.prefix + rest for rest in batch.rests]
        if not generation.generates:
            but_the_first = [slice(min(1, len(p) - 1), None) for p in prompts]
            vectors = self._states(prompts, but_the_first if generation.pooling == "mean_prompt" else None)
            return [Answer("", v, "prefill", len(p), 0) for v, p in zip(vectors, prompts, strict=True)]
        sampling = self._vllm.SamplingParams(
            temperature=0.0,
            max_tokens=generation.max_new_tokens,
            repetition_penalty=generation.repetition_penalty,
            stop_token_ids=list(self._stop_tokens()),
        )
        outputs = self._writer.generate(_given(prompts), sampling, use_tqdm=False)
        stops, question = set(self._stop_tokens()), self._question()
        texts, cut = [], []
        for output in outputs:
            tokens = list(output.outputs[0].token_ids)
            cut.append(output.outputs[0].finish_reason == "length")
            texts.append(tokens[:-1] if tokens and tokens[-1] in stops else tokens)
        closed = [generation.pooling == "closing" or (generation.close_cut and c) for c in cut]
        read = [p + t + (question if c else []) for p, t, c in zip(prompts, texts, closed, strict=True)]
        parts = None
        if generation.pooling == "mean_generated":
            parts = [
                slice(len(p), None) if t and not c else slice(-1, None)
                for p, t, c in zip(prompts, texts, closed, strict=True)
            ]
        vectors = self._states(read, parts)
        written = self._tokenizer.batch_decode(texts, skip_special_tokens=True)
        return [
            Answer(text.strip(), vector, "length" if c else "stop", len(p), len(t))
            for text, vector, c, p, t in zip(written, vectors, cut, prompts, texts, strict=True)
        ]

    def _states(self, prompts: list[list[int]], parts: list[slice] | None) -> np.ndarray[Any, Any]:
        """For each prompt, the state of its last token or, with `parts`, the mean state of these tokens."""
        raw = self._vllm.PoolingParams(use_activation=False)
        if parts is None:
            found = self._reader.embed(_given(prompts), pooling_params=raw, use_tqdm=False)
            return half(torch.tensor([output.outputs.embedding for output in found]))
        found = self._reader.encode(_given(prompts), pooling_params=raw, pooling_task="token_embed", use_tqdm=False)
        states = [torch.as_tensor(output.outputs.data).float() for output in found]
        return half(torch.stack([one[part].mean(0) for one, part in zip(states, parts, strict=True)]))

    @cached_property
    def _writer(self) -> Any:
        return self._vllm.LLM(**self._settings())

    @cached_property
    def _reader(self) -> Any:
        pooler = self._vllm.config.PoolerConfig(seq_pooling_type="LAST", use_activation=False)
        return self._vllm.LLM(**self._settings(), runner="pooling", convert="embed", pooler_config=pooler)

    def _settings(self) -> dict[str, Any]:
        return {
            "model": str(self._folder),
            "dtype": self._dtype,
            "gpu_memory_utilization": _MEMORY,
            "enable_prefix_caching": True,
            "trust_remote_code": False,
        }


def _given(prompts: list[list[int]]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": prompt} for prompt in prompts]


def _import_vllm() -> Any:
    try:
        import vllm
        import vllm.config
    except ImportError as error:
        raise InputError("vLLM is not installed: pip install 'llm4msr[vllm]', or take --engine transformers") from error
    return vllm
