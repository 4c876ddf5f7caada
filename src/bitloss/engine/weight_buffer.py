"""Where llama.cpp keeps the weight of a product on the CPU, which decides the kernel that computes it.

Besides plain memory the CPU backend has "extra" buffer types: AMX (Intel), and repacked blocks. A weight of a type and
shape that one of them takes is kept there, and its products are computed by that buffer's own kernels, which sum in
another order than ``ggml_mul_mat`` on plain memory. So logits that shall have the engine's bits need the weight in the
same kind of buffer.

Source: src/llama-model.cpp (make_cpu_buft_list), src/llama-model-loader.cpp (select_weight_buft and
weight_buft_supported).
"""

from __future__ import annotations

import ctypes as ct

from bitloss.engine.ggml import TYPE_F32, InitParams, Tensor, ggml

_ROWS_ASKED = 512  # with so many rows llama.cpp asks whether a buffer type takes a weight
_ROOM = 1 << 16


def extra_buffer_type(ggml_type: int, width: int, n_out: int) -> int | None:
    """Say which extra buffer type llama.cpp chooses for the weight of a product on the CPU.

    Args:
        ggml_type: of the weight.
        width: entries of a row of the weight.
        n_out: its rows.

    Returns:
        Address of the ``ggml_backend_buffer_type``; None for plain memory.
    """
    g = ggml()
    registered = g.ggml_backend_cpu_reg()
    device = g.ggml_backend_reg_dev_get(registered, 0)
    address = g.ggml_backend_reg_get_proc_address(registered, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return None
    kinds = ct.CFUNCTYPE(ct.POINTER(ct.c_void_p), ct.c_void_p)(address)(device)
    context = g.ggml_init(InitParams(_ROOM, None, True))
    try:
        weight = g.ggml_new_tensor_2d(context, ggml_type, width, n_out)
        product = g.ggml_mul_mat(context, weight, g.ggml_new_tensor_2d(context, TYPE_F32, width, _ROWS_ASKED))
        for kind in _addresses(kinds):
            weight.contents.buffer = g.ggml_backend_buft_alloc_buffer(kind, 0)
            takes = g.ggml_backend_dev_supports_op(device, product)
            g.ggml_backend_buffer_free(weight.contents.buffer)
            if takes:
                return kind
        return None
    finally:
        g.ggml_free(context)


def _addresses(array: ct._Pointer[ct.c_void_p]) -> list[int]:
    """Addresses of an array that ends with NULL; none of a null pointer."""
    found: list[int] = []
    while array and (address := array[len(found)]):
        found.append(int(address))
    return found


class ExtraWeight:
    """A weight in a buffer of an extra type, as the engine keeps it.

    Args:
        context: ggml context that holds nothing but the weight, without data.
        weight: the tensor.
        kind: address of the buffer type.
        data: address of the weight's bytes, as a GGUF file has them; copied.

    Raises:
        MemoryError: there is no room for the copy.
    """

    def __init__(self, context: int, weight: ct._Pointer[Tensor], *, kind: int, data: int) -> None:
        self._g = ggml()
        self._buffer = self._g.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
        if not self._buffer:
            raise MemoryError(f"no room for {self._g.ggml_nbytes(weight)} bytes")
        self._g.ggml_backend_tensor_set(weight, data, 0, self._g.ggml_nbytes(weight))

    def close(self) -> None:
        """Free the copy."""
        if self._buffer:
            self._g.ggml_backend_buffer_free(self._buffer)
            self._buffer = None
