"""The engine on libllama: rows, hidden states, logits made again, tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitloss.engine.base import EngineOptions, Outputs, chunks_of_text
from bitloss.engine.llama import LlamaEngine, engine_version
from bitloss.engine.output_layer import OutputLayer, after_the_product
from bitloss.errors import (
    BitlossError,
    EngineError,
    FileProblem,
    MismatchError,
    TextError,
    UnsupportedError,
    UsageError,
)
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.model.text import scored_positions

DENSE = RandomShape(n_vocab=700, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=512)
ODD = RandomShape(n_vocab=700, n_embd=160, n_head=5, n_head_kv=1, head_dim=32, n_ff=416)
EXPERTS = RandomShape(
    n_vocab=700, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, n_expert=4, n_expert_used=2
)
# what AMX takes: whole tiles of outputs, and of inputs
TILES = RandomShape(n_vocab=704, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=256)
TIED = RandomShape(n_vocab=700, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=128, tied=True)


def _chunks(n_chunks: int, n_ctx: int, seed: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(3, 700, (n_chunks, n_ctx)).astype(np.int32)
    tokens[:, 0] = 1
    return tokens


def _all_rows(engine: LlamaEngine, chunks: np.ndarray, outputs: Outputs) -> np.ndarray:
    """[n_chunks, scored, width], every row set exactly once."""
    scored = scored_positions(chunks.shape[1])
    width = engine.facts.n_vocab if outputs is Outputs.LOGITS else engine.facts.n_embd
    out = np.full((len(chunks), len(scored), width), np.nan, np.float32)
    for rows in engine.evaluate(chunks, outputs):
        at = rows.start - scored.start
        assert np.isnan(out[rows.chunk, at : at + len(rows.values)]).all()
        out[rows.chunk, at : at + len(rows.values)] = rows.values
    assert not np.isnan(out).any()
    return out


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(
    "shape", [DENSE, ODD, EXPERTS, TIED, TILES], ids=["dense", "odd", "experts", "tied", "tiles"]
)
def test_logits_made_again_from_hidden_states_are_the_engines_bit_for_bit(
    tmp_path: Path, shape: RandomShape, dtype: str
) -> None:
    path = random_gguf(tmp_path / "m.gguf", shape, seed=3, dtype=dtype)  # type: ignore[arg-type]
    chunks = _chunks(3, 64)
    with LlamaEngine(path, EngineOptions(threads=2, ubatch=128)) as engine:
        hidden = _all_rows(engine, chunks, Outputs.HIDDEN)
        logits = _all_rows(engine, chunks, Outputs.LOGITS)
    layer = OutputLayer(path, threads=1)
    flat = hidden.reshape(-1, hidden.shape[-1])
    again = np.concatenate([layer.logits(flat[part]).copy() for part in layer.slices(len(flat))])
    assert np.array_equal(again.view(np.uint32), logits.reshape(again.shape).view(np.uint32))


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "q4_k", "iq4_nl"])
def test_logits_of_quantized_weights_are_the_engines_where_it_keeps_them_repacked(
    tmp_path: Path, kind: str, llama_tool: Callable[..., str]
) -> None:
    plain, path = random_gguf(tmp_path / "f32.gguf", TILES, seed=3, dtype="f32"), tmp_path / "m.gguf"
    llama_tool("llama-quantize", "--output-tensor-type", kind, plain, path, "F16", 1)
    with LlamaEngine(path, EngineOptions(threads=2, ubatch=128)) as engine:
        # 32 rows at once: those that do not fill a group of libggml's kernels may be rounded otherwise
        hidden, logits = engine.hidden_and_logits(_chunks(1, 64)[0])
    layer = OutputLayer(path, threads=1)
    again = layer.logits(hidden)
    assert again.shape == (32, TILES.n_vocab)
    assert np.array_equal(again.view(np.uint32), logits.view(np.uint32))
    layer.close()


@pytest.mark.parametrize(("n_ctx", "ubatch"), [(33, 512), (64, 32), (65, 32), (67, 16), (48, 50), (512, 100)])
def test_every_scored_row_comes_once_whatever_the_micro_batch(
    tmp_path: Path, n_ctx: int, ubatch: int
) -> None:
    path = random_gguf(tmp_path / "m.gguf", DENSE, seed=4, dtype="f32")
    chunks = _chunks(3, n_ctx)
    with LlamaEngine(path, EngineOptions(threads=2, ubatch=ubatch)) as engine:
        rows = _all_rows(engine, chunks, Outputs.LOGITS)
        hidden = _all_rows(engine, chunks, Outputs.HIDDEN)
    with LlamaEngine(path, EngineOptions(threads=2, ubatch=512)) as engine:
        whole = _all_rows(engine, chunks, Outputs.LOGITS)
    assert np.abs(rows - whole).max() < 2e-2 * whole.std()
    layer = OutputLayer(path, threads=2)
    flat = hidden.reshape(-1, hidden.shape[-1])
    again = np.concatenate([layer.logits(flat[part]).copy() for part in layer.slices(len(flat))])
    assert np.array_equal(again, rows.reshape(again.shape))


def _masked_rows(engine: LlamaEngine, chunks: np.ndarray, scored: np.ndarray, outputs: Outputs) -> np.ndarray:
    """[n_chunks, n_ctx, width], NaN where nothing is scored; every row set exactly once."""
    width = engine.facts.n_vocab if outputs is Outputs.LOGITS else engine.facts.n_embd
    out = np.full((*chunks.shape, width), np.nan, np.float32)
    for rows in engine.evaluate(chunks, outputs, scored=scored):
        where = slice(rows.start, rows.start + len(rows.values))
        assert len(rows.values)
        assert scored[rows.chunk, where].all()
        assert np.isnan(out[rows.chunk, where]).all()
        out[rows.chunk, where] = rows.values
    assert np.array_equal(~np.isnan(out).any(axis=2), scored)
    return out


@pytest.mark.parametrize(
    ("n_ctx", "ubatch", "batch"), [(33, 512, 2048), (64, 32, 64), (48, 50, 200), (70, 16, 16)]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_rows_of_a_mask_are_the_rows_of_all_bit_for_bit(
    tmp_path: Path, n_ctx: int, ubatch: int, batch: int, share: float, dtype: str
) -> None:
    path = random_gguf(tmp_path / "m.gguf", DENSE, seed=4, dtype=dtype)  # type: ignore[arg-type]
    chunks = _chunks(7, n_ctx)
    everything = np.ones(chunks.shape, np.bool_)
    everything[:, -1] = False
    scored = everything & (np.random.default_rng(n_ctx).random(chunks.shape) < share)
    scored[0, 5:] = False  # a short one, filled up behind its end
    scored[0, 4] = True
    scored[1:, n_ctx // 2] = True
    filled = chunks.copy()
    filled[0, 6:] = 0
    with LlamaEngine(path, EngineOptions(threads=1, ubatch=ubatch, batch=batch)) as engine:
        whole = _masked_rows(engine, chunks, everything, Outputs.LOGITS)
        plain = _all_rows(engine, chunks, Outputs.LOGITS)
        rows = _masked_rows(engine, filled, scored, Outputs.LOGITS)
        hidden = _masked_rows(engine, filled, scored, Outputs.HIDDEN)
    positions = scored_positions(n_ctx)
    assert np.array_equal(whole[:, positions.start : positions.stop], plain)
    assert np.array_equal(rows[scored], whole[scored])
    layer = OutputLayer(path, threads=1)
    flat = hidden[scored]
    again = np.concatenate([layer.logits(flat[part]).copy() for part in layer.slices(len(flat))])
    assert np.array_equal(again.view(np.uint32), rows[scored].view(np.uint32))


def test_a_chunk_is_computed_only_as_far_as_something_is_scored(tmp_path: Path) -> None:
    path = random_gguf(tmp_path / "m.gguf", DENSE, seed=4, dtype="f32")
    chunks = _chunks(2, 64)
    scored = np.zeros(chunks.shape, np.bool_)
    scored[:, 3] = True

    class Seen:
        rows = 0

        def wants(self, weight: str) -> bool:
            return weight == "blk.0.attn_q.weight"

        def dense(self, weight: str, x: np.ndarray) -> None:
            self.rows += x.shape[1]

        def experts(self, *_: object) -> None:
            raise AssertionError

    with LlamaEngine(path, EngineOptions(threads=1, ubatch=32, batch=128)) as engine:
        for mask, computed in ((scored, 2 * 16), (None, 2 * 64)):
            seen = Seen()
            list(engine.evaluate(chunks, Outputs.HIDDEN, seen, scored=mask))
            assert seen.rows == computed


def test_rows_depend_on_earlier_tokens_only(tmp_path: Path) -> None:
    path = random_gguf(tmp_path / "m.gguf", DENSE, seed=5, dtype="f32")
    chunks = _chunks(2, 32)
    chunks[1] = chunks[0]
    chunks[1, 25:] = 7
    with LlamaEngine(path, EngineOptions(threads=1)) as engine:
        rows = _all_rows(engine, chunks, Outputs.LOGITS)
    upto = 25 - scored_positions(32).start
    assert np.array_equal(rows[0, :upto], rows[1, :upto])
    assert not np.array_equal(rows[0, upto:], rows[1, upto:])


def test_logits_of_a_short_text_are_those_of_a_chunk(tmp_path: Path) -> None:
    path = random_gguf(tmp_path / "m.gguf", RandomShape(n_vocab=700, n_ctx_train=32), seed=5, dtype="f32")
    tokens = _chunks(1, 32)
    every = np.ones(tokens.shape, np.bool_)
    with LlamaEngine(path, EngineOptions(threads=1, ubatch=32)) as engine:
        found = [each.values.copy() for each in engine.evaluate(tokens, Outputs.LOGITS, scored=every)]
        rows = np.concatenate(found)
        assert np.allclose(engine.logits(tokens[0]), rows, atol=0.01)
        assert np.allclose(engine.logits(tokens[0, :4]), rows[:4], atol=0.01)
        with pytest.raises(UsageError, match=r"at most 32, found 33"):
            engine.logits(np.ones(33, np.int32))
        with pytest.raises(UsageError, match=r"0\.\.699, found 700"):
            engine.logits(np.array([1, 700], np.int32))


def test_a_model_llama_cpp_refuses_says_what_llama_cpp_said(tmp_path: Path) -> None:
    path = random_gguf(tmp_path / "m.gguf", DENSE, seed=1)
    path.write_bytes(path.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"))
    with pytest.raises(EngineError, match=r"m\.gguf: llama\.cpp could not load the model: found .+"):
        LlamaEngine(path)


def test_a_damaged_or_missing_file_is_found_before_llama_cpp_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(BitlossError, match=r"broken\.gguf"):
        LlamaEngine(path)
    with pytest.raises(FileProblem, match="no such file"):
        LlamaEngine(tmp_path / "none.gguf")


def test_context_beyond_the_models_is_refused(tmp_path: Path) -> None:
    shape = RandomShape(n_vocab=700, n_ctx_train=64)
    path = random_gguf(tmp_path / "m.gguf", shape, seed=1)
    text = tmp_path / "t.txt"
    text.write_text("words " * 500)
    with LlamaEngine(path) as engine:
        with pytest.raises(UsageError, match=r"at most 64, found 128"):
            next(engine.evaluate(_chunks(1, 128), Outputs.LOGITS))
        with pytest.raises(UsageError, match=r"--ctx.*at most 64, found 128"):
            chunks_of_text(engine, text, n_ctx=128, n_chunks=None)


def test_text_becomes_chunks_of_the_engines_tokens(tmp_path: Path) -> None:
    path = random_gguf(tmp_path / "m.gguf", DENSE, seed=1)
    text = tmp_path / "t.txt"
    text.write_text("abc " * 40 + "\n")
    with LlamaEngine(path, vocab_only=True) as engine:
        chunks = chunks_of_text(engine, text, n_ctx=16, n_chunks=None)
        assert chunks.tokens.size == (len(engine.tokenize("abc " * 40)) // 16) * 16
        assert chunks.add_bos == engine.facts.add_bos
        with pytest.raises(TextError, match=r"t\.txt: text too short: expected at least 512 tokens"):
            chunks_of_text(engine, text, n_ctx=256, n_chunks=None)
        pieces = b"".join(
            engine.token_text(int(t)) for t in engine.tokenize("äöü – 漢字 abc")[engine.facts.add_bos :]
        )
    assert pieces.decode() == "äöü – 漢字 abc"


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    path = random_gguf(tmp_path / "m.gguf", DENSE, seed=1)
    chunks = _chunks(1, 16)
    chunks[0, 3] = 700
    with LlamaEngine(path) as engine, pytest.raises(UsageError, match=r"0\.\.699, found 700"):
        next(engine.evaluate(chunks, Outputs.LOGITS))


def test_hidden_states_of_another_width_are_refused(tmp_path: Path) -> None:
    layer = OutputLayer(random_gguf(tmp_path / "m.gguf", DENSE, seed=1), threads=1)
    with pytest.raises(MismatchError, match="another width: expected 256, found 255"):
        layer.logits(np.zeros((3, 255), np.float32))


def test_models_that_change_logits_after_the_product_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = GgufFile.open(random_gguf(tmp_path / "m.gguf", DENSE, seed=1))
    after_the_product(file)
    real = GgufFile.value
    monkeypatch.setattr(
        GgufFile,
        "value",
        lambda self, key, default=None: 30.0 if key.endswith("softcapping") else real(self, key, default),
    )
    with pytest.raises(UnsupportedError, match="final_logit_softcapping"):
        after_the_product(file)


def test_the_engine_names_its_version_and_commit() -> None:
    import llama_cpp

    version, commit = engine_version().split()
    assert version == llama_cpp.__version__
    assert len(commit.strip("()")) >= 7


def test_more_short_chunks_than_llama_cpp_has_sequences(tmp_path: Path) -> None:
    path = random_gguf(tmp_path / "m.gguf", TIED)
    chunks = _chunks(300, 8)
    with LlamaEngine(path, EngineOptions(threads=2, batch=4096, ubatch=4096)) as engine:
        assert np.isfinite(_all_rows(engine, chunks, Outputs.LOGITS)).all()
