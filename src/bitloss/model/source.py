"""What the user named as the model, whichever form it has: an HF folder or a GGUF file."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from bitloss.errors import UsageError
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import is_part, open_model
from bitloss.model.hub import snapshot_of
from bitloss.store import content_key, sha256_file

FULL_PRECISION: Final = ("F32", "F16", "BF16")
"""Types of a GGUF that is not quantized."""


def model_bytes(model: Path) -> int:
    """Bytes of a GGUF model, of all its parts."""
    parts = open_model(model).paths if is_part(model) else (model,)
    return sum(part.stat().st_size for part in parts)


class ModelFacts(NamedTuple):
    """A model in four words.

    Attributes:
        name: name of its folder or file.
        architecture: as its own config (or GGUF metadata) names it.
        parameters: number of weights.
        dtype: type most weights are stored in.
    """

    name: str
    architecture: str
    parameters: int
    dtype: str


def model_sha256(model: Path) -> str:
    """Hash of a model's content: the file's, or over all parts, or every file of the folder that decides a conversion.

    Raises:
        FileProblem, CheckpointError, UnsupportedError: as `Checkpoint.open`; of parts as `open_model`.
    """
    if model.is_file():
        parts = open_model(model).paths if is_part(model) else ()
        if len(parts) < 2:
            return sha256_file(model)
        return content_key("split model", {"parts": [sha256_file(part) for part in parts]})
    return content_key(
        "checkpoint", {file.name: sha256_file(file) for file in Checkpoint.open(model).files()}
    )


def model_facts(model: Path, source: Path) -> ModelFacts:
    """Describe the model.

    Args:
        model: as the user named it.
        source: a GGUF of it, for counting.
    """
    file = open_model(source)
    parameters = sum(info.n_elements for info in file.tensors.values())
    if model.is_file():
        return ModelFacts(model.name, file.architecture, parameters, weights_type(file))
    checkpoint = Checkpoint.open(model)
    dtypes: Counter[str] = Counter()
    for name in checkpoint.names():
        stored = checkpoint.info(name)
        dtypes[stored.dtype] += math.prod(stored.shape)
    snapshot = snapshot_of(model)
    name = snapshot.name if snapshot else model.name
    return ModelFacts(name, checkpoint.architecture, parameters, dtypes.most_common(1)[0][0])


def weights_type(file: GgufFile) -> str:
    """The type most weights of a GGUF are stored in, as ggml names it."""
    sizes: Counter[str] = Counter()
    for info in file.tensors.values():
        sizes[info.type_name] += info.n_elements
    return sizes.most_common(1)[0][0] if sizes else "F32"


def refuse_matrix(file: GgufFile) -> None:
    """Refuse an importance matrix given as a model: both are GGUF files.

    Raises:
        UsageError: it is one.
    """
    if file.value("general.type", None) == "imatrix":
        raise UsageError(
            "an importance matrix, not a model",
            where=file.path,
            mend="give the model's GGUF file; the matrix goes to --imatrix, where a command has it",
        )


def precision(file: GgufFile) -> str:
    """``f32``, ``f16`` or ``bf16``: the type most weights of a GGUF are stored in.

    Raises:
        UsageError: the file is quantized, or an importance matrix.
    """
    refuse_matrix(file)
    kind = weights_type(file)
    if kind not in FULL_PRECISION:
        raise UsageError(
            "the model is quantized already",
            where=file.path,
            expected="F32, F16 or BF16 weights",
            found=kind,
            mend="give the full-precision model; measure finished files with `bitloss measure`",
        )
    return kind.lower()
