"""Rows that tests of every format use, and libggml's own bytes for them."""

from __future__ import annotations

import ctypes as ct
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

import bitloss
from bitloss.engine.ggml import ggml
from bitloss.model.safetensors import SafetensorsFile
from bitloss.model.tensor_types import block_of

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

N = 768  # a row: three super-blocks of 256
CASES = (
    "normal", "heavy tails", "trained", "zeros", "negative zeros", "one spike", "constant", "negative constant",
    "denormal", "smallest denormals", "tiny", "1e30", "largest", "mixed sizes", "alternating", "ties",
    "positive", "offset", "coarse",
)  # fmt: skip
WEIGHTS = ("none", "random", "wide", "zeros", "some zeros", "ones", "tiny", "wider")


def libggml_encode(kind: GGMLQuantizationType, rows: Floats, weights: Floats | None) -> Bytes:
    """``ggml_quantize_chunk`` of all rows in one call."""
    block, size = block_of(kind)
    rows = np.ascontiguousarray(rows)
    out = np.empty((len(rows), rows.shape[1] // block * size), np.uint8)
    pointer = None if weights is None else weights.ctypes.data
    wrote = ggml().ggml_quantize_chunk(
        int(kind), rows.ctypes.data, out.ctypes.data, 0, len(rows), rows.shape[1], pointer
    )
    assert wrote == out.size
    return out


def libggml_decode(kind: GGMLQuantizationType, data: Bytes, n_per_row: int) -> Floats:
    """``to_float`` of all rows in one call."""
    out = np.empty((len(data), n_per_row), np.float32)
    traits = ggml().ggml_get_type_traits(int(kind)).contents
    traits.to_float(data.ctypes.data_as(ct.c_void_p), out.ctypes.data_as(ct.c_void_p), out.size)
    return out


@functools.cache
def trained() -> Floats:
    """Rows of the bundled model, every matrix of it represented, float32 [n, N]."""
    folder = Path(bitloss.__file__).parent / "assets" / "demo-model"
    file = SafetensorsFile.open(folder / "model.safetensors")
    pieces = []
    for name in file.tensors:
        values = file.tensor(name).astype(np.float32).reshape(-1)
        whole = values.size // N
        pieces.append(values[: whole * N].reshape(whole, N)[:: max(1, whole // 4)][:4])
    return np.ascontiguousarray(np.concatenate(pieces))


def rows(case: str, seed: int = 0) -> Floats:
    """float32 [n, N] of a kind named in `CASES`; n is no multiple of any number of lanes."""
    rng = np.random.default_rng([seed, CASES.index(case)])
    n = 7
    normal = rng.standard_normal((n, N)).astype(np.float32)
    single = np.float32
    if case == "trained":
        return trained()
    if case == "one spike":
        out = np.zeros((n, N), single)
        out[np.arange(n), rng.integers(0, N, n)] = normal[:, 0]
        return out
    if case == "ties":  # quotients that end in .5 for many formats
        return (np.round(normal * 8) / single(2)).astype(single)
    made = {
        "normal": normal * single(0.02),
        "heavy tails": rng.standard_t(2, (n, N)) * 0.02,
        "zeros": np.zeros((n, N)),
        "negative zeros": np.full((n, N), -0.0),
        "constant": np.full((n, N), 0.731),
        "negative constant": np.full((n, N), -0.731),
        "denormal": normal * single(1e-39),
        "smallest denormals": rng.integers(-3, 4, (n, N)) * 1.401298464324817e-45,
        "tiny": normal * single(1e-14),
        "1e30": normal * single(1e30),
        "largest": np.clip(normal.astype(np.float64) * 3e38, -3.4e38, 3.4e38),
        "mixed sizes": normal * np.exp(rng.uniform(-60, 60, (n, N // 16)).repeat(16, axis=1)),
        "alternating": np.where(np.arange(N) % 2, 1.0, -1.0) * np.full((n, 1), 0.25),
        "positive": np.abs(normal),
        "offset": normal * single(1e-3) + single(1e3),
        "coarse": np.round(normal * 2) / 4,
    }
    return np.ascontiguousarray(made[case].astype(single))


def column_weights(name: str, seed: int = 0) -> Floats | None:
    """float32 [N], or None, of a kind named in `WEIGHTS`."""
    rng = np.random.default_rng([seed, 77])
    random = rng.gamma(0.5, 2.0, N).astype(np.float32)
    made: dict[str, Floats | None] = {
        "none": None,
        "random": random,
        "wide": np.exp(rng.uniform(-30, 30, N)).astype(np.float32),
        "zeros": np.zeros(N, np.float32),
        "some zeros": np.where(rng.random(N) < 0.5, np.float32(0), random),
        "ones": np.ones(N, np.float32),
        "tiny": random * np.float32(1e-38),
        "wider": np.exp(rng.uniform(-85, 35, N)).astype(np.float32),
    }
    return made[name]


def _nasty_chunk(rng: np.random.Generator, width: int) -> npt.NDArray[Any]:
    """Values of one kind: any size, ties, constants, signs of zero, ends of the ranges of halves and floats."""
    size = 10.0 ** (rng.uniform(-44, 30.5) if rng.random() < 0.5 else rng.uniform(-6, 4))
    sign = rng.choice([-1, 1])
    normal = rng.standard_normal(width)
    spike = np.zeros(width)
    spike[rng.integers(width)] = size * sign
    made: tuple[Callable[[], npt.NDArray[Any]], ...] = (
        lambda: normal * size,
        lambda: np.full(width, size * sign),
        lambda: np.where(np.arange(width) % 2, size, -size),
        lambda: np.where(rng.random(width) < 0.5, 0.0, -0.0),
        lambda: rng.integers(-5, 6, width) * 1.401298464324817e-45,
        lambda: normal * 1e30,
        lambda: rng.integers(-32, 33, width) * 0.5 * size,
        lambda: spike,
        lambda: normal * np.exp(rng.uniform(-80, 70, width)),
        # scales at both ends of a half
        lambda: normal / np.abs(normal).max() * 65504 * rng.choice([1, 8, 15, 31, 127, 0.999, 1.0001]),
        lambda: normal * 5.96e-8 * rng.choice([1, 8, 15, 31, 127]) * 10.0 ** rng.uniform(-1, 1),
        lambda: rng.integers(0, 2 ** rng.integers(1, 7), width) * size - size * rng.integers(0, 40),
        lambda: np.abs(normal) * size * sign,
        lambda: np.where(rng.random(width) < rng.choice([0.03, 0.5, 0.97]), normal * size, -0.0),
        lambda: normal * size * 1e-4 + size * sign,
        lambda: rng.standard_t(1.2, width) * size,
    )
    return made[rng.integers(len(made))]()


def nasty_rows(rng: np.random.Generator, n: int = 11, width: int = 1024) -> Floats:
    """float32 [n, width], chunks of 16 to 1024 values each of another kind; finite."""
    chunk = int(rng.choice([16, 32, 64, 256, 1024]))
    values = np.concatenate([_nasty_chunk(rng, chunk) for _ in range(n * width // chunk)])
    x = np.clip(values, -3e38, 3e38).astype(np.float32).reshape(n, width)
    if rng.random() < 0.3:
        x = rng.permutation(x.reshape(-1, 16)).reshape(n, width)
    return np.ascontiguousarray(x)


def nasty_weights(rng: np.random.Generator, width: int = 1024) -> Floats | None:
    """float32 [width], from 0 over denormals to 1e30; None in one of four."""
    single = np.float32
    steps = np.array([0, 1e-30, 1, 1e30], single)
    made: tuple[Callable[[], npt.NDArray[Any]], ...] = (
        lambda: np.zeros(width),
        lambda: rng.choice(steps, width),
        lambda: rng.choice(steps, width // 32).repeat(32),
        lambda: np.full(width, 10.0 ** rng.uniform(-44, 30)),
        lambda: np.exp(rng.uniform(-90, 65, width)),
        lambda: np.where(rng.random(width) < 0.5, 0, rng.gamma(0.5, 2, width)),
        lambda: rng.random(width) * 1e-42,
        lambda: rng.gamma(0.3, 2, width),
        lambda: np.ones(width),
    )
    which = rng.integers(len(made) + 3)
    return made[which]().astype(single) if which < len(made) else None
