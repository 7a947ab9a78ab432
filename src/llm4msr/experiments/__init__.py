"""Whole experiments: several models on the same data and knowledge, compared side by side."""
