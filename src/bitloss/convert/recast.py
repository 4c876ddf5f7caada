"""A GGUF file of any precision, or a split one, as material: the same model in another type.

Quantized tensors are decoded as the `gguf` package does, which is what ggml computes with; nothing that quantizing lost
comes back, and the record says so. Metadata is carried over but for the file's own type and the marks of a split.
Empty strings and lists cannot be written and are left out, and noted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from gguf.quants import dequantize

from bitloss.convert.cast import SourceType
from bitloss.convert.material import Block, Target, rows_per_block
from bitloss.errors import UnsupportedError
from bitloss.model.gguf import GgufType, GgufValue, tensor_bytes
from bitloss.model.gguf_split import SPLIT_KEYS, open_model
from bitloss.model.tensor_types import TensorType

_FLOATS = {kind.ggml_type: kind.dtype for kind in SourceType}
_OWN = frozenset({"general.file_type", *SPLIT_KEYS})


class GgufMaterial:
    """See `bitloss.convert.material.Material`."""

    def __init__(self, path: Path) -> None:
        """Open and check a file; `path` is the first part of a split one.

        Raises:
            FileProblem, GgufError: the file is missing or damaged.
            UnsupportedError: a tensor that holds no weights (integers, or nothing), or whose type cannot be decoded.
        """
        self._file = open_model(path)
        self.label = path.name
        self.architecture = self.gguf_architecture = self._file.architecture
        self.targets = tuple(Target(info.name, info.shape[::-1]) for info in self._file.tensors.values())
        self.sources = self.names = tuple(self._file.tensors)
        self.ignored: tuple[str, ...] = ()
        self.made = 0
        for info in self._file.tensors.values():
            if info.n_elements == 0:
                raise UnsupportedError(
                    "a tensor without values", where=f"{path}[{info.name}]", found=list(info.shape)
                )
            if info.ggml_type not in _FLOATS:
                self._refuse_undecodable(path, info.name)
        dropped = [key for key, entry in self._file.metadata.items() if _empty(entry)]
        self.metadata: Mapping[str, GgufValue] = {
            key: entry for key, entry in self._file.metadata.items() if key not in _OWN and key not in dropped
        }
        kinds = sorted(
            {info.type_name for info in self._file.tensors.values() if info.ggml_type not in _FLOATS}
        )
        self.notes = tuple(f"{key} is empty and left out" for key in dropped)
        if kinds:
            self.notes += (f"decoded from {', '.join(kinds)}: what quantizing lost does not come back",)

    def blocks(self, target: Target) -> Iterator[Block]:
        """Yield a tensor's rows, decoded."""
        info = self._file.info(target.name)
        columns = info.shape[0] if info.shape else 1
        row = tensor_bytes((columns,), info.ggml_type)
        data = self._file.tensor_bytes(target.name).reshape(-1, row)
        step = rows_per_block(columns)
        label = f"{self._file.path}[{target.name}"
        for begin in range(0, len(data), step):
            rows, kind = data[begin : begin + step], TensorType(info.ggml_type)
            values = rows.view(_FLOATS[kind]) if kind in _FLOATS else dequantize(rows, kind)
            yield Block(values, np.arange(begin, begin + len(rows)), 0.0, label)

    def forget(self, target: Target) -> None:
        """Let go of the pages that a tensor was read into."""
        self._file.forget(target.name)

    def files(self) -> list[Path]:
        """Return the file, or all parts."""
        return list(self._file.paths)

    def _refuse_undecodable(self, path: Path, name: str) -> None:
        info = self._file.info(name)
        kind = TensorType(info.ggml_type)
        row = np.zeros((1, tensor_bytes((info.shape[0] if info.shape else 1,), kind)), np.uint8)
        try:
            if kind.name[0] in "IF" and kind.name[1:].isdigit():
                raise NotImplementedError
            with np.errstate(all="ignore"):
                dequantize(row, kind)
        except NotImplementedError:
            raise UnsupportedError(
                f"{info.type_name} cannot be decoded to float32", where=f"{path}[{name}]"
            ) from None


def _empty(entry: GgufValue) -> bool:
    return entry.value_type in {GgufType.STRING, GgufType.ARRAY} and len(entry.value) == 0
