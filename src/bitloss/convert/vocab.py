"""Tokenizer files of an HF folder -> `tokenizer.*` keys of a GGUF, as llama.cpp's converter writes them.

Follows `get_vocab_base`, `_set_vocab_gpt2` and `_create_vocab_sentencepiece` in `conversion/base.py`, `set_vocab`
in `conversion/llama.py` and `SpecialVocab` in `gguf-py/gguf/vocab.py` of llama.cpp. As there, a `tokenizer.model`
goes before a `tokenizer.json`, of which then only the special tokens count. Ids that the vocabulary does not use
become `[PADi]`.

One key is ours: a SentencePiece model that puts no space before a text gets `add_space_prefix` false, where
tokenizer_config.json does not say; without it llama.cpp would put one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import TokenType

from bitloss.errors import CheckpointError, UnsupportedError
from bitloss.model.gguf import GgufType, GgufValue
from bitloss.model.safetensors import read_json
from bitloss.model.sentencepiece import SentencePieceModel, read_sentencepiece
from bitloss.model.tokenizer import BpeTokenizer, SpecialRules, read_special_rules, read_tokenizer, written

if TYPE_CHECKING:
    from bitloss.model.checkpoint import Checkpoint

_SPECIALS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # the key's own spelling
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
}
# The vocabulary sizes by which llama.cpp's converter knows models trained without BOS in front, and CodeLlama.
_NO_BOS_VOCAB = 49152
_INFILL_VOCAB, _INFILL = 32016, {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}
_BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
# Scores: of a token that is none of the SentencePiece model's, and of an id without a token.
_ADDED_SCORE, _PAD_SCORE = -1000.0, -10000.0


def vocabulary(checkpoint: Checkpoint, n_vocab: int) -> dict[str, GgufValue]:
    """Return the tokenizer keys for a model with `n_vocab` rows in its embedding.

    Raises:
        FileProblem: there is neither tokenizer.model nor tokenizer.json.
        CheckpointError: a tokenizer file breaks its format or, with tokenizer.json, has ids beyond `n_vocab`.
        UnsupportedError: a tokenizer that cannot be converted here.
    """
    folder = checkpoint.folder
    config = _optional(checkpoint, "tokenizer_config.json")
    rules: SpecialRules | BpeTokenizer
    if (folder / "tokenizer.model").is_file():
        model = read_sentencepiece(folder / "tokenizer.model")
        keys = _sentencepiece_keys(model, _added_to(checkpoint, config), n_vocab, str(folder))
        rules = read_special_rules(folder)
    else:
        rules = read_tokenizer(folder)
        keys = _bpe_keys(rules, n_vocab, str(folder / "tokenizer.json"))
    prefix = config.get("add_prefix_space")
    if isinstance(prefix, bool):
        keys["add_space_prefix"] = GgufValue(GgufType.BOOL, prefix)
    ids, adds = special_tokens(rules, config, checkpoint.config)
    for kind, number in ids.items():
        if number < n_vocab:
            keys[_SPECIALS[kind]] = GgufValue(GgufType.UINT32, number)
        elif isinstance(rules, BpeTokenizer):
            raise CheckpointError(
                f"{kind} token beyond the vocabulary", where=folder, expected=f"below {n_vocab}", found=number
            )
    if n_vocab == _NO_BOS_VOCAB:
        adds["bos"] = False
    if n_vocab == _INFILL_VOCAB:
        keys |= {f"{kind}_token_id": GgufValue(GgufType.UINT32, number) for kind, number in _INFILL.items()}
    for kind, value in adds.items():
        keys[f"add_{kind}_token"] = GgufValue(GgufType.BOOL, value)
    named = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return named | _templates(checkpoint, config)


def _bpe_keys(tokenizer: BpeTokenizer, n_vocab: int, where: str) -> dict[str, GgufValue]:
    texts, types = _tokens(tokenizer, n_vocab, where)
    keys = {
        "model": GgufValue(GgufType.STRING, "gpt2"),
        "pre": GgufValue(GgufType.STRING, tokenizer.pre),
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
    if not model.add_dummy_prefix:
        keys["add_space_prefix"] = GgufValue(GgufType.BOOL, False)
    return keys


def _added_to(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[int, tuple[str, TokenType]]:
    """Return id -> (text, type) of added_tokens.json and, over it, of tokenizer_config.json's added tokens."""
    added: dict[int, tuple[str, TokenType]] = {}
    for text, number in _optional(checkpoint, "added_tokens.json").items():
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
        if entry.get("special") or looks_special(content):
            added[int(key)] = content, TokenType.CONTROL
        else:
            added[int(key)] = content.replace("\u2581", " "), TokenType.USER_DEFINED
    return added


