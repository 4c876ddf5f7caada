"""The quantization types by name: file types (Q4_K_M, a mix) and tensor types (Q4_K, one encoding).

`QUANT_TYPES` is the table of `llama-quantize` (tools/quantize of the pinned llama.cpp) without COPY; a test
compares it with the installed tool. Which tensor gets which type in a mix is not written down here: it is
asked from the installed llama.cpp (`bitloss.quantize.plan`).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import llama_cpp
from gguf import GGML_QUANT_SIZES

from bitloss.errors import UsageError
from bitloss.model.tensor_types import TensorType, tensor_types

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bitloss.model.gguf import GgufFile


@dataclass(frozen=True, slots=True)
class QuantType:
    """A type of file `llama-quantize` makes.

    Attributes:
        name: as in file names and records ("Q4_K_M").
        ftype: value of `enum llama_ftype`.
    """

    name: str
    ftype: int


# name -> the llama_ftype constant of the installed llama_cpp, in the order llama-quantize lists them
_CONSTANTS: Mapping[str, str] = {
    "Q1_0": "MOSTLY_Q1_0",
    "Q2_0": "MOSTLY_Q2_0",
    "Q4_0": "MOSTLY_Q4_0",
    "Q4_1": "MOSTLY_Q4_1",
    "MXFP4_MOE": "MOSTLY_MXFP4_MOE",
    "Q5_0": "MOSTLY_Q5_0",
    "Q5_1": "MOSTLY_Q5_1",
    "IQ2_XXS": "MOSTLY_IQ2_XXS",
    "IQ2_XS": "MOSTLY_IQ2_XS",
    "IQ2_S": "MOSTLY_IQ2_S",
    "IQ2_M": "MOSTLY_IQ2_M",
    "IQ1_S": "MOSTLY_IQ1_S",
    "IQ1_M": "MOSTLY_IQ1_M",
    "TQ1_0": "MOSTLY_TQ1_0",
    "TQ2_0": "MOSTLY_TQ2_0",
    "Q2_K": "MOSTLY_Q2_K",
    "Q2_K_S": "MOSTLY_Q2_K_S",
    "IQ3_XXS": "MOSTLY_IQ3_XXS",
    "IQ3_S": "MOSTLY_IQ3_S",
    "IQ3_M": "MOSTLY_IQ3_M",
    "IQ3_XS": "MOSTLY_IQ3_XS",
    "Q3_K_S": "MOSTLY_Q3_K_S",
    "Q3_K_M": "MOSTLY_Q3_K_M",
    "Q3_K_L": "MOSTLY_Q3_K_L",
    "IQ4_NL": "MOSTLY_IQ4_NL",
    "IQ4_XS": "MOSTLY_IQ4_XS",
    "Q4_K_S": "MOSTLY_Q4_K_S",
    "Q4_K_M": "MOSTLY_Q4_K_M",
    "Q5_K_S": "MOSTLY_Q5_K_S",
    "Q5_K_M": "MOSTLY_Q5_K_M",
    "Q6_K": "MOSTLY_Q6_K",
    "Q8_0": "MOSTLY_Q8_0",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "F32": "ALL_F32",
}
QUANT_TYPES: Mapping[str, QuantType] = {
    name: QuantType(name, int(getattr(llama_cpp, f"LLAMA_FTYPE_{constant}")))
    for name, constant in _CONSTANTS.items()
}
ALIASES: Mapping[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# What ggml_quantize_chunk can encode; it aborts the process on any other type. Of types newer than the gguf package
# (Q2_0), those that files are made of.
TENSOR_TYPES: Mapping[str, TensorType] = {
    kind.name: kind
    for kind in tensor_types()
    if (kind in GGML_QUANT_SIZES or kind.name in QUANT_TYPES)
    and kind.name not in {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
}


def parse_quant_type(name: str) -> QuantType:
    """Return the file type of that name, in any case; aliases as in llama-quantize (Q4_K is Q4_K_M).

    Raises:
        UsageError: no such type; the message names a close one.
    """
    wanted = name.strip().upper()
    wanted = ALIASES.get(wanted, wanted)
    if wanted in QUANT_TYPES:
        return QUANT_TYPES[wanted]
    raise _unknown("unknown quantization type", name, [*QUANT_TYPES, *ALIASES])


def parse_tensor_type(name: str) -> TensorType:
    """Return the tensor type of that name, in any case.

    Raises:
        UsageError: no such type, or not one that can be quantized to; the message names a close one.
    """
    wanted = name.strip().upper()
    if wanted in TENSOR_TYPES:
        return TENSOR_TYPES[wanted]
    raise _unknown("unknown tensor type", name, list(TENSOR_TYPES))


def _unknown(what: str, name: str, known: list[str]) -> UsageError:
    close = difflib.get_close_matches(name.strip().upper(), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known types: {', '.join(known)}"
    return UsageError(what, where=name, mend=hint)


def type_of_file(file: GgufFile) -> str:
    """Name of ``general.file_type``, as llama-quantize calls it; the commonest tensor type without it."""
    ftype = file.value("general.file_type", None)
    for kind in QUANT_TYPES.values():
        if kind.ftype == ftype:
            return kind.name
    sizes: dict[str, int] = {}
    for info in file.tensors.values():
        sizes[info.type_name] = sizes.get(info.type_name, 0) + info.n_elements
    return max(sizes, key=lambda name: sizes[name])
