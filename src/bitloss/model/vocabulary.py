"""Hashes that tell whether two GGUF files speak of the same tokens and compute the same function of their tensors."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from bitloss.model.gguf import GgufFile


def vocabulary_sha256(file: GgufFile) -> str:
    """Hash of the tokens' texts, in order, with the kind of the vocabulary.

    Token ids mean the same in two files exactly when these are equal; merges and scores matter only for making tokens
    from text, which is done once, with the base's vocabulary.
    """
    digest = hashlib.sha256(str(file.value("tokenizer.ggml.model", "none")).encode())
    for token in file.value("tokenizer.ggml.tokens", []):
        data = token.encode("utf-8", "surrogateescape") if isinstance(token, str) else bytes(token)
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def graph_sha256(file: GgufFile) -> str:
    """Hash of the metadata that decides what is computed from the tensors: the architecture and its keys."""
    architecture = file.architecture
    entries = {
        key: [entry.value_type.name, np.asarray(entry.value).tolist()]
        for key, entry in file.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    return hashlib.sha256(json.dumps([architecture, entries], sort_keys=True).encode()).hexdigest()
