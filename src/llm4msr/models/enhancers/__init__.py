"""Enhancers around any backbone; importing this package registers them all."""

from llm4msr.models.enhancers import dynamic_network, epnet, knowledge_input, llm4msr, llm4msr_light, plain

__all__ = ["dynamic_network", "epnet", "knowledge_input", "llm4msr", "llm4msr_light", "plain"]
