"""One thin function per verb; the work is in the rooms behind."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import JsonValue

from bitloss.cli.application import app
from bitloss.cli.inputs import given_base_model, given_file, given_model, given_text
from bitloss.cli.options import (
    ChatTemplate,
    Chunks,
    Ctx,
    Documents,
    EncoderName,
    Force,
    Json,
    Out,
    Quiet,
    Revision,
    listed,
    with_engine,
)
from bitloss.cli.remarks import remarks
from bitloss.cli.show import Screen, print_json
from bitloss.display import many
from bitloss.errors import BitlossError, FileProblem, UsageError
from bitloss.run.executor import LocalExecutor, StepResult
from bitloss.run.steps import (
    BaseStep,
    ConvertStep,
    EvaluationTexts,
    ImatrixStep,
    KldStep,
    QuantizeStep,
    QuantizeTogetherStep,
    Repair,
    Step,
)
from bitloss.spec import EngineSpec
from bitloss.store import atomic_path, sha256_file


def _run(step: Step, *, quiet: bool) -> StepResult:
    with Screen(quiet=quiet) as screen, LocalExecutor() as executor:
        return executor.run(step, screen.stage)


def _say(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


@app.command(epilog="Example: bitloss convert ./Mistral-7B --to f32,f16 -o ./gguf")
def convert(
    model: Annotated[
        str,
        typer.Argument(
            help="HF folder (config.json, safetensors, tokenizer), hub id (owner/name), GGUF file."
        ),
    ],
    out: Out,
    revision: Revision = None,
    to: Annotated[str, typer.Option("--to", help="Types, separated by commas: f32, f16, bf16.")] = "f32",
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the files. [default: the folder's]")
    ] = None,
    allow_overflow: Annotated[
        bool,
        typer.Option("--allow-overflow", help="Write infinity where a weight is out of a type's range."),
    ] = False,
    no_proof: Annotated[
        bool,
        typer.Option("--no-proof", help="Do not compare tokens or compute with the files before they count."),
    ] = False,
    converter: Annotated[
        Path | None,
        typer.Option(
            "--converter",
            help="Let llama.cpp's convert_hf_to_gguf.py, or a script called in the same way (MODEL --outtype TYPE "
            "--outfile FILE), make the files, and prove them.",
        ),
    ] = None,
    converter_python: Annotated[
        str, typer.Option("--converter-python", help="Interpreter that has what the converter needs.")
    ] = "python3",
    split_max_size: Annotated[
        str | None, typer.Option("--split-max-size", help="Write parts of at most so much, e.g. 5G or 500M.")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a model to GGUF at F32, F16, BF16, in one read, and prove the files.

    conversion.json tells what was checked of the conversions into the folder: every tensor accounted for, the
    stored bytes, the tokens of a text in many scripts against the model's own tokenizer, finite logits from llama.cpp.
    """
    from bitloss.quantize.request import parse_size

    if converter is not None and split_max_size:
        raise UsageError(
            "another converter writes whole files", where="--split-max-size", mend="leave it out"
        )
    types = listed(to, "--to")
    for kind in types:
        if kind not in ("f32", "f16", "bf16"):
            raise UsageError("unknown precision", where="--to", expected="f32, f16, bf16", found=kind)
    step = ConvertStep(
        model=given_model(model, revision, quiet=quiet).absolute(),
        model_sha256="",
        types=types,
        out=out.resolve(),
        name=name,
        allow_overflow=allow_overflow,
        proof=not no_proof,
        converter=None if converter is None else given_file(converter, "converter"),
        converter_python=converter_python,
        split_max_bytes=parse_size(split_max_size, "--split-max-size") if split_max_size else None,
        replace=force,
    )
    with Screen(quiet=quiet) as screen, LocalExecutor() as executor:
        result = executor.run(step, screen.stage).value
    if json:
        print_json(result)
    else:
        assert isinstance(result, dict)
        for line in remarks(result):
            screen.say(line)
        files = [
            part for item in _rows(result, "outputs") for part in (item["parts"] or [{"name": item["file"]}])
        ]
        _say([str(out / part["name"]) for part in files])


