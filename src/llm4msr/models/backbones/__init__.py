"""Multi-scenario backbones; importing this package registers them all."""

from llm4msr.models.backbones import adasparse, aitm, apg, moe, pepnet, ple, shared_bottom, star

__all__ = ["adasparse", "aitm", "apg", "moe", "pepnet", "ple", "shared_bottom", "star"]
