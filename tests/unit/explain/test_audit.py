"""Audits of doctored models: exact counts, names and verdicts; blocks against libggml's own encoder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from tests.unit.explain.models import BF16, folder, gguf, normal, unknown
from tests.unit.quantize.codec_cases import libggml_decode, libggml_encode

from bitloss.errors import BitlossError, FileProblem, FormatError, UnsupportedError, UsageError
from bitloss.explain.audit import audit
from bitloss.explain.audit_text import TABLE_HEAD, block_sentence, histogram, summary, table_rows, verdict
from bitloss.explain.weights import as_bf16, as_f16
from bitloss.model.gguf_split import part_path
from bitloss.progress import Progress
from bitloss.records.audit import Audit, BlockLoss, TensorAudit, Weights

Q8_0, Q4_K, Q6_K = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K


def counts(tensor: TensorAudit) -> Weights:
    assert tensor.weights is not None
    return tensor.weights


def tensor(found: Audit, name: str) -> TensorAudit:
    return next(each for each in found.tensors if each.name == name)


def blocks(found: Audit | TensorAudit, kind: str = "Q8_0") -> BlockLoss:
    return next(each for each in found.blocks if each.type == kind)


# ------------------------------------------------------------------------------------- doctored models


def test_a_plain_model_is_lossless(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", {"a.weight": normal(8, 64, dtype=BF16), "n.weight": normal(64, seed=1)})
    found = audit(model)
    assert (found.model, found.total.values, found.matrices.values) == ("m", 8 * 64 + 64, 8 * 64)
    assert found.total.f16.verdict == found.total.bf16.verdict == "lossless"
    assert found.total.f16.largest_error is None
    assert blocks(found).blocks == 16
    assert blocks(found).f16.changed == blocks(found).bf16.changed == 0
    assert tensor(found, "n.weight").blocks == ()
    assert sum(found.total.exponents) == found.total.values


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_one_weight_of_70000_overflows_f16(tmp_path: Path, dtype: Any) -> None:
    good, bad = normal(4, 64, dtype=dtype), normal(4, 64, seed=1, dtype=dtype)
    bad[2, 40] = 70144  # the nearest BF16 value
    found = audit(gguf(tmp_path / "m.gguf", {"good": good, "bad": bad}))
    assert tensor(found, "good").weights is not None
    assert counts(tensor(found, "good")).f16.verdict == "lossless"
    loss = counts(tensor(found, "bad")).f16
    assert (loss.verdict, loss.changed, loss.overflowed, loss.zeroed) == ("overflows", 1, 1, 0)
    assert loss.largest_error is None
    assert verdict(loss) == "overflows: 1 value"
    assert counts(tensor(found, "bad")).above == 1
    assert found.total.f16 == found.matrices.f16 == loss
    assert found.total.bf16.verdict == "lossless"
    assert (blocks(found).f16.changed, blocks(found).f16.overflowed) == (1, 1)
    assert blocks(found).bf16.changed == 0


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_tiny_weights_are_lost_in_f16_and_no_block_sees_it(tmp_path: Path, dtype: Any) -> None:
    values = normal(2, 64, dtype=dtype)
    values[0, 3], values[1, 33], values[1, 34] = 1e-7, 1e-8, -1e-8
    found = audit(folder(tmp_path / "m", {"a.weight": values}))
    loss = found.total.f16
    assert (loss.verdict, loss.changed, loss.zeroed, loss.overflowed) == ("lossless except", 3, 2, 0)
    exact = [np.float32(x) for x in (values[0, 3], values[1, 33])]
    assert loss.largest_error == max(float(abs(x - np.float32(np.float16(x)))) for x in exact)
    assert loss.largest_relative_error == 1.0
    assert verdict(loss) == f"lossless except 3 values (largest error {loss.largest_error:.3g})"
    assert (found.total.below, found.total.smallest) == (3, float(exact[1]))
    assert blocks(found).f16.changed == 0


def test_a_block_of_nothing_but_tiny_weights_sees_the_cast(tmp_path: Path) -> None:
    values = normal(4, 32)
    values[2] = np.linspace(-1e-7, 1e-7, 32, dtype=np.float32)
    found = audit(gguf(tmp_path / "m.gguf", {"a": values}))
    assert (blocks(found).blocks, blocks(found).f16.changed) == (4, 1)


def test_an_all_zero_tensor(tmp_path: Path) -> None:
    zeros = np.zeros((3, 32), np.float32)
    zeros[1] = -0.0
    found = audit(folder(tmp_path / "m", {"z": zeros}))
    assert (found.total.values, found.total.zeros, found.total.largest, found.total.smallest) == (
        96,
        96,
        None,
        None,
    )
    assert (found.total.exponents, found.total.lowest_exponent, found.total.below) == ((), None, 0)
    assert found.total.f16.verdict == "lossless"
    assert histogram(found.total) == ["  zero               96"]


def test_bf16_values_between_two_f16_subnormals(tmp_path: Path) -> None:
    """F16's subnormals are multiples of 2^-24: 2^-24 x 2.5 is BF16, and lies between two of them."""
    values = normal(1, 32, dtype=BF16)
    values[0, :4] = np.array([2.5, 3.0, 0.5, -1.5], np.float32) * np.float32(2.0**-24)
    assert (values[0, :4].astype(np.float32) == np.array([2.5, 3, 0.5, -1.5]) * 2.0**-24).all()
    found = audit(folder(tmp_path / "m", {"a": values}))
    loss = found.total.f16
    # 3 is exact; 0.5 becomes 0, 2.5 and -1.5 become 2 and -2.
    assert (loss.changed, loss.zeroed, loss.largest_error) == (3, 1, 2.0**-25)
    assert loss.largest_relative_error == 1.0
    assert found.total.below == 4
    assert found.total.bf16.verdict == "lossless"


