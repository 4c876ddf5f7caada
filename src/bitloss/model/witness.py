"""The model's own tokenizer, by the library it was made for: what a converted vocabulary is compared with.

A tokenizer.json is read by the `tokenizers` library. A folder with a `tokenizer.model` only gets the BPE that library
computes over its pieces, with merges in the order of their scores and bytes for characters without a piece: another
implementation of the same definition.

The library is native code and may panic on a damaged file; call it in a process that can be spared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf import TokenType

from bitloss.errors import CheckpointError
from bitloss.model.sentencepiece import SentencePieceModel, read_sentencepiece

if TYPE_CHECKING:
    from pathlib import Path

_SIGN = "\u2581"


@dataclass(frozen=True, slots=True)
class Witness:
    """A tokenizer of the model's own.

    Attributes:
        name: what it is, with its version.
        encode: text -> ids, without what is put around a text.
        normalizes: whether it changes characters before splitting (NFC, NFKC).
    """

    name: str
    encode: Callable[[str], list[int]]
    normalizes: bool


def witness_of(folder: Path) -> Witness | None:
    """Return the tokenizer of an HF folder, or None where it has no file of one.

    Raises:
        CheckpointError: the library cannot read the file.
    """
    import tokenizers

    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            whole = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:  # the library's panics are no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise CheckpointError(
                f"the tokenizers library cannot read it ({str(error)[:120]})", where=path
            ) from None
        whole.no_truncation()
        whole.no_padding()
        return Witness(
            f"tokenizer.json (tokenizers {tokenizers.__version__})", _encoder(whole), _normalizes(whole)
        )
    if (folder / "tokenizer.model").is_file():
        model = read_sentencepiece(folder / "tokenizer.model")
        name = f"tokenizer.model (pieces in the BPE of tokenizers {tokenizers.__version__})"
        return Witness(name, _encoder(_of_pieces(model)), False)
    return None


def _encoder(whole: Any) -> Callable[[str], list[int]]:
    return lambda text: list(whole.encode(text, add_special_tokens=False).ids)


def _normalizes(whole: Any) -> bool:
    described = str(whole.normalizer)
    return any(name in described for name in ("NFC", "NFKC", "NFD", "NFKD", "Precompiled"))


def _of_pieces(model: SentencePieceModel) -> Any:
    """Return a byte-fallback BPE over the pieces of a SentencePiece model."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    joined = sorted(
        (-piece.score, piece.text)
        for piece in model.pieces
        if piece.kind is TokenType.NORMAL and len(piece.text) > 1
    )
    merges = [
        (text[:at], text[at:])
        for _, text in joined
        for at in range(1, len(text))
        if text[:at] in ids and text[at:] in ids
    ]
    unknown = next(piece.text for piece in model.pieces if piece.kind is TokenType.UNKNOWN)
    whole = Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", _SIGN)
    whole.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SIGN), replace]) if model.add_dummy_prefix else replace
    )
    own = [piece.text for piece in model.pieces if piece.kind is TokenType.USER_DEFINED]
    whole.add_tokens([AddedToken(text, normalized=True, special=False) for text in own])
    return whole
