"""Enhancers around any backbone; importing this package registers them all."""

from llm4msr.models.enhancers import epnet, llm4msr, plain

__all__ = ["epnet", "llm4msr", "plain"]
