"""A base of masked chunks is exact; single files of a base come out again as they were, or are left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bitloss.divergence import basewrite
from bitloss.divergence.basefile import Base, TextSource, header_hash, read_header
from bitloss.divergence.basewrite import repair_base, write_base
from bitloss.divergence.kldfile import write_kld
from bitloss.divergence.measure import measure, measure_together
from bitloss.engine.base import EngineOptions, Outputs
from bitloss.engine.llama import LlamaEngine
from bitloss.errors import BaseError, FileProblem, MismatchError, UnsupportedError
from bitloss.model.documents import Document, cut_documents
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.model.text import Chunks, cut_chunks
from bitloss.progress import Progress

SHAPE = RandomShape(n_vocab=300, n_embd=64, n_layer=1, n_head=2, n_head_kv=1, head_dim=32, n_ff=64)
OPTIONS = EngineOptions(threads=1, ubatch=32, batch=64)


def _plain() -> Chunks:
    tokens = np.random.default_rng(0).integers(3, 300, 5 * 16).astype(np.int32)
    return cut_chunks(tokens, n_ctx=16, n_chunks=None, bos=1, where="t")


def _masked() -> Chunks:
    rng = np.random.default_rng(1)
    lengths = (3, 16, 40, 7, 25, 2, 16)
    tokens = [rng.integers(3, 300, n).astype(np.int32) for n in lengths]
    documents = [Document(t, np.array([i % 5 != 2 for i in range(len(t))])) for t in tokens]
    return cut_documents(documents, n_ctx=16, n_chunks=None, bos=None, where="t").chunks


CHUNKS = {"plain": _plain, "masked": _masked}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gguf(tmp_path_factory.mktemp("model") / "m.gguf", SHAPE, seed=5, dtype="f16")


@pytest.fixture(scope="module")
def made(model: Path) -> Path:
    """Folders plain/ and masked/ beside the model, each of several shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(basewrite, "SHARD_BYTES", 16 * 64 * 4)
        with LlamaEngine(model, OPTIONS) as engine:
            for name, chunks in CHUNKS.items():
                write_base(engine, chunks(), text=TextSource("t", "0" * 64), out=model.parent / name)
    return model.parent


@pytest.fixture(params=["plain", "masked"])
def folder(request: pytest.FixtureRequest, made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "made")
    path: Path = tmp_path / "made" / request.param
    return path


def test_a_masked_base_gives_the_engines_logits_bit_for_bit(made: Path, model: Path) -> None:
    chunks = _masked()
    header = read_header(made / "masked")
    assert len(header.shards) > 2
    assert header.scored_tokens == chunks.n_scored
    base = Base(made / "masked", threads=1)
    assert np.array_equal(base.chunks.mask(), chunks.mask())
    compared = 0
    with LlamaEngine(model, OPTIONS) as engine:
        for rows in engine.evaluate(chunks.as_computed(), Outputs.LOGITS, scored=chunks.scored):
            again = base.logits(rows.chunk, chunks.row(rows.chunk, rows.start), len(rows.values))
            np.testing.assert_array_equal(again.view(np.uint32), rows.values.view(np.uint32))
            compared += len(rows.values)
    assert compared == chunks.n_scored
    base.close()


def test_a_model_against_its_masked_base_is_zero_on_every_token(made: Path, model: Path) -> None:
    chunks = _masked()
    base = Base(made / "masked", threads=1)
    other = random_gguf(made / "other.gguf", SHAPE, seed=6, dtype="f16")
    seen: list[Progress] = []
    with LlamaEngine(model, OPTIONS) as same, LlamaEngine(other, OPTIONS) as far:
        alike, apart = (
            each.table for each in measure_together([same, far], base, threads=1, progress=seen.append)
        )
        which = np.array([7, 0, 3])
        some = measure_together([far], base, which=which, threads=1)[0].table
    places = np.argwhere(chunks.mask())
    for table in (alike, apart):
        assert np.array_equal(table.chunk, places[:, 0])
        assert np.array_equal(table.position, places[:, 1])
        assert np.array_equal(table.target, chunks.tokens[places[:, 0], places[:, 1] + 1])
    assert (alike.metrics.kld == 0).all()
    assert (apart.metrics.kld > 0).all()
    assert (seen[-1].done, seen[-1].total) == (chunks.n_chunks, chunks.n_chunks)
    assert sorted(each.done for each in seen) == list(range(1, chunks.n_chunks + 1))
    of_which = [apart.of_chunks(k, k + 1) for k in which]
    assert np.array_equal(some.chunk, np.repeat(np.arange(3), [len(each) for each in of_which]))
    assert np.array_equal(some.target, np.concatenate([each.target for each in of_which]))
    assert np.array_equal(some.metrics.kld, np.concatenate([each.metrics.kld for each in of_which]))
    base.close()


