"""Writer of GGUF version 3: the header through the `gguf` package, tensor data streamed in the planned order.

Left out: big-endian, and which tensors go into which part of a split model (`bitloss.model.gguf_split`). Empty strings
and empty arrays cannot be written (the `gguf` package drops the first and refuses the second); leave such keys out.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from bitloss.errors import GgufError
from bitloss.model.gguf_header import DEFAULT_ALIGNMENT, GgufType, GgufValue, tensor_bytes
from bitloss.store.atomic import file_problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor to be written.

    Attributes:
        name: its name, at most 63 bytes.
        shape: ggml order (ne0 first).
        ggml_type: a value of `gguf.GGMLQuantizationType` (that package writes the header).
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        return tensor_bytes(self.shape, self.ggml_type)


class GgufStream:
    """A GGUF file being written: the header at once, then the tensors one at a time.

    Peak memory is the caller's one tensor, or piece of a tensor. Use it as a context manager; write to a
    temporary path and rename.

    Args:
        path: where to write; an existing file is overwritten.
        metadata: key -> value in the order wanted, `general.architecture` first; only a later part of a split model
            has none.
        tensors: what `write` will be given, in that order.

    Raises:
        DiskFull: the disk ran out.
        FileProblem: the file cannot be written.
        GgufError: a plan the format cannot hold.
    """

    def __init__(self, path: Path, metadata: Mapping[str, GgufValue], tensors: Sequence[TensorPlan]) -> None:
        self.path = path
        self._plans = list(tensors)
        self._next = 0
        self._filled = 0
        writer = _Writer(None, arch="")
        writer.kv_data[0].clear()
        for key in sorted(metadata, key=lambda key: key != "general.architecture"):
            writer.add_key_value(key, *_packed(key, metadata[key]))
        alignment = metadata.get("general.alignment")
        writer.data_alignment = self._alignment = int(alignment.value) if alignment else DEFAULT_ALIGNMENT
        for plan in self._plans:
            kind = GGMLQuantizationType(plan.ggml_type)
            try:
                writer.add_tensor_info(
                    plan.name, plan.shape[::-1], np.dtype(np.float32), plan.n_bytes, raw_dtype=kind
                )
            except ValueError as error:
                raise GgufError(str(error), where=path) from None
        try:
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            self._file = writer.fout[0]
            self._pad()
            self._file.flush()
        except (OSError, ValueError, struct.error) as error:
            with contextlib.suppress(OSError):
                writer.close()
            if isinstance(error, OSError):
                raise file_problem(error, path) from error
            raise GgufError(f"a value the format cannot hold ({error})", where=path) from None

    @property
    def at(self) -> int:
        """Bytes given to the system so far: header, tensors and what aligns them."""
        return int(self._file.tell())

    def write(self, data: np.ndarray[Any, Any]) -> None:
        """Write the next planned tensor whole: data of exactly its bytes, any dtype.

        Raises:
            DiskFull: the disk ran out.
            GgufError: more tensors than planned, or data of another size.
        """
        if self._next < len(self._plans) and (self._filled or data.nbytes != self._plans[self._next].n_bytes):
            plan = self._plans[self._next]
            raise GgufError(
                "tensor data of another size than planned",
                where=f"{self.path}[{plan.name}]",
                expected=f"{plan.n_bytes} bytes",
                found=self._filled + data.nbytes,
            )
        self.append(data)

    def append(self, piece: np.ndarray[Any, Any]) -> None:
        """Write the next piece of the tensor under way; the next tensor begins when its bytes are complete.

        Raises:
            DiskFull: the disk ran out.
            GgufError: more tensors than planned, or more data than the tensor holds.
        """
        if self._next == len(self._plans):
            raise GgufError("more tensors than planned", where=self.path, expected=len(self._plans))
        plan = self._plans[self._next]
        self._filled += piece.nbytes
        if self._filled > plan.n_bytes:
            raise GgufError(
                "more tensor data than planned",
                where=f"{self.path}[{plan.name}]",
                expected=f"{plan.n_bytes} bytes",
                found=self._filled,
            )
        try:
            # Not ndarray.tofile: its error on a full disk carries no errno.
            self._file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
            if self._filled == plan.n_bytes:
                self._pad()
                self._next, self._filled = self._next + 1, 0
            self._file.flush()
        except OSError as error:
            raise file_problem(error, self.path) from error

    def close(self) -> None:
        """Finish the file.

        Raises:
            GgufError: planned tensors are missing.
            DiskFull: the disk ran out.
        """
        try:
            self._file.close()
        except OSError as error:
            raise file_problem(error, self.path) from error
        if self._next < len(self._plans):
            raise GgufError(
                "a planned tensor was not written", where=f"{self.path}[{self._plans[self._next].name}]"
            )

    def __enter__(self) -> GgufStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(OSError):  # the first error is the one to tell
            self._file.close()

    def _pad(self) -> None:
        over = self._file.tell() % self._alignment
        if over:
            self._file.write(bytes(self._alignment - over))


class _Writer(GGUFWriter):  # type: ignore[misc]  # the package has no types
    """Packs an array at once; the package's way, a call for each item, takes a second for a large vocabulary."""

    def _pack_val(
        self, val: Any, vtype: GGUFValueType, add_vtype: bool, sub_type: GGUFValueType | None = None
    ) -> bytes:
        if vtype is not GGUFValueType.ARRAY or sub_type is None:
            return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))
        assert add_vtype
        head = struct.pack("<IIQ", vtype, sub_type, len(val))
        if sub_type is GGUFValueType.STRING:
            texts = [text.encode() for text in val]
            return head + b"".join(part for text in texts for part in (struct.pack("<Q", len(text)), text))
        return head + struct.pack(f"<{len(val)}{self._simple_value_packing[sub_type]}", *val)


def _packed(key: str, entry: GgufValue) -> tuple[Any, GGUFValueType, GGUFValueType | None]:
    """Return (value, type, item type) as `GGUFWriter.add_key_value` wants them."""
    value = entry.value.tolist() if isinstance(entry.value, np.ndarray) else entry.value
    if entry.value_type is GgufType.ARRAY:
        if entry.item_type is None or len(value) == 0:
            raise GgufError("an array needs items and their type", where=key)
        return value, GGUFValueType.ARRAY, GGUFValueType(int(entry.item_type))
    return value, GGUFValueType(int(entry.value_type)), None
