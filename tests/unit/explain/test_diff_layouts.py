"""Diffs of files of any layout, whole or damaged, and of many pieces."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from tests.unit.explain.diff_cases import checked, pair, share, tensor, text
from tests.unit.explain.models import gguf, normal, unknown
from tests.unit.quantize.codec_cases import libggml_encode

from bitloss.errors import BitlossError, FileProblem, FormatError, UsageError
from bitloss.explain.diff import diff
from bitloss.explain.diff_text import tensor_rows
from bitloss.model.gguf import GgufType, GgufValue
from bitloss.model.gguf_split import part_path
from bitloss.progress import Progress

Q4_K, Q8_0, IQ2_S = (
    GGMLQuantizationType.Q4_K,
    GGMLQuantizationType.Q8_0,
    GGMLQuantizationType.IQ2_S,
)


# ---------------------------------------------------------------------------------------- other layouts


def test_order_alignment_and_trailing_bytes(tmp_path: Path) -> None:
    x, y = normal(1, 33)[:, :31].copy(), normal(7)
    a = gguf(tmp_path / "a.gguf", {"x": x, "y": y})
    order = gguf(tmp_path / "b.gguf", {"y": y, "x": x})
    found = checked(a, order)
    assert (found.conclusion, found.tensor_order) == ("same weights", True)
    assert "the tensors come in another order" in found.causes

    wide = gguf(tmp_path / "c.gguf", {"x": x, "y": y}, {"general.alignment": GgufValue(GgufType.UINT32, 128)})
    found = checked(a, wide)
    assert "tensors begin at multiples of 32 bytes in A, of 128 in B" in found.causes
    assert any(cause.startswith("metadata key general.alignment is only in B") for cause in found.causes)
    assert share(found, "between tensors, to the alignment").b == 4

    longer = tmp_path / "d.gguf"
    longer.write_bytes(a.read_bytes() + b"trailing" * 100)
    found = checked(a, longer)
    assert found.causes == ("trailing bytes behind all that the header speaks of: 0 bytes in A, 800 in B",)
    assert found.text.endswith("B is 800 bytes larger: all of them in trailing bytes")

    dirty = bytearray(a.read_bytes())
    dirty[-1] = 7  # padding of the last tensor
    (tmp_path / "e.gguf").write_bytes(bytes(dirty))
    found = checked(a, tmp_path / "e.gguf")
    assert found.causes == ("padding behind the last tensor, to the alignment: other bytes (4)",)


def test_keys_in_another_order_and_values_of_arrays(tmp_path: Path) -> None:
    def keys(tokens: list[str], scores: list[float], swap: bool) -> dict[str, GgufValue]:
        made = {
            "t": GgufValue(GgufType.ARRAY, tokens, GgufType.STRING),
            "s": GgufValue(GgufType.ARRAY, np.array(scores, np.float32), GgufType.FLOAT32),
            "n": GgufValue(GgufType.UINT32 if swap else GgufType.INT32, 5),
        }
        return dict(reversed(made.items())) if swap else made

    x = {"x": normal(4)}
    a = gguf(tmp_path / "a.gguf", x, keys(["a", "b", "c", "d", "e", "f", "g"], [0.5, 1, np.nan], False))
    b = gguf(tmp_path / "b.gguf", x, keys(["a", "b", "X", "d", "Y", "f"], [0.5, 2, np.nan], True))
    found = checked(a, b)
    by = {each.key: each for each in found.metadata}
    assert found.key_order
    assert "the metadata keys come in another order" in found.causes
    assert by["t"].a == "7 x STRING: a, b, c, d, e, f, ..."
    assert by["t"].note == "7 against 6 items, 2 of 6 items differ, the first is 2 (c / X)"
    assert by["s"].note == "1 of 3 items differ, the first is 1 (1 / 2)"
    assert (by["n"].a, by["n"].b) == ("INT32 5", "UINT32 5")


def split(path: Path, tensors: list[Mapping[str, Any]]) -> Path:
    total = sum(map(len, tensors))
    for i, some in enumerate(tensors):
        keys = {
            "split.no": GgufValue(GgufType.UINT16, i),
            "split.count": GgufValue(GgufType.UINT16, len(tensors)),
            "split.tensors.count": GgufValue(GgufType.INT32, total),
        }
        gguf(part_path(path, i, len(tensors)), some, keys)
    return part_path(path, 0, len(tensors))


def test_split_files(tmp_path: Path) -> None:
    x, y = normal(4, 64), normal(2, 64, seed=1)
    whole = gguf(tmp_path / "m.gguf", {"x": x, "y": y})
    parts = split(tmp_path / "s.gguf", [{"x": x}, {"y": y}])
    found = diff(whole, parts)
    sizes = [part_path(tmp_path / "s.gguf", i, 2).stat().st_size for i in range(2)]
    assert (found.conclusion, found.a.parts, found.b.parts) == ("same weights", 1, 2)
    assert sum(each.b for each in found.shares) == found.b.bytes == sum(sizes)
    assert sum(each.a for each in found.shares) == whole.stat().st_size
    assert found.causes[0] == "A is 1 file, B is 2 files"
    assert diff(parts, parts).conclusion == "same file"
    with pytest.raises(UsageError, match="not the first part"):
        diff(whole, part_path(tmp_path / "s.gguf", 1, 2))


def test_another_architecture(tmp_path: Path) -> None:
    x = normal(4, 64)
    a = gguf(tmp_path / "a.gguf", {"x": x, "y": x})
    b = gguf(tmp_path / "b.gguf", {"x": x, "z": x}, {"general.architecture": text("qwen2")})
    found = checked(a, b)
    assert found.conclusion == "different models"
    assert found.text.startswith(
        "different models: llama and qwen2. 1 tensor of the same name and shape: equal byte for byte; "
        "1 tensor only in A, 1 tensor only in B. "
    )
    assert "metadata key general.architecture has another value" in found.causes[0]
    c = gguf(tmp_path / "c.gguf", {"other": x})
    assert "no tensor of one has the name and shape" in checked(a, c).text


# ------------------------------------------------------------------------------------------- bad input


def test_unknown_types_are_named_and_opaque(tmp_path: Path) -> None:
    x, y = normal(4, 64), normal(4, 64)
    y[1, 1] = 2
    a = unknown(tmp_path / "a.gguf", {"odd": x, "n": normal(8)})
    b = unknown(tmp_path / "b.gguf", {"odd": y, "n": normal(8)})
    found = checked(a, b)
    each = tensor(found, "odd")
    assert (each.type_a, each.state, each.values) == ("type 99", "different", None)
    assert each.note == "values of type 99 are not decoded here: compared as bytes"
    assert each.blocks == 1024
    assert 1 <= (each.differing_blocks or 0) <= 4
    assert (found.total.opaque, tensor(found, "n").state) == (1, "identical")
    assert tensor(checked(a, a), "odd").state == "identical"
    c = gguf(tmp_path / "c.gguf", {"odd": x, "n": normal(8)})
    other = tensor(checked(a, c), "odd")
    assert (other.state, other.type_a, other.type_b, other.values) == ("different", "type 99", "F32", None)


def test_integers_are_compared_as_bytes(tmp_path: Path) -> None:
    one, two = np.arange(8, dtype=np.int32), np.arange(8, dtype=np.int32)
    two[3] = 9
    a, b = pair(tmp_path, {"i": one}, {"i": two})
    each = tensor(checked(a, b), "i")
    assert (each.blocks, each.differing_blocks, each.values) == (8, 1, None)
    assert "I32" in (each.note or "")


def test_files_that_cannot_be_compared(tmp_path: Path) -> None:
    good = gguf(tmp_path / "a.gguf", {"x": normal(1, 32)})
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.gguf").write_text("hello")
    for path, kind, said in (
        (tmp_path / "none.gguf", FileProblem, "no such GGUF file. Give the path"),
        (tmp_path / "folder", FileProblem, "a folder, not a GGUF file"),
        (tmp_path / "empty.gguf", FormatError, "the file is empty"),
        (tmp_path / "text.gguf", FormatError, "not a GGUF file"),
    ):
        for files in ((good, path), (path, good)):
            with pytest.raises(kind, match=said):
                diff(*files)
        with pytest.raises(kind, match=said):
            diff(good, good, reference=path)


def test_no_tensors_at_all(tmp_path: Path) -> None:
    a, b = pair(tmp_path, {}, {"x": normal(4)})
    assert checked(a, a).conclusion == "same file"
    assert checked(a, b).conclusion == "different tensors"


def test_a_file_cut_anywhere_is_refused_or_compared(tmp_path: Path) -> None:
    a = gguf(tmp_path / "a.gguf", {"x": normal(1, 32), "y": normal(7).astype(np.float16)})
    data = a.read_bytes()
    b = tmp_path / "b.gguf"
    refused = 0
    for cut in range(len(data)):
        b.write_bytes(data[:cut])
        try:
            checked(a, b)
        except BitlossError:
            refused += 1
        else:
            assert len(data) - cut < 32  # padding alone is missing
    assert refused > len(data) - 32


def test_a_file_with_any_bit_flipped_is_refused_or_compared(tmp_path: Path) -> None:
    a = gguf(tmp_path / "a.gguf", {"x": normal(1, 32), "y": normal(7).astype(np.float16)})
    data = a.read_bytes()
    b = tmp_path / "b.gguf"
    rng = np.random.default_rng(0)
    for at in rng.choice(8 * len(data), 400, replace=False).tolist():
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        b.write_bytes(bytes(flipped))
        try:
            found = checked(a, b)
        except BitlossError:
            continue
        assert found.conclusion != "same file"


# ---------------------------------------------------------------------------------- pieces and memory


def test_pieces_and_threads_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(50, 256) * np.float32(1.03)
    y = x * np.float32(1.001)
    kinds = {"q": Q8_0, "i": IQ2_S}
    made = [{n: libggml_encode(k, v, None) for n, k in kinds.items()} | {"f": v} for v in (x, y)]
    a, b = pair(tmp_path, *made, blocks={n: (k, (256, 50)) for n, k in kinds.items()})
    reference = gguf(tmp_path / "r.gguf", {"q": x, "i": x, "f": x})
    seen: list[Progress] = []
    whole = diff(a, b, reference=reference, threads=1)
    for name in ("diff_tensors._VALUES", "diff_tensors._DECODED", "blocks._PIECE"):
        monkeypatch.setattr(f"bitloss.explain.{name}", 1024)
    parts = diff(a, b, reference=reference, threads=3, progress=seen.append)
    for one, two in zip(whole.tensors, parts.tensors, strict=True):
        counts = {"values", "reference"}
        assert one.model_dump(exclude=counts) == two.model_dump(exclude=counts)
        assert one.values is not None
        assert two.values is not None
        assert one.values.rms == pytest.approx(two.values.rms, rel=1e-12)
        assert one.values.differing == two.values.differing
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert (seen[-1].done, len(seen) > 50) == (seen[-1].total, True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    """Files of 400 MB of which every value differs: resident memory stays at a few pieces."""
    a, b = (gguf(tmp_path / f"{i}.gguf", {"x": np.full((200, 1 << 20), i, np.float16)}) for i in range(2))
    code = f"""
