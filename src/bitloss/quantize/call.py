"""The call of `llama_model_quantize`: parameters as C structs that stay alive, failures as our errors."""

from __future__ import annotations

import ctypes as ct
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from bitloss.engine.llama_log import captured_log, last_lines
from bitloss.errors import BitlossError, EngineError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_TENSOR = re.compile(r"^\[ *\d+/ *\d+\] (.+?) *- \[", re.MULTILINE)
# tensor_type_fallback of llama.cpp says this before it gives up: not every type has another one for odd rows.
_NO_FALLBACK = re.compile(
    r"warning: (?P<name>.+?) *- ncols +(?P<row>\d+) not divisible by +(?P<block>\d+) "
    r"\(required for type +(?P<kind>\S+?)\) *(?=llama_model_quantize: failed|\Z)"
)
_VALUE_BYTES = 127  # llama_model_kv_override.val_str, less the closing zero
# llama.cpp would hold up to 8 GiB of one tensor; rows are independent, so less gives the same bytes.
MAX_BUFFER_BYTES = 1 << 30
NOT_FINITE = "convert the model again; if its own weights are not finite, no type can hold them"


@dataclass(frozen=True, slots=True)
class TypeRules:
    """What decides which tensor gets which type.

    Attributes:
        ftype: value of `enum llama_ftype`.
        has_imatrix: an importance matrix is given; it changes some types, not only values.
        tensor_types: (ECMAScript pattern searched in the tensor name, ggml type); the first that matches
            holds.
        output_tensor_type: ggml type of output.weight, None for the mix's.
        token_embedding_type: ggml type of token_embd.weight, None for the mix's.
        pure: one type for all, no mix.
        keep_split: tensors in the order of the source's parts; a mix goes by that order.
    """

    ftype: int
    has_imatrix: bool = False
    tensor_types: tuple[tuple[str, int], ...] = ()
    output_tensor_type: int | None = None
    token_embedding_type: int | None = None
    pure: bool = False
    keep_split: bool = False


@dataclass(slots=True)
class QuantizeCall:
    """One call; everything C reads is owned by this object.

    Attributes:
        rules: which tensor gets which type.
        weights: tensor name -> float32 [n_mat * n_in] for the quantizer.
        metadata: keys to set in the output, in order; int as UINT32, str cut to 127 bytes.
        threads: threads to use, at least 1.
        allow_requantize: accept quantized tensors as input.
    """

    rules: TypeRules
    weights: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    metadata: Sequence[tuple[str, int | str]] = ()
    threads: int = 1
    allow_requantize: bool = False
    _alive: list[Any] = field(default_factory=list, init=False, repr=False)

    def run(self, source: Path, out: Path | None, listener: Callable[[str], None] | None = None) -> list[str]:
        """Quantize `source` into `out`, or only log the plan when `out` is None.

        Args:
            source: a GGUF file that `GgufFile` has accepted.
            out: where to write.
            listener: told every piece of the log as it comes.

        Returns:
            The pieces of llama.cpp's log.

        Raises:
            UnsupportedError: a tensor's rows fit no block of the type, and llama.cpp has no other type for them.
            EngineError: llama.cpp gave up; its last words are in the message.
        """
        params = self._params(dry_run=out is None)
        with captured_log(listener) as log:
            llama_cpp.llama_backend_init()
            code = llama_cpp.llama_model_quantize(
                os.fsencode(source), b"" if out is None else os.fsencode(out), ct.byref(params)
            )
        if code != 0:
            raise _failure(source, log)
        return log

    def _params(self, *, dry_run: bool) -> Any:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = self.rules.ftype
        params.nthread = self.threads
        params.pure = self.rules.pure
        params.keep_split = self.rules.keep_split
        params.dry_run = dry_run
        params.allow_requantize = self.allow_requantize
        params.max_buf_size = MAX_BUFFER_BYTES
        if self.rules.output_tensor_type is not None:
            params.output_tensor_type = self.rules.output_tensor_type
        if self.rules.token_embedding_type is not None:
            params.token_embedding_type = self.rules.token_embedding_type
        if self.rules.has_imatrix:
            params.imatrix = self._imatrix()
        if self.metadata:
            params.kv_overrides = self._metadata()
        if self.rules.tensor_types:
            params.tt_overrides = self._tensor_types()
        return params

    def _kept(self, array: Any) -> Any:
        self._alive.append(array)
        return array

    def _imatrix(self) -> Any:
        """Return the array of weights, closed by a null name; empty still says "with imatrix"."""
        item = llama_cpp.llama_model_imatrix_data
        array = self._kept((item * (len(self.weights) + 1))())
        for slot, (name, values) in zip(array, self.weights.items(), strict=False):
            data = self._kept(np.ascontiguousarray(values, dtype=np.float32))
            slot.name = self._kept(_c_string(name))
            slot.data = data.ctypes.data_as(ct.POINTER(ct.c_float))
            slot.size = data.size
        return array

    def _metadata(self) -> Any:
        item = llama_cpp.llama_model_kv_override
        array = self._kept((item * (len(self.metadata) + 1))())
        for slot, (key, value) in zip(array, self.metadata, strict=False):
            slot.key = _c_string(key)
            if isinstance(value, int):
                slot.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT
                slot.value.val_i64 = value
            else:
                slot.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
                slot.value.val_str = cut_utf8(value, _VALUE_BYTES).encode()
        return array

    def _tensor_types(self) -> Any:
        item = llama_cpp.llama_model_tensor_override
        array = self._kept((item * (len(self.rules.tensor_types) + 1))())
        for slot, (pattern, kind) in zip(array, self.rules.tensor_types, strict=False):
            slot.pattern = self._kept(_c_string(pattern))
            slot.type = kind
        return array


def _failure(source: Path, log: list[str]) -> BitlossError:
    """Name the tensor at hand and what llama.cpp said last."""
    told = "".join(log)
    if "no tensor type fallback" in told and (match := _NO_FALLBACK.search(told)):
        return UnsupportedError(
            f"{match['kind'].upper()} does not fit the row length, and llama.cpp has no other type for it",
            where=f"{source}[{match['name']}]",
            expected=f"a multiple of {match['block']}",
            found=match["row"],
            mend="leave this type out, or give tensors of such rows another one with --tensor-type REGEX=TYPE",
        )
    at_hand = _TENSOR.findall(told)
    said = last_lines(log).rsplit("failed to quantize: ", 1)[-1]
    mends = {"data validation failed": "a value is too large for the type", "has invalid data": NOT_FINITE}
    return EngineError(
        "llama.cpp could not quantize the model",
        where=f"{source}[{at_hand[-1]}]" if at_hand else source,
        found=said,
        mend=next((mend for words, mend in mends.items() if words in said), None),
    )


def cut_utf8(text: str, limit: int) -> str:
    """Return the longest start of `text` that takes at most `limit` bytes and splits no character."""
    return text.encode()[:limit].decode(errors="ignore")


def _c_string(text: str) -> bytes:
    raw = text.encode()
    if b"\0" in raw:
        raise UsageError("a zero byte in a name or pattern", where=text)
    return raw
