"""``.kld``: the base file of llama-perplexity (``--kl-divergence-base``), read as a base and written for others.

Little-endian, no padding but the one named:

    8 bytes ``_logits_``, u32 n_ctx, i32 n_vocab, i32 n_chunk, i32 tokens [n_chunk, n_ctx] (as cut, BOS not put in)
    u16 rows [n_chunk, scored, nv], nv = 2·⌈n_vocab/2⌉ + 4, scored positions as `bitloss.engine.base.scored_positions`:
        f32 scale, f32 min_log_prob, u16 q [n_vocab] (and one more for an odd vocabulary)

**Written** (all float32 but the sum; l the logits of a row): lo = max(min l, max l - 16), scale = (max l - lo) / 65535,
min_log_prob = lo - max l - ln Σ exp(l - max l), q = round-half-even((l - lo) · (1/scale)), 0 where l ≤ lo; q = 0
throughout when scale is 0. For the same logits q equals the tool's; the sum is taken over float64 exponentials where
the tool adds ``expf``, so min_log_prob may differ in its last digit.

**Read.** ln p = scale·q + min_log_prob in float32: off by up to scale/2 ≤ 1.22e-4 nats. In a row that was cut (scale =
16/65535), q = 0 says no more than ln p ≤ min_log_prob; such entries are given as -inf, not known. (Taking min_log_prob
for 131072 entries would add up to 1.5 % of probability.) The one exception is the target of the row: it stands at the
cut, so that its nll is the least it can be, as in llama-perplexity; `KldFile.targets_cut` counts these. What is made of
such rows: `bitloss.divergence.partial`, whose KLD of a model against itself is scale²/24 ≤ 2.5e-9 nats a token, where
llama-perplexity's own reading of the file gives up to ±1e-4.

Left to the opener: whether BOS takes the place of a chunk's first token. The file does not say; it follows from the
vocabulary of the model that is evaluated. Nor does it name the model, the text or the vocabulary.

A row is refused unless it is a softmax: scale and min_log_prob in range, q reaching 65535, probabilities adding up to
1 within the steps and the cut.

Source: ``log_softmax``, ``perplexity`` and ``kl_divergence`` in tools/perplexity/perplexity.cpp of llama.cpp.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from bitloss.display import visible
from bitloss.divergence.measure import BaseLogits
from bitloss.errors import BaseError, FileProblem, UnsupportedError
from bitloss.model.text import LEAST_CONTEXT, Chunks, scored_positions
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.store import atomic_path
from bitloss.store.atomic import explained
from bitloss.store.space import check_room

MAGIC = b"_logits_"
_HEADER_BYTES = 20
_COUNTS = "Iii"  # n_ctx, n_vocab, n_chunk
_HEAD_UNITS = 4  # u16 units before a row's q: two float32
_TOP = 65535
CUT = 16.0
"""Nats below the likeliest token at which llama-perplexity cuts."""
_CUT_SLACK = 0.01  # max - (max - 16) in float32: off by up to 0.008 for logits of 1e5
_MASS_SLACK = 2e-4  # half a step (1.22e-4) of every probability, and float32
_SLICE_BYTES = 32 << 20
_MEND_SHORT = "make the file again; llama-perplexity leaves such a file when it is stopped"
_MEND_DAMAGED = "copy or make the file again: it is damaged"


class _Layout(NamedTuple):
    """The three counts of a header and what follows from them."""

    n_ctx: int
    n_vocab: int
    n_chunks: int

    @property
    def rows(self) -> int:
        """Scored rows of a chunk."""
        return len(scored_positions(self.n_ctx))

    @property
    def row_units(self) -> int:
        """Units of 2 bytes in a row."""
        return 2 * ((self.n_vocab + 1) // 2) + _HEAD_UNITS

    @property
    def data_at(self) -> int:
        """Byte at which the rows begin."""
        return _HEADER_BYTES + 4 * self.n_ctx * self.n_chunks

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.data_at + 2 * self.row_units * self.rows * self.n_chunks

    @property
    def rows_per_slice(self) -> int:
        """Rows worked on at a time."""
        return max(1, min(512, _SLICE_BYTES // (4 * self.n_vocab)))

    def sane(self) -> bool:
        """Whether there can be such a file at all."""
        return self.n_ctx >= LEAST_CONTEXT and self.n_vocab >= 1 and self.n_chunks >= 1


def is_kld(path: Path) -> bool:
    """Whether a file calls itself a base file of llama-perplexity, by its first bytes or by its name."""
    if not path.is_file():
        return False
    with explained(path), path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC or path.suffix == ".kld"


class KldFile:
    """A base file of llama-perplexity, opened for measuring (a `bitloss.divergence.measure.BaseLogits`).

    Rows are read as they are asked for, never mapped: memory is O(slice), and a file that shrinks while it is read
    gives an error, not a signal.

    Args:
        path: the file.
        bos: id of BOS when the vocabulary of the models evaluated adds it, else None.

    Attributes:
        path: the file.
        chunks: the text it was computed on.
        n_vocab: entries of the vocabulary.
        rows_per_slice: most rows `logits` gives at a time.
        targets_cut: targets below the cut among the rows read so far.

    Raises:
        FileProblem: no such file.
        BaseError: not such a file, cut short, or damaged.
    """

    known_in_part = True

    def __init__(self, path: Path, *, bos: int | None) -> None:
        self.path = path
        self._layout, tokens = _read_header(path)
        self.n_vocab = self._layout.n_vocab
        self.rows_per_slice = self._layout.rows_per_slice
        self.targets_cut = 0
        if bos is not None and not 0 <= bos < self.n_vocab:
            raise BaseError(
                "BOS is outside the vocabulary", where=path, expected=f"0..{self.n_vocab - 1}", found=bos
            )
        self.chunks = Chunks(tokens, bos is not None, -1 if bos is None else bos)
        self._stream = path.open("rb", buffering=0)

    def logits(self, chunk: int, first: int, rows: int) -> NDArray[np.float32]:
        """Log-probabilities of scored rows first .. first+rows of a chunk: float32 [rows, n_vocab].

        -inf where the file has only an upper bound (see the module docstring).

        Raises:
            BaseError: a row is damaged (named).
        """
        layout = self._layout
        assert 0 <= chunk < layout.n_chunks
        assert 0 <= first <= first + rows <= layout.rows
        units = self._read(chunk, first, rows)
        head = np.ascontiguousarray(units[:, :_HEAD_UNITS]).view("<f4")
        scale, least = head[:, 0].astype(np.float32), head[:, 1].astype(np.float32)
        q = units[:, _HEAD_UNITS : _HEAD_UNITS + self.n_vocab]
        self._check_heads(chunk, first, scale, least, q)
        values = q * scale[:, None] + least[:, None]  # u16 times float32 is float32, as in the tool
        absent = (q == 0) & _was_cut(scale)[:, None]
        start = scored_positions(layout.n_ctx).start + first
        target = self.chunks.tokens[chunk, start + 1 : start + 1 + rows]
        each = np.arange(rows)
        self.targets_cut += int(np.count_nonzero(absent[each, target]))
        n_absent = np.count_nonzero(absent, axis=1)
        absent[each, target] = False
        values[absent] = -np.inf
        self._check_mass(chunk, first, values, n_absent * np.exp(least, dtype=np.float64))
        return values

    def _read(self, chunk: int, first: int, rows: int) -> NDArray[np.uint16]:
        layout = self._layout
        units = np.empty((rows, layout.row_units), "<u2")
        view = units.view(np.uint8).reshape(-1).data
        self._stream.seek(layout.data_at + 2 * layout.row_units * (chunk * layout.rows + first))
        done = 0
        while done < len(view):
            got = self._stream.readinto(view[done:])
            if not got:
                raise _ended("rows", f"{self.path}[chunk {chunk}, row {first}]")
            done += got
        return units

    def _check_heads(
        self,
        chunk: int,
        first: int,
        scale: NDArray[np.float32],
        least: NDArray[np.float32],
        q: NDArray[np.uint16],
    ) -> None:
        wide = scale.astype(np.float64) * _TOP
        top = wide + least
        with np.errstate(invalid="ignore"):  # NaN and inf are what this is about
            self._refuse(
                chunk, first, ~((wide >= 0) & (wide <= CUT + _CUT_SLACK)), "impossible scale", values=scale
            )
            low = -math.log(self.n_vocab) - 0.01
            self._refuse(
                chunk, first, ~((top <= 0.01) & (top >= low)), "impossible log-probability", values=least
            )
        reached = np.where(scale > 0, q.max(axis=1) == _TOP, q.max(axis=1) == 0)
        self._refuse(chunk, first, ~reached, "the likeliest token is not at the top", values=q.max(axis=1))

    def _check_mass(
        self, chunk: int, first: int, values: NDArray[np.float32], unknown: NDArray[np.float64]
    ) -> None:
        mass = np.exp(values).sum(axis=1, dtype=np.float64)
        bad = (mass > 1 + _MASS_SLACK) | (mass < 1 - unknown - _MASS_SLACK)
        self._refuse(chunk, first, bad, "probabilities do not add up to 1", values=mass)

    def _refuse(
        self, chunk: int, first: int, bad: NDArray[np.bool_], what: str, *, values: NDArray[np.generic]
    ) -> None:
        """Raise `BaseError` for the first bad row."""
        if bad.any():
            row = int(np.argmax(bad))
            position = scored_positions(self._layout.n_ctx).start + first + row
            raise BaseError(
                f"damaged row: {what}",
                where=f"{self.path}[chunk {chunk}, position {position}]",
                found=values[row],
                mend="make the file again with llama-perplexity, from a model without NaN logits",
            )

    @property
    def stored_bytes(self) -> int:
        """Size of the file."""
        return self._layout.file_bytes

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _was_cut(scale: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether rows reach down to the cut, so that q = 0 is a bound and no value."""
    cut: NDArray[np.bool_] = scale.astype(np.float64) * _TOP >= CUT - _CUT_SLACK
    return cut


