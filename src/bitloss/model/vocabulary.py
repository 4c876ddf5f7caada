"""One hash that tells whether two GGUF files speak of the same tokens."""

from __future__ import annotations

import hashlib

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