def test_nan_and_infinity_are_counted_by_kind(tmp_path: Path) -> None:
    values = normal(4, 32)
    values[0, :3] = np.nan, np.inf, -np.inf
    values[2, 5] = -np.inf
    values[3, 1] = 70000
    found = audit(gguf(tmp_path / "m.gguf", {"a": values}))
    assert (found.total.nan, found.total.positive_infinities, found.total.negative_infinities) == (1, 1, 2)
    assert (found.total.f16.changed, found.total.f16.overflowed) == (1, 1)
    assert (blocks(found).blocks, blocks(found).not_finite, blocks(found).f16.changed) == (2, 2, 1)
    assert any("not finite: 1 NaN, 1 +infinity, 2 -infinity, in a; what" in line for line in summary(found))
    assert table_rows(found)[0][2] == "128 (1 NaN, 1 +infinity, 2 -infinity)"


def test_what_a_table_says_of_a_tensor(tmp_path: Path) -> None:
    """65519 is within F16 and must not be shown as 65520; all zeros, and zeros made, are said."""
    values = normal(4, 32)
    values[0, :4] = 65519, 1e-8, 70000, 1e-7
    data = {
        "a": values,
        "z": np.zeros((2, 32), np.float32),
        "v": values[0, :2],
        "e": np.zeros((0, 32), np.float32),
    }
    found = audit(gguf(tmp_path / "m.gguf", data))
    rows = {row[0]: dict(zip(TABLE_HEAD, row, strict=False)) for row in table_rows(found)}
    assert rows["v"]["largest"] == "65519"
    assert rows["a"]["outside"] == "4"
    error = "15"  # 65519 comes back as 65504
    assert (
        rows["a"]["F16"] == f"overflows: 1 value (3 values changed besides, largest error {error}), 1 to zero"
    )
    assert (rows["z"]["zeros"], rows["z"]["F16"]) == ("64 (all)", "lossless")
    assert (rows["e"]["values"], rows["e"]["F16"]) == ("0", "")
    assert "all zero: 1 tensor: z" in summary(found)


def test_nothing_counted_is_not_lossless(tmp_path: Path) -> None:
    said = summary(audit(gguf(tmp_path / "m.gguf", {"i": np.arange(7, dtype=np.int32)})))
    assert said[-1] == "no value was counted, so nothing is known of what a cast would lose"
    assert not any("lossless" in line for line in said)


# ------------------------------------------------------------------------- blocks, against libggml


