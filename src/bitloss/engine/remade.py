"""Logits of an engine made from its hidden states: the same bits, sooner, in less memory.

llama.cpp computes the logits of a whole micro-batch and copies them before they can be read: twice 512 x vocabulary
float32, which no cache holds. Where `bitloss.engine.product` has a faster product for the output weight, the engine
stops at its hidden states instead, and their logits are made slice by slice, each used while it is still in a cache.
(libllama still fills what it would hand out, once a micro-batch, with logits it has not computed.)

That the bits are the engine's is checked for every model, on the first tokens it is given; one that gives others, or
has no node ``result_norm``, computes its logits itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bitloss import _native
from bitloss.engine.context import usable_cores
from bitloss.engine.output_layer import OutputLayer, after_the_product, output_weight_name
from bitloss.errors import BitlossError, UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bitloss.engine.base import EngineOptions
    from bitloss.engine.llama import LlamaEngine
    from bitloss.model.gguf import GgufFile

_CHECKED = 64
"""Tokens; the second half of them is compared."""
_LEAST = 8


def can_be_remade(file: GgufFile, options: EngineOptions) -> bool:
    """Whether logits of a model may be made from its hidden states, going by its file and where it is computed."""
    info = file.tensors.get(output_weight_name(file))
    if options.n_gpu_layers or info is None or len(info.shape) != 2:
        return False
    try:
        after = after_the_product(file)
    except UnsupportedError:
        return False
    return not after and bool(_native.product_ways(info.ggml_type, *info.shape))


def remaking_layer(engine: LlamaEngine, tokens: NDArray[np.int32]) -> OutputLayer | None:
    """The output layer that gives the engine's bits from its hidden states; None where none is known to.

    Args:
        engine: that computes on the CPU.
        tokens: int32 [n], the beginning of what it will be asked for.
    """
    if not can_be_remade(engine.file, engine.options) or len(tokens) < _LEAST:
        return None
    try:
        hidden, logits = engine.hidden_and_logits(tokens[:_CHECKED])
        layer = OutputLayer(engine.path, threads=engine.options.threads or usable_cores())
    except (BitlossError, OSError, MemoryError):
        # the file may be gone since it was loaded; a fault of the model is told when its logits are computed
        return None
    for part in layer.slices(len(hidden)):
        told = logits[part].view(np.uint32)
        # the first is libggml's product, the second the faster one, or again libggml's
        if not all(np.array_equal(layer.logits(hidden[part]).view(np.uint32), told) for _ in range(2)):
            layer.close()
            return None
    if not layer.faster:
        layer.close()
        return None
    return layer
