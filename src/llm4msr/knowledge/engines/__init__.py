"""Engines run a frozen LLM: prompts in; text, vector and finish reason out."""