from pathlib import Path
from bitloss.explain.diff import diff
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
before = peak()
assert diff(Path({str(a)!r}), Path({str(b)!r})).total.values.differing == 200 << 20
assert peak() - before < 150_000, (before, peak())
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_quantized_types_have_blocks(tmp_path: Path) -> None:
    """Floats and integers are told of tensor by tensor; shares of blocks are of blocks."""
    q = libggml_encode(Q8_0, normal(2, 64), None)
    tensors = {"q": q, "f": normal(8), "i": np.arange(9, dtype=np.int32)}
    a, b = pair(tmp_path, tensors, tensors | {"i": np.zeros(9, np.int32)}, blocks={"q": (Q8_0, (64, 2))})
    found = checked(a, b)
    assert (found.total.blocks, found.total.differing_blocks) == (4, 0)
    assert {each.name: each.blocks for each in found.tensors} == {"q": 4, "f": 8, "i": 9}
    assert "block" not in found.text


@pytest.mark.parametrize("kind", [Q8_0, Q4_K, IQ2_S])
@pytest.mark.parametrize("block", [0, 5, 15])
def test_one_flipped_bit_is_named_with_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, block: int
) -> None:
    rows = 2 if kind == Q8_0 else 16
    data = libggml_encode(kind, normal(rows, 256), None)
    other = data.copy().reshape(16, -1)
    other[block, 11] ^= 4
    forms = {"q": (kind, (256, rows))}
    a, b = pair(tmp_path, {"q": data, "n": normal(8)}, {"q": other.reshape(-1), "n": normal(8)}, blocks=forms)
    for piece in (1 << 23, 1024):
        monkeypatch.setattr("bitloss.explain.diff_tensors._VALUES", piece)
        monkeypatch.setattr("bitloss.explain.blocks._PIECE", piece)
        found = checked(a, b)
        assert [(each.block, each.bits) for each in found.tensors[0].first] == [(block, 1)]
        assert found.causes == (f"1 tensor holds other weights: q (block {block}, 1 bit)",)
        assert "in 1 of 16 blocks" in found.text


