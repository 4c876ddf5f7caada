"""Tokenizer files of an HF folder -> `tokenizer.*` keys of a GGUF, as llama.cpp's converter writes them.

Follows `get_vocab_base`, `_set_vocab_gpt2` and `_create_vocab_sentencepiece` in `conversion/base.py`, `set_vocab` of
each family and `LlamaHfVocab` in `gguf-py/gguf/vocab.py` of llama.cpp. As there, a `tokenizer.model` goes before a
`tokenizer.json`, of which then only the special tokens count. Ids that the vocabulary does not use become `[PADi]`.

Ours is: a SentencePiece vocabulary that puts no space before a text gets `add_space_prefix` false, where
tokenizer_config.json does not say (without it llama.cpp would put one); and the scores of one that comes as
tokenizer.json only (see `bitloss.model.fallback`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import TokenType

from bitloss.convert.specials import SPECIALS, optional_json, special_tokens, templates
from bitloss.errors import CheckpointError, FileProblem, UnsupportedError
from bitloss.model.fallback import UNMERGED_SCORE, FallbackTokenizer, is_byte, is_fallback, read_fallback
from bitloss.model.gguf import GgufType, GgufValue
from bitloss.model.sentencepiece import SentencePieceModel, read_sentencepiece
from bitloss.model.tokenizer import BpeTokenizer, SpecialRules, read_special_rules, read_tokenizer, written

if TYPE_CHECKING:
    from bitloss.convert.families import VocabularyRules
    from bitloss.model.checkpoint import Checkpoint

# The vocabulary sizes by which llama.cpp's converter knows models trained without BOS in front, and CodeLlama.
_NO_BOS_VOCAB = 49152
_INFILL_VOCAB, _INFILL = 32016, {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}
_BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
# Scores: of a token that is none of the SentencePiece model's, and of an id without a token.
_ADDED_SCORE, _PAD_SCORE = -1000.0, -10000.0


def vocabulary(checkpoint: Checkpoint, family: VocabularyRules, n_vocab: int) -> dict[str, GgufValue]:
    """Return the tokenizer keys for a model with `n_vocab` rows in its embedding.

    Raises:
        FileProblem: there is none of the family's tokenizer files.
        CheckpointError: a tokenizer file breaks its format or, with tokenizer.json, has ids beyond `n_vocab`.
        UnsupportedError: a tokenizer that cannot be converted here.
    """
    folder = checkpoint.folder
    config = optional_json(checkpoint, "tokenizer_config.json")
    rules: SpecialRules | BpeTokenizer
    if "sentencepiece" in family.sources and (folder / "tokenizer.model").is_file():
        model = read_sentencepiece(folder / "tokenizer.model")
        rules = specials = read_special_rules(folder)
        added = _added_to(checkpoint, config, family, specials)
        keys = _sentencepiece_keys(model, added, n_vocab, str(folder))
    elif "fallback" in family.sources and is_fallback(folder):
        fallback = read_fallback(folder)
        rules, keys = fallback.rules, _fallback_keys(fallback, n_vocab, str(folder / "tokenizer.json"))
    elif "bytes" in family.sources:
        rules = read_tokenizer(folder)
        keys = _bpe_keys(rules, family.pre.get(rules.pre, rules.pre), n_vocab, str(folder / "tokenizer.json"))
    else:
        raise FileProblem(
            "no tokenizer.model in the folder", where=folder, expected="a SentencePiece vocabulary"
        )
    prefix = config.get("add_prefix_space")
    if family.space_prefix == "never":
        keys["add_space_prefix"] = GgufValue(GgufType.BOOL, False)
    elif family.space_prefix == "asked" and isinstance(prefix, bool):
        keys["add_space_prefix"] = GgufValue(GgufType.BOOL, prefix)
    ids, adds = special_tokens(rules, config, checkpoint.config)
    for kind, number in ids.items():
        if number < n_vocab:
            keys[SPECIALS[kind]] = GgufValue(GgufType.UINT32, number)
        elif isinstance(rules, BpeTokenizer):
            raise CheckpointError(
                f"{kind} token beyond the vocabulary", where=folder, expected=f"below {n_vocab}", found=number
            )
    if family.by_size and n_vocab == _NO_BOS_VOCAB:
        adds["bos"] = False
    if family.by_size and n_vocab == _INFILL_VOCAB:
        keys |= {f"{kind}_token_id": GgufValue(GgufType.UINT32, number) for kind, number in _INFILL.items()}
    for kind, value in adds.items():
        keys[f"add_{kind}_token"] = GgufValue(GgufType.BOOL, value)
    named = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return named | templates(checkpoint, config)


def _bpe_keys(tokenizer: BpeTokenizer, pre: str, n_vocab: int, where: str) -> dict[str, GgufValue]:
    texts, types = _tokens(tokenizer, n_vocab, where)
    keys = {
        "model": GgufValue(GgufType.STRING, "gpt2"),
        "pre": GgufValue(GgufType.STRING, pre),
        "tokens": GgufValue(GgufType.ARRAY, texts, GgufType.STRING),
        "token_type": GgufValue(GgufType.ARRAY, np.array(types, dtype=np.int32), GgufType.INT32),
    }
    if tokenizer.merges:
        keys["merges"] = GgufValue(GgufType.ARRAY, list(tokenizer.merges), GgufType.STRING)
    return keys


def _sentencepiece_keys(
    model: SentencePieceModel, added: Mapping[int, tuple[str, TokenType]], n_vocab: int, where: str
) -> dict[str, GgufValue]:
    """Return the keys of a SentencePiece vocabulary; ids from `n_vocab` on are left out.

    The model's own user-defined pieces are written as normal ones, which llama.cpp makes by joining only; they
    become user-defined tokens where tokenizer_config.json lists them, as published models do.
    """
    texts = [f"[PAD{number}]" for number in range(n_vocab)]
    scores = np.full(n_vocab, _PAD_SCORE, dtype=np.float32)
    types = np.full(n_vocab, TokenType.UNUSED, dtype=np.int32)
    for number, piece in enumerate(model.pieces[:n_vocab]):
        kind = TokenType.NORMAL if piece.kind is TokenType.USER_DEFINED else piece.kind
        texts[number], scores[number], types[number] = piece.text, piece.score, kind
    for number, (text, kind) in added.items():
        if number < n_vocab:
            texts[number], scores[number], types[number] = text, _ADDED_SCORE, kind
    return _llama_keys(texts, scores, types, where, space_prefix=model.add_dummy_prefix)


def _fallback_keys(tokenizer: FallbackTokenizer, n_vocab: int, where: str) -> dict[str, GgufValue]:
    """Return the keys of a byte-fallback vocabulary of a tokenizer.json (`LlamaHfVocab` in `gguf-py/gguf/vocab.py`)."""
    _refuse_beyond(tokenizer.tokens, n_vocab, where)
    texts = [f"[PAD{number}]" for number in range(n_vocab)]
    scores = np.full(n_vocab, UNMERGED_SCORE, dtype=np.float32)
    types = np.full(n_vocab, TokenType.UNUSED, dtype=np.int32)
    for number, text in tokenizer.tokens.items():
        added = tokenizer.added.get(number)
        plain = TokenType.NORMAL if number < tokenizer.n_base else TokenType.USER_DEFINED
        types[number] = TokenType.CONTROL if added and added.special else plain
        if is_byte(text):
            types[number] = TokenType.BYTE
        texts[number], scores[number] = text, tokenizer.scores.get(number, UNMERGED_SCORE)
    return _llama_keys(texts, scores, types, where, space_prefix=tokenizer.space_prefix)


def _llama_keys(
    texts: list[str],
    scores: np.ndarray[Any, np.dtype[np.float32]],
    types: np.ndarray[Any, np.dtype[np.int32]],
    where: str,
    *,
    space_prefix: bool,
) -> dict[str, GgufValue]:
    missing = _BYTE_PIECES.difference(texts)
    if missing:
        # llama.cpp writes characters without a piece as bytes, and ends the process where it cannot.
        raise UnsupportedError(
            "SentencePiece vocabulary without byte fallback",
            where=where,
            expected="all 256 byte pieces",
            found=256 - len(missing),
        )
    keys = {
        "model": GgufValue(GgufType.STRING, "llama"),
        "pre": GgufValue(GgufType.STRING, "default"),
        "tokens": GgufValue(GgufType.ARRAY, texts, GgufType.STRING),
        "scores": GgufValue(GgufType.ARRAY, scores, GgufType.FLOAT32),
        "token_type": GgufValue(GgufType.ARRAY, types, GgufType.INT32),
    }
    if not space_prefix:
        keys["add_space_prefix"] = GgufValue(GgufType.BOOL, False)
    return keys


def _added_to(
    checkpoint: Checkpoint, config: Mapping[str, Any], family: VocabularyRules, rules: SpecialRules
) -> dict[int, tuple[str, TokenType]]:
    """Return id -> (text, type) of added_tokens.json and, over it, of tokenizer_config.json's added tokens.

    For a family of plainly added tokens, those of tokenizer.json come over both.
    """
    added: dict[int, tuple[str, TokenType]] = {}
    for text, number in optional_json(checkpoint, "added_tokens.json").items():
        if type(number) is not int or number < 0:
            raise CheckpointError(
                "bad added token",
                where=checkpoint.folder / "added_tokens.json",
                found=f"{number} for {text!r}"[:80],
            )
        added[number] = text, TokenType.USER_DEFINED
    listed = config.get("added_tokens_decoder", {})
    where = checkpoint.folder / "tokenizer_config.json"
    if not isinstance(listed, dict):
        raise CheckpointError("bad added_tokens_decoder", where=where, found=str(listed)[:60])
    for key, entry in listed.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not (key.isascii() and key.isdigit() and len(key) < 10 and isinstance(content, str)):
            raise CheckpointError("bad added token", where=where, found=f"{key}: {entry}"[:80])
        if entry.get("special") or (looks_special(content) and not family.plain_added):
            added[int(key)] = content, TokenType.CONTROL
        elif family.plain_added:
            added[int(key)] = content, TokenType.USER_DEFINED
        else:
            added[int(key)] = content.replace("\u2581", " "), TokenType.USER_DEFINED
    if family.plain_added:
        for number, token in rules.added.items():
            added[number] = token.content, TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    return added


def _refuse_beyond(tokens: Mapping[int, str], n_vocab: int, where: str) -> None:
    beyond = max(tokens, default=-1)
    if beyond >= n_vocab:
        raise CheckpointError(
            "token ids beyond the embedding", where=where, expected=f"below {n_vocab}", found=beyond
        )


def _tokens(tokenizer: BpeTokenizer, n_vocab: int, where: str) -> tuple[list[str], list[int]]:
    """Return texts and token types of ids 0 .. n_vocab - 1."""
    _refuse_beyond(tokenizer.tokens, n_vocab, where)
    texts, types = [], []
    for number in range(n_vocab):
        text = tokenizer.tokens.get(number)
        kind = TokenType.NORMAL
        if text is None:
            text, kind = f"[PAD{number}]", TokenType.UNUSED
        elif number in tokenizer.added:
            added = tokenizer.added[number]
            text = written(added)
            if added.special or looks_special(text):
                kind = TokenType.CONTROL
            else:
                text, kind = text.replace("\u2581", " "), TokenType.USER_DEFINED
        texts.append(text)
        types.append(int(kind))
    return texts, types


def looks_special(text: str) -> bool:
    """Whether an added token is a control token by its looks, whatever its file says (llama.cpp's list)."""
    return (
        text in {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )
