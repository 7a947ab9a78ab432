"""Whole experiments: data, knowledge and several models, compared side by side."""
