"""The few parts of ggml bitloss touches directly, through ctypes.

Three uses: an eval callback is handed a ``ggml_tensor *`` and must read its operation, shape, sources and data; base
logits are made again from stored hidden states with the engine's own matrix product; and blocks of quantized types are
encoded and decoded by libggml's own functions (`bitloss.quantize.codec`).

The layout of ``struct ggml_tensor`` is not part of ggml's interface, so `check_layout` compares what we read with what
ggml's functions say, on tensors made for the purpose, before anything relies on it.

Source: ggml/include/ggml.h (struct ggml_tensor), ggml/include/ggml-cpu.h, ggml/include/ggml-backend.h.
"""

from __future__ import annotations

import ctypes as ct
import functools
from typing import Any

from bitloss.errors import EngineLayoutError, UnsupportedError
from bitloss.model.tensor_types import ggml_library

MAX_DIMS = 4
MAX_SRC = 10
MAX_NAME = 64
MAX_OP_PARAMS = 64

TYPE_F32 = 0
TYPE_F16 = 1
TYPE_Q8_0 = 8
TYPE_Q4_K = 12
TYPE_Q6_K = 14
TYPE_I32 = 26
TYPE_BF16 = 30


class Tensor(ct.Structure):
    """``struct ggml_tensor``."""