def _read_header(path: Path) -> tuple[_Layout, NDArray[np.int32]]:
    if not path.is_file():
        raise FileProblem(
            "no such file", where=path, mend="make one with llama-perplexity, or bitloss base --kld"
        )
    with explained(path), path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        header = stream.read(_HEADER_BYTES)
        if header[: len(MAGIC)] != MAGIC:
            raise BaseError(
                "not a base file of llama-perplexity",
                where=path,
                expected=f"{MAGIC.decode()} at its beginning",
                found=visible(header[: len(MAGIC)].decode("latin-1")) if header else "an empty file",
                mend="give a file that llama-perplexity --kl-divergence-base or bitloss base --kld has written",
            )
        if len(header) < _HEADER_BYTES:
            raise _ended("header", path, expected=f"{_HEADER_BYTES} bytes", found=len(header))
        layout = _Layout(*struct.unpack_from(f"<{_COUNTS}", header, len(MAGIC)))
        _check_layout(path, layout, size, header)
        # the size has just been found to be what these counts ask for
        tokens = np.frombuffer(stream.read(layout.data_at - _HEADER_BYTES), "<i4").astype(np.int32)
    if tokens.size != layout.n_ctx * layout.n_chunks:
        raise _ended("tokens", path)
    bad = (tokens < 0) | (tokens >= layout.n_vocab)
    if bad.any():
        at = int(np.argmax(bad))
        raise BaseError(
            "token outside the vocabulary",
            where=f"{path}[token {at}]",
            expected=f"0..{layout.n_vocab - 1}",
            found=tokens[at],
            mend=_MEND_DAMAGED,
        )
    return layout, tokens.reshape(layout.n_chunks, layout.n_ctx)