@pytest.mark.parametrize("kind", [Q8_0, Q4_K, Q6_K])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
def test_changed_blocks_are_those_libggml_encodes_otherwise(
    tmp_path: Path, kind: GGMLQuantizationType, dtype: Any
) -> None:
    rng = np.random.default_rng(11)
    sizes = np.exp(rng.uniform(np.log(1e-8), np.log(1e-2), (40, 2)))
    plain = (rng.standard_normal((40, 512)) * np.repeat(sizes, 256, axis=1)).astype(dtype)
    values = plain.astype(np.float32)
    expected = libggml_encode(kind, values, None)
    size = expected.shape[1] // (512 // (32 if kind is Q8_0 else 256))

    def changed(cast: np.ndarray[Any, Any]) -> int:
        other = libggml_encode(kind, cast, None)
        return int((other != expected).reshape(-1, size).any(axis=1).sum())

    found = audit(gguf(tmp_path / "m.gguf", {"a": plain}), formats=[kind.name])
    loss = blocks(found, kind.name)
    assert loss.f16.changed == changed(as_f16(values))
    assert loss.bf16.changed == changed(as_bf16(values))
    assert (loss.f16.changed > 0) == (dtype is not np.float16)
    assert (loss.bf16.changed > 0) == (dtype is not BF16)
    assert loss.blocks == expected.size // size


def test_rows_no_multiple_of_the_block_have_no_blocks(tmp_path: Path) -> None:
    found = audit(gguf(tmp_path / "m.gguf", {"a": normal(4, 96)}), formats=["Q8_0", "Q4_K"])
    assert [each.type for each in tensor(found, "a").blocks] == ["Q8_0"]
    assert [each.blocks for each in found.blocks] == [12, 0]


# --------------------------------------------------------------------------------- forms of a model


def test_quantized_tensors_are_counted_as_decoded(tmp_path: Path) -> None:
    values = normal(4, 256)
    data = libggml_encode(Q4_K, values, None)
    path = gguf(tmp_path / "m.gguf", {"q": data, "n": normal(8)}, blocks={"q": ((256, 4), Q4_K)[::-1]})
    found = audit(path)
    each = tensor(found, "q")
    assert (each.type, each.decoded, tensor(found, "n").decoded) == ("Q4_K", True, False)
    decoded = libggml_decode(Q4_K, data, 256)
    assert counts(each).largest == float(np.abs(decoded).max())
    assert counts(each).f16.changed == int((as_f16(decoded) != decoded).sum()) > 0
    assert table_rows(found)[0][1] == "Q4_K (decoded)"


def test_what_holds_no_weights_is_opaque(tmp_path: Path) -> None:
    doubles, ids = np.ones((2, 2), np.float64), np.arange(4, dtype=np.int64)
    found = audit(folder(tmp_path / "m", {"a": normal(2, 32), "d": doubles, "ids": ids}))
    assert found.opaque == ("d", "ids")
    assert tensor(found, "d").weights is None
    assert tensor(found, "ids").opaque == "integers"
    assert found.total.values == 64
    assert any("2 opaque tensors: d, ids" in line for line in summary(found))
    assert len(table_rows(found)) == 3


def test_unknown_types_are_named_and_opaque(tmp_path: Path) -> None:
    path = unknown(tmp_path / "m.gguf", {"odd": normal(2, 32), "a": normal(2, 32)})
    found = audit(path)
    assert (found.opaque, found.total.values) == (("odd",), 64)
    assert (tensor(found, "odd").type, tensor(found, "odd").opaque) == (
        "type 99",
        "a type that is not known here",
    )
    assert any("1 opaque tensor: odd" in line for line in summary(found))


def test_a_split_file_is_one_model(tmp_path: Path) -> None:
    from bitloss.model.gguf import GgufType, GgufValue

    def keys(no: int) -> dict[str, GgufValue]:
        return {
            "split.no": GgufValue(GgufType.UINT16, no),
            "split.count": GgufValue(GgufType.UINT16, 2),
            "split.tensors.count": GgufValue(GgufType.INT32, 2),
        }

    a, b = normal(4, 64), normal(2, 64, seed=1)
    b[0, 0] = 1e-8
    whole = audit(gguf(tmp_path / "m.gguf", {"a": a, "b": b}))
    gguf(part_path(tmp_path / "s.gguf", 0, 2), {"a": a}, keys(0))
    gguf(part_path(tmp_path / "s.gguf", 1, 2), {"b": b}, keys(1))
    parts = audit(part_path(tmp_path / "s.gguf", 0, 2))
    assert parts.tensors == whole.tensors
    assert parts.total == whole.total
    assert parts.total.f16.zeroed == 1
    with pytest.raises(UsageError, match="not the first part"):
        audit(part_path(tmp_path / "s.gguf", 1, 2))


