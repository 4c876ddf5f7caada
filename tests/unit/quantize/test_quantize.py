"""Making a candidate: the record, what the file says of its matrix, and every refusal."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitloss.errors import (
    DiskFull,
    EngineError,
    FileProblem,
    GgufError,
    ImatrixError,
    MismatchError,
    UnsupportedError,
    UsageError,
)
from bitloss.imatrix.file import Imatrix, ImatrixEntry, write_imatrix
from bitloss.model.gguf import GgufFile, GgufType, GgufValue
from bitloss.model.gguf_writer import GgufStream, TensorPlan
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.progress import Progress
from bitloss.quantize import quantize as module
from bitloss.quantize.call import QuantizeCall, TypeRules
from bitloss.quantize.candidate import plan_candidates
from bitloss.quantize.plan import type_plan
from bitloss.quantize.quantize import How, QuantizeSpec, candidate_name, quantize, quantize_all
from bitloss.quantize.request import Encoder, TensorError, parse_size, read_recipe
from bitloss.quantize.verify import verify_candidate
from bitloss.store import sha256_file

SHAPE = RandomShape(n_embd=256, n_head=2, n_head_kv=1, head_dim=128, n_ff=256, n_layer=1, n_vocab=300)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gguf(tmp_path_factory.mktemp("source") / "model-f32.gguf", SHAPE, dtype="f32")


def matrix(source: Path, *, skip: str = "-", widen: str = "-", extra: str | None = None) -> Imatrix:
    """A made-up matrix of the layers of `source`."""
    entries = {}
    for name, info in GgufFile.open(source).tensors.items():
        if name.startswith("blk.") and "norm" not in name and skip not in name:
            n_in = info.shape[0] + (widen in name)
            entries[name] = ImatrixEntry(1 + np.arange(n_in, dtype=np.float64)[np.newaxis], np.array([64.0]))
    if extra:
        entries[extra] = ImatrixEntry(np.ones((1, 256)), np.array([64.0]))
    return Imatrix(entries, 2, 32, ("secret/folder/text.txt",))


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_record(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / candidate_name(source, "q4_k")
    told: list[Progress] = []
    made = quantize(QuantizeSpec(source, "q4_k", out), told.append)
    file = GgufFile.open(out)
    assert out.name == "model-f32-Q4_K_M.gguf"
    assert only(out.parent) == [out.name]
    assert (made.type, made.out, made.bytes) == ("Q4_K_M", out, out.stat().st_size)
    assert made.sha256 == sha256_file(out)
    assert made.tensors_sha256 == file.tensors_sha256()
    assert made.bits_per_weight == file.bits_per_weight()
    assert made.type_counts == {"F32": 3, "Q4_K": 6, "Q6_K": 3}
    assert (made.n_fallback, made.without_imatrix) == (0, ())
    assert made.seconds > 0
    assert made.as_json()["out"] == out.name
    counted = [step.done for step in told if step.stage == "quantize Q4_K_M"]
    assert counted == list(range(len(file.tensors) + 1))
    assert {step.total for step in told if step.stage == "quantize Q4_K_M"} == {len(file.tensors)}
    assert told[-1].stage == "quantize Q4_K_M"  # nothing is read back
    called = quantize(QuantizeSpec(source, "q4_k", out), told.append, How("llama.cpp"))
    assert (called.sha256, called.tensors_sha256) == (made.sha256, made.tensors_sha256)
    assert told[-1].stage.startswith("hash")


def test_what_the_file_says_of_its_matrix(source: Path, tmp_path: Path) -> None:
    imatrix = tmp_path / "private" / "model.imatrix.gguf"
    write_imatrix(matrix(source, skip="attn_k"), imatrix)
    made = quantize(QuantizeSpec(source, "Q4_K_M", tmp_path / "a.gguf", imatrix=imatrix))
    file = GgufFile.open(tmp_path / "a.gguf")
    assert file.text("quantize.imatrix.file") == f"model.imatrix.gguf (sha256:{sha256_file(imatrix)[:16]})"
    assert file.text("quantize.imatrix.dataset") == "text.txt"
    assert file.integer("quantize.imatrix.entries_count") == 6
    assert file.integer("quantize.imatrix.chunks_count") == 2
    content = (tmp_path / "a.gguf").read_bytes()
    assert b"private" not in content
    assert b"secret" not in content
    assert set(made.without_imatrix) == {"blk.0.attn_k.weight", "token_embd.weight", "output.weight"}


def test_a_long_name_keeps_its_hash(source: Path, tmp_path: Path) -> None:
    imatrix = tmp_path / ("ä" * 100 + ".gguf")
    write_imatrix(matrix(source), imatrix)
    quantize(QuantizeSpec(source, "Q8_0", tmp_path / "a.gguf", imatrix=imatrix))
    said = GgufFile.open(tmp_path / "a.gguf").text("quantize.imatrix.file")
    assert said == "ä" * 50 + f" (sha256:{sha256_file(imatrix)[:16]})"
    assert len(said.encode()) <= 127


def test_q8_0_ignores_the_matrix_and_q4_k_does_not(source: Path, tmp_path: Path) -> None:
    imatrix = tmp_path / "m.gguf"
    write_imatrix(matrix(source), imatrix)
    hashes = {
        (kind, with_matrix): quantize(
            QuantizeSpec(source, kind, tmp_path / "a.gguf", imatrix=imatrix if with_matrix else None)
        ).tensors_sha256
        for kind in ("Q8_0", "Q4_K_M")
        for with_matrix in (False, True)
    }
    assert hashes["Q8_0", False] == hashes["Q8_0", True]
    assert hashes["Q4_K_M", False] != hashes["Q4_K_M", True]


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_plain_types(source: Path, tmp_path: Path, kind: str) -> None:
    made = quantize(QuantizeSpec(source, kind, tmp_path / "a.gguf"))
    assert made.type_counts == ({"F32": 12} if kind == "F32" else {kind: 9, "F32": 3})


def test_a_quantized_source(source: Path, tmp_path: Path) -> None:
    quantize(QuantizeSpec(source, "Q8_0", tmp_path / "q8.gguf"))
    spec = QuantizeSpec(tmp_path / "q8.gguf", "Q4_0", tmp_path / "q4.gguf")
    with pytest.raises(
        UnsupportedError,
        match=r"q8\.gguf\[.*weight\]: the source is quantized already: .*found Q8_0.*--allow-requantize",
    ):
        quantize(spec)
    assert only(tmp_path) == ["q8.gguf"]
    again = QuantizeSpec(spec.source, spec.type, spec.out, allow_requantize=True)
    assert quantize(again).type_counts["Q4_0"] == 8


def test_a_matrix_of_another_model(source: Path, tmp_path: Path) -> None:
    imatrix, out = tmp_path / "m.gguf", tmp_path / "a.gguf"
    cases = {
        r"1 of 8 weights unknown, the first is blk\.7\.attn_q\.weight": matrix(
            source, extra="blk.7.attn_q.weight"
        ),
        r"\[blk\.0\.ffn_down\.weight\].*expected 256 values, found 257": matrix(source, widen="ffn_down"),
    }
    for words, wrong in cases.items():
        write_imatrix(wrong, imatrix)
        with pytest.raises(MismatchError, match=f"importance matrix of another model.*{words}|{words}"):
            quantize(QuantizeSpec(source, "Q4_K_M", out, imatrix=imatrix))
    assert only(tmp_path) == ["m.gguf"]


def test_types_that_need_weights(source: Path, tmp_path: Path) -> None:
    out, imatrix = tmp_path / "a.gguf", tmp_path / "m.gguf"
    with pytest.raises(
        UnsupportedError,
        match=r"\[blk\.0\.attn_k\.weight\]: IQ2_XS is garbage.*--imatrix, or take another type than IQ2_XS",
    ):
        quantize(QuantizeSpec(source, "IQ2_XS", out))
    with pytest.raises(UnsupportedError, match="Q2_K is garbage"):
        quantize(QuantizeSpec(source, "Q2_K_S", out))
    write_imatrix(matrix(source, skip="ffn_up"), imatrix)
    with pytest.raises(
        UnsupportedError, match=r"\[blk\.0\.ffn_up\.weight\].*expected weights for this tensor in .*m\.gguf"
    ):
        quantize(QuantizeSpec(source, "IQ3_XXS", out, imatrix=imatrix))
    # ggml ends the process when the table has no weights for such a type.
    write_imatrix(matrix(source), imatrix)
    for forced in ({"pure": True}, {"token_embedding_type": "IQ1_S"}, {"output_tensor_type": "IQ2_XXS"}):
        with pytest.raises(UnsupportedError, match="is garbage without an importance matrix"):
            quantize(QuantizeSpec(source, "IQ2_XS", out, imatrix=imatrix, **forced))
    assert only(tmp_path) == ["m.gguf"]


def test_wrong_use(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    cases = [
        (QuantizeSpec(source, "Q4_KM", out), "Did you mean Q4_K_M"),
        (QuantizeSpec(source, "Q4_0", source), "would replace its source"),
        (QuantizeSpec(source, "Q4_0", out, keep_split=True, split_max_bytes=10**6), "two ways to split"),
        (QuantizeSpec(source, "Q4_0", out, split_max_bytes=10), "parts too small"),
        (QuantizeSpec(source, "F16", out, tensor_types=(("attn", "Q8_0"),)), "need a quantized file type"),
        (QuantizeSpec(source, "Q4_0", out, tensor_types=(("attn", "Q8"),)), "unknown tensor type"),
        (QuantizeSpec(source, "Q4_0", out, tensor_types=(("a\0b|attn", "Q8_0"),)), "a zero byte"),
    ]
    for spec, words in cases:
        with pytest.raises(UsageError, match=words):
            quantize(spec)
    spec = QuantizeSpec(source, "Q4_0", out)
    with pytest.raises(UsageError, match="impossible number of threads"):
        quantize(spec, how=How(threads=-1))
    with pytest.raises(UsageError, match=r"two candidates of the same name.*Ask for each type once"):
        quantize_all([spec, spec])
    refused = (
        (replace(spec, split_max_bytes=10**6), How("llama.cpp")),
        (spec, How("llama.cpp", errors=True)),
    )
    with pytest.raises(
        UsageError, match=r"errors of quantization are measured by .*Leave out --errors, or --enc"
    ):
        quantize(spec, how=How("llama.cpp", errors=True))
    for wrong, how in refused:
        with pytest.raises(UsageError, match="encoder"):
            quantize(wrong, how=how)
    assert only(tmp_path) == []


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_a_source_of_another_alignment(tmp_path: Path, alignment: int) -> None:
    """llama.cpp copies the key and aligns to 32 all the same."""
    shape = RandomShape(n_embd=60, n_ff=90, n_head=3, n_head_kv=1, head_dim=10, n_layer=1)
    plain = GgufFile.open(random_gguf(tmp_path / "plain.gguf", shape))
    metadata = {**plain.metadata, "general.alignment": GgufValue(GgufType.UINT32, alignment)}
    plans = [TensorPlan(info.name, info.shape, info.ggml_type) for info in plain.tensors.values()]
    with GgufStream(tmp_path / "aligned.gguf", metadata, plans) as stream:
        for name in plain.tensors:
            stream.write(plain.tensor_bytes(name))
    made = [
        quantize(QuantizeSpec(tmp_path / f"{name}.gguf", "Q8_0", tmp_path / "a.gguf"))
        for name in ("plain", "aligned")
    ]
    assert made[0].tensors_sha256 == made[1].tensors_sha256
    assert GgufFile.open(tmp_path / "a.gguf").alignment == 32


def test_missing_and_damaged_inputs(source: Path, tmp_path: Path) -> None:
    out, bad = tmp_path / "a.gguf", tmp_path / "bad.gguf"
    with pytest.raises(FileProblem, match=r"none\.gguf"):
        quantize(QuantizeSpec(tmp_path / "none.gguf", "Q4_0", out))
    with pytest.raises(FileProblem, match=r"none\.dat"):
        quantize(QuantizeSpec(source, "Q4_0", out, imatrix=tmp_path / "none.dat"))
    bad.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(GgufError, match=r"bad\.gguf"):
        quantize(QuantizeSpec(bad, "Q4_0", out))
    write_imatrix(matrix(source), bad)
    content = bytearray(bad.read_bytes())
    content[-1024:-1020] = np.float32(np.nan).tobytes()
    bad.write_bytes(content)
    with pytest.raises(ImatrixError, match="impossible sum"):
        quantize(QuantizeSpec(source, "Q4_0", out, imatrix=bad))
    assert only(tmp_path) == ["bad.gguf"]


def test_a_source_with_a_nan_leaves_nothing(source: Path, tmp_path: Path) -> None:
    bad = tmp_path / "nan.gguf"
    shutil.copy(source, bad)
    info = GgufFile.open(source).tensors["blk.0.ffn_up.weight"]
    with bad.open("r+b") as file:
        file.seek(info.offset + 400)
        file.write(np.float32(np.nan).tobytes())
    spec = QuantizeSpec(bad, "Q4_K_M", tmp_path / "a.gguf")
    with pytest.raises(GgufError, match=r"nan\.gguf\[blk\.0\.ffn_up\.weight\]: a value is not finite"):
        quantize(spec)
    with pytest.raises(
        EngineError, match=r"nan\.gguf\[blk\.0\.ffn_up\.weight\].*found tensor .* has invalid data"
    ):
        quantize(spec, how=How("llama.cpp"))
    assert only(tmp_path) == ["nan.gguf"]


def test_values_too_large_for_a_type_leave_nothing(source: Path, tmp_path: Path) -> None:
    big = tmp_path / "big.gguf"
    shutil.copy(source, big)
    info = GgufFile.open(source).tensors["blk.0.ffn_up.weight"]
    with big.open("r+b") as file:
        file.seek(info.offset + 400)
        file.write(np.float32(1e8).tobytes())
    spec = QuantizeSpec(big, "Q8_0", tmp_path / "q8.gguf")
    with pytest.raises(
        EngineError, match=r"\[blk\.0\.ffn_up\.weight\].*validation failed. A value is too large"
    ):
        quantize(spec, how=How("llama.cpp"))
    with pytest.raises(
        UnsupportedError, match=r"q8\.gguf\[blk\.0\.ffn_up\.weight\]: Q8_0 cannot hold .* too large"
    ):
        quantize(spec)
    assert only(tmp_path) == ["big.gguf"]
    # The others of the pass are finished.
    with pytest.raises(UnsupportedError, match=r"q8\.gguf.*; finished: bf16\.gguf"):
        quantize_all([spec, QuantizeSpec(big, "BF16", tmp_path / "bf16.gguf")])
    assert only(tmp_path) == ["bf16.gguf", "big.gguf"]
    alone = quantize(QuantizeSpec(big, "BF16", tmp_path / "alone.gguf"))
    assert alone.sha256 == sha256_file(tmp_path / "bf16.gguf")


def test_importance_beyond_float32_is_refused(source: Path, tmp_path: Path) -> None:
    """llama.cpp ends the process with such weights (IQ2_S, IQ3_S)."""
    huge = matrix(source)
    huge.entries["blk.0.ffn_up.weight"].sums[0, 7] = 3e38
    write_imatrix(huge, tmp_path / "m.gguf")
    with pytest.raises(ImatrixError, match=r"m\.gguf\[blk\.0\.ffn_up\.weight\]: impossible mean square"):
        quantize(QuantizeSpec(source, "IQ3_S", tmp_path / "a.gguf", imatrix=tmp_path / "m.gguf"))
    assert only(tmp_path) == ["m.gguf"]


def test_not_enough_space_is_told_before_writing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(
        DiskFull, match=r"a\.gguf: not enough space on the disk: expected \S+ KiB free, found 1000 B\."
    ):
        quantize(QuantizeSpec(source, "Q8_0", tmp_path / "new" / "a.gguf"))
    assert only(tmp_path) == []


CHILD = """
import resource, signal, sys
from pathlib import Path
from bitloss.errors import BitlossError
from bitloss.quantize.quantize import How, QuantizeSpec, quantize
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    quantize(QuantizeSpec(Path(sys.argv[1]), "Q8_0", Path(sys.argv[2])), how=How(sys.argv[4]))
except BitlossError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("encoder", "named"), [("bitloss", "FileProblem"), ("llama.cpp", "EngineError")])
@pytest.mark.parametrize("limit", [1000, 100_000, 400_000])
def test_a_file_that_cannot_grow_is_noticed(
    source: Path, tmp_path: Path, limit: int, encoder: Encoder, named: str
) -> None:
    """llama.cpp does not look whether its writes succeed; a limit on the file size stands for a full disk."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    out = tmp_path / "a.gguf"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, source, out, str(limit), encoder],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(named), done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert only(tmp_path) == []


def test_a_disk_that_fills_up_meanwhile(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    left = iter([10**9, 0])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, next(left)))

    run = QuantizeCall.run

    def half_written(
        call: QuantizeCall, source: Path, out: Path | None, listener: object = None
    ) -> list[str]:
        if out is None:
            return run(call, source, None)
        out.write_bytes(b"GGUF")
        return []

    monkeypatch.setattr(QuantizeCall, "run", half_written)
    with pytest.raises(DiskFull, match="not enough space"):
        quantize(QuantizeSpec(source, "Q8_0", tmp_path / "a.gguf"), how=How("llama.cpp"))
    assert only(tmp_path) == []


def test_a_disk_that_fills_up_in_the_pass(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.pwrite

    def full(descriptor: int, data: bytes, at: int) -> int:
        if at > 200_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    specs = [QuantizeSpec(source, kind, tmp_path / f"{kind}.gguf") for kind in ("Q8_0", "Q4_0")]
    with pytest.raises(DiskFull, match="the disk is full"):
        quantize_all(specs)
    assert only(tmp_path) == []


def test_the_sum_of_the_files_must_fit(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [QuantizeSpec(source, kind, tmp_path / f"{kind}.gguf") for kind in ("Q8_0", "Q4_0")]
    needed = [sum(file.size for file in one.files) for one in plan_candidates(specs)]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, sum(needed) - 1))
    with pytest.raises(DiskFull, match="not enough space"):
        quantize_all(specs)
    assert only(tmp_path) == []
    assert quantize(specs[0]).bytes == needed[0]


def test_ctrl_c_in_the_middle_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def stop(step: Progress) -> None:
        if step.stage.startswith("quantize") and step.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(QuantizeSpec(source, "Q8_0", tmp_path / "a.gguf"), stop)
    assert only(tmp_path) == []


def test_a_damaged_scale_is_found(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    quantize(QuantizeSpec(source, "Q8_0", out))
    name = "blk.0.ffn_up.weight"
    info = GgufFile.open(out).tensors[name]
    plan = type_plan(GgufFile.open(source), TypeRules(7))
    verify_candidate(GgufFile.open(out), out, GgufFile.open(source), plan)
    with out.open("r+b") as file:
        file.seek(info.offset + 34 * 10)
        file.write(np.float16(np.inf).tobytes())
    with pytest.raises(EngineError, match=rf"a\.gguf\[{name}\]: a value or a block's scale is not finite"):
        verify_candidate(GgufFile.open(out), out, GgufFile.open(source), plan)
    with pytest.raises(EngineError, match="another tensor than planned"):
        verify_candidate(GgufFile.open(source), out, GgufFile.open(source), plan)
    other = random_gguf(tmp_path / "other.gguf", RandomShape())
    with pytest.raises(EngineError, match="other tensors than planned"):
        verify_candidate(GgufFile.open(other), out, GgufFile.open(source), plan)


def test_a_copied_tensor_that_changed_is_found(source: Path, tmp_path: Path) -> None:
    out, name = tmp_path / "a.gguf", "blk.0.attn_norm.weight"
    quantize(QuantizeSpec(source, "Q8_0", out))
    file = GgufFile.open(source)
    with out.open("r+b") as stream:
        stream.seek(GgufFile.open(out).tensors[name].offset)
        stream.write(np.float32(1.5).tobytes())
    with pytest.raises(EngineError, match=rf"\[{name}\]: a copied tensor differs from the source's"):
        verify_candidate(GgufFile.open(out), out, file, type_plan(file, TypeRules(7)))


def test_errors_are_those_of_the_decoded_file(source: Path, tmp_path: Path) -> None:
    imatrix = tmp_path / "m.gguf"
    write_imatrix(matrix(source, skip="attn_k"), imatrix)
    spec = QuantizeSpec(source, "Q4_K_M", tmp_path / "a.gguf", imatrix=imatrix)
    told = quantize(spec, how=How(errors=True)).errors
    assert told is not None
    plain, file = GgufFile.open(source), GgufFile.open(spec.out)
    assert told.keys() == {name for name, info in file.tensors.items() if info.type_name != "F32"}
    weights = 1 + np.arange(256.0)
    for name, error in told.items():
        a, b = (each.tensor_f32(name).astype(np.float64) for each in (plain, file))
        assert error.type == file.tensors[name].type_name
        assert error.rms == pytest.approx(((b - a) ** 2).sum() ** 0.5 / (a**2).sum() ** 0.5, rel=1e-6)
        if not name.startswith("blk.") or "attn_k" in name:
            assert error.rms_weighted is None
        else:
            expected = (weights * (b - a) ** 2).sum() / (weights * a**2).sum()
            assert error.rms_weighted == pytest.approx(expected**0.5, rel=1e-6)
    assert quantize(spec).errors is None


def test_a_tensor_of_zeros_has_no_relative_error(source: Path, tmp_path: Path) -> None:
    zero = tmp_path / "zero.gguf"
    shutil.copy(source, zero)
    info = GgufFile.open(source).tensors["blk.0.ffn_up.weight"]
    with zero.open("r+b") as file:
        file.seek(info.offset)
        file.write(bytes(info.n_bytes))
    made = quantize(QuantizeSpec(zero, "Q4_0", tmp_path / "a.gguf"), how=How(errors=True))
    assert made.errors is not None
    assert made.errors["blk.0.ffn_up.weight"] == TensorError("Q4_0", None, None)


def test_experts_without_tokens_and_without_squares_are_named(tmp_path: Path) -> None:
    shape = RandomShape(n_embd=256, n_ff=256, n_layer=1, n_expert=3, n_expert_used=1, n_head=2, head_dim=128)
    model, imatrix, name = (
        random_gguf(tmp_path / "m.gguf", shape),
        tmp_path / "i.gguf",
        "blk.0.ffn_up_exps.weight",
    )
    sums, counts = np.ones((3, 256)), np.array([8.0, 0.0, 4.0])
    sums[1:] = 0
    write_imatrix(Imatrix({name: ImatrixEntry(sums, counts)}, 1, 8, ()), imatrix)
    made = quantize(QuantizeSpec(model, "Q4_K_S", tmp_path / "a.gguf", imatrix=imatrix))
    called = quantize(
        QuantizeSpec(model, "Q4_K_S", tmp_path / "b.gguf", imatrix=imatrix), how=How("llama.cpp")
    )
    assert made.sha256 == called.sha256
    told = made.as_json()
    assert told["unused_experts"] == {name: [1]}
    assert told["zero_weights"] == {name: [2]}
    assert name not in told["without_imatrix"]
    assert "blk.0.ffn_gate_exps.weight" in told["without_imatrix"]


def test_matrices_and_types_in_one_pass(source: Path, tmp_path: Path) -> None:
    """Files made together are those made alone."""
    matrices = []
    for index in range(2):
        made_up = matrix(source)
        for entry in made_up.entries.values():
            entry.sums[:] **= index + 1
        matrices.append(tmp_path / f"m{index}.gguf")
        write_imatrix(made_up, matrices[-1])
    specs = [
        QuantizeSpec(source, kind, tmp_path / f"{kind}-{index}.gguf", imatrix=imatrix)
        for kind in ("Q4_K_M", "Q8_0", "Q2_K")
        for index, imatrix in enumerate([None, *matrices])
    ]
    together = quantize_all(specs, how=How(threads=2, verify=True))
    alone = [quantize(spec, how=How("llama.cpp")) for spec in specs]
    assert [each.sha256 for each in together] == [each.sha256 for each in alone]
    assert len({each.tensors_sha256 for each in together}) == 7  # Q8_0 takes no notice of a matrix


def test_sizes_are_known_before(source: Path, tmp_path: Path) -> None:
    specs = [QuantizeSpec(source, kind, tmp_path / f"{kind}.gguf") for kind in ("Q8_0", "Q4_K_M", "F16")]
    planned = [one.as_json() for one in plan_candidates(specs)]
    assert only(tmp_path) == []
    for before, made in zip(planned, quantize_all(specs), strict=True):
        after = made.as_json()
        assert {key: after[key] for key in before} == before


def test_a_text_with_a_zero_byte_is_kept_whole(source: Path, tmp_path: Path) -> None:
    plain = GgufFile.open(source)
    metadata = {
        **plain.metadata,
        "note": GgufValue(GgufType.STRING, "a\0b"),
        "flag": GgufValue(GgufType.BOOL, True),
    }
    plans = [TensorPlan(info.name, info.shape, info.ggml_type) for info in plain.tensors.values()]
    with GgufStream(tmp_path / "noted.gguf", metadata, plans) as stream:
        for name in plain.tensors:
            stream.write(plain.tensor_bytes(name))
    made = [
        quantize(
            QuantizeSpec(tmp_path / "noted.gguf", "Q8_0", tmp_path / f"{encoder}.gguf"), how=How(encoder)
        )
        for encoder in ("bitloss", "llama.cpp")
    ]
    assert made[0].tensors_sha256 == made[1].tensors_sha256
    assert [GgufFile.open(each.out).text("note") for each in made] == ["a\0b", "a"]


def test_recipes_and_sizes(tmp_path: Path) -> None:
    recipe = tmp_path / "types.txt"
    recipe.write_text("attn_v=q8_0  blk\\.0\\.ffn=Q5_1\noutput=q6_K=x\n")
    assert read_recipe(recipe) == (("attn_v", "q8_0"), (r"blk\.0\.ffn", "Q5_1"), ("output", "q6_K=x"))
    for text, words in (
        ("attn_v", "expected REGEX=TYPE, found attn_v"),
        ("=q8_0", "REGEX"),
        (" \n", "is empty"),
    ):
        recipe.write_text(text)
        with pytest.raises(UsageError, match=words):
            read_recipe(recipe)
    recipe.write_bytes(b"\xff=q8_0")
    with pytest.raises(FileProblem, match="not UTF-8"):
        read_recipe(recipe)
    with pytest.raises(FileProblem, match=r"no such list of tensor types\. Give a text file of REGEX=TYPE"):
        read_recipe(tmp_path / "none")
    assert (parse_size("500M", "x"), parse_size("2g", "x")) == (500_000_000, 2_000_000_000)
    for text in ("2", "2T", "-1G", "0M", "1.5G", "²G"):
        with pytest.raises(UsageError, match="not a size"):
            parse_size(text, "--split-max-size")


def test_a_dry_run_tells_of_odd_importance(source: Path, tmp_path: Path) -> None:
    odd = matrix(source)
    odd.entries["blk.0.ffn_up.weight"].sums[:] = 0
    odd.entries["blk.0.attn_q.weight"].counts[:] = 0
    write_imatrix(odd, tmp_path / "m.gguf")
    spec = QuantizeSpec(source, "Q8_0", tmp_path / "a.gguf", imatrix=tmp_path / "m.gguf")
    told = plan_candidates([spec])[0].as_json()
    assert told["zero_weights"] == {"blk.0.ffn_up.weight": [0]}
    assert told["unused_experts"] == {"blk.0.attn_q.weight": [0]}
    made = quantize(spec).as_json()
    assert [made[key] for key in ("zero_weights", "unused_experts")] == [
        told[key] for key in ("zero_weights", "unused_experts")
    ]


@pytest.mark.parametrize("place", ["tensor", "key", "cut"])
def test_verify_finds_what_the_disk_changed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A byte that ggml takes for valid, in a tensor or in the header, or an end that is missing."""
    write = module._write

    def faulty(*args: Any) -> Any:
        written: list[Any] = [*write(*args)]
        path = written[0].files[0].path
        content = bytearray(path.read_bytes())
        at = (
            GgufFile.open(path).tensors["blk.0.ffn_up.weight"].offset + 20
            if place == "tensor"
            else content.index(b"random ")
        )
        content[at] ^= 1
        path.write_bytes(content[:-64] if place == "cut" else content)
        return written

    spec = QuantizeSpec(source, "Q8_0", tmp_path / "a.gguf")
    made = quantize(spec, how=How(verify=True))
    assert made.verified
    assert not quantize(spec).verified
    monkeypatch.setattr(module, "_write", faulty)
    words = (
        "a damaged file was written"
        if place == "cut"
        else "read back otherwise than written: expected [0-9a-f]{64}"
    )
    with pytest.raises(EngineError, match=rf"a\.gguf: {words}"):
        quantize(spec, how=How(verify=True))
    quantize(spec)  # not looked at


