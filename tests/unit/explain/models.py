"""Small models with chosen weights, as folders and as GGUF files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType
from safetensors.numpy import save_file

from bitloss.model.gguf import GgufFile, GgufType, GgufValue
from bitloss.model.gguf_writer import GgufStream, TensorPlan

BF16 = np.dtype(ml_dtypes.bfloat16)
_TYPES = {
    np.dtype(np.float32): GGMLQuantizationType.F32,
    np.dtype(np.float16): GGMLQuantizationType.F16,
    BF16: GGMLQuantizationType.BF16,
    np.dtype(np.int32): GGMLQuantizationType.I32,
}
Tensors = Mapping[str, np.ndarray[Any, Any]]


def folder(path: Path, tensors: Tensors) -> Path:
    """A Hugging Face folder."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    save_file(dict(tensors), path / "model.safetensors")
    return path


def gguf(
    path: Path,
    tensors: Tensors,
    metadata: Mapping[str, GgufValue] | None = None,
    blocks: Mapping[str, tuple[GGMLQuantizationType, tuple[int, ...]]] | None = None,
) -> Path:
    """A GGUF file; uint8 tensors are quantized, `blocks` says of which type and shape (ggml order)."""
    entries = {"general.architecture": GgufValue(GgufType.STRING, "llama"), **(metadata or {})}
    plans = [
        TensorPlan(name, *reversed((blocks or {})[name]))
        if data.dtype == np.uint8
        else TensorPlan(name, data.shape[::-1], _TYPES[data.dtype])
        for name, data in tensors.items()
    ]
    with GgufStream(path, entries, plans) as out:
        for data in tensors.values():
            out.write(data)
    return path


def unknown(path: Path, tensors: Tensors, kind: int = 99) -> Path:
    """Give the first tensor, of F32, a type of that number."""
    gguf(path, tensors)
    info = next(iter(GgufFile.open(path).tensors.values()))
    data = bytearray(path.read_bytes())
    at = data.index(info.name.encode(), 60) + len(info.name) + 4 + 8 * len(info.shape)
    data[at : at + 4] = kind.to_bytes(4, "little")
    path.write_bytes(bytes(data))
    return path


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """Weights as a layer has them, but for values too small for F16."""
    values = np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(0.02)
    values = np.where(np.abs(values) < 1e-4, np.float32(1e-3), values)
    # BF16 values of this size are exact in F16.
    return values.astype(BF16).astype(dtype)
