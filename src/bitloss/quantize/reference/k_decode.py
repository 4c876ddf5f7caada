"""Decoders of Q2_K to Q6_K in NumPy: what the bytes of a super-block of 256 weights mean.

A weight is ``scale·q - low`` (Q2_K, Q4_K, Q5_K; each product and the difference rounded to float32) or ``scale·q``
(Q3_K, Q6_K), with scale = d·(integer of the group), low = m·(integer of the group), d and m halves.

| kind | bytes, in order                                                          | group | q             |
|------|--------------------------------------------------------------------------|-------|---------------|
| Q2_K | 16 of scale (low) and minimum (high), 64 of quants, d, m                 | 16    | 0 .. 3        |
| Q3_K | 32 of third bits, 64 of quants, 12 of scales, d                          | 16    | -4 .. 3       |
| Q4_K | d, m, 12 of scales and minima, 128 of quants                             | 32    | 0 .. 15       |
| Q5_K | d, m, 12 of scales and minima, 32 of fifth bits, 128 of quants           | 32    | 0 .. 31       |
| Q6_K | 128 of low bits, 64 of high bits, 16 signed scales, d                    | 16    | -32 .. 31     |

Two-bit quants (`_pairs`): each half of 128 weights has 32 bytes; byte j holds weights j, j + 32, j + 64, j + 96 from
its lowest bits up. Four-bit quants: 64 weights have 32 bytes, the low halves first; in Q6_K 128 weights have 64.
Third and fifth bits: bit k of byte j belongs to weight 32·k + j.

Equal to ``to_float`` of libggml, bit for bit (ggml/src/ggml-quants.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gguf import GGMLQuantizationType as Kind

from bitloss.quantize.reference.arithmetic import Bytes, Floats, Ints, from_half

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _half(blocks: Bytes, at: int) -> Floats:
    return from_half(np.ascontiguousarray(blocks[:, at : at + 2]).view("<u2").astype(np.uint16))


def _pairs(packed: Bytes) -> Ints:
    """Two bits for each of 256 weights, from 64 bytes."""
    halves = packed.reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    return halves.reshape(-1, 256).astype(np.int32)


def _bits(packed: Bytes) -> Ints:
    """One bit for each of 256 weights, from 32 bytes."""
    return (packed[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1).reshape(-1, 256).astype(np.int32)


def _nibbles(packed: Bytes, run: int) -> Ints:
    """Four bits for each of 256 weights, from 128 bytes: of each `run`, the low halves, then the high ones."""
    runs = packed.reshape(-1, 128 // run, run)
    return np.stack([runs & 15, runs >> 4], axis=2).reshape(-1, 256).astype(np.int32)


def _affine(d: Floats, m: Floats, scales: Bytes | Ints, lows: Bytes | Ints, q: Ints) -> Floats:
    scale, low = d * scales.astype(np.float32), m * lows.astype(np.float32)
    size = 256 // scale.shape[1]
    x: Floats = np.repeat(scale, size, axis=1) * q.astype(np.float32) - np.repeat(low, size, axis=1)
    return x


def _symmetric(d: Floats, scales: Ints, q: Ints) -> Floats:
    scale = d * scales.astype(np.float32)
    x: Floats = np.repeat(scale, 16, axis=1) * q.astype(np.float32)
    return x


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Scales and minima [n, 8] of six bits, from 12 bytes.

    Groups 0..3: low six bits of bytes 0..3 and 4..7. Groups 4..7: the halves of bytes 8..11, topped by the high two
    bits of bytes 0..3 and 4..7.
    """
    first, second, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (last & 15) | (first >> 6) << np.uint8(4)], axis=1)
    lows = np.concatenate([second & 63, last >> 4 | (second >> 6) << np.uint8(4)], axis=1)
    return scales, lows


def _q2_k(b: Bytes) -> Floats:
    return _affine(_half(b, 80), _half(b, 82), b[:, :16] & 15, b[:, :16] >> 4, _pairs(b[:, 16:80]))


def _q3_k(b: Bytes) -> Floats:
    low = np.concatenate([b[:, 96:104] & 15, b[:, 96:104] >> 4], axis=1)
    high = np.concatenate([b[:, 104:108] >> np.uint8(shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    scales = (low | high << np.uint8(4)).astype(np.int32) - 32
    return _symmetric(_half(b, 108), scales, (_pairs(b[:, 32:96]) | _bits(b[:, :32]) << 2) - 4)


def _q4_k(b: Bytes) -> Floats:
    return _affine(_half(b, 0), _half(b, 2), *_six_bits(b[:, 4:16]), _nibbles(b[:, 16:], 32))


def _q5_k(b: Bytes) -> Floats:
    q = _nibbles(b[:, 48:], 32) | _bits(b[:, 16:48]) << 4
    return _affine(_half(b, 0), _half(b, 2), *_six_bits(b[:, 4:16]), q)


def _q6_k(b: Bytes) -> Floats:
    scales = b[:, 192:208].view(np.int8).astype(np.int32)
    return _symmetric(_half(b, 208), scales, (_nibbles(b[:, :128], 64) | _pairs(b[:, 128:192]) << 4) - 32)


def _rows(block_bytes: int, blocks: Callable[[Bytes], Floats]) -> Callable[[Bytes, int], Floats]:
    def decode(data: Bytes, n_per_row: int) -> Floats:
        with np.errstate(all="ignore"):
            return blocks(np.ascontiguousarray(data).reshape(-1, block_bytes)).reshape(len(data), n_per_row)

    return decode


DECODERS: Mapping[Kind, Callable[[Bytes, int], Floats]] = {
    Kind.Q2_K: _rows(84, _q2_k),
    Kind.Q3_K: _rows(110, _q3_k),
    Kind.Q4_K: _rows(144, _q4_k),
    Kind.Q5_K: _rows(176, _q5_k),
    Kind.Q6_K: _rows(210, _q6_k),
}
