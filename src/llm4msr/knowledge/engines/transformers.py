"""Any causal language model of the transformers library, run in batches sorted by length.

Prompts that only need a state of their own are padded on the right, where a causal model never looks, so that no
mask is needed. Prompts that are continued are padded on the left. The language head runs on the last position only,
and one hidden state a prompt is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from llm4msr.errors import InputError
from llm4msr.knowledge.engines.base import CLOSING_QUESTION, Answer, FinishReason, Generation

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "tokenizer.model",
)
"""What an answer depends on beside the weights."""

DType = Literal["bfloat16", "float32"]


class TransformersEngine:
    """A frozen causal LM from a local folder.

    Args:
        folder: config, tokenizer and safetensors weights, as `save_pretrained` writes them.
        dtype: number format of the weights and the arithmetic.
        device: where to run; CUDA where there is one, by default.
        batch_tokens: prompt tokens a batch at the most, padding included.

    Raises `InputError` where the folder holds no usable model. Code that a model folder brings is never run.
    """

    def __init__(
        self, folder: Path, *, dtype: DType = "bfloat16", device: str | None = None, batch_tokens: int = 8192
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        _require_model(folder)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            self._model, loaded = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=getattr(torch, dtype),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{folder}: the language model cannot be loaded: {reason}") from error
        if loaded["missing_keys"]:  # transformers would go on with random numbers in their place
            first, count = min(loaded["missing_keys"]), len(loaded["missing_keys"])
            raise InputError(f"{folder}: the weights lack {count} tensors (first: {first}); download the model whole")
        self._model.requires_grad_(False).eval().to(self._device)
        self._batch_tokens = batch_tokens
        self._identity = {"engine": "transformers", "model": fingerprint(folder), "dtype": dtype}

    @property
    def identity(self) -> dict[str, Any]:
        """The model's fingerprint (config and weights) and its number format."""
        return dict(self._identity)

    @property
    def special_tokens(self) -> Sequence[str]:
        """The tokenizer's own control tokens, those without a role of their own included."""
        added = [t.content for t in self._tokenizer.added_tokens_decoder.values() if t.special]
        return tuple(dict.fromkeys([*self._tokenizer.all_special_tokens, *added]))

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and answer may have together."""
        return int(getattr(self._model.config, "max_position_embeddings", 2048))

    def run(self, prompts: Sequence[str], generation: Generation) -> Iterator[list[tuple[int, Answer]]]:
        """Answer the prompts, the longest first, one batch after another.

        Raises `InputError` for a prompt that does not fit the model's context.
        """
        ids = [self._tokens(prompt, generation) for prompt in prompts]
        room = self.context_length - self._reserved(generation)
        for position, tokens in enumerate(ids):
            if len(tokens) > room:
                raise InputError(
                    f"a prompt has {len(tokens)} tokens and the model has room for {room}: keep fewer positives a "
                    f"scenario, or shorter texts. It begins: {prompts[position][:120]!r}"
                )
        order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
        for batch in _batches(order, ids, self._batch_tokens, generation):
            with torch.inference_mode():
                rows = [ids[i] for i in batch]
                answers = self._generate(rows, generation) if generation.generates else self._prefill(rows, generation)
            yield list(zip(batch, answers, strict=True))

    def _tokens(self, prompt: str, generation: Generation) -> list[int]:
        if generation.chat and self._tokenizer.chat_template:
            message = [{"role": "user", "content": prompt}]
            encoded = self._tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
            return list(encoded["input_ids"])
        return list(self._tokenizer(prompt)["input_ids"]) or [self._tokenizer.eos_token_id or 0]

    def _reserved(self, generation: Generation) -> int:
        """The tokens that may follow a prompt."""
        if not generation.generates:
            return 0
        return generation.max_new_tokens + (len(self._question()) if generation.pooling == "closing" else 0)

    def _question(self) -> list[int]:
        return list(self._tokenizer(f"\n{CLOSING_QUESTION}", add_special_tokens=False)["input_ids"])

    def _states(self, ids: Tensor, **inputs: Any) -> Any:
        return self._model.base_model(input_ids=ids, **inputs)

    def _prefill(self, rows: list[list[int]], generation: Generation) -> list[Answer]:
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        width = int(lengths.max())
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self._device)
        states = self._states(ids, use_cache=False).last_hidden_state
        if generation.pooling == "last_prompt":
            vectors = states[torch.arange(len(rows), device=self._device), lengths - 1].float()
        else:
            place = torch.arange(width, device=self._device)[None, :]
            first = (lengths > 1).long()[:, None]  # a prompt of one token is its own mean
            inside = (place >= first) & (place < lengths[:, None])
            vectors = torch.einsum("blh,bl->bh", states.float(), inside.float()) / inside.sum(1, keepdim=True)
        return [Answer("", vector, "prefill", len(row), 0) for row, vector in zip(rows, _half(vectors), strict=True)]

    def _generate(self, rows: list[list[int]], generation: Generation) -> list[Answer]:
        """Greedy decoding. The token chosen at a step is fed at the next, where its own state is read."""
        from transformers import DynamicCache

        width, count = max(len(row) for row in rows), len(rows)
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=self._device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self._device)
        cache = DynamicCache()
        states = self._states(
            ids, attention_mask=mask, position_ids=_positions(mask), past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        stops = self._stop_tokens()
        running = torch.ones(count, dtype=torch.bool, device=self._device)
        generated: list[Tensor] = []
        kept: list[Tensor] = []
        last, total = states.float(), torch.zeros_like(states, dtype=torch.float32)
        for _ in range(generation.max_new_tokens):
            logits = self._model.get_output_embeddings()(states).float()
            token = _penalised(logits, _stack(generated, count, self._device), generation).argmax(-1)
            running = running & ~torch.isin(token, stops)
            if not bool(running.any()):
                break
            generated.append(token)
            kept.append(running)
            mask = torch.cat([mask, running[:, None].long()], dim=1)
            states = self._states(
                token[:, None],
                attention_mask=mask,
                position_ids=_positions(mask)[:, -1:],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            last = torch.where(running[:, None], states.float(), last)
            total = total + states.float() * running[:, None]
        tokens, alive = _stack(generated, count, self._device), _stack(kept, count, self._device).bool()
        lengths = alive.sum(1)
        if generation.pooling == "mean_generated":
            vectors = torch.where(lengths[:, None] > 0, total / lengths.clamp(min=1)[:, None], last)
        elif generation.pooling == "closing":
            vectors = self._close(mask, cache)
        else:
            vectors = last
        texts = self._tokenizer.batch_decode(
            [row[keep].tolist() for row, keep in zip(tokens, alive, strict=True)], skip_special_tokens=True
        )
        reasons: list[FinishReason] = ["length" if still else "stop" for still in running.tolist()]
        return [
            Answer(text.strip(), vector, reason, len(row), int(length))
            for text, vector, reason, row, length in zip(texts, _half(vectors), reasons, rows, lengths, strict=True)
        ]

    def _close(self, mask: Tensor, cache: Any) -> Tensor:
        question = self._question()
        ids = torch.tensor([question] * len(mask), device=self._device)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = _positions(mask)[:, -len(question) :]
        states = self._states(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        last: Tensor = states.last_hidden_state[:, -1].float()
        return last

    def _stop_tokens(self) -> Tensor:
        stops: set[int] = set()
        for owner in (self._model.generation_config, self._model.config, self._tokenizer):
            stop = getattr(owner, "eos_token_id", None)
            stops.update(stop if isinstance(stop, list) else [] if stop is None else [stop])
        return torch.tensor(sorted(stops), device=self._device)


def _require_model(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: holds no language model (no config.json); name the folder of one")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: holds no weights (*.safetensors); download the model whole, as safetensors")


def fingerprint(folder: Path) -> str:
    """Identifies a model by its small files, and by the size and both ends of each weights file (they can be huge)."""
    digest = hashlib.sha256()
    for name in _SMALL_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:32]


def _batches(order: list[int], ids: list[list[int]], budget: int, generation: Generation) -> Iterator[list[int]]:
    """Consecutive runs of `order` whose padded size stays within the budget of tokens."""
    extra = generation.max_new_tokens if generation.generates else 0
    start = 0
    while start < len(order):
        size = max(1, budget // (len(ids[order[start]]) + extra))
        yield order[start : start + size]
        start += size


def _penalised(logits: Tensor, generated: Tensor, generation: Generation) -> Tensor:
    """Logits `(b, V)` with those of the tokens `(b, n)` already generated made less likely."""
    seen = logits.gather(1, generated)
    penalty = generation.repetition_penalty
    return logits.scatter(1, generated, torch.where(seen > 0, seen / penalty, seen * penalty))


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _stack(steps: list[Tensor], count: int, device: torch.device) -> Tensor:
    return torch.stack(steps, 1) if steps else torch.zeros((count, 0), dtype=torch.long, device=device)


def _half(vectors: Tensor) -> np.ndarray[Any, np.dtype[np.float16]]:
    """float16, with what float16 cannot hold cut to its range."""
    limit = float(np.finfo(np.float16).max)
    return vectors.clamp(-limit, limit).cpu().numpy().astype(np.float16)
