"""The stored base: equal to the engine's logits, and refused by name wherever it is damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bitloss.divergence import basewrite
from bitloss.divergence.basefile import Base, TextSource, check_vocabulary, header_hash, read_header
from bitloss.divergence.basewrite import write_base
from bitloss.engine.base import EngineOptions, Outputs
from bitloss.engine.llama import LlamaEngine
from bitloss.errors import BaseError, BitlossError, FileProblem, MismatchError
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.model.text import cut_chunks

SHAPE = RandomShape(n_vocab=300, n_embd=64, n_layer=1, n_head=2, n_head_kv=1, head_dim=32, n_ff=64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with m.gguf and base/, the base in three shards of 2, 2 and 1 chunks."""
    folder = tmp_path_factory.mktemp("base")
    model = random_gguf(folder / "m.gguf", SHAPE, seed=5, dtype="f16")
    tokens = np.random.default_rng(0).integers(3, 300, 5 * 16).astype(np.int32)
    chunks = cut_chunks(tokens, n_ctx=16, n_chunks=None, bos=1, where="t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(basewrite, "SHARD_BYTES", 2 * 7 * 64 * 4)
        with LlamaEngine(model, EngineOptions(threads=1)) as engine:
            write_base(engine, chunks, text=TextSource("t", "0" * 64), out=folder / "base")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made" / "base"


def _open_all(folder: Path) -> None:
    base = Base(folder, threads=1)
    try:
        for chunk in range(base.header.n_chunks):
            base.hidden(chunk)
    finally:
        base.close()


def test_the_stored_base_gives_the_engines_logits_bit_for_bit(folder: Path) -> None:
    header = read_header(folder)
    assert [(s.first, s.chunks) for s in header.shards] == [(0, 2), (2, 2), (4, 1)]
    assert header.logits_max_difference == 0
    base = Base(folder, threads=1)
    compared = 0
    with LlamaEngine(base.model, EngineOptions(threads=1)) as engine:
        for rows in engine.evaluate(base.chunks.as_computed(), Outputs.LOGITS):
            first = rows.start - 8
            again = base.logits(rows.chunk, first, len(rows.values))
            np.testing.assert_array_equal(again.view(np.uint32), rows.values.view(np.uint32))
            compared += len(rows.values)
    assert compared == 5 * 7
    assert base.stored_bytes == sum(path.stat().st_size for path in folder.iterdir())
    base.close()


def test_a_header_cut_at_every_byte_is_refused(folder: Path) -> None:
    path = folder / "base.json"
    data = path.read_bytes()
    for length in range(len(data) - 2):  # without its last line end it is whole
        path.write_bytes(data[:length])
        with pytest.raises(BaseError, match=r"base\.json"):
            read_header(folder)
    path.write_bytes(data)
    read_header(folder)


def _hashed(document: dict[str, object]) -> dict[str, object]:
    """With the hash it should have, so that the fault is another."""
    return document | {"header_sha256": header_hash(document)}


def test_a_header_with_one_other_value_is_refused(folder: Path) -> None:
    path = folder / "base.json"
    good = path.read_bytes()
    document = json.loads(good)
    rest = {key: value for key, value in document.items() if key != "header_sha256"}
    plain = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    assert document["header_sha256"] == hashlib.sha256(plain.encode()).hexdigest()
    for key, value in rest.items():
        if isinstance(value, str) and key != "format":
            at = good.index(json.dumps(value).encode()) + 1
            changed = good[:at] + (b"0" if good[at : at + 1] != b"0" else b"1") + good[at + 1 :]
        elif isinstance(value, int) and key not in ("n_chunks", "add_bos"):
            changed = json.dumps(document | {key: value + 1}).encode()
        else:
            continue
        path.write_bytes(changed)
        with pytest.raises(
            BaseError, match=r"base\.json: header is damaged: its content is not what its own hash"
        ):
            read_header(folder)
    path.write_text(json.dumps(document | {"header_sha256": "0" * 64}))
    with pytest.raises(BaseError, match=r"Restore the file if it was changed by hand"):
        read_header(folder)
    path.write_text(json.dumps(dict(reversed(document.items()))))  # the same content, laid out otherwise
    assert read_header(folder).header_sha256 == document["header_sha256"]


def test_an_older_header_has_no_hash_and_opens(folder: Path) -> None:
    path = folder / "base.json"
    document = json.loads(path.read_text())
    del document["header_sha256"]
    path.write_text(json.dumps(document))
    assert read_header(folder).header_sha256 is None
    _open_all(folder)


def test_header_values_that_contradict(folder: Path) -> None:
    path = folder / "base.json"
    good = json.loads(path.read_text())
    shard = good["shards"][0]
    changes: tuple[dict[str, object], ...] = (
        {"format": "bitloss/base@2"},
        {"n_chunks": 6},
        {"n_chunks": -1},
        {"shards": []},
        {"shards": good["shards"][1:]},
        {"shards": [{**shard, "file": "../" + shard["file"]}, *good["shards"][1:]]},
        {"shards": [{**shard, "chunks": 0}, *good["shards"]]},
        {"n_vocab": "many"},
        {"more": 1},
    )
    for change in changes:
        path.write_text(json.dumps(_hashed(good | change)))
        with pytest.raises(BaseError, match=r"base\.json"):
            read_header(folder)
    path.write_text("x" * 10)
    with pytest.raises(BaseError):
        read_header(folder)


@pytest.mark.parametrize("change", [{"n_ctx": 32}, {"n_embd": 63}, {"n_embd": 0}, {"n_ctx": -16}, {"bos": 2}])
def test_header_values_that_contradict_the_files(folder: Path, change: dict[str, int]) -> None:
    path = folder / "base.json"
    path.write_text(json.dumps(_hashed(json.loads(path.read_text()) | change)))
    with pytest.raises(BaseError, match=r"safetensors|base\.json"):
        _open_all(folder)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "swapped", "empty", "folder"])
