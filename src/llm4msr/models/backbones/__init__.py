"""Multi-scenario backbones; importing this package registers them all."""

from llm4msr.models.backbones import aitm, apg, moe, pepnet, ple, shared_bottom, star

__all__ = ["aitm", "apg", "moe", "pepnet", "ple", "shared_bottom", "star"]
