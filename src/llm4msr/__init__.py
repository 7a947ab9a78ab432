"""llm4msr: multi-scenario click-through-rate prediction helped by what a frozen LLM knows."""

__version__ = "0.1.0"
