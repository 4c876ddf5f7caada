"""What cannot be made is said before anything is written: which types, why, and what can be made."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.unit.quantize.test_quantize import matrix, only

from bitloss.errors import FileProblem, GgufError, ImatrixError, UnsupportedError, UsageError
from bitloss.imatrix.file import read_imatrix, write_imatrix, write_legacy_imatrix
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.quantize.quantize import How, QuantizeSpec, plan_candidates, quantize, quantize_all

PLAIN = RandomShape(n_embd=256, n_head=2, n_head_kv=1, head_dim=128, n_ff=256, n_layer=1, n_vocab=300)
ODD = RandomShape(n_embd=96, n_head=2, n_head_kv=1, head_dim=48, n_ff=160, n_layer=1, n_vocab=300)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gguf(tmp_path_factory.mktemp("plain") / "plain.gguf", PLAIN, dtype="f32")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 96 and 160 fit no block of 128, for which llama.cpp has no fallback."""
    return random_gguf(tmp_path_factory.mktemp("odd") / "odd.gguf", ODD, dtype="f32")


def specs(source: Path, folder: Path, *kinds: str, **more: object) -> list[QuantizeSpec]:
    return [QuantizeSpec(source, kind, folder / f"{kind}.gguf", **more) for kind in kinds]  # type: ignore[arg-type]


