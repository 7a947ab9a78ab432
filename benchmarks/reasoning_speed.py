"""Users a minute through the LLM, in turn in one run: our engines beside `generate` with one prompt at a time.

    python -m benchmarks.reasoning_speed [--rounds 3] [--tokens 300] [--new 64] [--prompts 64]
                                         [--model FOLDER] [--device cuda]

The prompts are histories of invented purchases: one set with about `--tokens` tokens each, another with mixed lengths.
The reference is the paper's authors' way: fp32, one prompt, `generate` with all hidden states. No text may end early,
so that each has `--new` tokens. `prefill only` reads prompts and writes nothing (pooling `last_prompt`).

It also prints the cosine between each engine's vector of the prompt's last token and the reference's: over all
dimensions, and without the five largest, which hold most of the energy.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llm4msr.knowledge.engines.base import Answer, Engine, Generation
from llm4msr.knowledge.engines.embedded import embedded_model
from llm4msr.knowledge.engines.local import load_model
from llm4msr.knowledge.engines.transformers import TransformersEngine

_ONE_AT_A_TIME = 3
"""The number of prompts that the slow reference runs in each round."""
_THINGS = ("oat milk", "rye bread", "dish soap", "green apples", "hand cream", "ground coffee", "batteries", "yoghurt")


def histories(tokenizer: Any, count: int, lengths: NDArray[np.int64]) -> list[str]:
    """Prompts of about `lengths` tokens, all with the same beginning and end, like our real prompts."""
    random = np.random.default_rng(0)
    prompts = []
    for place in range(count):
        prompt = 'A user of the platform "market" did the following, most recent last: '
        while len(tokenizer(prompt)["input_ids"]) < lengths[place] - 60:
            prompt += f'bought "{random.choice(_THINGS)} no. {random.integers(100)}" (things {random.integers(9)}); '
        prompts.append(f"{prompt} First summarise the interests that are common to the scenarios, then those of each.")
    return prompts


class Reference:
    """The way of the paper's authors: one prompt at a time."""

    def __init__(self, folder: Path, new: int, device: str) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self._model = load_model(folder, "float32").to(device)
        self._new = new

    def run(self, prompts: list[str]) -> NDArray[np.float32]:
        """The states of the prompts' last tokens."""
        found = []
        for prompt in prompts:
            message = [{"role": "user", "content": prompt}]
            ids = self.tokenizer.apply_chat_template(
                message, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )["input_ids"].to(self._model.device)
            with torch.inference_mode():
                out = self._model.generate(
                    ids,
                    max_new_tokens=self._new,
                    min_new_tokens=self._new,
                    do_sample=False,
                    output_hidden_states=True,
                    return_dict_in_generate=True,
                )
            found.append(out.hidden_states[0][-1][0, -1].cpu().numpy())
        return np.stack(found)


def _engines(folder: Path, device: str) -> dict[str, Engine]:
    engines: dict[str, Engine] = {"transformers, bf16": TransformersEngine(folder, device=device)}
    if device == "cpu" and importlib.util.find_spec("openvino") is not None:
        from llm4msr.knowledge.engines.openvino import OpenVINOEngine

        engines["openvino, bf16"] = OpenVINOEngine(folder)
    for engine in engines.values():
        engine._stop_tokens = lambda: ()  # type: ignore[attr-defined]  # no text may end early
    return engines


def vectors(engine: Engine, prompts: list[str], generation: Generation) -> NDArray[np.float32]:
    """The vectors of the prompts, in the order of the prompts."""
    found = dict(pair for batch in engine.run(prompts, generation) for pair in batch)
    answers = [found[place] for place in range(len(prompts))]
    return np.stack([a.vector for a in answers if isinstance(a, Answer)]).astype(np.float32)


def agreement(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> tuple[float, float]:
    """The mean cosine over all dimensions, and without the five largest of the reference."""
    rest = np.argsort(np.abs(theirs).mean(0))[:-5]
    pairs = ((ours, theirs), (ours[:, rest], theirs[:, rest]))
    cosines = [(a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1) for a, b in pairs]
    return float(cosines[0].mean()), float(cosines[1].mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--model", type=Path, help="a folder; the embedded model by default")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    folder = options.model or embedded_model(print)
    reference, engines = Reference(folder, options.new, options.device), _engines(folder, options.device)
    random = np.random.default_rng(1)
    same = histories(reference.tokenizer, options.prompts, np.full(options.prompts, options.tokens))
    mixed = histories(
        reference.tokenizer,
        options.prompts,
        random.integers(options.tokens // 3, options.tokens * 5 // 3, options.prompts),
    )
    writing = Generation(pooling="last_generated", max_new_tokens=options.new, close_cut=False)
    reading = Generation(pooling="last_prompt")

    def timed(work: Callable[[], object], count: int) -> float:
        began = time.perf_counter()
        work()
        return 60 * count / (time.perf_counter() - began)

    speeds: dict[str, list[float]] = {}
    for turn in range(options.rounds):
        for label, prompts in (("same length", same), ("mixed lengths", mixed)):
            few = prompts[:: max(1, len(prompts) // _ONE_AT_A_TIME)][:_ONE_AT_A_TIME]
            measured = {"one at a time, fp32": timed(lambda few=few: reference.run(few), len(few))}  # type: ignore[misc]
            for name, engine in engines.items():
                for kind, generation in (("", writing), (", prefill only", reading)):
                    measured[f"{name}{kind}"] = timed(
                        lambda e=engine, p=prompts, g=generation: vectors(e, p, g),  # type: ignore[misc]
                        len(prompts),
                    )
            for name, speed in measured.items():
                speeds.setdefault(f"{name} | {label}", []).append(speed)
        print(f"round {turn + 1} of {options.rounds} done", flush=True)
    print(f"\n{'engine':44} {'users/min':>10} {'ratio':>7}")
    for label in ("same length", "mixed lengths"):
        base = speeds[f"one at a time, fp32 | {label}"]
        for name, found in speeds.items():
            if name.endswith(label):
                ratio = median(a / b for a, b in zip(found, base, strict=True))
                print(f"{name:44} {median(found):10.1f} {ratio:7.1f}")
    few = mixed[:8]
    expected = reference.run(few)
    for name, engine in engines.items():
        whole, rest = agreement(vectors(engine, few, reading), expected)
        print(f"{name}: cosine with fp32 {whole:.5f}, without the 5 largest dimensions {rest:.5f}")


if __name__ == "__main__":
    main()