def test_a_mask_does_not_go_into_a_file_of_llama_perplexity(made: Path, tmp_path: Path) -> None:
    base = Base(made / "masked", threads=1)
    with pytest.raises(UnsupportedError, match="--documents"):
        write_kld(tmp_path / "b.kld", base)
    assert not list(tmp_path.iterdir())
    base.close()


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_missing_and_damaged_files_come_out_as_they_were(folder: Path) -> None:
    before = _content(folder)
    shards = sorted(folder.glob("hidden-*"))
    assert len(shards) > 2
    shards[0].unlink()
    data = bytearray(shards[2].read_bytes())
    data[-9] ^= 1
    shards[2].write_bytes(data)
    (folder / "tokens.safetensors").write_bytes(b"")
    computed: list[int] = []

    class Counting(LlamaEngine):
        def evaluate(self, chunks: np.ndarray, *arguments: object, **more: object) -> object:  # type: ignore[override]
            computed.append(len(chunks))
            return super().evaluate(chunks, *arguments, **more)  # type: ignore[arg-type]

    with Counting(folder.parent / "m.gguf", OPTIONS) as engine:
        assert repair_base(engine, CHUNKS[folder.name](), folder) == [
            "tokens.safetensors",
            shards[0].name,
            shards[2].name,
        ]
        counts = {shard.file: shard.chunks for shard in read_header(folder).shards}
        assert computed == [counts[shards[0].name], counts[shards[2].name]]
        assert _content(folder) == before
        assert repair_base(engine, CHUNKS[folder.name](), folder) == []
    base = Base(folder, threads=1)
    with LlamaEngine(folder.parent / "m.gguf", OPTIONS) as candidate:
        table = measure(candidate, base, threads=1)
    assert (table.metrics.kld == 0).all()
    base.close()


def test_a_base_of_something_else_is_not_repaired_and_the_difference_is_named(folder: Path) -> None:
    next(folder.glob("hidden-*")).unlink()
    before = _content(folder)
    chunks = CHUNKS[folder.name]()
    model = folder.parent / "m.gguf"
    other = random_gguf(folder.parent / "o.gguf", SHAPE, seed=6, dtype="f16")
    changed = chunks.tokens.copy()
    changed[1, 2] += 1
    text = Chunks(changed, chunks.add_bos, chunks.bos, chunks.scored)
    shorter = chunks.pick(np.arange(2))
    for path, options, mine, named in (
        (other, OPTIONS, chunks, "model "),
        (model, OPTIONS, text, "tokens of the text "),
        (model, OPTIONS, shorter, f"chunks {chunks.n_chunks} (now 2)"),
        (model, EngineOptions(threads=1, ubatch=16, batch=64), chunks, "ubatch 32 (now 16)"),
        (model, EngineOptions(threads=1, ubatch=32, batch=32), chunks, "batch 64 (now 32)"),
    ):
        with LlamaEngine(path, options) as engine, pytest.raises(MismatchError) as caught:
            repair_base(engine, mine, folder)
        assert named in str(caught.value)
        assert str(caught.value).count("(now") == 1
    header = json.loads((folder / "base.json").read_text())
    header |= {"engine": "0.0.1 (abc)"}
    (folder / "base.json").write_text(json.dumps(header | {"header_sha256": header_hash(header)}))
    with LlamaEngine(model, OPTIONS) as engine:
        with pytest.raises(MismatchError, match=r"engine build 0\.0\.1 \(abc\) \(now "):
            repair_base(engine, chunks, folder)
        (folder / "base.json").unlink()
        with pytest.raises(FileProblem, match=r"base\.json is missing"):
            repair_base(engine, chunks, folder)
    assert set(_content(folder)) == before.keys() - {"base.json"}


def test_a_shard_that_comes_out_otherwise_is_left_alone(folder: Path) -> None:
    header = json.loads((folder / "base.json").read_text())
    header["shards"][1]["sha256"] = "0" * 64
    (folder / "base.json").write_text(json.dumps(header | {"header_sha256": header_hash(header)}))
    before = _content(folder)
    with LlamaEngine(folder.parent / "m.gguf", OPTIONS) as engine, pytest.raises(BaseError) as caught:
        repair_base(engine, CHUNKS[folder.name](), folder)
    assert header["shards"][1]["file"] in str(caught.value)
    assert "not the file it was" in str(caught.value)
    assert _content(folder) == before


def test_damage_to_the_mask_is_found(made: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = tmp_path / "made" / "masked"
    shutil.copytree(made, folder.parent)
    path = folder / "tokens.safetensors"
    good = load_file(path)
    other = good["scored"].copy()
    other[0, 1] ^= 1
    for scored, told in (
        (other, "do not match"),
        (other[:, :8].copy(), "another shape"),
        (other.astype(np.int32), "shape"),
    ):
        save_file({"tokens": good["tokens"], "scored": scored}, path)
        with pytest.raises(BaseError, match=told):
            Base(folder)
    save_file({"tokens": good["tokens"]}, path)
    with pytest.raises(BaseError, match="repair"):
        Base(folder)
