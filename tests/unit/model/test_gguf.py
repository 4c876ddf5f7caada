from __future__ import annotations

import hashlib
import pickle
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from bitloss.errors import BitlossError, DiskFull, FileProblem, GgufError, UnsupportedError
from bitloss.model.gguf import GgufFile, GgufType, GgufValue, tensor_bytes
from bitloss.model.gguf_writer import GgufStream, TensorPlan
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.progress import ProgressCallback

ARCHITECTURE = {"general.architecture": GgufValue(GgufType.STRING, "llama")}


def string(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, payload: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + payload


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def raw_gguf(
    keys: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), *, data: int = 64, version: int = 3
) -> bytes:
    head = (
        b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    )
    return head + bytes(-len(head) % 32) + bytes(range(data % 256)) + bytes(data - data % 256)


def opened(path: Path, content: bytes) -> GgufFile:
    file = path / "x.gguf"
    file.write_bytes(content)
    return GgufFile.open(file)


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("k.u8", 200)
    writer.add_int16("k.i16", -3)
    writer.add_uint64("k.u64", 1 << 60)
    writer.add_float32("k.f32", 0.5)
    writer.add_float64("k.f64", 1e300)
    writer.add_bool("k.bool", True)
    writer.add_string("k.str", "grüße")
    writer.add_array("k.words", ["a", "", "ç"])
    writer.add_array("k.ints", [1, -2, 3])
    writer.add_array("k.bools", [True, False])
    rng = np.random.default_rng(0)
    f32 = rng.standard_normal((3, 64), dtype=np.float32)
    q8 = gguf.quants.quantize(f32, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("a", f32)
    writer.add_tensor("b", f32.astype(np.float16))
    writer.add_tensor(
        "c", f32.astype(ml_dtypes.bfloat16).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16
    )
    writer.add_tensor("d", q8, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = GgufFile.open(path)

    assert file.version == 3
    assert file.architecture == "llama"
    scalars = {
        name: entry.value for name, entry in file.metadata.items() if entry.value_type is not GgufType.ARRAY
    }
    assert scalars == {
        "general.architecture": "llama",
        "k.u8": 200,
        "k.i16": -3,
        "k.u64": 1 << 60,
        "k.f32": 0.5,
        "k.f64": 1e300,
        "k.bool": True,
        "k.str": "grüße",
    }
    assert file.value("k.words") == ["a", "", "ç"]
    assert file.metadata["k.words"].item_type is GgufType.STRING
    assert file.value("k.ints").tolist() == [1, -2, 3]
    assert file.value("k.ints").dtype == np.int32
    assert file.value("k.bools").tolist() == [True, False]
    assert [info.type_name for info in file.tensors.values()] == ["F32", "F16", "BF16", "Q8_0"]
    assert file.info("a").shape == (64, 3)
    assert np.array_equal(file.tensor_f32("a"), f32)
    assert np.array_equal(file.tensor_f32("b"), f32.astype(np.float16).astype(np.float32))
    assert np.array_equal(file.tensor_f32("c"), f32.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.array_equal(file.tensor_bytes("d"), q8.reshape(-1))
    assert np.array_equal(file.tensor_f32("d"), gguf.quants.dequantize(q8, gguf.GGMLQuantizationType.Q8_0))
    assert file.bits_per_weight() == 8 * (4 + 2 + 2 + 34 / 32) / 4
    reader = gguf.GGUFReader(path)
    assert {t.name: int(t.data_offset) for t in reader.tensors} == {
        n: i.offset for n, i in file.tensors.items()
    }


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    metadata = ARCHITECTURE | {
        "general.alignment": GgufValue(GgufType.UINT32, 64),
        "k.flags": GgufValue(GgufType.ARRAY, np.array([1, 2], dtype=np.uint16), GgufType.UINT16),
        "k.words": GgufValue(GgufType.ARRAY, ["x", "y"], GgufType.STRING),
    }
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    plans = [TensorPlan("odd", (3, 2), 0), TensorPlan("next", (3,), 0)]
    with GgufStream(path, metadata, plans) as out:
        out.write(values)
        out.write(values[0])

    reader = gguf.GGUFReader(path)

    assert [t.data.tolist() for t in reader.tensors] == [values.tolist(), values[0].tolist()]
    assert reader.fields["k.words"].contents() == ["x", "y"]
    ours = GgufFile.open(path)
    assert ours.alignment == 64
    assert ours.metadata["k.flags"].item_type is GgufType.UINT16
    assert ours.size % 64 == 0
    assert list(ours.metadata) == ["general.architecture", "general.alignment", "k.flags", "k.words"]


def test_metadata_is_written_as_the_gguf_package_writes_it(tmp_path: Path) -> None:
    arrays: dict[GgufType, list[Any]] = {
        GgufType.STRING: ["a", "", "größer", "\u2581x"],
        GgufType.BOOL: [True, False],
        GgufType.UINT8: [0, 255],
        GgufType.INT8: [-128, 127],
        GgufType.UINT16: [1, 65535],
        GgufType.INT16: [-1, 2],
        GgufType.UINT32: [1, 2**32 - 1],
        GgufType.INT32: [-(2**31), 3],
        GgufType.FLOAT32: [0.1, -1e30],
        GgufType.UINT64: [2**64 - 1],
        GgufType.INT64: [-(2**63)],
        GgufType.FLOAT64: [0.1],
    }
    metadata = {"general.architecture": GgufValue(GgufType.STRING, "llama")}
    theirs = gguf.GGUFWriter(tmp_path / "theirs.gguf", arch="llama")
    for kind, items in arrays.items():
        metadata[f"a.{kind.name}"] = GgufValue(GgufType.ARRAY, items, kind)
        theirs.add_key_value(f"a.{kind.name}", items, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(int(kind)))
    metadata["a.numpy"] = GgufValue(GgufType.ARRAY, np.arange(5, dtype=np.int32), GgufType.INT32)
    theirs.add_key_value("a.numpy", list(range(5)), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32)
    theirs.write_header_to_file()
    theirs.write_kv_data_to_file()
    theirs.close()
    with GgufStream(tmp_path / "ours.gguf", metadata, []):
        pass
    expected = (tmp_path / "theirs.gguf").read_bytes()
    assert (tmp_path / "ours.gguf").read_bytes()[: len(expected)] == expected
    for kind, item in ((GgufType.UINT8, 256), (GgufType.INT32, "x")):
        bad = {**metadata, "a.bad": GgufValue(GgufType.ARRAY, [item], kind)}
        with pytest.raises(GgufError, match="a value the format cannot hold"):
            GgufStream(tmp_path / "bad.gguf", bad, [])


def test_stream_refuses_wrong_sizes_and_missing_tensors(tmp_path: Path) -> None:
    plans = [TensorPlan("a", (4,), 0)]
    with (
        pytest.raises(GgufError, match=r"another size than planned: expected 16 bytes, found 8"),
        GgufStream(tmp_path / "a", ARCHITECTURE, plans) as out,
    ):
        out.write(np.zeros(2, np.float32))
    with pytest.raises(GgufError, match=r"\[a\]: a planned tensor was not written"):
        GgufStream(tmp_path / "a", ARCHITECTURE, plans).close()
    with (
        pytest.raises(GgufError, match="more tensors than planned"),
        GgufStream(tmp_path / "a", ARCHITECTURE, []) as out,
    ):
        out.write(np.zeros(2, np.float32))
    for entry in (GgufValue(GgufType.STRING, "\ud800"), GgufValue(GgufType.UINT8, 256)):
        with pytest.raises(GgufError, match="a value the format cannot hold"):
            GgufStream(tmp_path / "a", ARCHITECTURE | {"k": entry}, plans)
    with pytest.raises(FileProblem, match="No such file"):
        GgufStream(tmp_path / "none" / "a", ARCHITECTURE, plans)


@pytest.mark.parametrize("n_items", [1, 1 << 16])
def test_a_full_disk_is_told(n_items: int) -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(DiskFull, match="the disk is full"),
        GgufStream(device, ARCHITECTURE, [TensorPlan("a", (n_items,), 0)]) as out,
    ):
        out.write(np.zeros(n_items, np.float32))


def test_tensors_sha256_is_as_documented_and_ignores_metadata_and_order(tmp_path: Path) -> None:
    a, b = np.arange(4, dtype=np.float32), np.arange(6, dtype=np.float16).reshape(2, 3)
    plans: dict[str, tuple[TensorPlan, np.ndarray[Any, Any]]] = {
        "a": (TensorPlan("a", (4,), 0), a),
        "b": (TensorPlan("b", (3, 2), 1), b),
    }

    def written(name: str, order: str, extra: dict[str, GgufValue]) -> GgufFile:
        with GgufStream(tmp_path / name, ARCHITECTURE | extra, [plans[t][0] for t in order]) as out:
            for t in order:
                out.write(plans[t][1])
        return GgufFile.open(tmp_path / name)

    one = written("1", "ab", {})
    two = written(
        "2", "ba", {"k": GgufValue(GgufType.STRING, "v"), "general.alignment": GgufValue(GgufType.UINT32, 8)}
    )

    expected = hashlib.sha256(
        struct.pack("<Q", 1) + b"a" + struct.pack("<IIQQ", 0, 1, 4, 16) + hashlib.sha256(a.tobytes()).digest()
        + struct.pack("<Q", 1) + b"b" + struct.pack("<IIQQQ", 1, 2, 3, 2, 12) + hashlib.sha256(b.tobytes()).digest()
    ).hexdigest()  # fmt: skip
    assert one.tensors_sha256() == two.tensors_sha256() == expected
    plans["a"][1][0] = 1
    assert written("3", "ab", {}).tensors_sha256() != expected


BAD: dict[str, tuple[bytes, type[BitlossError], str]] = {
    "empty": (b"", GgufError, "the file is empty"),
    "magic": (b"PK\3\4" + bytes(100), GgufError, "not a GGUF file"),
    "short": (b"GGUF\3\0", GgufError, "inside the version: expected at least 8 bytes, found 6 bytes. Copy"),
    "version 1": (raw_gguf(version=1), UnsupportedError, "expected 2 or 3, found 1"),
    "version 4": (raw_gguf(version=4), UnsupportedError, "expected 2 or 3, found 4"),
    "version 0": (raw_gguf(version=0), UnsupportedError, "found 0"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(60), UnsupportedError, "big-endian.*gguf_convert_endian"),
    "tensor count": (
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0) + bytes(64),
        GgufError,
        "more tensors than",
    ),
    "key count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 63) + bytes(64), GgufError, "more keys than"),
    "key length": (raw_gguf((struct.pack("<Q", 1 << 40) + bytes(9),)), GgufError, "a key is too long"),
    "key utf-8": (raw_gguf((key("x", 7, b"\1").replace(b"x", b"\xff"),)), GgufError, "not UTF-8"),
    "key empty": (raw_gguf((key("", 7, b"\1") + b"1",)), GgufError, "the key is empty"),
    "key twice": (raw_gguf((key("x", 7, b"\1"), key("x", 7, b"\1"))), GgufError, "duplicate key: found x"),
    "value type": (raw_gguf((key("x", 13, b"\1"),)), GgufError, r"\[x, byte .*unknown value type"),
    "string length": (
        raw_gguf((key("x", 8, struct.pack("<Q", 1 << 62)),)),
        GgufError,
        "ends inside a string",
    ),
    "nested": (raw_gguf((key("x", 9, struct.pack("<IQ", 9, 1) + bytes(20)),)), GgufError, "nested array"),
    "array length": (
        raw_gguf((key("x", 9, struct.pack("<IQ", 6, 1 << 61)),)),
        GgufError,
        "longer than the file",
    ),
    "strings": (raw_gguf((key("x", 9, struct.pack("<IQ", 8, 99)),)), GgufError, "longer than the file"),
    "alignment": (
        raw_gguf((key("general.alignment", 4, struct.pack("<I", 48)),)),
        GgufError,
        "a power of two",
    ),
    "alignment 0": (
        raw_gguf((key("general.alignment", 4, struct.pack("<I", 0)),)),
        GgufError,
        "a power of two",
    ),
    "alignment type": (raw_gguf((key("general.alignment", 8, string("32")),)), GgufError, "found STRING"),
    "split": (
        raw_gguf((key("split.count", 2, struct.pack("<H", 3)),)),
        UnsupportedError,
        "one of 3 parts.*--merge",
    ),
    "tensor name": (
        raw_gguf(tensors=(tensor("n" * 64, (4,), 0, 0),)),
        GgufError,
        "at most 63 bytes, found 64",
    ),
    "dimensions": (raw_gguf(tensors=(tensor("t", (1, 1, 1, 1, 1), 0, 0),)), GgufError, "at most 4, found 5"),
    "shape": (
        raw_gguf(tensors=(tensor("t", (1 << 32, 1 << 32), 0, 0),)),
        GgufError,
        "the shape is too large",
    ),
    "type": (raw_gguf(tensors=(tensor("t", (32,), 36, 0),)), UnsupportedError, r"\[tensor t\].*found 36"),
    "row": (raw_gguf(tensors=(tensor("t", (33,), 8, 0),)), GgufError, "a multiple of 32 for Q8_0, found 33"),
    "twice": (
        raw_gguf(tensors=(tensor("t", (1,), 0, 0), tensor("t", (1,), 0, 32))),
        GgufError,
        "duplicate tensor",
    ),
    "misaligned": (raw_gguf(tensors=(tensor("t", (1,), 0, 4),)), GgufError, "misaligned tensor.*found 4"),
    "outside": (
        raw_gguf(tensors=(tensor("t", (17,), 0, 0),)),
        GgufError,
        "cut off: it ends inside the tensors.*Copy or fetch it again",
    ),
    "far outside": (
        raw_gguf(tensors=(tensor("t", (1,), 0, (1 << 64) - 32),)),
        GgufError,
        "ends inside the tensors",
    ),
    "overlap": (
        raw_gguf(tensors=(tensor("t", (9,), 0, 0), tensor("u", (1,), 0, 32))),
        GgufError,
        "also in t",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_every_fault_has_its_own_line(tmp_path: Path, case: str) -> None:
    content, kind, message = BAD[case]
    with pytest.raises(kind, match=message) as caught:
        opened(tmp_path, content)
    assert type(caught.value) is kind
    assert "x.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no such GGUF file"):
        GgufFile.open(tmp_path / "none.gguf")
    with pytest.raises(FileProblem, match="not a regular file"):
        GgufFile.open(tmp_path)


def test_odd_but_valid_files(tmp_path: Path) -> None:
    gap = raw_gguf(tensors=(tensor("late", (4,), 0, 32), tensor("early", (), 0, 0)), version=2)
    file = opened(tmp_path, gap)
    assert list(file.tensors) == ["late", "early"]
    assert file.tensor_f32("early").shape == ()
    assert file.info("early").n_elements == 1
    assert opened(tmp_path, raw_gguf((key("x", 8, string(b"a\xffb")),))).value("x") == "a\\xffb"
    empty = opened(tmp_path, raw_gguf(data=0))
    assert empty.tensors == {}
    with pytest.raises(GgufError, match="no weights"):
        empty.bits_per_weight()
    with pytest.raises(GgufError, match=r"\[general.architecture\]: metadata key is missing"):
        _ = empty.architecture
    with pytest.raises(GgufError, match=r"\[t\]: no such tensor"):
        empty.tensor_bytes("t")


def test_typed_values(tmp_path: Path) -> None:
    file = opened(
        tmp_path, raw_gguf((key("n", 4, struct.pack("<I", 7)), key("b", 7, b"\1"), key("s", 8, string("s"))))
    )
    assert (file.integer("n"), file.integer("none", 3), file.text("s"), file.text("none", "d")) == (
        7,
        3,
        "s",
        "d",
    )
    assert file.value("none", None) is None
    for call in (lambda: file.integer("b"), lambda: file.integer("s"), lambda: file.text("n")):
        with pytest.raises(GgufError, match="wrong value type"):
            call()


def test_types_without_a_decoder_are_refused(tmp_path: Path) -> None:
    kind = int(gguf.GGMLQuantizationType.Q8_K)
    size = tensor_bytes((256,), kind)
    file = opened(tmp_path, raw_gguf(tensors=(tensor("t", (256,), kind, 0),), data=size))
    with pytest.raises(UnsupportedError, match="Q8_K cannot be decoded"):
        file.tensor_f32("t")


def test_tensors_are_hashed_once_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GgufFile.open(random_gguf(tmp_path / "m.gguf", RandomShape(), seed=1))
    expected = GgufFile.open(file.path).tensors_sha256()
    calls: list[str] = []
    hash_tensors = GgufFile._hash_tensors

    def counted(self: GgufFile, progress: ProgressCallback) -> str:
        calls.append("hashed")
        time.sleep(0.05)  # long enough for the other threads to ask
        return hash_tensors(self, progress)

    monkeypatch.setattr(GgufFile, "_hash_tensors", counted)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: file.tensors_sha256(), range(4))) == {expected}
    assert calls == ["hashed"]
