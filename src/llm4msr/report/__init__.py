"""Output for people: explanations, tables and figures."""
