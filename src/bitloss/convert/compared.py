"""Somebody else's file beside what bitloss would have written of the same model: every tensor, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitloss.convert.cast import SourceType, cast
from bitloss.convert.material import Block, Material
from bitloss.convert.writing import Bytes, same_bytes
from bitloss.errors import CheckpointError
from bitloss.model.gguf import GgufFile
from bitloss.progress import Progress, ProgressCallback, silent


def compare(
    material: Material,
    kind: SourceType,
    file: GgufFile,
    name: str,
    *,
    allow_overflow: bool = False,
    progress: ProgressCallback = silent,
) -> int:
    """Compare a file with a model.

    Args:
        material: the model.
        kind: type of the file.
        file: the file, wherever it lies now.
        name: how messages call it.
        allow_overflow: expect infinity where a weight is out of the type's range, instead of failing.
        progress: called per block, in weights.

    Returns:
        The bytes of tensors that were compared.

    Raises:
        CheckpointError: other tensors, shapes, types or values, the first of them; or as `cast`.
    """
    plans = {target.name: target.plan(kind) for target in material.targets}
    if set(file.tensors) != set(plans):
        odd = sorted(set(file.tensors) ^ set(plans))[0]
        raise CheckpointError(
            "other tensors than bitloss makes of this model",
            where=name,
            found=f"{odd} {'too much' if odd in file.tensors else 'missing'}",
        )
    done, total = 0, sum(target.size for target in material.targets)
    for target in material.targets:
        info, plan = file.info(target.name), plans[target.name]
        if (info.shape, info.ggml_type) != (plan.shape, plan.ggml_type):
            raise CheckpointError(
                "another shape or type than bitloss makes of this tensor",
                where=f"{name}[{target.name}]",
                expected=f"{list(plan.shape)}, type {plan.ggml_type}",
                found=f"{list(info.shape)}, type {info.ggml_type}",
            )
        stored, at = file.tensor_bytes(target.name), 0
        to = SourceType.F32 if target.always_f32 else kind
        for block in material.blocks(target):
            own = cast(block.values, to, block.where, allow_overflow=allow_overflow)[0]
            data = np.ascontiguousarray(own).reshape(-1).view(np.uint8)
            theirs = stored[at : at + data.size]
            if not same_bytes(theirs, data):
                raise _different(f"{name}[{target.name}]", block, data.view(to.dtype), theirs)
            at += data.size
            done += block.values.size
            progress(Progress(f"compare {name}", done, total, "weights"))
        material.forget(target)
        file.forget(target.name)
    return sum(info.n_bytes for info in file.tensors.values())


def _different(where: str, block: Block, own: np.ndarray[Any, Any], theirs: Bytes) -> CheckpointError:
    width = own.dtype.itemsize
    bits = own.view(np.uint8).reshape(-1, width) != theirs.reshape(-1, width)
    index = int(np.argmax(bits.any(axis=1)))
    found = theirs.view(own.dtype)[index]
    return CheckpointError(
        f"another value than bitloss makes of {block.where(index)}",
        where=where,
        expected=f"{float(own[index]):.9g}",
        found=f"{float(found):.9g}",
        mend="the converter computes otherwise, or writes the tensor's rows in another order",
    )
