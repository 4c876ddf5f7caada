"""The type plan: asked from llama.cpp, read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitloss.errors import EngineError, UnsupportedError, UsageError
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.quantize.call import TypeRules
from bitloss.quantize.plan import parse_plan, type_plan
from bitloss.quantize.types import parse_quant_type, parse_tensor_type

Q8_0 = int(parse_tensor_type("Q8_0"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    shape = RandomShape(n_embd=256, n_head=2, n_head_kv=1, head_dim=128, n_ff=256, n_layer=2)
    return GgufFile.open(random_gguf(tmp_path_factory.mktemp("plan") / "model.gguf", shape, dtype="f16"))


def rules(name: str, **more: object) -> TypeRules:
    return TypeRules(parse_quant_type(name).ftype, **more)  # type: ignore[arg-type]


def test_a_mix(source: GgufFile) -> None:
    plan = type_plan(source, rules("Q4_K_M"))
    assert plan.types["blk.0.attn_q.weight"] == "Q4_K"
    assert plan.types["output.weight"] == "Q6_K"
    assert plan.types["blk.1.attn_norm.weight"] == "F32"
    assert plan.tensors["blk.1.attn_norm.weight"].is_copied
    assert plan.types.keys() == source.tensors.keys()
    assert plan.n_fallback == 0
    assert plan.n_bytes == sum(tensor.n_bytes for tensor in plan.tensors.values())


def test_the_matrix_changes_types(source: GgufFile) -> None:
    names = ("Q4_0", "IQ4_XS", "IQ3_S")
    differing = [
        name
        for name in names
        if type_plan(source, rules(name)).types != type_plan(source, rules(name, has_imatrix=True)).types
    ]
    # Few layers, so only the mixes that treat attn_v by the matrix differ.
    assert differing == []
    eight = random_gguf(source.path.with_name("eight.gguf"), RandomShape(n_embd=256, n_ff=256, n_layer=8))
    deep = GgufFile.open(eight)
    plain, weighted = (type_plan(deep, rules("Q4_0", has_imatrix=flag)).types for flag in (False, True))
    assert {name for name in plain if plain[name] != weighted[name]} == {"blk.0.ffn_down.weight"}
    assert weighted["blk.0.ffn_down.weight"] == "Q4_1"


def test_fallbacks_are_told(tmp_path: Path) -> None:
    shape = RandomShape(n_embd=288, n_head=6, n_head_kv=2, head_dim=10, n_ff=352)
    plan = type_plan(GgufFile.open(random_gguf(tmp_path / "odd.gguf", shape)), rules("Q4_K_M"))
    q = plan.tensors["blk.0.attn_q.weight"]
    assert (plan.types[q.name], q.fallback_from) == ("Q5_0", int(parse_tensor_type("Q4_K")))
    # Rows of 60 fit no block at all.
    assert plan.types["blk.0.attn_output.weight"] == "F16"
    refused = {name for name, tensor in plan.tensors.items() if tensor.fallback_from is not None}
    # The mix itself takes Q8_0 for an output whose rows are no multiple of 256.
    assert refused == {name for name in plan.tensors if "norm" not in name and name != "output.weight"}
    assert plan.n_fallback == len(refused) == 15


def test_forced_types(source: GgufFile) -> None:
    plan = type_plan(
        source,
        rules("Q4_0", tensor_types=((r"attn_(q|k)", Q8_0),), output_tensor_type=Q8_0, pure=True),
    )
    forced = {name for name, kind in plan.types.items() if kind == "Q8_0"}
    assert forced == {
        *(f"blk.{layer}.attn_{part}.weight" for layer in (0, 1) for part in "qk"),
        "output.weight",
    }


def test_rules_that_cannot_be_followed(source: GgufFile, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^attn_\(q: not a regular expression"):
        type_plan(source, rules("Q4_0", tensor_types=(("attn_(q", Q8_0),)))
    with pytest.raises(UsageError, match=r"^attn_x: the pattern matches no tensor"):
        type_plan(source, rules("Q4_0", tensor_types=(("attn_x", Q8_0),)))
    odd = GgufFile.open(random_gguf(tmp_path / "odd.gguf", RandomShape(n_embd=80)))
    q4_k = int(parse_tensor_type("Q4_K"))
    for forced in ({"output_tensor_type": q4_k}, {"token_embedding_type": q4_k}):
        with pytest.raises(
            UsageError, match="Q4_K does not fit the row length: expected a multiple of 256, found 80"
        ):
            type_plan(odd, rules("Q4_0", **forced))


def test_a_pattern_only_llama_cpp_refuses(source: GgufFile) -> None:
    # A Python pattern that ECMAScript does not know.
    with pytest.raises(EngineError, match="could not quantize"):
        type_plan(source, rules("Q4_0", tensor_types=(("(?P<part>attn)", Q8_0),)))


def log_of(source: GgufFile) -> list[str]:
    total = len(source.tensors)
    lines = []
    for index, (name, info) in enumerate(source.tensors.items(), start=1):
        ne = ", ".join(f"{n:5d}" for n in (*info.shape, 1, 1, 1)[:4])
        lines.append(
            f"[{index:4d}/{total:4d}] {name:36s} - [{ne}], type = {info.type_name.lower():>6s}, size =     1.00 MiB"
        )
    return lines


def test_a_copy_of_everything(source: GgufFile) -> None:
    plan = parse_plan(source, "\n".join(["noise", *log_of(source), "more noise"]))
    assert all(tensor.is_copied for tensor in plan.tensors.values())
    assert plan.n_bytes == sum(info.n_bytes for info in source.tensors.values())


def test_a_log_that_does_not_fit_the_file(source: GgufFile) -> None:
    good = log_of(source)
    last = next(reversed(source.tensors))
    cases = {
        f"does not cover a tensor of the file: found {last}": good[:-1],
        "lists a tensor twice or one the file does not have": [*good, good[0]],
        "lists a tensor twice": [*good, good[0].replace("token_embd", "token_embx")],
        "tells another type or shape": [good[0].replace("type =    f16", "type =    f32"), *good[1:]],
        "tells another type or shape than": [good[0].replace("  512", "  513"), *good[1:]],
        "counts other tensors": [good[0].replace("/", "/1"), *good[1:]],
        "does not cover": [line.replace("type =", "kind =") for line in good],
    }
    for words, log in cases.items():
        with pytest.raises(EngineError, match=words):
            parse_plan(source, "\n".join(log))
    with pytest.raises(UnsupportedError, match=r"\[token_embd\.weight\].*found q9_9"):
        parse_plan(source, "\n".join([good[0] + " ->     0.50 MiB (q9_9)", *good[1:]]))


def test_a_type_that_does_not_fit_is_not_believed(tmp_path: Path) -> None:
    odd = GgufFile.open(random_gguf(tmp_path / "odd.gguf", RandomShape(n_embd=80)))
    log = log_of(odd)
    with pytest.raises(EngineError, match="does not fit the row length"):
        parse_plan(odd, "\n".join([log[0] + " ->     0.50 MiB (q4_K)", *log[1:]]))


def test_a_type_newer_than_the_gguf_package(source: GgufFile) -> None:
    plan = type_plan(source, rules("Q2_0"))
    assert plan.types["blk.0.attn_q.weight"] == "Q2_0"
    q = source.tensors["blk.0.attn_q.weight"]
    assert plan.tensors[q.name].n_bytes == q.n_elements // 64 * 18  # block_q2_0: 64 quants of 2 bits, a half
