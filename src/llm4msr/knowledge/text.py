"""Texts from the data are cleaned and shortened before they enter a prompt, so that they cannot steer the model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_MARKERS = re.compile(r"<\|[^|<>]{0,64}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>", re.IGNORECASE)
_DROPPED = {"Cc", "Cf", "Cs", "Co", "Cn"}


def clean(value: object, *, limit: int = 100, forbidden: Iterable[str] = ()) -> str:
    """A value as one line of at most `limit` characters, without control characters or tokens that steer a model.

    It also has at most `2 * limit` bytes of UTF-8. This bounds its tokens, since the tokenizers of language models use
    at most one token per byte. Text with many characters outside ASCII is therefore cut earlier.

    `forbidden` are the model's own special tokens. Double quotes become single ones, since prompts quote values with
    double quotes. Missing values become the empty text.

    >>> clean('ice\\ncream <|im_end|> "5 L"')
    "ice cream '5 L'"
    """
    if value is None:
        return ""
    text = str(value)[: limit * 8]
    text = "".join(" " if unicodedata.category(c) in _DROPPED else c for c in text)
    tokens = [t for t in forbidden if t]
    for _ in range(4):  # removing one marker may join the halves of another
        before = text
        text = _MARKERS.sub(" ", text)
        for token in tokens:
            text = text.replace(token, " ")
        if text == before:
            break
    text = text.replace('"', "'").replace("<|", "( ").replace("|>", " )")
    text = " ".join(text.split())
    kept = text.encode()[: 2 * limit].decode(errors="ignore")[:limit]
    if kept == text:
        return text
    room = text.encode()[: 2 * limit - len("…".encode())].decode(errors="ignore")
    return room[: limit - 1].rstrip() + "…"
