"""Logits made from hidden states: the engine's bits, in the same slices; the engine's own wherever they are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from bitloss.engine import llama as llama_module
from bitloss.engine.base import EngineOptions, Outputs
from bitloss.engine.llama import LlamaEngine
from bitloss.engine.output_layer import OutputLayer, rows_per_slice
from bitloss.engine.remade import can_be_remade, remaking_layer
from bitloss.errors import UnsupportedError
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.quantize.quantize import QuantizeSpec, quantize

SHAPE = RandomShape(
    n_vocab=512, n_embd=256, n_layer=1, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, n_ctx_train=512
)
OPTIONS = EngineOptions(threads=2)
CHUNKS = np.random.default_rng(0).integers(3, 500, (5, 128)).astype(np.int32)

FloatName = Literal["f32", "f16", "bf16"]
Rows = dict[tuple[int, int], NDArray[np.float32]]


def _model(folder: Path, kind: str) -> Path:
    dtypes: dict[str, FloatName] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
    source = random_gguf(folder / "source.gguf", SHAPE, seed=1, dtype=dtypes.get(kind, "f32"))
    if kind in dtypes:
        return source
    quantize(QuantizeSpec(source, "Q8_0", folder / "quantized.gguf", output_tensor_type=kind))
    return folder / "quantized.gguf"


def _rows(engine: LlamaEngine, scored: NDArray[np.bool_] | None = None) -> Rows:
    evaluated = engine.evaluate(CHUNKS, Outputs.LOGITS, scored=scored)
    return {(rows.chunk, rows.start): rows.values.copy() for rows in evaluated}


def _by_llama(path: Path, monkeypatch: pytest.MonkeyPatch, scored: NDArray[np.bool_] | None = None) -> Rows:
    with monkeypatch.context() as patch, LlamaEngine(path, OPTIONS) as engine:
        patch.setattr(llama_module, "remaking_layer", lambda *_: None)
        return _rows(engine, scored)


def _bits_differ(some: Rows, other: Rows) -> int:
    assert some.keys() == other.keys()  # the same slices
    return sum(int((some[k].view(np.uint32) != other[k].view(np.uint32)).sum()) for k in some)


def _skip_without_kernel(path: Path) -> None:
    if not can_be_remade(GgufFile.open(path), OPTIONS):
        pytest.skip("no kernel for this type on this machine")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q6_K"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_bits_are_the_engines(
    kind: str, masked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _model(tmp_path, kind)
    _skip_without_kernel(path)
    scored = np.random.default_rng(1).random(CHUNKS.shape) < 0.3 if masked else None
    if scored is not None:
        scored[:, -1] = False
    with LlamaEngine(path, OPTIONS) as engine:
        found = _rows(engine, scored)
        assert engine._layer is not None
    assert _bits_differ(found, _by_llama(path, monkeypatch, scored)) == 0


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_K"])
def test_types_without_a_faster_product_are_left_to_the_engine(kind: str, tmp_path: Path) -> None:
    with LlamaEngine(_model(tmp_path, kind), OPTIONS) as engine:
        assert len(_rows(engine)) > 0
        assert engine._layer is None


def test_slices_are_the_same_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that candidates of both sorts may be measured side by side."""
    monkeypatch.setattr("bitloss.engine.output_layer.SLICE_BYTES", 24 * 4 * SHAPE.n_vocab)
    assert rows_per_slice(SHAPE.n_vocab) == 16
    path = _model(tmp_path, "F32")
    _skip_without_kernel(path)
    with LlamaEngine(path, OPTIONS) as engine:
        found = _rows(engine)
    assert sorted(at for chunk, at in found if chunk == 0) == [64, 80, 96, 112]
    assert _bits_differ(found, _by_llama(path, monkeypatch)) == 0


class _Wrong(OutputLayer):
    """Differs from the engine in one bit of one logit."""

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        found = super().logits(hidden).copy()
        found[0, 7] = np.nextafter(found[0, 7], np.float32(np.inf))
        return found


def test_a_layer_that_gives_other_bits_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _model(tmp_path, "F16")
    _skip_without_kernel(path)
    told = _by_llama(path, monkeypatch)
    monkeypatch.setattr("bitloss.engine.remade.OutputLayer", _Wrong)
    with LlamaEngine(path, OPTIONS) as engine:
        found = _rows(engine)
        assert engine._layer is None
    assert _bits_differ(found, told) == 0


def test_graphs_without_a_node_for_hidden_states_compute_their_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _model(tmp_path, "F16")
    _skip_without_kernel(path)
    monkeypatch.setattr("bitloss.engine.watch._HIDDEN_NODE", b"no such node")
    with LlamaEngine(path, OPTIONS) as engine:
        with pytest.raises(UnsupportedError, match="result_norm"):
            engine.hidden_and_logits(CHUNKS[0])
        assert len(_rows(engine)) > 0
        assert engine._layer is None


def test_where_it_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GgufFile.open(_model(tmp_path, "F16"))
    assert not can_be_remade(file, EngineOptions(n_gpu_layers=99))
    assert not can_be_remade(GgufFile.open(_model(tmp_path, "Q4_K")), OPTIONS)
    monkeypatch.setattr("bitloss.engine.remade.after_the_product", lambda _: (0.1, None, 10.0))  # as Gemma 2
    assert not can_be_remade(file, OPTIONS)


def test_texts_too_short_to_check_are_left_to_the_engine(tmp_path: Path) -> None:
    with LlamaEngine(_model(tmp_path, "F16"), OPTIONS) as engine:
        assert remaking_layer(engine, CHUNKS[0, :7]) is None


def test_a_file_that_is_gone_since_is_not_missed(tmp_path: Path) -> None:
    path = _model(tmp_path, "F16")
    with LlamaEngine(path, OPTIONS) as engine:
        path.rename(tmp_path / "elsewhere.gguf")
        assert sum(map(len, _rows(engine).values())) == 5 * 63
        assert engine._layer is None


def test_rows_computed_alone_are_left_to_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A micro-batch of one token of each chunk: the last chunk's rows go through a kernel of their own."""
    path = _model(tmp_path, "F16")
    options = EngineOptions(threads=2, batch=64, ubatch=8)
    chunks = CHUNKS.reshape(-1, 8)[:9]
    found = []
    for layer in (True, False):
        with monkeypatch.context() as patch, LlamaEngine(path, options) as engine:
            if not layer:
                patch.setattr(llama_module, "remaking_layer", lambda *_: None)
            evaluated = engine.evaluate(chunks, Outputs.LOGITS)
            found.append({(rows.chunk, rows.start): rows.values.copy() for rows in evaluated})
    assert _bits_differ(*found) == 0


def test_it_is_checked_once_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _model(tmp_path, "F16")
    _skip_without_kernel(path)
    asked: list[int] = []
    found = LlamaEngine.hidden_and_logits

    def count(self: LlamaEngine, chunk: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        asked.append(len(chunk))
        return found(self, chunk)

    monkeypatch.setattr(LlamaEngine, "hidden_and_logits", count)
    with LlamaEngine(path, OPTIONS) as engine:
        _rows(engine)
        _rows(engine)
    assert asked == [64]


def test_a_broken_off_evaluation_leaves_it_usable(tmp_path: Path) -> None:
    with LlamaEngine(_model(tmp_path, "F16"), OPTIONS) as engine:
        first: Iterator[object] = engine.evaluate(CHUNKS, Outputs.LOGITS)
        next(first)
        del first
        assert sum(map(len, _rows(engine).values())) == 5 * 63
