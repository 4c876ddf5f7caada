"""Which tokens of a rendered conversation are the assistant's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bitloss.errors import UnsupportedError
from bitloss.model.chat_template import Rendered


def place_tokens(
    text: str, pieces: Sequence[bytes], control: NDArray[np.bool_], *, where: str
) -> NDArray[np.int64]:
    """Say which bytes of a text each of its tokens stands for.

    Tokens written out one after the other are the text, but for what vocabularies of SentencePiece do: a space is put
    before a stretch of text, and white space beside a control token may be swallowed.

    Args:
        text: what was tokenized.
        pieces: bytes each token stands for, control tokens as they are spelled.
        control: bool [n], whether a token is a control token.
        where: names the conversation in messages.

    Returns:
        int64 [n, 2]: first byte, and the one after the last.

    Raises:
        UnsupportedError: the tokens do not spell the text.
    """
    data, at, i = text.encode(), 0, 0
    places = np.zeros((len(pieces), 2), np.int64)
    for i, piece in enumerate(pieces):
        length = _length(data, at, piece)
        if length is None and (control[i] or (i and control[i - 1])):
            at += _white(data, at)
            length = _length(data, at, piece)
        if length is None:
            break
        places[i] = at, at + length
        at += length
    else:
        if at + _white(data, at) == len(data):
            return places
    raise UnsupportedError(
        "the tokens of the conversation do not spell its text, so the assistant's cannot be told from the others",
        where=where,
        expected=repr(data[at : at + 24]),
        found=repr(pieces[i] if i < len(pieces) else b"")[:40],
    )


def _length(data: bytes, at: int, piece: bytes) -> int | None:
    """Bytes of the text a piece stands for, a space put before it left out; None when it is not there."""
    if data.startswith(piece, at):
        return len(piece)
    if piece.startswith(b" ") and data.startswith(piece[1:], at):
        return len(piece) - 1
    return None


def _white(data: bytes, at: int) -> int:
    return len(data) - at - len(data[at:].lstrip())


def assistant_tokens(
    rendered: Rendered, places: NDArray[np.int64], ends_turn: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Mark the assistant's tokens: those with a byte in its parts, and the token that ends its turn.

    The latter is what a model writes as well: an end-of-generation token directly behind a part. Where the template
    marks the parts itself, it alone says what belongs to them.

    Args:
        rendered: the conversation.
        places: int64 [n, 2], as `place_tokens` gives them.
        ends_turn: bool [n], whether a token ends a generation.
    """
    targets = np.zeros(len(places), np.bool_)
    before = [0]
    for character in rendered.text:
        before.append(before[-1] + len(character.encode()))
    for first, last in ((before[a], before[b]) for a, b in rendered.spans):
        inside = (places[:, 0] < last) & (places[:, 1] > first)
        targets |= inside
        following = int(np.searchsorted(places[:, 0], last))
        if not rendered.by_template and following < len(places) and places[following, 0] == last:
            targets[following] |= ends_turn[following]
    return targets
