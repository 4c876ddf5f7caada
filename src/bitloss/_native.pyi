"""C++ kernels (native/): arrays are C-contiguous and checked by the callers named here."""

import numpy as np
import numpy.typing as npt

_Cast = tuple[int, int, int, float, float]
_Blocks = tuple[int, int, tuple[int, int], tuple[int, int]]
_OddWords = tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]
_Odd = tuple[int, int, int]

def divergence_isas() -> list[str]:
    """Instruction sets this machine and build offer, best first."""

def divergence_rows(
    base: npt.NDArray[np.float32],
    cand: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int32],
    values: npt.NDArray[np.float64],
    overlaps: npt.NDArray[np.float32],
    flags: npt.NDArray[np.uint8],
    threads: int,
    isa: str,
) -> None:
    """Score rows [rows, n_vocab] into columns: values [9, rows], overlaps [2, rows], flags [2, rows].

    Columns in the order of ``bitloss.divergence.metrics.COLUMNS``, whose ``token_metrics`` is the caller.
    """

def add_squares(acc: npt.NDArray[np.float64], x: npt.NDArray[np.float32]) -> None:
    """Add Σ over rows of x² to acc [n], for x [rows, n]; in float64, rows in order."""

def add_squares_rows(
    acc: npt.NDArray[np.float64], x: npt.NDArray[np.float32], ids: npt.NDArray[np.int32]
) -> None:
    """Add x[i]² to acc[ids[i]], for acc [n_mat, n], x [rows, n], ids [rows]; in float64, rows in order."""

def codec_isas() -> list[str]:
    """Instruction sets this machine and build offer, best first, and last "wide" (16 lanes on AVX2, for tests)."""

def codec_kinds(encoding: bool) -> list[int]:
    """Types (``enum ggml_type``) with a kernel that encodes, or that decodes."""

def encode_rows(
    kind: int,
    rows: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32] | None,
    out: npt.NDArray[np.uint8],
    threads: int,
    isa: str,
) -> None:
    """Encode rows [n_rows, n_per_row] with weights [n_per_row] into out [n_rows, row_bytes].

    ``bitloss.quantize.codec.encode_into`` is the caller.
    """

def decode_rows(
    kind: int, data: npt.NDArray[np.uint8], out: npt.NDArray[np.float32], threads: int, isa: str
) -> None:
    """Decode data [n_rows, row_bytes] into out [n_rows, n_per_row]; ``bitloss.quantize.codec.decode`` calls it."""

def encode_chunk(
    quantize_chunk: int,
    set_abort_callback: int,
    kind: int,
    rows: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32] | None,
    out: npt.NDArray[np.uint8],
) -> str | None:
    """Call ``ggml_quantize_chunk`` at that address for rows [n_rows, n_per_row]; what ggml said where it gave up.

    ``out`` [n_rows, row_bytes] has undefined bytes then. ``bitloss.quantize.codec.encode_into`` is the caller.
    """

