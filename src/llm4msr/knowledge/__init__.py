"""What a frozen LLM knows of scenarios, users and items, and from which moment on it knew it."""
