"""Reads and continues one batch of tokenised prompts, with any engine: shared prefix, decoding, pooling.

Prompts that are only read are padded on the right. A causal model never looks to the right, so no mask is needed.
Prompts that are continued are padded on the left. A prefix that all prompts share is read once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llm4msr.knowledge.engines.base import Generation


class Session(Protocol):
    """A model with a cache of the tokens that each row has read so far."""

    def feed(self, ids: Tensor, positions: Tensor, mask: Tensor | None, rows: Tensor | None) -> Tensor:
        """Read the tokens `ids` `(b, q)` at their `positions` `(b, q)`, and return their states `(b, q, d)`, float32.

        `mask` `(b, all tokens so far)` is 0 for padding; None if no padding matters. `rows` `(b,)` says which row of
        the last call each row continues: rows may be left out, reordered or repeated. None continues all as they are.
        """
        ...

    def logits(self) -> Tensor:
        """The logits `(b, V)`, float32, that follow the last token of each row."""
        ...


@dataclass(frozen=True)
class Tokens:
    """A batch: the prefix that all prompts share (may be empty), and the rest of each prompt (never empty)."""

    prefix: list[int]
    rests: list[list[int]]


@dataclass(frozen=True)
class Ends:
    """The tokens that end a text, and the tokens of the closing question."""

    stops: tuple[int, ...]
    question: tuple[int, ...]


@dataclass(frozen=True)
class Continued:
    """The generated texts as tokens, their vectors `(b, d)`, and which texts the token limit cut off."""

    tokens: list[list[int]]
    vectors: Tensor
    cut: list[bool]


def prefill(session: Session, batch: Tokens, generation: Generation, device: torch.device) -> Tensor:
    """The state of each prompt's last token, or the mean over its tokens without the first, `(b, d)`."""
    start, shared = len(batch.prefix), _read_prefix(session, batch, device)
    lengths = torch.tensor([len(rest) for rest in batch.rests], device=device)
    width, count = int(lengths.max()), len(batch.rests)
    ids = torch.tensor([rest + [0] * (width - len(rest)) for rest in batch.rests], device=device)
    positions = torch.arange(start, start + width, device=device).expand(count, -1)
    states = session.feed(ids, positions, None, _all_from_one(batch, device))
    if generation.pooling == "last_prompt":
        return states[torch.arange(count, device=device), lengths - 1]
    place = torch.arange(width, device=device)[None, :]
    first = (lengths > 1).long()[:, None] if shared is None else 0  # a single token is kept
    inside = (place >= first) & (place < lengths[:, None])
    total = torch.einsum("blh,bl->bh", states, inside.float())
    if shared is None:
        return total / inside.sum(1, keepdim=True)
    return (total + shared[1:].sum(0)) / (inside.sum(1, keepdim=True) + start - 1)


def generate(session: Session, batch: Tokens, generation: Generation, ends: Ends, device: torch.device) -> Continued:
    """Greedy decoding. Each chosen token is fed to the model, which gives its state and the logits of the next token.

    Rows whose text has ended leave the batch once they are at least half of it. With the pooling `closing` all rows
    stay, since all get the closing question.
    """
    start, count = len(batch.prefix), len(batch.rests)
    _read_prefix(session, batch, device)
    width = max(len(rest) for rest in batch.rests)
    ids = torch.tensor([[0] * (width - len(rest)) + rest for rest in batch.rests], device=device)
    real = torch.tensor([[0] * (width - len(rest)) + [1] * len(rest) for rest in batch.rests], device=device)
    mask = torch.cat([real.new_ones(count, start), real], 1)
    first = session.feed(ids, _positions(mask)[:, start:], mask, _all_from_one(batch, device))[:, -1]

    stops = torch.tensor(ends.stops, device=device, dtype=torch.long)
    tokens = torch.zeros((count, generation.max_new_tokens), dtype=torch.long, device=device)
    lengths = torch.zeros(count, dtype=torch.long, device=device)
    last, total = first.clone(), torch.zeros_like(first)
    row = torch.arange(count, device=device)  # the prompt of each row of the session
    running = torch.ones(count, dtype=torch.bool, device=device)  # which rows of the session still generate
    going: Tensor | None = None  # the rows to keep at the next `feed`; None for all
    for step in range(generation.max_new_tokens):
        token = _penalised(session.logits(), tokens[row, :step], generation).argmax(-1)
        running = running & ~torch.isin(token, stops)
        alive = int(running.sum())
        if not alive:
            break
        going = None
        if generation.pooling != "closing" and 2 * alive <= len(row):
            going = torch.nonzero(running)[:, 0]
            token, row, mask, running = token[going], row[going], mask[going], running[going]
        tokens[row, step] = token
        mask = torch.cat([mask, running[:, None].long()], 1)
        state = session.feed(token[:, None], _positions(mask)[:, -1:], mask, going)[:, -1]
        ours = row[running]
        lengths[ours] += 1
        last[ours] = state[running]
        total[ours] += state[running]
    cut = torch.zeros(count, dtype=torch.bool, device=device)
    cut[row] = running
    vectors = last
    if generation.pooling == "mean_generated":
        vectors = torch.where(lengths[:, None] > 0, total / lengths.clamp(min=1)[:, None], last)
    closed = torch.ones_like(running) if generation.pooling == "closing" else running & generation.close_cut
    if bool(closed.any()):
        chosen = torch.nonzero(closed)[:, 0]
        question = torch.tensor([ends.question] * len(chosen), device=device)
        mask = torch.cat([mask[chosen], torch.ones_like(question)], 1)
        states = session.feed(question, _positions(mask)[:, -question.shape[1] :], mask, chosen)
        vectors = vectors.index_copy(0, row[chosen], states[:, -1])
    written = [tokens[i, :length].tolist() for i, length in enumerate(lengths.tolist())]
    return Continued(written, vectors, cut.tolist())


def _read_prefix(session: Session, batch: Tokens, device: torch.device) -> Tensor | None:
    """Read the shared prefix once; returns its states `(p, d)`, or None if it is empty."""
    if not batch.prefix:
        return None
    ids = torch.tensor([batch.prefix], device=device)
    return session.feed(ids, torch.arange(len(batch.prefix), device=device)[None], None, None)[0]


def _all_from_one(batch: Tokens, device: torch.device) -> Tensor | None:
    return torch.zeros(len(batch.rests), dtype=torch.long, device=device) if batch.prefix else None


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _penalised(logits: Tensor, generated: Tensor, generation: Generation) -> Tensor:
    """The logits `(b, V)`, with the repetition penalty on the tokens `(b, n)` generated so far."""
    seen = logits.gather(1, generated)
    penalty = generation.repetition_penalty
    return logits.scatter(1, generated, torch.where(seen > 0, seen / penalty, seen * penalty))