MEMORY = """
import sys
from pathlib import Path
from bitloss.quantize.quantize import How, QuantizeSpec, quantize_all
from bitloss.run.child import peak_bytes
small, large, out, *types = sys.argv[1:]
def made(source):
    quantize_all([QuantizeSpec(Path(source), kind, Path(out) / f"{kind}.gguf") for kind in types], how=How(threads=2))
made(small)
before = peak_bytes()
made(large)
print(peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak in /proc")
def test_memory_does_not_grow_with_the_model(source: Path, tmp_path: Path) -> None:
    """One tensor's pages and pieces of 2 million weights, whatever the number of tensors and types."""
    peaks = {}
    for layers in (2, 8):
        shape = RandomShape(n_embd=1024, n_head=4, n_head_kv=1, head_dim=256, n_ff=4096, n_layer=layers)
        large = random_gguf(tmp_path / f"large-{layers}.gguf", shape, dtype="f32")
        command = [
            sys.executable,
            "-c",
            MEMORY,
            *map(str, (source, large, tmp_path)),
            "Q8_0",
            "Q4_0",
            "F16",
            "BF16",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[layers] = int(done.stdout)
        tensor, whole = 4096 * 1024 * 4, large.stat().st_size
        assert peaks[layers] < tensor + 80_000_000, (peaks, whole)
        large.unlink()
    assert peaks[8] < 1.3 * peaks[2] + 10_000_000  # a file four times as large