def _ended(inside: str, where: object, **sizes: object) -> BaseError:
    return BaseError(f"the file ends inside its {inside}", where=where, mend=_MEND_SHORT, **sizes)


def _check_layout(path: Path, layout: _Layout, size: int, header: bytes) -> None:
    if layout.sane() and layout.file_bytes == size:
        return
    other = _Layout(*struct.unpack_from(f">{_COUNTS}", header, len(MAGIC)))
    if other.sane() and other.file_bytes == size:
        raise BaseError(
            "written on a machine of the other byte order",
            where=path,
            expected="little-endian",
            mend="make the file on a machine like this one",
        )
    if not layout.sane():
        raise BaseError(
            "impossible counts in the header",
            where=path,
            expected=f"n_ctx of at least {LEAST_CONTEXT}, n_vocab and n_chunk of at least 1",
            found=f"{layout.n_ctx}, {layout.n_vocab} and {layout.n_chunks}",
            mend=_MEND_DAMAGED,
        )
    raise BaseError(
        "cut short or damaged" if size < layout.file_bytes else "bytes after the end",
        where=path,
        expected=f"{layout.file_bytes} bytes ({layout.n_chunks} chunks of {layout.n_ctx} tokens, "
        f"vocabulary {layout.n_vocab})",
        found=size,
        mend=_MEND_SHORT if size < layout.file_bytes else _MEND_DAMAGED,
    )


