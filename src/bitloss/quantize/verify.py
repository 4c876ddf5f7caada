"""A look at a finished candidate: what the plan said, and every value and block scale a finite number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitloss.engine.ggml import ggml
from bitloss.errors import BitlossError, EngineError, GgufError
from bitloss.model.gguf import GgufFile, TensorInfo, type_name
from bitloss.model.gguf_split import open_model
from bitloss.model.tensor_types import block_of
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.quantize.call import NOT_FINITE
from bitloss.quantize.layout import trimmed

if TYPE_CHECKING:
    from pathlib import Path

    from bitloss.quantize.plan import TypePlan

_PIECE_BYTES = 64 << 20


def opened(path: Path, shown: Path) -> GgufFile:
    """Open what was written at `path`, or at the first of its parts; `shown` is the name to use in messages.

    Raises:
        EngineError: it is no whole GGUF file.
    """
    try:
        return open_model(path)
    except BitlossError as error:
        raise EngineError(
            f"a damaged file was written ({error.what})",
            where=shown,
            expected=error.expected,
            found=error.found,
        ) from error


def verify_candidate(
    file: GgufFile, shown: Path, source: GgufFile, plan: TypePlan, progress: ProgressCallback = silent
) -> None:
    """Compare a candidate with its plan.

    Names, types and shapes must be as planned, copied tensors equal the source's bytes, and ggml find every block
    of the others valid.

    Args:
        file: the candidate.
        shown: the name to use in messages.
        source: what it was made from.
        plan: what it should be.
        progress: told after every tensor.

    Raises:
        EngineError: it differs; the tensor is named.
    """
    if file.tensors.keys() != plan.tensors.keys():
        odd = sorted(file.tensors.keys() ^ plan.tensors.keys())
        raise EngineError("other tensors than planned", where=f"{shown}[{odd[0]}]")
    for done, (name, planned) in enumerate(plan.tensors.items(), start=1):
        info = file.tensors[name]
        wanted = (type_name(planned.target_type), trimmed(planned.shape))
        if (info.type_name, trimmed(info.shape)) != wanted:
            found = (info.type_name, trimmed(info.shape))
            raise EngineError(
                "another tensor than planned", where=f"{shown}[{name}]", expected=wanted, found=found
            )
        # Also shows that the file is read where it was written: norms are copied in every model.
        if planned.is_copied and not np.array_equal(file.tensor_bytes(name), source.tensor_bytes(name)):
            raise EngineError("a copied tensor differs from the source's", where=f"{shown}[{name}]")
        if not _tensor_is_valid(file, info):
            raise EngineError(
                "a value or a block's scale is not finite", where=f"{shown}[{name}]", found=info.type_name
            )
        progress(Progress(f"check {shown.name}", done, len(plan.tensors), "tensors"))


def is_valid(ggml_type: int, rows: npt.NDArray[np.uint8]) -> bool:
    """Ask ggml whether every value, or every scale of a block, is a finite number."""
    return bool(ggml().ggml_validate_row_data(int(ggml_type), rows.ctypes.data, rows.size))


def not_finite(where: str, values: npt.NDArray[np.float32], first: int) -> GgufError:
    """Return the error for a source's values.

    Args:
        where: file and tensor.
        values: [n_rows, n_in], decoded.
        first: row of the tensor that they begin with.
    """
    odd = np.argwhere(~np.isfinite(values))
    if not odd.size:  # a scale that is not finite over quants of 0
        return GgufError("a damaged block", where=where, mend=NOT_FINITE)
    row, column = odd[0].tolist()
    found = f"{values[row, column]} in row {first + row}, column {column}"
    return GgufError("a value is not finite", where=where, found=found, mend=NOT_FINITE)


def _tensor_is_valid(file: GgufFile, info: TensorInfo) -> bool:
    """Let ggml look at every block, in pieces of whole blocks."""
    block_bytes = block_of(info.ggml_type).bytes
    data = file.tensor_bytes(info.name)
    step = _PIECE_BYTES // block_bytes * block_bytes
    return all(
        is_valid(info.ggml_type, piece)
        for piece in (data[at : at + step] for at in range(0, data.size, step))
    )
