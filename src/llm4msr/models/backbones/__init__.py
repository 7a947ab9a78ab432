"""Multi-scenario backbones; importing this package registers them all."""

from llm4msr.models.backbones import shared_bottom, star

__all__ = ["shared_bottom", "star"]
