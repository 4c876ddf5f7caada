"""How much memory a model will take, before it is loaded.

An estimate from the file's header, of what llama.cpp holds while it computes chunks: the weights (mapped, or packed
anew by a CPU or GPU backend: one copy is in use either way), the cache of keys and values, the logits of a micro-batch
(once in the graph, once handed out; where they are made from hidden states, slices instead of the former, and the
output weight mapped once more) and the widest activations. Compared with the peak measured in
``tests/unit/engine/test_memory.py``.
"""

from __future__ import annotations

import os
from pathlib import Path

from bitloss.engine.base import EngineOptions
from bitloss.engine.output_layer import output_weight_name, rows_per_slice
from bitloss.engine.remade import can_be_remade
from bitloss.model.gguf import GgufFile, tensor_bytes

_FIXED = 48 << 20  # graph, scheduler, tokenizer tables, buffers of fixed size
_F16, _F32 = 2, 4


def engine_bytes(file: GgufFile, options: EngineOptions, *, n_ctx: int) -> int:
    """Estimate the bytes one model takes while chunks of ``n_ctx`` tokens are computed and logits handed out."""
    prefix = file.architecture
    n_embd = _number(file, f"{prefix}.embedding_length")
    n_head = max(1, _number(file, f"{prefix}.attention.head_count"))
    n_head_kv = _number(file, f"{prefix}.attention.head_count_kv") or n_head
    key = _number(file, f"{prefix}.attention.key_length") or n_embd // n_head
    value = _number(file, f"{prefix}.attention.value_length") or n_embd // n_head
    n_layer = _number(file, f"{prefix}.block_count")
    n_ff = _number(file, f"{prefix}.feed_forward_length")
    used = max(1, _number(file, f"{prefix}.expert_used_count"))
    n_vocab = len(file.value("tokenizer.ggml.tokens", []))
    cells = n_ctx * options.side_by_side(n_ctx)
    cache = cells * n_layer * n_head_kv * (key + value) * (_F32 if options.cache_f32 else _F16)
    handed_out = options.micro_batch * n_vocab * _F32
    if can_be_remade(file, options):
        info = file.tensors[output_weight_name(file)]
        slices = 2 * rows_per_slice(n_vocab) * n_vocab * _F32
        logits = handed_out + slices + tensor_bytes(info.shape, info.ggml_type)
    else:
        logits = 2 * handed_out
    attention = n_head * cells * options.micro_batch * _F32  # where flash attention does not apply
    activations = options.micro_batch * (4 * n_embd + 3 * n_ff * used + 2 * n_head * (key + value)) * _F32
    return file.size + cache + logits + attention + activations + _FIXED


def available_bytes() -> int:
    """Memory this machine can still give, without pushing anything out: ``MemAvailable``, or a cgroup's rest."""
    free = _meminfo()
    limit, used = (_cgroup(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free


def _meminfo() -> int:
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _cgroup(name: str) -> int | None:
    try:
        return int((Path("/sys/fs/cgroup") / name).read_text())
    except (OSError, ValueError):  # none, or "max"
        return None


def _number(file: GgufFile, key: str) -> int:
    """A hyperparameter; the largest, where layers differ; 0 where there is none."""
    value = file.value(key, 0)
    values = value if isinstance(value, list) else [value]
    return max((int(v) for v in values if isinstance(v, int | float)), default=0)
