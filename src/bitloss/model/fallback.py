"""A SentencePiece vocabulary as a tokenizer.json holds it: BPE with byte fallback, when there is no tokenizer.model.

llama.cpp joins the neighbours whose join scores best; here a token's score is minus the rank of the first merge that
makes it, so the joins happen in the order of the merges. (llama.cpp's converter gives every token the same score, and
its files of such folders split texts otherwise than the `tokenizers` library does.) Tokens no merge makes keep the
converter's score.

Spaces must become U+2581, by a normaliser or a Metaspace step, with or without one put before the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitloss.errors import UnsupportedError
from bitloss.model.safetensors import read_json
from bitloss.model.tokenizer import (
    AddedToken,
    SpecialRules,
    added_tokens,
    merges_of,
    special_rules,
    tokens_of,
)

if TYPE_CHECKING:
    from pathlib import Path

UNMERGED_SCORE = -1000.0
_SIGN = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class FallbackTokenizer:
    """A byte-fallback BPE vocabulary.

    Attributes:
        tokens: id -> text.
        n_base: number of tokens of the vocabulary itself; added ones beyond it follow.
        added: id -> added token.
        scores: id -> score; missing: `UNMERGED_SCORE`.
        space_prefix: whether a space is put before a text.
        rules: special tokens.
    """

    tokens: Mapping[int, str]
    n_base: int
    added: Mapping[int, AddedToken]
    scores: Mapping[int, float]
    space_prefix: bool
    rules: SpecialRules


def is_fallback(folder: Path) -> bool:
    """Whether the folder's tokenizer.json holds a byte-fallback BPE."""
    path = folder / "tokenizer.json"
    model = read_json(path).get("model") if path.is_file() else None
    return isinstance(model, dict) and model.get("type") == "BPE" and model.get("byte_fallback") is True


def is_byte(text: str) -> bool:
    """Whether a token stands for one byte."""
    return _BYTE.fullmatch(text) is not None


def read_fallback(folder: Path) -> FallbackTokenizer:
    """Read such a `tokenizer.json`.

    Raises:
        FileProblem: the file is unreadable.
        CheckpointError: it breaks its format.
        UnsupportedError: a normaliser or splitting rule that llama.cpp's SentencePiece vocabularies do not have.
    """
    path = folder / "tokenizer.json"
    data = read_json(path)
    model = data["model"]
    added = added_tokens(path, data.get("added_tokens"))
    tokens = tokens_of(path, model.get("vocab"), added)
    ids = {text: number for number, text in tokens.items()}
    scores: dict[int, float] = {}
    for rank, merge in enumerate(merges_of(path, model.get("merges"), separator="\0")):
        number = ids.get(merge.replace("\0", ""))
        if number is not None:
            scores.setdefault(number, -float(rank))
    return FallbackTokenizer(
        tokens=tokens,
        n_base=len(model["vocab"]),
        added=added,
        scores=scores,
        space_prefix=_space_prefix(data, path),
        rules=special_rules(data, added),
    )


def _space_prefix(data: Mapping[str, Any], path: Path) -> bool:
    """Whether a space is put before a text; refuse other steps than those that write spaces as U+2581."""
    normalizer, splitter = data.get("normalizer"), data.get("pre_tokenizer")
    steps = normalizer.get("normalizers") if isinstance(normalizer, dict) else None
    listed = steps if isinstance(steps, list) else [normalizer] if normalizer else []
    written = [_step(each) for each in listed]
    if written in (["prepend", "replace"], ["replace"]) and (
        not splitter or _step(splitter) == "split at spaces"
    ):
        return written[0] == "prepend"
    if not written and isinstance(splitter, dict) and splitter.get("type") == "Metaspace":
        scheme = splitter.get(
            "prepend_scheme", "always" if splitter.get("add_prefix_space", True) else "never"
        )
        if splitter.get("replacement") == _SIGN and not splitter.get("split", True):
            return bool(scheme != "never")
    raise UnsupportedError(
        "normaliser or splitting rule that llama.cpp's SentencePiece vocabularies do not have",
        where=path,
        found=f"{normalizer} ; {splitter}"[:400],
    )


def _step(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "?"
    pattern = entry.get("pattern")
    text = pattern.get("String") if isinstance(pattern, dict) else None
    if entry.get("type") == "Prepend" and entry.get("prepend") == _SIGN:
        return "prepend"
    if entry.get("type") == "Replace" and text == " " and entry.get("content") == _SIGN:
        return "replace"
    # Splits at spaces that the normaliser has already replaced: no step at all (Gemma has it).
    if entry.get("type") == "Split" and text == " ":
        return "split at spaces"
    return str(entry)
