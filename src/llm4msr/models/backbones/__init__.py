"""Multi-scenario backbones; importing this package registers them all."""

from llm4msr.models.backbones import aitm, moe, ple, shared_bottom, star

__all__ = ["aitm", "moe", "ple", "shared_bottom", "star"]
