"""Engines run a frozen LLM: they take prompts, and give a text, a vector and a finish reason for each."""

from typing import Literal

EngineName = Literal["auto", "transformers", "openvino", "vllm", "encoder", "command"]
"""The engines that can be named; `auto` is the fastest that is installed (`choice`)."""
Pooling = Literal["last_generated", "last_prompt", "mean_prompt", "mean_generated", "closing"]
"""Which hidden state of the LLM becomes the vector (`base.Generation`)."""
DType = Literal["bfloat16", "float32"]
"""The number format of the LLM."""
