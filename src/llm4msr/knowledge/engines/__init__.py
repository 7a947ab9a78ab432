"""Engines run a frozen LLM: they take prompts, and give a text, a vector and a finish reason for each."""

from typing import Literal

EngineName = Literal["auto", "transformers", "openvino", "vllm", "encoder", "command"]
"""The engines that can be named; `auto` is the fastest that is installed (`choice`)."""
