"""Enhancers around any backbone; importing this package registers them all."""

from llm4msr.models.enhancers import llm4msr, plain

__all__ = ["llm4msr", "plain"]
