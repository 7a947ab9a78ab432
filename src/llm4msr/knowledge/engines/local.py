"""Base classes and helpers of the engines that run a causal language model on this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from llm4msr.errors import InputError
from llm4msr.knowledge.engines import DType
from llm4msr.knowledge.engines.base import CLOSING_QUESTION, Answer, Generation, Outcome, Refusal
from llm4msr.knowledge.engines.decoding import Ends, Session, Tokens, generate, prefill
from llm4msr.knowledge.engines.model_folder import fingerprint, require_model

_SHORTEST_PREFIX = 8
"""The fewest tokens of a shared prefix that is worth a call of its own."""


class PromptEngine(ABC):
    """A frozen causal LM from a local folder, which gets batches of tokenised prompts of about the same length.

    Args:
        kind: the name of the engine in its identity.
        folder: config, tokenizer and safetensors weights, as `save_pretrained` writes them.
        dtype: number format of the arithmetic.
        batch_tokens: the most tokens per batch, padding and the text to be generated included.
        layers: how many layers to run before the final norm; by default all.
    """

    shares_prefix: ClassVar[bool] = True
    """Whether a prefix that all prompts share is read once per batch. Pays only if a cache does not slow attention."""

    def __init__(self, kind: str, folder: Path, dtype: DType, batch_tokens: int, layers: int | None = None) -> None:
        from transformers import AutoTokenizer

        require_model(folder)
        with loading(folder):
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self._batch_tokens = batch_tokens
        self._device = torch.device("cpu")
        self._layers = layers
        self._identity = {"engine": kind, "model": fingerprint(folder), "dtype": dtype}
        self.model_name = folder.resolve().name
        if layers is not None:
            self._identity["layers"] = str(layers)

    @property
    def identity(self) -> dict[str, Any]:
        """The engine, the model's fingerprint (config and weights) and the number format."""
        return dict(self._identity)

    @property
    def special_tokens(self) -> Sequence[str]:
        """The tokenizer's control tokens, including added special tokens without a named role."""
        added = [t.content for t in self._tokenizer.added_tokens_decoder.values() if t.special]
        return tuple(dict.fromkeys([*self._tokenizer.all_special_tokens, *added]))

    @property
    @abstractmethod
    def configs(self) -> tuple[Any, Any]:
        """The model's config and its generation config."""

    @abstractmethod
    def answers(self, batch: Tokens, generation: Generation) -> list[Outcome]:
        """The outcome of each prompt of a batch."""

    @property
    def context_length(self) -> int:
        """The most tokens of a prompt and its answer together."""
        return int(getattr(self.configs[0], "max_position_embeddings", 2048))

    def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[list[tuple[int, Outcome]]]:
        """Answer the prompts batch by batch, the longest first. Prompts that do not fit are refused before that."""
        ids = [self._tokens(prompt, generation) for prompt in prompts]
        room = self.context_length - self._reserved(generation)
        refused: list[tuple[int, Outcome]] = [
            (place, Refusal(f"the prompt has {len(tokens)} tokens and the model has room for {room}"))
            for place, tokens in enumerate(ids)
            if len(tokens) > room
        ]
        if refused:
            yield refused
        order = sorted((i for i in range(len(ids)) if len(ids[i]) <= room), key=lambda i: (-len(ids[i]), i))
        prefix = common_prefix([ids[i] for i in order]) if self.shares_prefix else []
        for batch in batches(order, ids, self._batch_tokens, generation):
            start = len(prefix) if len(batch) > 1 else 0
            tokens = Tokens(prefix[:start], [ids[i][start:] for i in batch])
            yield list(zip(batch, self.answers(tokens, generation), strict=True))

    def _tokens(self, prompt: str, generation: Generation) -> list[int]:
        if generation.chat and self._tokenizer.chat_template:
            message = [{"role": "user", "content": prompt}]
            encoded = self._tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
            return list(encoded["input_ids"])
        return list(self._tokenizer(prompt)["input_ids"]) or [self._tokenizer.eos_token_id or 0]

    def _reserved(self, generation: Generation) -> int:
        """How many tokens may follow a prompt."""
        if not generation.generates:
            return 0
        closes = generation.pooling == "closing" or generation.close_cut
        return generation.max_new_tokens + (len(self._question()) if closes else 0)

    def _question(self) -> list[int]:
        return list(self._tokenizer(f"\n{CLOSING_QUESTION}", add_special_tokens=False)["input_ids"])

    def _stop_tokens(self) -> tuple[int, ...]:
        stops: set[int] = set()
        for owner in (*self.configs, self._tokenizer):
            stop = getattr(owner, "eos_token_id", None)
            stops.update(stop if isinstance(stop, list) else [] if stop is None else [stop])
        return tuple(sorted(stops))