def find_strings(
    data: npt.NDArray[np.uint8], at: int, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> tuple[int, int]:
    """Find length-prefixed strings (u64, little-endian) from ``at`` on; fills starts and ends [count].

    Returns how many stand whole in the data, and where the next one begins.
    """

def decode_strings(raw: bytes, count: int) -> list[str]:
    r"""Decode ``count`` length-prefixed strings (u64, little-endian); what is not UTF-8 is shown as ``\xNN``."""

def audit_isas() -> list[str]:
    """Instruction sets this machine and build offer, best first, and last "wide" (16 lanes on AVX2, for tests)."""

def audit_words(
    f16: bool,
    x: npt.NDArray[np.uint16],
    scratch: npt.NDArray[np.uint32],
    histogram: npt.NDArray[np.int64],
    blocks: bool,
    threads: int,
    isa: str,
) -> tuple[_OddWords, int, int, int, int, _Blocks]:
    """Count words (at most 2^31) of F16, or else BF16; ``bitloss.explain.counting`` calls it and `audit_floats`.

    Some are counted one by one: they come first, the words and how often each was there, a word once for each thread at
    most. Of the others the exponents go into histogram [277], and the rest is returned: how many they are, zeros, those
    below the rule's interval, and those BF16 changes; what they do not tell, the first do. Scratch [2 * threads, 65536]
    is zero before and after. Last what blocks of Q8_0 come to, if asked for: all of them, those not finite, and for F16
    and BF16 each those with other bytes, and those of which a value overflows.
    """

def audit_floats(
    x: npt.NDArray[np.float32],
    scratch: npt.NDArray[np.uint32],
    histogram: npt.NDArray[np.int64],
    blocks: bool,
    threads: int,
    isa: str,
) -> tuple[_OddWords, _OddWords, int, int, int, int, int, int, int, int, int, _Cast, _Cast, _Blocks]:
    """Count values (at most 2^31) as ``bitloss.explain.weights`` defines.

    Some that are exact in F16 or BF16 are counted as such words; odd ones of F16 come first, of BF16 second, as of
    `audit_words`; scratch as there. Of the others the exponents go into histogram [277], and the rest is returned: how
    many they are, zeros, below and above the rule's interval, NaN, +inf, -inf, bits of the largest and of the smallest
    magnitude, and for F16 and BF16 each: changed, overflowed, zeroed, largest error and relative error. Last blocks, as
    of `audit_words`.
    """

def mark_words(
    x: npt.NDArray[np.uint16],
    flags: npt.NDArray[np.uint8],
    block: int,
    marks: npt.NDArray[np.uint8],
    threads: int,
) -> None:
    """Write for each block of x [n * block] the OR of its words' flags [65536] into marks [n]."""

def mark_floats(
    x: npt.NDArray[np.float32], block: int, marks: npt.NDArray[np.uint8], threads: int, isa: str
) -> None:
    """Write for each block of x [n * block] into marks [n] what some value of it does.

    1: changes in F16, 2: overflows there, 4: changes in BF16, 8: overflows there, 16: is not finite.
    """

def compare_isas() -> list[str]:
    """Instruction sets this machine and build offer, best first."""

def differing_blocks(
    a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], block: int, marks: npt.NDArray[np.uint8], threads: int
) -> int:
    """Write into marks [n] whether blocks of a and b [n * block] differ; returns how many do.

    ``bitloss.explain.blocks.mark`` is the caller.
    """

def field_kinds() -> list[int]:
    """Types (``enum ggml_type``) whose quants and scales `differing_fields` tells apart."""

def differing_fields(
    kind: int, a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], isa: str
) -> tuple[int, int]:
    """Count the quants and the scales that differ in whole blocks; ``bitloss.explain.fields`` calls it."""

def compare_tensors(
    kind_a: int,
    a: npt.NDArray[np.uint8],
    kind_b: int,
    b: npt.NDArray[np.uint8],
    threads: int,
    isa: str,
) -> tuple[int, int, int, tuple[int, int, float, float, _Odd, _Odd]]:
    """Compare tensors, bytes of whole blocks with as many values each, of F32 or types that `decode_rows` takes.

    Of one type: differing blocks, quants and scales (0 where `field_kinds` has not the type); of two, zeros. Then what
    `value_distance` returns; pieces of equal bytes are passed over. ``bitloss.explain.distance`` is the caller.
    """

def value_distance(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], threads: int, isa: str
) -> tuple[int, int, float, float, _Odd, _Odd]:
    """Compare values [n]: how many differ, pairs not finite, Σ (a - b)², max |a - b|, and NaN, +inf, -inf of each.

    ``bitloss.explain.distance`` is the caller.
    """

def cast_isas() -> list[str]:
    """Instruction sets this machine and build offer, best first, and last "wide" (16 lanes on AVX2, for tests)."""

def cast_values(
    source: int, target: int, values: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8], isa: str
) -> tuple[int, int, int, int]:
    """Cast values from one type to another (0: F32, 1: F16, 2: BF16), given and written as bytes.

    Returns how many are not finite, and of the others how many changed, overflowed, became zero.
    ``bitloss.convert.cast.cast`` calls it.
    """

def product_ways(type: int, width: int, n_out: int) -> list[str]:
    """Ways of `product_rows` for this ggml type and shape that this machine and build offer, fastest first."""

def product_rows(
    weights: npt.NDArray[np.uint8],
    type: int,
    x: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    way: str,
    threads: int,
) -> None:
    """Write x [rows, width] times weights [n_out, width] (bytes of a ggml type) to out [rows, n_out].

    A way says in which order sums are taken, always one of libggml-cpu's: ``avx512`` and ``avx2`` (16 and 8 lanes; F32,
    F16, BF16), ``pairs`` and ``fused-pairs`` (BF16; x must be BF16 as well), ``q8_0`` and ``q6_k`` (x must be finite).
    ``bitloss.engine.product`` is the caller.
    """
