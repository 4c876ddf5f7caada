"""A look at a finished candidate: what the plan said, and every value and block scale a finite number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from bitloss.engine.ggml import ggml
from bitloss.errors import BitlossError, EngineError
from bitloss.model.gguf import GgufFile, TensorInfo, type_name
from bitloss.progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    from pathlib import Path

    from bitloss.quantize.plan import TypePlan

_PIECE_BYTES = 64 << 20


def verify_candidate(
    path: Path, shown: Path, source: GgufFile, plan: TypePlan, progress: ProgressCallback = silent
) -> GgufFile:
    """Open a candidate and compare it with its plan.

    Names, types and shapes must be as planned, copied tensors equal the source's bytes, and ggml find every block
    of the others valid.

    Args:
        path: where it lies now.
        shown: the name to use in messages.
        source: what it was made from.
        plan: what it should be.
        progress: told after every tensor.

    Returns:
        The open file.

    Raises:
        EngineError: it differs; the tensor is named.
    """
    try:
        file = GgufFile.open(path)
    except BitlossError as error:
        raise EngineError(
            f"llama.cpp wrote a damaged file ({error.what})",
            where=shown,
            expected=error.expected,
            found=error.found,
        ) from error
    if file.tensors.keys() != plan.tensors.keys():
        odd = sorted(file.tensors.keys() ^ plan.tensors.keys())
        raise EngineError("other tensors than planned", where=f"{shown}[{odd[0]}]")
    for done, (name, planned) in enumerate(plan.tensors.items(), start=1):
        info = file.tensors[name]
        wanted = (type_name(planned.target_type), list(planned.shape))
        if (info.type_name, list(info.shape)) != wanted:
            raise EngineError(
                "another tensor than planned",
                where=f"{shown}[{name}]",
                expected=wanted,
                found=(info.type_name, list(info.shape)),
            )
        # Also shows that the file is read where it was written: norms are copied in every model.
        if planned.is_copied and not np.array_equal(file.tensor_bytes(name), source.tensor_bytes(name)):
            raise EngineError("a copied tensor differs from the source's", where=f"{shown}[{name}]")
        if not _is_valid(file, info):
            raise EngineError(
                "a value or a block's scale is not finite", where=f"{shown}[{name}]", found=info.type_name
            )
        progress(Progress(f"check {shown.name}", done, len(plan.tensors), "tensors"))
    return file


def _is_valid(file: GgufFile, info: TensorInfo) -> bool:
    """Let ggml look at every block, in pieces of whole blocks."""
    block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(info.ggml_type)][1]
    data = file.tensor_bytes(info.name)
    step = _PIECE_BYTES // block_bytes * block_bytes
    return all(
        ggml().ggml_validate_row_data(info.ggml_type, piece.ctypes.data, piece.size)
        for piece in (data[at : at + step] for at in range(0, data.size, step))
    )
