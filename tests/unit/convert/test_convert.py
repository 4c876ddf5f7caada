from __future__ import annotations

import errno
import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from bitloss.convert.cast import SourceType
from bitloss.convert.convert import Conversion, ConvertOptions, convert, source_path, source_types
from bitloss.errors import CheckpointError, DiskFull, UnsupportedError, UsageError
from bitloss.explain.audit import audit
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_writer import GgufStream
from bitloss.model.random_checkpoint import CheckpointOptions, random_checkpoint, write_safetensors
from bitloss.model.random_model import RandomShape
from bitloss.progress import Progress
from bitloss.store import sha256_file

ALL = list(SourceType)
DATA = Path(__file__).parents[2] / "data" / "families"


def made(tmp_path: Path, options: CheckpointOptions) -> GgufFile:
    convert(random_checkpoint(tmp_path / "m", options), [SourceType.F32], tmp_path / "out")
    return GgufFile.open(tmp_path / "out" / "m-f32.gguf")


def edit(folder: Path, change: Any) -> None:
    """Change the tensors of a checkpoint of one file."""
    checkpoint = Checkpoint.open(folder)
    tensors = {name: np.array(checkpoint.tensor(name)) for name in checkpoint.names()}
    del checkpoint
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors)


def test_writes_all_types_and_the_record(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "tiny", CheckpointOptions(shards=2))
    seen: list[Progress] = []
    record = convert(folder, ALL, tmp_path / "out", progress=seen.append)

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "conversion.json",
        "tiny-bf16.gguf",
        "tiny-f16.gguf",
        "tiny-f32.gguf",
    ]
    stored = Conversion.model_validate_json((tmp_path / "out" / "conversion.json").read_text())
    assert stored == record
    assert {file.name: file.sha256 for file in record.checkpoint} == {
        path.name: sha256_file(path) for path in folder.iterdir()
    }
    for output in record.outputs:
        file = GgufFile.open(tmp_path / "out" / output.file)
        content = file.path.read_bytes()
        assert file.path == source_path(tmp_path / "out", "tiny", output.type)
        assert (output.bytes, output.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert output.tensors_sha256 == file.tensors_sha256()
    assert record.weights == sum(
        Checkpoint.open(folder).tensor(n).size for n in Checkpoint.open(folder).names()
    )
    done = [each.done for each in seen if each.unit == "weights"]
    assert done == sorted(done)
    assert done[-1] == record.weights


def test_values_are_the_checkpoint_s_with_rope_rows_reordered(tmp_path: Path) -> None:
    options = CheckpointOptions(
        dtype="float32", shape=RandomShape(n_embd=24, n_head=3, n_head_kv=1, head_dim=6)
    )
    folder = random_checkpoint(tmp_path / "m", options)
    convert(folder, ALL, tmp_path / "out")
    source = Checkpoint.open(folder)
    files = {kind: GgufFile.open(source_path(tmp_path / "out", "m", kind)) for kind in ALL}

    def rows(n_head: int) -> list[int]:
        return [6 * h + half * 3 + i for h in range(n_head) for i in range(3) for half in (0, 1)]

    for name, target, order in (
        ("model.layers.1.self_attn.q_proj.weight", "blk.1.attn_q.weight", rows(3)),
        ("model.layers.1.self_attn.k_proj.weight", "blk.1.attn_k.weight", rows(1)),
        ("model.layers.1.self_attn.v_proj.weight", "blk.1.attn_v.weight", None),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", None),
        ("lm_head.weight", "output.weight", None),
    ):
        expected = source.tensor(name) if order is None else source.tensor(name)[order]
        assert np.array_equal(files[SourceType.F32].tensor_f32(target), expected)
        assert np.array_equal(files[SourceType.F16].tensor_f32(target), expected.astype(np.float16))
        rounded = expected.astype(ml_dtypes.bfloat16).astype(np.float32)
        assert np.array_equal(files[SourceType.BF16].tensor_f32(target), rounded)
    for file in files.values():
        assert file.info("blk.0.attn_norm.weight").type_name == "F32"
        norm = source.tensor("model.layers.0.input_layernorm.weight")
        assert np.array_equal(file.tensor_f32("blk.0.attn_norm.weight"), norm)


def test_small_blocks_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = random_checkpoint(tmp_path / "m")
    one = convert(folder, ALL, tmp_path / "a")
    monkeypatch.setattr("bitloss.convert.material.BLOCK", 100)
    many = convert(folder, ALL, tmp_path / "b")
    assert [output.sha256 for output in one.outputs] == [output.sha256 for output in many.outputs]


def test_types_alone_equal_types_together(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "m")
    together = convert(folder, ALL, tmp_path / "a")
    for kind in ALL:
        alone = convert(folder, [kind, kind], tmp_path / "b")
        assert alone.outputs == tuple(output for output in together.outputs if output.type is kind)


def test_an_old_file_is_replaced_and_a_name_can_be_given(tmp_path: Path) -> None:
    target = tmp_path / "out" / "other-f16.gguf"
    target.parent.mkdir()
    target.write_bytes(b"old")
    convert(
        random_checkpoint(tmp_path / "m"), [SourceType.F16], tmp_path / "out", ConvertOptions(name="other")
    )
    assert GgufFile.open(target).text("general.name") == "M"


@pytest.mark.parametrize("name", ["", "a/b", "a\0b", "x" * 151])
def test_a_name_must_be_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="plain name"):
        convert(random_checkpoint(tmp_path / "m"), ALL, tmp_path / "out", ConvertOptions(name=name))
    with pytest.raises(UsageError, match="at least one type"):
        convert(tmp_path / "m", [], tmp_path / "out")