def encode_rows(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rows of the file from rows of logits.

    Args:
        logits: float32 [rows, n_vocab]; -inf is allowed where something else is finite.

    Returns:
        uint16 [rows, nv].
    """
    rows, n_vocab = logits.shape
    top = logits.max(axis=1, keepdims=True)
    low = np.maximum(logits.min(axis=1, keepdims=True), top - np.float32(CUT))
    total = np.exp(logits - top, dtype=np.float64).sum(axis=1, keepdims=True)
    scale = (top - low) / np.float32(_TOP)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / scale
    flat = ~np.isfinite(inverse)  # all logits equal, or a step too small for its inverse
    scale[flat], inverse[flat] = 0, 0
    units = np.zeros((rows, 2 * ((n_vocab + 1) // 2) + _HEAD_UNITS), "<u2")
    head = np.concatenate([scale, low - top - np.log(total).astype(np.float32)], axis=1, dtype="<f4")
    units[:, :_HEAD_UNITS] = head.view("<u2")
    steps = inverse * (np.maximum(logits, low) - low)
    units[:, _HEAD_UNITS : _HEAD_UNITS + n_vocab] = np.rint(steps)
    return units


def kld_bytes(n_ctx: int, n_vocab: int, n_chunks: int) -> int:
    """Bytes of the file `write_kld` writes."""
    return _Layout(n_ctx, n_vocab, n_chunks).file_bytes


def write_kld(path: Path, base: BaseLogits, progress: ProgressCallback = silent) -> int:
    """Write a base file for llama-perplexity; it appears whole or not at all.

    Args:
        path: the file.
        base: where logits and tokens come from.
        progress: told after every chunk.

    Returns:
        Its size in bytes.

    Raises:
        UnsupportedError: the chunks have a rule of their own for what is scored.
        BaseError: a base logit is NaN or +inf (named).
        DiskFull, FileProblem: as they say.
    """
    chunks = base.chunks
    if chunks.scored is not None:
        raise UnsupportedError(
            "llama-perplexity's file has no place for which tokens are scored",
            where=path,
            mend="make the base without --documents and --chat-template",
        )
    layout = _Layout(chunks.n_ctx, base.n_vocab, chunks.n_chunks)
    step = min(base.rows_per_slice, layout.rows_per_slice)
    check_room([(path, layout.file_bytes)])
    with atomic_path(path) as partial, partial.open("wb") as stream:
        stream.write(MAGIC + struct.pack(f"<{_COUNTS}", *layout))
        stream.write(np.ascontiguousarray(chunks.tokens, "<i4").data)
        for chunk in range(layout.n_chunks):
            for first in range(0, layout.rows, step):
                logits = base.logits(chunk, first, min(step, layout.rows - first))
                _check_finite(path, logits, chunk, scored_positions(layout.n_ctx).start + first)
                stream.write(encode_rows(logits).data)
            progress(Progress("kld", chunk + 1, layout.n_chunks, "chunks"))
    return layout.file_bytes


def _check_finite(path: Path, logits: NDArray[np.float32], chunk: int, start: int) -> None:
    top = logits.max(axis=1)  # NaN if there is any
    bad = ~np.isfinite(top)
    if bad.any():
        row = int(np.argmax(bad))
        raise BaseError(
            "base logits are not finite, the file's format has no place for them",
            where=f"{path.name}[chunk {chunk}, position {start + row}]",
            found=top[row],
        )