def test_a_type_that_fits_no_rows(odd: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        quantize_all(specs(odd, tmp_path, "Q1_0"))
    assert str(caught.value) == (
        f"{odd}[token_embd.weight]: Q1_0 does not fit the row length, and llama.cpp has no other type for it: expected "
        "a multiple of 128, found 96. Leave this type out, or give tensors of such rows another one with --tensor-type "
        "REGEX=TYPE"
    )
    assert only(tmp_path) == []


@pytest.mark.parametrize("how", [How(), How("llama.cpp")])
def test_one_of_a_list_is_named_and_the_others_too(odd: Path, tmp_path: Path, how: How) -> None:
    with pytest.raises(UnsupportedError) as caught:
        quantize_all(specs(odd, tmp_path, "Q8_0", "Q1_0", "Q4_K_M"), how=how)
    assert str(caught.value) == (
        f"{odd}: 1 of 3 types cannot be made: Q1_0 (token_embd.weight: Q1_0 does not fit the row length, and llama.cpp "
        "has no other type for it: expected a multiple of 128, found 96). Leave out Q1_0; the others can be made: "
        "Q8_0,Q4_K_M"
    )
    assert only(tmp_path) == []
    assert len(quantize_all(specs(odd, tmp_path, "Q8_0", "Q4_K_M"), how=how)) == 2


def test_all_impossible_types_are_named_at_once(plain: Path, tmp_path: Path) -> None:
    forced = {"tensor_types": (("attn_q", "IQ2_XS"),)}
    with pytest.raises(UnsupportedError) as caught:
        quantize_all(specs(plain, tmp_path, "Q8_0", "IQ2_XXS", "IQ1_S", "Q2_K_S", "Q4_0"))
    line = str(caught.value)
    assert line.startswith(f"{plain}: 3 of 5 types cannot be made: IQ2_XXS, IQ1_S, Q2_K_S (blk.0.")
    assert "is garbage without an importance matrix" in line
    assert line.endswith(
        "Give an importance matrix with --imatrix (`bitloss imatrix` makes one), or leave out IQ2_XXS, IQ1_S, Q2_K_S; "
        "the others can be made: Q8_0,Q4_0"
    )
    # One fault of all types is said once.
    with pytest.raises(UnsupportedError, match=r"plain\.gguf\[blk\.0\.attn_q\.weight\]: IQ2_XS is garbage"):
        quantize_all(specs(plain, tmp_path, "Q8_0", **forced)[:1])
    made = quantize(specs(plain, tmp_path, "Q8_0")[0]).out
    with pytest.raises(UnsupportedError, match=r"^\S+: the source is quantized already"):
        quantize_all(specs(made, tmp_path, "Q4_0", "Q5_0"))
    assert only(tmp_path) == ["Q8_0.gguf"]


def test_one_type_of_several_files_is_one_type(plain: Path, tmp_path: Path) -> None:
    raised = specs(plain, tmp_path / "a", "IQ1_S", tensor_types=(("attn_q", "F32"),))
    with pytest.raises(
        UnsupportedError, match=r"IQ1_S is garbage .*--imatrix, or take another type than IQ1_S"
    ):
        quantize_all([*specs(plain, tmp_path, "IQ1_S"), *raised])


def test_a_matrix_is_not_the_remedy_for_rows_that_do_not_fit(odd: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        quantize_all(specs(odd, tmp_path, "Q8_0", "Q1_0"))
    assert "--imatrix" not in str(caught.value)


def test_types_refused_for_two_reasons(odd: Path, tmp_path: Path) -> None:
    forced = {"tensor_types": (("ffn_up", "NVFP4"),)}
    with pytest.raises(
        UnsupportedError, match=r"ffn_up\.weight\]: NVFP4 does not fit .* multiple of 64, found 96"
    ):
        quantize_all(specs(odd, tmp_path, "Q4_K_M", **forced))
    with pytest.raises(UnsupportedError) as caught:
        quantize_all([*specs(odd, tmp_path, "Q1_0", "Q8_0"), *specs(odd, tmp_path, "Q4_K_M", **forced)])
    line = str(caught.value)
    assert "2 of 3 types cannot be made: Q1_0, Q4_K_M (token_embd.weight: Q1_0 does not fit" in line
    assert line.endswith("Leave out Q1_0, Q4_K_M; the others can be made: Q8_0")
    assert only(tmp_path) == []


def test_a_rule_makes_an_impossible_type_possible(odd: Path, tmp_path: Path) -> None:
    made = quantize(specs(odd, tmp_path, "Q1_0", tensor_types=(("weight", "Q8_0"),))[0])
    assert "Q1_0" not in made.type_counts


def test_a_type_forced_on_a_table_is_the_one_to_change(plain: Path, tmp_path: Path) -> None:
    for forced in ({"token_embedding_type": "IQ2_XXS"}, {"output_tensor_type": "IQ2_XXS"}):
        with pytest.raises(UnsupportedError, match=r"IQ2_XXS is garbage .*, or choose another type for it$"):
            quantize_all(specs(plain, tmp_path, "Q8_0", **forced))


def test_a_matrix_is_no_model_and_a_model_no_matrix(plain: Path, tmp_path: Path) -> None:
    write_imatrix(matrix(plain), tmp_path / "m.gguf")
    with pytest.raises(UsageError, match=r"m\.gguf: an importance matrix, not a model\. Give the model's"):
        quantize_all(specs(tmp_path / "m.gguf", tmp_path, "Q8_0"))
    with pytest.raises(
        ImatrixError, match=r"not an importance matrix: found general\.type 'model'\. Give a file"
    ):
        quantize_all(specs(plain, tmp_path, "Q8_0", imatrix=plain))
    assert only(tmp_path) == ["m.gguf"]


def test_a_matrix_that_lacks_a_tensor_says_what_to_do(plain: Path, tmp_path: Path) -> None:
    write_imatrix(matrix(plain, skip="ffn_up"), tmp_path / "m.gguf")
    with pytest.raises(
        UnsupportedError,
        match=r"IQ3_XXS is garbage .*weights for this tensor in .*m\.gguf\. Make a matrix that has this tensor",
    ):
        quantize(specs(plain, tmp_path, "IQ3_XXS", imatrix=tmp_path / "m.gguf")[0])


def _with_values(plain: Path, out: Path, values: dict[int, float], dtype: type = np.float32) -> Path:
    shutil.copy(plain, out)
    info = GgufFile.open(plain).tensors["blk.0.ffn_up.weight"]
    with out.open("r+b") as file:
        for at, value in values.items():
            file.seek(info.offset + at * np.dtype(dtype).itemsize)
            file.write(dtype(value).tobytes())
    return out


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_shown_with_its_place(
    plain: Path, tmp_path: Path, value: float
) -> None:
    bad = _with_values(plain, tmp_path / "bad.gguf", {256 * 200 + 17: value})
    with pytest.raises(GgufError) as caught:
        quantize_all(specs(bad, tmp_path, "Q8_0", "F16"))
    assert str(caught.value) == (
        f"{bad}[blk.0.ffn_up.weight]: a value is not finite: found {value} in row 200, column 17. Convert the model "
        "again; if its own weights are not finite, no type can hold them"
    )
    assert only(tmp_path) == ["bad.gguf"]


def test_a_damaged_block_of_a_quantized_source(plain: Path, tmp_path: Path) -> None:
    made = quantize(specs(plain, tmp_path, "Q8_0")[0]).out
    info = GgufFile.open(made).tensors["blk.0.ffn_up.weight"]
    with made.open("r+b") as file:
        file.seek(info.offset + 34 * 8)  # a scale: rows have 8 blocks
        file.write(np.float16(np.inf).tobytes())
    with pytest.raises(
        GgufError, match=r"ffn_up\.weight\]: a value is not finite: found -?inf in row 1, column \d+\. Con"
    ):
        quantize(QuantizeSpec(made, "Q4_0", tmp_path / "a.gguf", allow_requantize=True))
    assert only(tmp_path) == ["Q8_0.gguf"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_an_impossible_value_of_a_matrix_comes_with_what_to_do(
    plain: Path, tmp_path: Path, value: float, legacy: bool
) -> None:
    path = tmp_path / "m"
    (write_legacy_imatrix if legacy else write_imatrix)(matrix(plain), path)
    content = path.read_bytes()
    good = np.float32(next(iter(read_imatrix(path).entries.values())).sums[0, 136]).tobytes()
    assert good in content
    path.write_bytes(content.replace(good, np.float32(value).tobytes(), 1))
    with pytest.raises(
        ImatrixError, match=r"m\[blk\.0\..*\]: impossible sum: .*found .* at index 136\. Compute the"
    ):
        quantize(specs(plain, tmp_path, "Q4_0", imatrix=path)[0])
    assert only(tmp_path) == ["m"]


def test_two_failures_are_named_together(plain: Path, tmp_path: Path) -> None:
    """A value that no half can scale: Q8_0 and Q4_0 fail, each with its file, the third is finished."""
    big = _with_values(plain, tmp_path / "big.gguf", {100: 1e8})
    with pytest.raises(UnsupportedError) as caught:
        quantize_all(specs(big, tmp_path, "Q8_0", "BF16", "Q4_0"))
    line = str(caught.value)
    q8, q4 = (tmp_path / f"{kind}.gguf" for kind in ("Q8_0", "Q4_0"))
    assert line == (
        f"{q8}[blk.0.ffn_up.weight]: Q8_0 cannot hold this tensor: a scale is not finite. A value is too large for the "
        f"type; choose another one; failed likewise: {q4}[blk.0.ffn_up.weight] (Q4_0 cannot hold this tensor: a scale "
        "is not finite); finished: BF16.gguf"
    )
    assert only(tmp_path) == ["BF16.gguf", "big.gguf"]
    with pytest.raises(
        UnsupportedError, match=r"Q8_0\.gguf\[blk.*; failed likewise: \S+Q4_0\.gguf\[blk[^;]*$"
    ):
        quantize_all(specs(big, tmp_path, "Q8_0", "Q4_0"))
    assert only(tmp_path) == ["BF16.gguf", "big.gguf"]


def test_values_that_a_codebook_cannot_take_cost_only_its_file(plain: Path, tmp_path: Path) -> None:
    """ggml would end the process: the others of the pass are finished, and the tensor is named."""
    big = _with_values(plain, tmp_path / "big.gguf", {256 * 200 + 3: 1e30})
    write_imatrix(matrix(plain), tmp_path / "m.gguf")
    with pytest.raises(UnsupportedError) as caught:
        quantize_all(specs(big, tmp_path, "IQ3_S", "BF16", "IQ2_XS", imatrix=tmp_path / "m.gguf"))
    line = str(caught.value)
    assert (
        f"{tmp_path / 'IQ3_S.gguf'}[blk.0.ffn_up.weight]: IQ3_S cannot hold this tensor: ggml gives up on these"
        in line
    )
    assert "A value, or its importance, is too large for the type; choose another one" in line
    assert f"failed likewise: {tmp_path / 'IQ2_XS.gguf'}[blk.0.ffn_up.weight] (IQ2_XS cannot hold" in line
    assert line.endswith("; finished: BF16.gguf")
    assert only(tmp_path) == ["BF16.gguf", "big.gguf", "m.gguf"]


@pytest.mark.parametrize("where", ["file", "file/deeper/still"])
def test_a_file_in_the_way_of_the_folder(plain: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    wanted = specs(plain, tmp_path / where, "Q8_0")
    for attempt in (plan_candidates, quantize_all):
        with pytest.raises(FileProblem) as caught:
            attempt(wanted)
        assert str(caught.value) == (
            f"{tmp_path / 'file'}: a file is in the way of the output folder. Give -o another folder, or move the "
            "file away"
        )
    assert (tmp_path / "file").read_bytes() == b"x"


def test_a_folder_in_the_way_of_a_candidate(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "Q8_0.gguf").mkdir()
    for how in (How(), How(resume=True), How("llama.cpp")):
        with pytest.raises(
            FileProblem, match=r"Q8_0\.gguf: a folder is in the way of a file\. Choose another"
        ):
            quantize_all(specs(plain, tmp_path, "Q8_0"), how=how)
    assert only(tmp_path) == ["Q8_0.gguf"]