def test_types_by_name() -> None:
    assert source_types(["F16", "f32", "f16"]) == (SourceType.F16, SourceType.F32)
    with pytest.raises(UsageError, match="expected f32, f16, bf16, found q8_0"):
        source_types(["q8_0"])


def test_tied_output_may_be_absent_and_untied_may_not(tmp_path: Path) -> None:
    tied = made(tmp_path, CheckpointOptions(shape=RandomShape(tied=True)))
    assert "output.weight" not in tied.tensors
    folder = random_checkpoint(
        tmp_path / "u", CheckpointOptions(shape=RandomShape(tied=True), config={"tie_word_embeddings": False})
    )
    with pytest.raises(CheckpointError, match=r"missing tensor: expected lm_head\.weight"):
        convert(folder, ALL, tmp_path / "out")


@pytest.mark.parametrize(("family", "written"), [("LlamaForCausalLM", True), ("Gemma2ForCausalLM", False)])
def test_an_output_that_contradicts_the_settings_is_noted(tmp_path: Path, family: str, written: bool) -> None:
    folder = tmp_path / "m"
    if written:
        options = CheckpointOptions(architecture=family, config={"tie_word_embeddings": True})
        random_checkpoint(folder, options)
    else:
        shutil.copytree(DATA / "gemma2", folder)
        edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
        assert convert(folder, [SourceType.F16], tmp_path / "out").notes == ()
        edit(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] * 2}))
    (note,) = convert(folder, [SourceType.F16], tmp_path / "out").notes
    assert note.startswith(
        "lm_head.weight is not the embedding, though config.json says tie_word_embeddings: "
    )
    assert note.endswith("computes with" if written else "left out")
    assert ("output.weight" in GgufFile.open(tmp_path / "out" / "m-f16.gguf").tensors) is written


def test_biases_and_computed_tables(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(architecture="LlamaForCausalLM"))
    bias = np.arange(64, dtype=np.float32)

    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.self_attn.q_proj.bias"] = bias
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    edit(folder, change)
    record = convert(folder, [SourceType.F16], tmp_path / "out")
    file = GgufFile.open(source_path(tmp_path / "out", "m", "f16"))
    assert record.ignored_tensors == ("model.layers.0.self_attn.rotary_emb.inv_freq",)
    assert file.info("blk.0.attn_q.bias").type_name == "F32"
    assert file.tensor_f32("blk.0.attn_q.bias")[:4].tolist() == [0, 8, 1, 9]


