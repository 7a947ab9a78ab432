"""A causal LM run as plainly as can be, to compare an engine with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm4msr.knowledge.engines.base import CLOSING_QUESTION, Answer, FinishReason, Generation


class Reference:
    """The model of a folder, run plainly: one prompt at a time, without padding and without a cache."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self.model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
        stop = self.model.generation_config.eos_token_id
        self.stops = set(stop if isinstance(stop, list) else [stop])

    def ids(self, prompt: str, chat: bool) -> list[int]:
        if not chat:
            return list(self.tokenizer(prompt)["input_ids"])
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        return list(self.tokenizer(text)["input_ids"])

    @torch.no_grad()
    def states(self, ids: list[int]) -> NDArray[np.float32]:
        """The last layer's states after the final norm, (tokens, d)."""
        states = self.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        return np.asarray(states.numpy())

    @torch.no_grad()
    def continued(self, ids: list[int], generation: Generation) -> tuple[list[int], FinishReason]:
        """The tokens that greedy decoding adds, a stop token excluded."""
        added: list[int] = []
        for _ in range(generation.max_new_tokens):
            logits = self.model(torch.tensor([ids + added])).logits[0, -1]
            for token in set(added):
                value = logits[token]
                better = value / generation.repetition_penalty
                logits[token] = better if value > 0 else value * generation.repetition_penalty
            token = int(logits.argmax())
            if token in self.stops:
                return added, "stop"
            added.append(token)
        return added, "length"

    def answer(self, prompt: str, generation: Generation) -> Answer:
        ids = self.ids(prompt, generation.chat)
        if not generation.generates:
            states = self.states(ids)
            mean = states[1:].mean(0) if len(ids) > 1 else states[0]
            vector = states[-1] if generation.pooling == "last_prompt" else mean
            return Answer("", vector.astype(np.float16), "prefill", len(ids), 0)
        added, reason = self.continued(ids, generation)
        question = self.tokenizer(f"\n{CLOSING_QUESTION}")["input_ids"]
        states = self.states(ids + added)
        if generation.pooling == "closing" or (reason == "length" and generation.close_cut):
            vector = self.states(ids + added + question)[-1]
        elif generation.pooling == "mean_generated" and added:
            vector = states[len(ids) :].mean(0)
        else:
            vector = states[-1]
        text = self.tokenizer.decode(added, skip_special_tokens=True).strip()
        return Answer(text, vector.astype(np.float16), reason, len(ids), len(added))