def _optional(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    path = checkpoint.folder / name
    return read_json(path) if path.is_file() else {}


def _tokens(tokenizer: BpeTokenizer, n_vocab: int, where: str) -> tuple[list[str], list[int]]:
    """Return texts and token types of ids 0 .. n_vocab - 1."""
    beyond = max(tokenizer.tokens, default=-1)
    if beyond >= n_vocab:
        raise CheckpointError(
            "token ids beyond the embedding", where=where, expected=f"below {n_vocab}", found=beyond
        )
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


def special_tokens(
    rules: SpecialRules | BpeTokenizer, tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, int], dict[str, bool]]:
    """Return (kind -> id, kind -> is it added to every text).

    Names come from tokenizer_config.json and count if they are added tokens, else the id comes from
    config.json. What the post-processor puts around a text decides over `add_bos_token` and `add_eos_token`.
    """
    names = {kind: _content(tokenizer_config.get(f"{kind}_token")) for kind in _SPECIALS}
    kinds = [kind for kind in _SPECIALS if kind != "eot"]
    names["bos"], names["eos"] = names["bos"] or names["cls"], names["eos"] or names["sep"]
    adds: dict[str, bool] = {}
    for step in _post_steps(rules.post_processor):
        if step.get("type") == "ByteLevel":
            adds.setdefault("bos", False)
            adds.setdefault("eos", False)
        if step.get("type") == "TemplateProcessing":
            first, last = _around(step.get("single"))
            if first is not None:
                names["bos"] = names["bos"] or first
                adds["bos"] = first in {names["bos"], names["cls"]}
            if last is not None:
                if tokenizer_config and last != names["eos"]:
                    # The model ends a turn with one token and a text with another.
                    kinds.append("eot")
                    names["eot"] = names["eos"]
                names["eos"] = last
                adds["eos"] = True
            if step.get("pair"):
                adds["sep"] = _separates(step["pair"], first, last, {names["sep"], names["eos"]})
    ids: dict[str, int] = {}
    for kind in kinds:
        flag = tokenizer_config.get(f"add_{kind}_token")
        if isinstance(flag, bool):
            adds.setdefault(kind, flag)
        name = names[kind]
        number = rules.ids.get(name) if name and tokenizer_config else None
        if number is None:
            number = config.get(f"{kind}_token_id")
        if type(number) is int and number >= 0:
            ids[kind] = number
    return ids, adds


def _content(entry: Any) -> str | None:
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _post_steps(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    steps = entry.get("processors", [entry])
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _special(item: Any) -> str | None:
    special = item.get("SpecialToken") if isinstance(item, dict) else None
    name = special.get("id") if isinstance(special, dict) else None
    return name if isinstance(name, str) else None


def _around(template: Any) -> tuple[str | None, str | None]:
    """Return the special tokens a template puts before and after a text."""
    if not isinstance(template, list) or len(template) < 2:
        return None, None
    return _special(template[0]), _special(template[-1])


def _separates(pair: Any, first: str | None, last: str | None, separators: set[str | None]) -> bool:
    """Whether a template puts a separator between two texts."""
    if not isinstance(pair, list):
        return False
    items: Sequence[Any] = pair
    if items and first is not None and _special(items[0]) == first:
        items = items[1:]
    if items and last is not None and _special(items[-1]) == last:
        items = items[:-1]
    between = [_special(item) for item in items[1:-1]]
    if len(between) == 2 and between[1] in separators - {None}:
        return True
    return bool(between) and last is None and between[0] in separators - {None}


def _templates(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, GgufValue]:
    """Return the chat template keys; tokenizer_config.json goes before chat_template.jinja and .json."""
    template = config.get("chat_template")
    path = checkpoint.folder / "chat_template.jinja"
    if template is None and config and path.is_file():
        try:
            template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot be read ({error})", where=path) from None
    if template is None and config:
        template = _optional(checkpoint, "chat_template.json").get("chat_template")
    named: dict[str, str] = {}
    if isinstance(template, str):
        named["default"] = template
    elif isinstance(template, list):
        for entry in template:
            if (
                isinstance(entry, dict)
                and isinstance(entry.get("template"), str)
                and isinstance(entry.get("name"), str)
            ):
                name = "".join(c if c.isascii() and c.isalnum() else "_" for c in entry["name"])
                named[name] = entry["template"]
    keys = {
        "tokenizer.chat_template" + ("" if name == "default" else f".{name}"): GgufValue(
            GgufType.STRING, text
        )
        for name, text in named.items()
        if name and text
    }
    others = sorted(name for name in named if name != "default")
    if others:
        keys["tokenizer.chat_templates"] = GgufValue(GgufType.ARRAY, others, GgufType.STRING)
    return keys
