"""C++ kernels (native/): arrays are C-contiguous and checked by the callers named here."""

import numpy as np
import numpy.typing as npt

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

def find_strings(
    data: npt.NDArray[np.uint8], at: int, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> tuple[int, int]:
    """Find length-prefixed strings (u64, little-endian) from ``at`` on; fills starts and ends [count].

    Returns how many stand whole in the data, and where the next one begins.
    """
