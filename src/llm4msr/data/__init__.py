"""From logs to columns: sources, checks, the split by time, vocabularies and encoded fields."""