class LocalEngine(PromptEngine):
    """An engine that reads batches in sessions: see `llm4msr.knowledge.engines.decoding`."""

    @abstractmethod
    def session(self) -> Session:
        """A session that has read nothing yet. One at a time."""

    def answers(self, batch: Tokens, generation: Generation) -> list[Outcome]:
        """The outcome of each prompt of a batch."""
        lengths = [len(batch.prefix) + len(rest) for rest in batch.rests]
        with torch.inference_mode():
            if not generation.generates:
                vectors = half(prefill(self.session(), batch, generation, self._device))
                return [Answer("", v, "prefill", n, 0) for v, n in zip(vectors, lengths, strict=True)]
            ends = Ends(self._stop_tokens(), tuple(self._question()))
            found = generate(self.session(), batch, generation, ends, self._device)
        texts = self._tokenizer.batch_decode(found.tokens, skip_special_tokens=True)
        return [
            Answer(text.strip(), vector, "length" if cut else "stop", n, len(tokens))
            for text, vector, cut, n, tokens in zip(
                texts, half(found.vectors), found.cut, lengths, found.tokens, strict=True
            )
        ]


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turn errors while a model's folder is loaded into an `InputError` that names the folder."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder}: the language model cannot be loaded: {reason}") from error


def load_model(folder: Path, dtype: DType, layers: int | None = None) -> Any:
    """The model of a folder in evaluation mode; with `layers`, only its first layers, then the final norm and the head.

    Raises `InputError` if there is no usable model, its weights are incomplete, or it has fewer layers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with loading(folder):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    if layers is not None:
        if not 1 <= layers <= config.num_hidden_layers:
            raise InputError(
                f"{folder}: the model has {config.num_hidden_layers} layers; {layers} of them were asked for"
            )
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:layers]
    with loading(folder):
        model, loaded = AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=config,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    if loaded["missing_keys"]:  # transformers would silently use random numbers instead
        first, count = min(loaded["missing_keys"]), len(loaded["missing_keys"])
        raise InputError(f"{folder}: the weights lack {count} tensors (first: {first}); download the model whole")
    return model.requires_grad_(False).eval()


def batches(order: list[int], ids: list[list[int]], budget: int, generation: Generation) -> Iterator[list[int]]:
    """Split `order` (longest first) into batches whose padded size is within the budget, but of at least one prompt."""
    extra = generation.max_new_tokens if generation.generates else 0
    start = 0
    while start < len(order):
        size = max(1, budget // (len(ids[order[start]]) + extra))
        yield order[start : start + size]
        start += size


def common_prefix(ids: Sequence[list[int]]) -> list[int]:
    """The prefix that all share, at least one token shorter than each; empty if it is not worth a call.

    >>> common_prefix([[*range(10), 1], [*range(10), 2]]), common_prefix([[1, 2], [1, 3]])
    ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [])
    """
    if len(ids) < 2:
        return []
    low, high = min(ids), max(ids)  # a prefix that these two share is shared by all
    most = min(map(len, ids)) - 1
    same = next((place for place in range(most) if low[place] != high[place]), most)
    return low[:same] if same >= _SHORTEST_PREFIX else []


def half(vectors: Tensor) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Convert to float16; values outside its range are clipped."""
    limit = float(np.finfo(np.float16).max)
    return vectors.float().clamp(-limit, limit).cpu().numpy().astype(np.float16)
