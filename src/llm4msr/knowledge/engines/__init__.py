"""Engines run a frozen LLM: they take prompts, and give a text, a vector and a finish reason for each."""
