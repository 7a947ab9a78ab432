"""Models: tensors in, one logit a row out. They know nothing of files, texts or language models."""