def test_a_damaged_shard_is_named(folder: Path, which: int, damage: str) -> None:
    shards = sorted(folder.glob("hidden-*.safetensors"))
    path = shards[which]
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-5])
    elif damage == "flipped":
        data[-5] ^= 1
        path.write_bytes(data)
    elif damage == "swapped":
        path.write_bytes(shards[(which + 1) % 3].read_bytes())
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    with pytest.raises(BaseError) as caught:
        _open_all(folder)
    assert path.name in str(caught.value)


def test_tokens_that_were_changed(folder: Path) -> None:
    path = folder / "tokens.safetensors"
    tokens = load_file(path)["tokens"].copy()
    tokens[2, 3] += 1
    save_file({"tokens": tokens}, path)
    with pytest.raises(BaseError, match=r"tokens\.safetensors: tokens do not match"):
        Base(folder)
    save_file({"tokens": tokens[:, :8].copy()}, path)
    with pytest.raises(BaseError, match=r"tokens\.safetensors: tokens of another shape"):
        Base(folder)
    save_file({"other": tokens}, path)
    with pytest.raises(BaseError, match=r"tokens\.safetensors"):
        Base(folder)
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(BaseError, match=r"tokens\.safetensors"):
            Base(folder)
    path.unlink()
    with pytest.raises(BaseError, match=r"tokens\.safetensors.*missing"):
        Base(folder)


def test_the_model_of_a_base_must_be_there_and_the_same(folder: Path) -> None:
    model = folder.parent / "m.gguf"
    other = random_gguf(folder.parent / "other.gguf", SHAPE, seed=6, dtype="f16")
    with pytest.raises(MismatchError, match="output weight differs"):
        Base(folder, model=other)
    model.rename(folder.parent / "moved.gguf")
    with pytest.raises(FileProblem, match=r"m\.gguf"):
        Base(folder)
    Base(folder, model=folder.parent / "moved.gguf").close()


def test_the_vocabulary_of_a_candidate(folder: Path) -> None:
    base = Base(folder)
    check_vocabulary(base, base.model)
    other = random_gguf(folder.parent / "o.gguf", RandomShape(n_vocab=301, n_embd=64))
    with pytest.raises(
        MismatchError,
        match=r"expected the 300 tokens of m\.gguf \(the first that differs, 300, is not there\), found 301 tokens",
    ):
        check_vocabulary(base, other)
    base.close()


def test_a_folder_that_holds_no_base(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileProblem, match=r"base\.json is missing"):
            read_header(folder)


def test_a_base_is_whole_or_not_there(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise BitlossError("stopped")

    monkeypatch.setattr(basewrite, "vocabulary_sha256", fails)
    tokens = np.arange(3, 3 + 32, dtype=np.int32)
    chunks = cut_chunks(tokens, n_ctx=16, n_chunks=None, bos=1, where="t")
    with LlamaEngine(made / "m.gguf", EngineOptions(threads=1)) as engine, pytest.raises(BitlossError):
        write_base(engine, chunks, text=TextSource("t", "0" * 64), out=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
