"""Hashes that tell whether two GGUF files speak of the same tokens and compute the same function of their tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from bitloss.display import many, visible
from bitloss.errors import MismatchError
from bitloss.model.gguf import GgufFile, GgufType

_TOKENS: Final = "tokenizer.ggml.tokens"


def vocabulary_sha256(file: GgufFile) -> str:
    """Hash of the tokens' texts, in order, with the kind of the vocabulary.

    Token ids mean the same in two files exactly when these are equal; merges and scores matter only for making tokens
    from text, which is done once, with the base's vocabulary.
    """
    digest = hashlib.sha256(str(file.value("tokenizer.ggml.model", "none")).encode())
    tokens = file.value(_TOKENS, [])
    if (stored := _as_stored(file, tokens)) is not None:
        digest.update(stored)
        return digest.hexdigest()
    for token in tokens:
        data = token.encode("utf-8", "surrogateescape") if isinstance(token, str) else bytes(token)
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _as_stored(file: GgufFile, tokens: Sequence[object]) -> bytes | None:
    """The bytes of the tokens' array, each a u64 length and its text: what is hashed, at once instead of one by one.

    None where that would be something else: no array of strings, or text that is not UTF-8 (which is hashed with its
    escapes, and they make it longer).
    """
    entry = file.metadata.get(_TOKENS)
    if entry is None or entry.item_type is not GgufType.STRING:
        return None
    stored = file.key_bytes(_TOKENS)[8 + len(_TOKENS) + 4 + 4 + 8 :]  # behind key, type, item type and count
    text = len("".join(map(str, tokens)).encode("utf-8", "surrogateescape"))
    return stored if len(stored) == 8 * len(tokens) + text else None


def refuse_other_vocabulary(
    candidate: GgufFile, base: GgufFile | None, *, vocabulary: str, name: object
) -> None:
    """Refuse a file whose tokens are not another's, naming the first token that differs.

    Args:
        candidate: the file.
        base: what its tokens should be those of; None, or another, where only
            their hash is known.
        vocabulary: `vocabulary_sha256` of it.
        name: how to call it.

    Raises:
        MismatchError: the kind, the number or the text of the tokens differ.
    """
    if vocabulary_sha256(candidate) == vocabulary:
        return
    found = candidate.value(_TOKENS, [])
    here, there = many(len(found), "token"), f"the tokens of {name}"
    if base is not None and vocabulary_sha256(base) == vocabulary:
        wanted = base.value(_TOKENS, [])
        kinds = [str(file.value("tokenizer.ggml.model", "none")) for file in (base, candidate)]
        there = f"the {many(len(wanted), 'token')} of {name}"
        at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), None)
        if at is None and len(wanted) != len(found):
            at = min(len(wanted), len(found))
        if at is not None:
            texts = (_shown(wanted, at), _shown(found, at))
            there, here = (
                f"{said} (the first that differs, {at}, is {text})"
                for said, text in zip((there, here), texts, strict=True)
            )
        elif kinds[0] != kinds[1]:
            there, here = f"{there} (tokenizer {kinds[0]})", f"{here} (tokenizer {kinds[1]})"
    raise MismatchError(
        "vocabulary differs from the base's",
        where=candidate.path,
        expected=there,
        found=here,
        mend="candidate and base must be made from the same model",
    )


def _shown(tokens: list[Any], at: int) -> str:
    return visible(repr(tokens[at]), 60) if at < len(tokens) else "not there"


def graph_sha256(file: GgufFile) -> str:
    """Hash of the metadata that decides what is computed from the tensors: the architecture and its keys."""
    architecture = file.architecture
    entries = {
        key: [entry.value_type.name, np.asarray(entry.value).tolist()]
        for key, entry in file.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    return hashlib.sha256(json.dumps([architecture, entries], sort_keys=True).encode()).hexdigest()