def test_folder_and_gguf_of_the_same_weights_agree_on_any_number_of_threads(tmp_path: Path) -> None:
    tensors = {"a": normal(300, 512), "b": normal(4, 64, seed=2).astype(np.float16)}
    tensors["a"][5:90] *= np.float32(1.1)
    one = audit(folder(tmp_path / "f", tensors), threads=1)
    two = audit(gguf(tmp_path / "g.gguf", tensors), threads=3)
    assert one.tensors == two.tensors
    assert one.total.f16.changed > 10_000


def test_pieces_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = normal(50, 256)
    values[::3] *= np.float32(1e-5)
    quantized = libggml_encode(Q8_0, values, None)
    path = gguf(
        tmp_path / "m.gguf",
        {"a": values, "b": values.astype(BF16), "c": quantized, "v": normal(257)},
        blocks={"c": (Q8_0, (256, 50))},
    )
    whole = audit(path, formats=["Q8_0", "Q6_K"])
    seen: list[Progress] = []
    monkeypatch.setattr("bitloss.explain.audit._PIECE", 1000)
    parts = audit(path, formats=["Q8_0", "Q6_K"], progress=seen.append)
    assert parts == whole
    assert blocks(whole).f16.changed > 0
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert (seen[-1].done, len(seen) > 50) == (seen[-1].total, True)


def test_empty_tensors_beside_others(tmp_path: Path) -> None:
    found = audit(folder(tmp_path / "m", {"e": np.zeros((0, 32), np.float32), "a": normal(1, 32)}))
    assert counts(tensor(found, "e")).values == 0


# ------------------------------------------------------------------------------------------- bad input


def test_formats_that_cannot_be_looked_at(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", {"a": normal(1, 32)})
    with pytest.raises(UsageError, match="Did you mean Q8_0"):
        audit(path, formats=["Q8_O"])
    with pytest.raises(UsageError, match="not a type of blocks"):
        audit(path, formats=["F16"])
    with pytest.raises(UsageError, match="importance matrix"):
        audit(path, formats=["IQ2_XXS"])


def test_nothing_to_audit(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no such model"):
        audit(tmp_path / "none")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(FormatError, match="empty"):
        audit(tmp_path / "empty.gguf")
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileProblem, match=r"config\.json"):
        audit(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text("{}")
    with pytest.raises(FileProblem, match="no weights"):
        audit(tmp_path / "bare")
    with pytest.raises(FileProblem, match="no weights to audit"):
        audit(gguf(tmp_path / "none.gguf", {}))
    (tmp_path / "bare" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedError, match="pickled"):
        audit(tmp_path / "bare")


def test_a_file_cut_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", {"a": normal(1, 32), "b": normal(2, 32).astype(np.float16)})
    data = path.read_bytes()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(BitlossError) as caught:
            audit(path)
        assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------- words, memory


def test_sentences_carry_the_numbers(tmp_path: Path) -> None:
    values = normal(4, 32)
    values[2] = np.linspace(-1e-7, 1e-7, 32, dtype=np.float32)
    values[0, 0] = 70000
    vector = np.full(8, 1e-8, np.float32)
    found = audit(gguf(tmp_path / "m.gguf", {"a": values, "v": vector}))
    said = "\n".join(summary(found))
    assert "2 tensors, 136 values" in said
    assert "41 (40 below, 1 above)" in said
    assert "F16: overflows: 1 value (" in said
    assert "the matrices alone (a conversion keeps vectors at F32): overflows: 1 value (" in said
    assert block_sentence(found.blocks[0]) == (
        "Q8_0 blocks: 2 of 4 would change by way of F16 (1 holds an overflow), "
        f"{found.blocks[0].bf16.changed} of 4 would change by way of BF16"
    )
    bars = histogram(found.total)
    assert bars[0].split() == ["zero", "0"]
    assert sum(int(line.split()[1].replace(",", "")) for line in bars) == 136


def test_the_record_survives_json(tmp_path: Path) -> None:
    found = audit(gguf(tmp_path / "m.gguf", {"a": normal(1, 32)}))
    assert Audit.model_validate_json(found.model_dump_json(), strict=True) == found
    assert json.loads(found.model_dump_json())["total"]["f16"]["verdict"] == "lossless"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A file of 400 MB in one tensor: resident memory grows by a few pieces, not by the file."""
    path = tmp_path / "m.gguf"
    gguf(path, {"a": np.zeros((200, 1 << 20), np.float16)})
    code = f"""
import resource
from pathlib import Path
from bitloss.explain.audit import audit
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert audit(Path({str(path)!r})).total.zeros == 200 << 20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 250_000  # kB