Tensor._fields_ = [  # a struct that points to itself gets its fields after its name
    ("type", ct.c_int),
    ("buffer", ct.c_void_p),
    ("ne", ct.c_int64 * MAX_DIMS),
    ("nb", ct.c_size_t * MAX_DIMS),
    ("op", ct.c_int),
    ("op_params", ct.c_int32 * (MAX_OP_PARAMS // 4)),
    ("flags", ct.c_int32),
    ("src", ct.POINTER(Tensor) * MAX_SRC),
    ("view_src", ct.POINTER(Tensor)),
    ("view_offs", ct.c_size_t),
    ("data", ct.c_void_p),
    ("name", ct.c_char * MAX_NAME),
    ("extra", ct.c_void_p),
    ("padding", ct.c_char * 8),
]

TensorPointer = ct.POINTER(Tensor)


class TypeTraits(ct.Structure):
    """``struct ggml_type_traits``."""

    _fields_ = (
        ("type_name", ct.c_char_p),
        ("blck_size", ct.c_int64),
        ("blck_size_interleave", ct.c_int64),
        ("type_size", ct.c_size_t),
        ("is_quantized", ct.c_bool),
        ("to_float", ct.CFUNCTYPE(None, ct.c_void_p, ct.c_void_p, ct.c_int64)),
        ("from_float_ref", ct.c_void_p),
    )


class InitParams(ct.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (("mem_size", ct.c_size_t), ("mem_buffer", ct.c_void_p), ("no_alloc", ct.c_bool))


_SIGNATURES: dict[str, dict[str, tuple[Any, list[Any]]]] = {
    "ggml-base": {
        "ggml_init": (ct.c_void_p, [InitParams]),
        "ggml_free": (None, [ct.c_void_p]),
        "ggml_new_tensor_3d": (TensorPointer, [ct.c_void_p, ct.c_int, ct.c_int64, ct.c_int64, ct.c_int64]),
        "ggml_new_tensor_2d": (TensorPointer, [ct.c_void_p, ct.c_int, ct.c_int64, ct.c_int64]),
        "ggml_mul_mat": (TensorPointer, [ct.c_void_p, TensorPointer, TensorPointer]),
        "ggml_mul_mat_id": (TensorPointer, [ct.c_void_p, TensorPointer, TensorPointer, TensorPointer]),
        "ggml_set_name": (TensorPointer, [TensorPointer, ct.c_char_p]),
        "ggml_get_name": (ct.c_char_p, [TensorPointer]),
        "ggml_op_name": (ct.c_char_p, [ct.c_int]),
        "ggml_type_name": (ct.c_char_p, [ct.c_int]),
        "ggml_nbytes": (ct.c_size_t, [TensorPointer]),
        "ggml_nrows": (ct.c_int64, [TensorPointer]),
        "ggml_row_size": (ct.c_size_t, [ct.c_int, ct.c_int64]),
        "ggml_get_data": (ct.c_void_p, [TensorPointer]),
        "ggml_tensor_overhead": (ct.c_size_t, []),
        "ggml_graph_overhead": (ct.c_size_t, []),
        "ggml_new_graph": (ct.c_void_p, [ct.c_void_p]),
        "ggml_build_forward_expand": (None, [ct.c_void_p, TensorPointer]),
        "ggml_scale_inplace": (TensorPointer, [ct.c_void_p, TensorPointer, ct.c_float]),
        "ggml_tanh_inplace": (TensorPointer, [ct.c_void_p, TensorPointer]),
        "ggml_backend_tensor_get": (None, [TensorPointer, ct.c_void_p, ct.c_size_t, ct.c_size_t]),
        "ggml_backend_buffer_is_host": (ct.c_bool, [ct.c_void_p]),
        "ggml_backend_tensor_set": (None, [TensorPointer, ct.c_void_p, ct.c_size_t, ct.c_size_t]),
        "ggml_backend_alloc_ctx_tensors_from_buft": (ct.c_void_p, [ct.c_void_p, ct.c_void_p]),
        "ggml_backend_buft_alloc_buffer": (ct.c_void_p, [ct.c_void_p, ct.c_size_t]),
        "ggml_backend_buffer_free": (None, [ct.c_void_p]),
        "ggml_backend_dev_supports_op": (ct.c_bool, [ct.c_void_p, TensorPointer]),
        "ggml_backend_reg_dev_get": (ct.c_void_p, [ct.c_void_p, ct.c_size_t]),
        "ggml_backend_reg_get_proc_address": (ct.c_void_p, [ct.c_void_p, ct.c_char_p]),
        "ggml_commit": (ct.c_char_p, []),
        "ggml_version": (ct.c_char_p, []),
        "ggml_validate_row_data": (ct.c_bool, [ct.c_int, ct.c_void_p, ct.c_size_t]),
        "ggml_get_type_traits": (ct.POINTER(TypeTraits), [ct.c_int]),
        "ggml_quantize_init": (None, [ct.c_int]),
        "ggml_set_abort_callback": (ct.c_void_p, [ct.c_void_p]),
        "ggml_quantize_chunk": (
            ct.c_size_t,
            [ct.c_int, ct.c_void_p, ct.c_void_p, ct.c_int64, ct.c_int64, ct.c_int64, ct.c_void_p],
        ),
    },
    "ggml-cpu": {
        "ggml_cpu_init": (None, []),
        "ggml_backend_cpu_reg": (ct.c_void_p, []),
        "ggml_graph_compute_with_ctx": (ct.c_int, [ct.c_void_p, ct.c_void_p, ct.c_int]),
    },
}


class Ggml:
    """ggml's functions with their argument types set."""

    def __init__(self) -> None:
        for library, functions in _SIGNATURES.items():
            try:
                loaded = ggml_library(library)
            except OSError as error:
                raise UnsupportedError(
                    "the installed llama-cpp-python does not bring this library",
                    where=f"lib{library}",
                    found=str(error),
                    mend="install llama-cpp-python with its own build of llama.cpp (as pyproject.toml does)",
                ) from error
            for name, (result, arguments) in functions.items():
                function = getattr(loaded, name, None)
                if function is None:
                    raise EngineLayoutError(
                        "function missing from the installed ggml",
                        where=name,
                        mend="install the llama-cpp-python version pinned in pyproject.toml",
                    )
                function.restype = result
                function.argtypes = arguments
                setattr(self, name, function)

    def __getattr__(
        self, name: str
    ) -> ct._NamedFuncPointer:  # the attributes set above, for the type checker
        raise AttributeError(name)


@functools.cache
def ggml() -> Ggml:
    """The checked library (loaded and checked once per process).

    Raises:
        EngineLayoutError: a struct that is read directly is not laid out as expected.
    """
    library = Ggml()
    library.ggml_cpu_init()
    check_layout(library)
    return library


def check_layout(g: Ggml) -> None:
    """Compare what we read in ``struct ggml_tensor`` with what ggml's own functions say.

    A plain and an expert product of known shapes are laid out in a scratch context; every field used anywhere is read.

    Raises:
        EngineLayoutError: names the first field that differs.
    """
    context = g.ggml_init(InitParams(1 << 20, None, False))
    if not context:
        raise EngineLayoutError("ggml_init gave no context", where="ggml")
    try:
        weight = g.ggml_new_tensor_3d(context, TYPE_F32, 64, 48, 3)
        x = g.ggml_new_tensor_3d(context, TYPE_F32, 64, 2, 7)
        ids = g.ggml_new_tensor_2d(context, TYPE_I32, 2, 7)
        g.ggml_set_name(weight, b"blk.0.ffn_up_exps.weight")
        experts = g.ggml_mul_mat_id(context, weight, x, ids)
        plain = g.ggml_mul_mat(context, g.ggml_new_tensor_2d(context, TYPE_F32, 64, 48), x)
        found: dict[str, tuple[object, object]] = {
            "name": (weight.contents.name, g.ggml_get_name(weight)),
            "type": (g.ggml_type_name(ids.contents.type), b"i32"),
            "ne": (list(experts.contents.ne), [48, 2, 7, 1]),
            "nb": (list(x.contents.nb), [4, 256, 512, 3584]),
            "op": (g.ggml_op_name(experts.contents.op), b"MUL_MAT_ID"),
            "op of a plain product": (g.ggml_op_name(plain.contents.op), b"MUL_MAT"),
            "src[0]": (_address(experts.contents.src[0]), _address(weight)),
            "src[1]": (_address(experts.contents.src[1]), _address(x)),
            "src[2]": (_address(experts.contents.src[2]), _address(ids)),
            "src[3]": (bool(experts.contents.src[3]), False),
            "data": (x.contents.data, g.ggml_get_data(x)),
            "nrows": (x.contents.ne[1] * x.contents.ne[2] * x.contents.ne[3], g.ggml_nrows(x)),
            "buffer": (x.contents.buffer, None),
            "type traits": (_traits(g, TYPE_Q4_K), (b"q4_K", 256, 144, True, True)),
        }
        for field, (read, told) in found.items():
            if read != told:
                raise EngineLayoutError(
                    f"ggml's structs are not laid out as expected at field {field}",
                    where="installed ggml",
                    expected=told,
                    found=read,
                    mend="install the llama-cpp-python version pinned in pyproject.toml",
                )
    finally:
        g.ggml_free(context)


def _traits(g: Ggml, kind: int) -> tuple[bytes, int, int, bool, bool]:
    t = g.ggml_get_type_traits(kind).contents
    return t.type_name, t.blck_size, t.type_size, t.is_quantized, bool(t.to_float)


def _address(pointer: object) -> int | None:
    return ct.cast(pointer, ct.c_void_p).value  # type: ignore[arg-type]


@functools.cache
def op_codes() -> dict[str, int]:
    """Numbers of the operations bitloss looks for, asked from ggml by name."""
    g = ggml()
    codes: dict[str, int] = {}
    context = g.ggml_init(InitParams(1 << 20, None, False))
    try:
        weight = g.ggml_new_tensor_3d(context, TYPE_F32, 32, 32, 2)
        x = g.ggml_new_tensor_3d(context, TYPE_F32, 32, 1, 2)
        ids = g.ggml_new_tensor_2d(context, TYPE_I32, 1, 2)
        codes["MUL_MAT_ID"] = g.ggml_mul_mat_id(context, weight, x, ids).contents.op
        plain = g.ggml_mul_mat(context, g.ggml_new_tensor_2d(context, TYPE_F32, 32, 32), x)
        codes["MUL_MAT"] = plain.contents.op
    finally:
        g.ggml_free(context)
    return codes
