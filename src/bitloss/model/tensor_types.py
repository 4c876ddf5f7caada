"""Tensor types of ggml: number, name, block.

Those the `gguf` package knows have its names and sizes. llama.cpp gains types before that package does (Q2_0), so for
any other number the installed ggml is asked: ``ggml_type_name``, ``ggml_blck_size``, ``ggml_type_size``. A number that
neither knows is no type here: files for other versions of llama.cpp have such.

Source: ggml/include/ggml.h (enum ggml_type, up to GGML_TYPE_COUNT; ggml checks no bound itself).
"""

from __future__ import annotations

import ctypes as ct
import functools
import importlib.util
import sys
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

__all__ = ["Block", "TensorType", "asked_of_ggml", "block_of", "ggml_library", "tensor_types"]


class Block(NamedTuple):
    """What a type stores together.

    Attributes:
        weights: values of a block; rows are multiples of it.
        bytes: its size.
    """

    weights: int
    bytes: int


if TYPE_CHECKING:
    from gguf import GGMLQuantizationType as TensorType
else:

    class _Asking(IntEnum):
        @classmethod
        def _missing_(cls, value: object) -> IntEnum | None:
            """Make a member of what ggml knows, as `enum.Flag` does of combinations."""
            told = asked_of_ggml(value) if isinstance(value, int) else None
            if told is None:
                return None
            member = int.__new__(cls, value)
            member._name_, member._value_ = told[0], value
            return cls._value2member_map_.setdefault(value, member)

    # Members compare equal to those of the gguf package, and hash alike; they are not identical.
    TensorType = _Asking(
        "TensorType", {kind.name: kind.value for kind in GGMLQuantizationType}, module=__name__
    )
    TensorType.__doc__ = (
        "ggml's tensor types: of the `gguf` package, and by number what the installed ggml adds."
    )


def block_of(ggml_type: int) -> Block:
    """Return the block of a type.

    Raises:
        KeyError: neither the `gguf` package nor the installed ggml knows the type.
    """
    if ggml_type in GGML_QUANT_SIZES:
        return Block(*(int(n) for n in GGML_QUANT_SIZES[ggml_type]))
    told = asked_of_ggml(ggml_type)
    if told is None:
        raise KeyError(ggml_type)
    return told[1]


@functools.cache
def tensor_types() -> tuple[TensorType, ...]:
    """Return all types that are known here, by number."""
    added = [number for number in range(_count()) if number not in GGML_QUANT_SIZES and asked_of_ggml(number)]
    return tuple(TensorType(number) for number in sorted([*map(int, GGMLQuantizationType), *added]))


@functools.cache
def asked_of_ggml(ggml_type: int) -> tuple[str, Block] | None:
    """Ask the installed ggml for name ("Q2_0") and block of a type; None where it has none of that number."""
    if not 0 <= ggml_type < _count():
        return None
    base = ggml_library("ggml-base")
    base.ggml_type_name.restype = ct.c_char_p
    base.ggml_blck_size.restype = ct.c_int64
    base.ggml_type_size.restype = ct.c_size_t
    name, *sizes = (
        function(ct.c_int(ggml_type))
        for function in (base.ggml_type_name, base.ggml_blck_size, base.ggml_type_size)
    )
    block = Block(*sizes)
    return (
        (name.decode().upper(), block) if name and min(block) > 0 else None
    )  # gaps, and types given up, have none


def ggml_library(name: str) -> ct.CDLL:
    """Load the copy of a ggml library that libllama itself uses.

    Raises:
        OSError: the installed llama-cpp-python does not bring it.
    """
    package = importlib.util.find_spec("llama_cpp")
    folder = Path(package.origin if package and package.origin else "").parent / "lib"
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    prefix = "" if sys.platform == "win32" else "lib"
    return ct.CDLL(str(folder / f"{prefix}{name}.{suffix}"))


@functools.cache
def _count() -> int:
    """Return the number of types the installed ggml counts; 0 without it."""
    try:
        ggml_library("ggml-base")
    except OSError:
        return 0
    import llama_cpp  # takes a while, and most files have no type that needs it

    return int(llama_cpp.GGML_TYPE_COUNT)