@app.command(epilog="Example: bitloss imatrix model-f32.gguf --text calibration.txt -o model.imatrix.gguf")
@with_engine
def imatrix(
    *,
    source: Annotated[
        Path | None, typer.Argument(help="Full-precision GGUF; leave out to merge files only.")
    ] = None,
    out: Out,
    engine: EngineSpec,
    text: Annotated[Path | None, typer.Option("--text", "-f", help="Calibration text (UTF-8).")] = None,
    in_file: Annotated[
        list[Path] | None,
        typer.Option("--in-file", help="Importance matrix to add (GGUF or .dat); repeatable."),
    ] = None,
    ctx: Ctx = 512,
    chunks: Chunks = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compute an importance matrix from a calibration text, or merge several."""
    from bitloss.imatrix.file import read_imatrix, write_imatrix
    from bitloss.imatrix.matrix import merge_imatrices
    from bitloss.run.passes import check_model_memory

    earlier = [read_imatrix(given_file(path, "importance matrix")) for path in in_file or []]
    if (source is None) != (text is None) or (source is None and len(earlier) < 2):
        raise UsageError(
            "nothing to compute",
            where="bitloss imatrix",
            expected="SOURCE with --text, or at least two --in-file",
        )
    if out.is_file() and not force:
        raise FileProblem("already there", where=out, mend="choose another --out, or replace it with --force")
    facts: dict[str, Any] = {"file": out.name}
    if source is not None and text is not None:
        source, text = given_file(source, "GGUF file"), given_file(given_text(text), "text")
        check_model_memory(source, engine, n_ctx=ctx)
    with atomic_path(out.resolve()) as partial:  # what is at `out` stays until the whole of it is made
        parts = list(earlier)
        if source is not None and text is not None:
            step = ImatrixStep(
                source=source,
                source_sha256="",
                text=text,
                text_sha256="",
                n_ctx=ctx,
                chunks=chunks,
                engine=engine,
                out=partial,
            )
            result = _run(step, quiet=quiet).value
            assert isinstance(result, dict)
            facts |= result
            parts.append(read_imatrix(partial))
        if earlier:
            merged = merge_imatrices(parts)
            write_imatrix(merged, partial)
            facts |= {"merged": len(parts), "entries": len(merged.entries), "chunks": merged.chunk_count}
    facts["sha256"] = sha256_file(out)
    if json:
        print_json(facts)
    else:
        _say([f"{out}  ({many(facts['entries'], 'tensor')}, {many(facts['chunks'], 'chunk')})"])


@app.command(
    epilog="Example: bitloss quantize model-f32.gguf --types Q8_0,Q4_K_M --imatrix model.imatrix.gguf -o out"
)
def quantize(
    source: Annotated[Path, typer.Argument(help="Full-precision GGUF.")],
    out: Out,
    types: Annotated[
        list[str], typer.Option("--types", help="Types, separated by commas, as llama-quantize names them.")
    ],
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", help="Importance matrix (GGUF or .dat).")
    ] = None,
    tensor_type: Annotated[
        list[str] | None, typer.Option("--tensor-type", help="REGEX=TYPE for some tensors; repeatable.")
    ] = None,
    output_tensor_type: Annotated[str | None, typer.Option(help="Type of output.weight.")] = None,
    token_embedding_type: Annotated[str | None, typer.Option(help="Type of token_embd.weight.")] = None,
    tensor_type_file: Annotated[
        Path | None,
        typer.Option("--tensor-type-file", help="List of REGEX=TYPE, after those of --tensor-type."),
    ] = None,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all tensors, no mixture.")] = False,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Accept a source that is quantized already.")
    ] = False,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Write the tensors in the parts the source has them in.")
    ] = False,
    split_max_size: Annotated[
        str | None, typer.Option("--split-max-size", help="Write parts of at most so much, e.g. 5G or 500M.")
    ] = None,
    encoder: Annotated[
        EncoderName,
        typer.Option(
            "--encoder", help="bitloss encodes all types in one pass, llama.cpp one after the other."
        ),
    ] = EncoderName.BITLOSS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how large the files will be and of what types.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the files back and compare them with what was written.")
    ] = False,
    errors: Annotated[
        bool,
        typer.Option(
            "--errors", help="Tell how far tensors are from the source's (with --json each of them)."
        ),
    ] = False,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="CPU threads; 0 takes all.")] = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a full-precision GGUF to any number of types, every tensor byte for byte as llama-quantize does."""
    from bitloss.cli import quantized
    from bitloss.quantize.request import candidate_name, parse_override, parse_size, read_recipe
    from bitloss.quantize.types import parse_quant_type

    source = given_file(source, "GGUF file")
    overrides = [parse_override(text, "--tensor-type") for text in tensor_type or []]
    steps = tuple(
        QuantizeStep(
            source=source,
            source_sha256="",
            type=parse_quant_type(name).name,
            imatrix=given_file(imatrix, "importance matrix") if imatrix else None,
            imatrix_sha256=None,
            tensor_types=(*overrides, *(read_recipe(tensor_type_file) if tensor_type_file else ())),
            output_tensor_type=output_tensor_type,
            token_embedding_type=token_embedding_type,
            pure=pure,
            allow_requantize=allow_requantize,
            keep_split=keep_split,
            split_max_bytes=parse_size(split_max_size, "--split-max-size") if split_max_size else None,
            encoder=encoder.value,
            threads=threads,
            verify=verify,
            errors=errors,
            replace=force,
            out=(out / candidate_name(source, name)).resolve(),
        )
        for name in listed(",".join(types), "--types")
    )
    made = _list(_run(QuantizeTogetherStep(steps=steps, dry_run=dry_run), quiet=quiet).value)
    if json:
        print_json([{"file": each.pop("out"), **each} for each in made])
    elif dry_run:
        quantized.say_planned(out, made)
    else:
        quantized.say_made(out, made)


@app.command(epilog="Example: bitloss base model-f32.gguf --text wiki.test.raw -o base")
@with_engine
def base(
    *,
    source: Annotated[Path, typer.Argument(help="GGUF that candidates will be measured against.")],
    out: Out,
    engine: EngineSpec,
    text: Annotated[list[Path], typer.Option("--text", "-f", help="Evaluation text (UTF-8); repeatable.")],
    documents: Documents = None,
    chat_template: ChatTemplate = False,
    kld: Annotated[
        Path | None,
        typer.Option(
            "--kld",
            help="Write also FILE.kld, the base as llama-perplexity reads it (2 bytes x vocabulary a token).",
        ),
    ] = None,
    ctx: Ctx = 512,
    chunks: Chunks = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Make only the missing and damaged files of the base at --out again."),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Store a base: the hidden states candidates are measured against."""
    from bitloss.run.passes import check_model_memory

    if kld is not None and (documents is not None or chat_template):
        raise UsageError(
            "llama-perplexity's file has no place for which tokens are scored",
            where="--kld",
            found="--chat-template" if chat_template else "--documents",
            mend="leave one of the two out",
        )
    if not repair and out.exists():
        raise FileProblem(
            "already there",
            where=out,
            mend="choose another --out, or remove it; where it is a base, --repair makes only what it lacks",
        )
    if kld is not None and kld.exists():
        raise FileProblem("already there", where=kld, mend="choose another --kld, or remove it")
    source = given_base_model(source, quiet=quiet)
    check_model_memory(source, engine, n_ctx=ctx)
    step = BaseStep(
        source=source,
        source_sha256="",
        texts=EvaluationTexts.of(
            [given_text(each) for each in text],
            n_ctx=ctx,
            chunks=chunks,
            documents=documents,
            chat_template=chat_template,
        ),
        repair=Repair.ONLY if repair else Repair.NEVER,
        kld=None if kld is None else kld.resolve(),
        engine=engine,
        out=out.resolve(),
    )
    result = _run(step, quiet=quiet).value
    assert isinstance(result, dict)
    if kld is not None:
        also = KldStep(base=step.out, base_key="", threads=engine.threads, out=kld.resolve())
        try:
            _run(also, quiet=quiet)
        except BitlossError as error:
            advice = f"{error.mend}. The base" if error.mend else "the base"
            raise error.amended(
                f"{advice} itself is made: the same command with --repair writes this file alone"
            ) from error
        result["kld"] = kld.name
    if json:
        print_json(result)
    else:
        if repair:
            made = ", ".join(str(name) for name in _rows(result, "repaired"))
            _say([f"made again: {made}" if made else "nothing to make again: every file is as it was"])
        size = sum(path.stat().st_size for path in out.iterdir())
        made_of = f"{many(_count(result, 'n_chunks'), 'chunk')} of {result['n_ctx']} tokens"
        _say([f"{out}  ({made_of}, {size / 2**20:.1f} MiB)"])
        if kld is not None:
            _say([f"{kld}  ({kld.stat().st_size / 2**20:.1f} MiB, for llama-perplexity)"])


def _list(result: JsonValue) -> list[dict[str, Any]]:
    assert isinstance(result, list)
    rows: list[Any] = result
    return rows


def _count(result: dict[str, Any], key: str) -> int:
    return int(result[key])


def _rows(result: JsonValue, key: str) -> list[Any]:
    assert isinstance(result, dict)
    rows = result[key]
    assert isinstance(rows, list)
    return rows
