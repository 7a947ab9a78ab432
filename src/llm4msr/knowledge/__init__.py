"""Knowledge of a frozen LLM about scenarios, users and items, and the moment from which each piece of it is true."""
