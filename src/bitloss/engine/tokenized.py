"""Long texts that were tokenized in this process, kept for the next step that needs them.

A run tokenizes its calibration text for every source and again to see what it shares with the evaluation text, and
that one for the base as well: with a vocabulary of 131,072 a second or so for each megabyte. The tokens depend on the
vocabulary and the text alone, so they are kept under the hashes of both.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bitloss.model.gguf import GgufFile

WORTH_KEEPING: Final = 1 << 16
"""Bytes of a text from which on it is kept."""
_KEPT = 4
_MOST_TOKENS = 1 << 24  # 64 MiB each
# what a file of another precision, or a quantized one, says otherwise of the same model
_NO_MATTER = ("general.file_type", "general.quantization_version", "quantize.")

_tokens: OrderedDict[tuple[object, bytes], NDArray[np.int32]] = OrderedDict()


def vocabulary_key(file: GgufFile) -> bytes:
    """Hash of all that libllama may look at when it makes a vocabulary: every key but those of `_NO_MATTER`.

    Not only ``tokenizer.*``: how some vocabularies are read depends on the architecture, or on the model's name.
    """
    digest = hashlib.sha256()
    for key in file.metadata:
        if not key.startswith(_NO_MATTER):
            digest.update(file.key_bytes(key))
    return digest.digest()


def remembered(key: object, text: bytes, tokenize: Callable[[], NDArray[np.int32]]) -> NDArray[np.int32]:
    """The tokens of a text, int32 [n], a copy; computed if they are not at hand.

    Args:
        key: of the vocabulary and the way it is used.
        text: as UTF-8.
        tokenize: makes them.
    """
    place = key, hashlib.sha256(text).digest()
    if place in _tokens:
        _tokens.move_to_end(place)
        return _tokens[place].copy()
    tokens = tokenize()
    if len(tokens) <= _MOST_TOKENS:
        _tokens[place] = tokens.copy()
        if len(_tokens) > _KEPT:
            _tokens.popitem(last=False)
    return tokens