def test_every_tensor_is_accounted_for(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "m")
    edit(folder, lambda tensors: tensors.update(extra=np.ones(3, np.float32)))
    with pytest.raises(CheckpointError, match=r"\[extra\]: tensor with no place in the architecture"):
        convert(folder, ALL, tmp_path / "out")
    edit(folder, lambda tensors: [tensors.pop("extra"), tensors.pop("model.norm.weight")])
    with pytest.raises(CheckpointError, match=r"missing tensor: expected model\.norm\.weight"):
        convert(folder, ALL, tmp_path / "out")
    edit(folder, lambda tensors: tensors.update({"model.norm.weight": np.ones(64, np.int32)}))
    with pytest.raises(UnsupportedError, match=r"\[model.norm.weight\].*not full precision.*found I32"):
        convert(folder, ALL, tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "types", "message"),
    [
        (np.nan, ALL, r"\[model.layers.1.self_attn.q_proj.weight, row 9, column 5\]: NaN weight"),
        (-np.inf, [SourceType.F32], r"row 9, column 5\]: infinite weight"),
        (
            70000.0,
            ALL,
            r"row 9, column 5\]: weight out of the range of F16: expected at most 65504 in size, found 70144",
        ),
    ],
)
def test_bad_numbers_are_told_with_their_place_and_leave_nothing(
    tmp_path: Path, value: float, types: list[SourceType], message: str
) -> None:
    folder = random_checkpoint(tmp_path / "m")

    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.self_attn.q_proj.weight"][9, 5] = value

    edit(folder, change)
    with pytest.raises(CheckpointError, match=message):
        convert(folder, types, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_overflow_can_be_allowed(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "m")
    edit(folder, lambda tensors: tensors["lm_head.weight"].__setitem__((0, 0), 1e6))
    convert(folder, ALL, tmp_path / "out", ConvertOptions(allow_overflow=True))
    assert GgufFile.open(tmp_path / "out" / "m-f16.gguf").tensor_f32("output.weight")[0, 0] == np.inf
    assert GgufFile.open(tmp_path / "out" / "m-bf16.gguf").tensor_f32("output.weight")[0, 0] == 999424


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_casts_change_what_an_audit_foretells(tmp_path: Path, dtype: Any) -> None:
    """Of the matrices: vectors stay F32 in every file."""
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(dtype=dtype))
    rng = np.random.default_rng(3)

    def change(tensors: dict[str, Any]) -> None:
        for value in tensors.values():
            low = -24 if dtype == "float16" else -140
            scale = np.exp2(rng.integers(low, 17, value.shape).astype(np.float64))
            value[...] = np.clip(rng.standard_normal(value.shape) * scale, -60000, 60000).astype(value.dtype)
        if dtype != "float16":
            tensors["lm_head.weight"][0, :3] = [65520, -1e30, 3.2e38]
        if dtype == "float32":
            tensors["lm_head.weight"][1, :2] = [3.4e38, 1e-45]

    edit(folder, change)
    told = audit(folder).matrices
    record = convert(folder, ALL, tmp_path / "out", ConvertOptions(allow_overflow=True))
    for output, foretold in zip(record.outputs, (None, told.f16, told.bf16), strict=True):
        expected = (
            (foretold.changed, foretold.overflowed, foretold.zeroed) if foretold is not None else (0, 0, 0)
        )
        assert output.casts is not None
        assert tuple(output.casts.model_dump().values()) == expected
        # And what is counted is what a reader of both files sees.
        file, source = (GgufFile.open(tmp_path / "out" / f"m-{kind}.gguf") for kind in (output.type, "f32"))
        pairs = [(file.tensor_f32(name), source.tensor_f32(name)) for name in file.tensors]
        assert sum(int((a != b).sum()) for a, b in pairs) == expected[0]
        assert sum(int(np.isinf(a).sum()) for a, _ in pairs) == expected[1]
        assert sum(int(((a == 0) & (b != 0)).sum()) for a, b in pairs) == expected[2]
    assert told.f16.changed == 0 if dtype == "float16" else told.f16.overflowed == 3 + (dtype == "float32")
    assert told.bf16.overflowed == (dtype == "float32")


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    with pytest.raises(
        DiskFull, match=r"not enough space on the disk: expected \S+ [KM]iB free, found 1 B\."
    ):
        convert(random_checkpoint(tmp_path / "m"), ALL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_runs_full_leaves_nothing_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_checkpoint(tmp_path / "m")
    old = tmp_path / "out" / "m-f16.gguf"
    old.parent.mkdir()
    old.write_bytes(b"old")
    append, calls = GgufStream.append, []

    class Full:
        def write(self, _: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    def failing(self: GgufStream, piece: np.ndarray[Any, Any]) -> None:
        calls.append(self)
        if len(calls) == 20:
            self._file.close()
            self._file = Full()
        append(self, piece)

    monkeypatch.setattr(GgufStream, "append", failing)
    with pytest.raises(DiskFull, match="the disk is full"):
        convert(folder, ALL, tmp_path / "out")
    assert [path.name for path in old.parent.iterdir()] == ["m-f16.gguf"]
    assert old.read_bytes() == b"old"


def test_head_width_and_groups_have_defaults(tmp_path: Path) -> None:
    file = made(
        tmp_path,
        CheckpointOptions(
            architecture="LlamaForCausalLM",
            shape=RandomShape(n_head_kv=4),
            config={"head_dim": None, "num_key_value_heads": None},
        ),
    )
    assert file.integer("llama.attention.key_length") == 16
    assert file.integer("llama.attention.head_count_kv") == 4
