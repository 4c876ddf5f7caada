"""What a conversion is made from, whatever it was: targets with their values in blocks, and metadata.

An HF folder becomes one in `folder.py`, a GGUF file in `recast.py`; `writing.py` turns it into files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from gguf import GGMLQuantizationType

from bitloss.convert.cast import SourceType, widen
from bitloss.model.gguf_writer import TensorPlan

if TYPE_CHECKING:
    from pathlib import Path

    from bitloss.model.gguf import GgufValue

BLOCK = 1 << 19
"""Weights of a block: 2 MB as float32, so that what is done to them finds them in the cache."""
F32 = int(GGMLQuantizationType.F32)
_ROUTERS = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the files.

    Attributes:
        name: its name. shape: NumPy order.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def always_f32(self) -> bool:
        """Whether it is F32 in every file: vectors, norms and routers (llama.cpp's rule)."""
        return (
            len(self.shape) <= 1
            or self.name.endswith(("_norm.weight", *_ROUTERS))
            or not self.name.endswith(".weight")
        )

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    def plan(self, kind: SourceType) -> TensorPlan:
        """Return what is written into a file of that type."""
        return TensorPlan(self.name, self.shape[::-1], F32 if self.always_f32 else kind.ggml_type)


class Block:
    """Some rows of a tensor, and where they stand in the model.

    Args:
        source: [rows, columns], F32, F16 or BF16.
        rows: their numbers in the model's tensor.
        shift: added to every value, as float32.
        label: "folder[tensor", for messages.

    Attributes:
        values: [rows, columns], F32, F16 or BF16; not checked but where they were shifted.

    Raises:
        CheckpointError: a value to be shifted is NaN or infinite.
    """

    def __init__(
        self, source: np.ndarray[Any, Any], rows: np.ndarray[Any, np.dtype[np.intp]], shift: float, label: str
    ) -> None:
        self._rows = rows
        self._label = label
        self._columns = source.shape[1]
        self.values = widen(source, self.where) + np.float32(shift) if shift else source

    def where(self, index: int) -> str:
        """Return where the value at a flat index stands: "folder[tensor, row r, column c]"."""
        row, column = divmod(index, self._columns)
        return f"{self._label}, row {self._rows[row]}, column {column}]"


class Material(Protocol):
    """A model to convert, checked.

    Attributes:
        label: for progress.
        architecture: the class named in config.json, or the architecture of a GGUF.
        gguf_architecture: llama.cpp's name of it.
        metadata: of the files, without `general.file_type`.
        targets: tensors in the order written.
        names: the model's own tensors.
        sources: of them, those used, each once.
        ignored: of them, those left out.
        made: number of targets computed from the settings.
        notes: what a reader of the record should know.
    """

    label: str
    architecture: str
    gguf_architecture: str
    metadata: Mapping[str, GgufValue]
    targets: tuple[Target, ...]
    names: tuple[str, ...]
    sources: tuple[str, ...]
    ignored: tuple[str, ...]
    made: int
    notes: tuple[str, ...]

    def blocks(self, target: Target) -> Iterator[Block]:
        """Yield a target's values, row by row."""
        ...

    def forget(self, target: Target) -> None:
        """Let go of the memory that a target's values were read into."""
        ...

    def files(self) -> list[Path]:
        """Every file that decides the result."""
        ...


def rows_per_block(columns: int) -> int:
    """Rows of that many columns which make a block."""
    return max(1, BLOCK // max(1, columns))