def test_the_first_eight_blocks_are_named(tmp_path: Path) -> None:
    data = libggml_encode(Q8_0, normal(4, 256), None)
    other = data.copy().reshape(32, -1)
    other[4::2, 20] ^= 129
    a, b = pair(tmp_path, {"q": data}, {"q": other.reshape(-1)}, blocks={"q": (Q8_0, (256, 4))})
    (row,) = checked(a, b).tensors
    assert [(each.block, each.bits) for each in row.first] == [(n, 2) for n in range(4, 20, 2)]
    assert row.differing_blocks == 14
    assert "block" not in checked(a, b).causes[0]  # all of them or none


def test_another_type_is_a_cause_of_its_own(tmp_path: Path) -> None:
    x = normal(4, 32)
    half = x.astype(np.float16)
    y = x.copy()
    y[0, 0] = 1e-8
    a, b = pair(tmp_path, {"same": x, "lost": y}, {"same": half, "lost": y.astype(np.float16)})
    found = checked(a, b)
    assert "1 of 2 tensors differs, 2 are of another type, 1 of 256 values (0.391 %) changed" in found.text
    assert "2 tensors are F32 in A and F16 in B: same, lost" in found.causes


def test_what_is_not_finite_is_no_error_of_zero(tmp_path: Path) -> None:
    x = normal(1, 32)
    bad = x.copy()
    bad[0, 3] = np.nan
    text = checked(*pair(tmp_path, {"w": x}, {"w": bad})).text
    assert "1 of 32 values (3.12 %) changed, values that are not finite are in no error: 1 NaN in B." in text
    assert "RMS" not in text
    bad[0, 9] += 1
    text = checked(*pair(tmp_path, {"w": x}, {"w": bad})).text
    assert "RMS difference 0.18, largest 1, values that are not finite are in no error: 1 NaN in B." in text


def test_values_beside_blocks_are_told(tmp_path: Path) -> None:
    """Quants of the one tensor do not hide values of the other."""
    data = libggml_encode(Q8_0, normal(2, 64), None)
    other = data.copy().reshape(-1)
    other[20] ^= 1
    norm = normal(8)
    forms = {"q": (Q8_0, (64, 2))}
    files = pair(tmp_path, {"q": data, "n": norm}, {"q": other, "n": norm + 1}, blocks=forms)
    text = checked(*files).text
    assert (
        "in 1 of 4 blocks (25 %), 1 of 128 quants (0.781 %) and 0 of 4 scales changed, 9 of 136 values"
        in text
    )


def test_opaque_bytes_are_no_weights(tmp_path: Path) -> None:
    a = unknown(tmp_path / "a.gguf", {"odd": normal(2, 32)})
    data = bytearray(a.read_bytes())
    data[-3] ^= 3
    b = tmp_path / "b.gguf"
    b.write_bytes(data)
    found = checked(a, b)
    assert found.causes == (
        "1 tensor holds other bytes of a type that is not decoded: odd (byte 253, 2 bits)",
    )
    assert tensor_rows(found, identical=False)[0][3] == "1 of 256 bytes"
