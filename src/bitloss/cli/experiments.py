"""The verbs that end in a report: demo, run, measure, sensitivity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import bitloss
from bitloss.cli.application import app, command_line
from bitloss.cli.inputs import check_base, gguf_precision, given_model, given_text, say_bundled
from bitloss.cli.options import (
    ChatTemplate,
    Chunks,
    Ctx,
    Documents,
    GgufChunks,
    Json,
    Margin,
    Precision,
    Quiet,
    Revision,
    SourceChunks,
    StopWhen,
    listed,
    stop_rule,
    with_engine,
)
from bitloss.cli.show import Screen, output_console, print_json, warn
from bitloss.display import visible
from bitloss.errors import FileProblem, UsageError
from bitloss.records import RESULTS_NAME, Results
from bitloss.report.crossed import sensitivity_table
from bitloss.report.missing import NO_AUDIT, answered, no_candidates
from bitloss.report.tables import founding_table
from bitloss.report.terminal import Fitted
from bitloss.report.texts import texts_said, texts_table
from bitloss.report.uncertainty import said, usual
from bitloss.run.executor import LocalExecutor
from bitloss.spec import EngineSpec, ExperimentSpec, make_spec, make_stop, read_spec

ImatrixChunks = Annotated[
    int | None,
    typer.Option("--imatrix-chunks", min=1, help="Chunks of the calibration text. [default: all]"),
]
OutFolder = Annotated[Path | None, typer.Option("--out", "-o", help="The run's folder.", show_default=False)]


def bundled(*parts: str) -> Path:
    """A file or folder that comes with the package."""
    # not importlib.resources: an editable install is spread over two folders, which it cannot name as one path
    path = Path(bitloss.__file__).parent.joinpath("assets", *parts)
    assert path.exists(), f"missing from the package: {path}"
    return path


@app.command(epilog="Example: bitloss demo --out demo")
@with_engine
def demo(
    *,
    context: typer.Context,
    out: OutFolder = None,
    engine: EngineSpec,
    chunks: Chunks = None,
    imatrix_chunks: ImatrixChunks = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the founding experiment on the bundled model: offline, on any machine, in a few minutes."""
    spec = make_spec(
        {
            "model": str(bundled("demo-model")),
            "from": ["f32", "f16"],
            "quants": ["Q8_0", "Q4_K_M"],
            "calibration": str(bundled("texts", "calibration.txt")),
            "text": str(bundled("texts", "evaluation.txt")),
            "chunks": chunks,
            "imatrix_chunks": imatrix_chunks,
            "cross": True,
            "errors": True,
            "engine": engine.model_dump(),
        },
        where="bitloss demo",
    )
    _experiment(spec, out or Path("bitloss-demo"), context, json=json, quiet=quiet)


@app.command(
    epilog="Example: bitloss run ./Mistral-7B --text wiki.test.raw --calibration mine.txt --out runs/mistral"
)
@with_engine
def run(
    *,
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="HF folder, GGUF file, hub id (owner/name), or an experiment file (.toml)."),
    ],
    revision: Revision = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Precisions to convert to and quantize from; the first is the base. "
            "[default: f32,f16; a GGUF is taken as it is]",
            show_default=False,
        ),
    ] = None,
    quants: Annotated[
        str, typer.Option("--quants", help="Types, as llama-quantize names them.")
    ] = "Q8_0,Q4_K_M",
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="Text of the importance matrices. [default: the bundled one]"),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            "-f",
            help="Text to measure on, repeatable; wikitext-2 is fetched. [default: the bundled evaluation.txt]",
        ),
    ] = None,
    documents: Documents = None,
    chat_template: ChatTemplate = False,
    ctx: Ctx = 512,
    chunks: Chunks = None,
    imatrix_chunks: ImatrixChunks = None,
    cross: Annotated[
        bool,
        typer.Option(
            "--cross",
            help="Quantize each source with the importance matrix of each other too, and say what makes files differ.",
        ),
    ] = False,
    errors: Annotated[
        bool,
        typer.Option("--errors", help="Tell of each tensor how far it is from the source's."),
    ] = False,
    stop_when: StopWhen = None,
    margin: Margin = None,
    precision: Precision = None,
    out: OutFolder = None,
    engine: EngineSpec,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert, quantize, measure and explain, in one folder; run again to go on where it stopped.

    Without --text and --calibration the bundled texts are used (English novels); texts of your own are better.
    """
    if model.endswith(".toml"):
        _refuse_more_settings(context, model)
        spec = read_spec(Path(model))
        _experiment(spec, out or spec.out or Path(Path(model).stem + "-run"), context, json=json, quiet=quiet)
        return
    say_bundled(calibration, text, quiet=quiet)
    from bitloss.model.gguf_split import whole_stem

    name, model = Path(model).name, str(given_model(model, revision, quiet=quiet))
    if from_ is None:
        from_ = gguf_precision(Path(model)) if Path(model).is_file() else "f32,f16"
    values: dict[str, Any] = {
        "model": model,
        "from": list(listed(from_, "--from")),
        "quants": list(listed(quants, "--quants")),
        "calibration": str((calibration or bundled("texts", "calibration.txt")).absolute()),
        "text": [str(path.absolute()) for path in text or [bundled("texts", "evaluation.txt")]],
        "documents": documents,
        "chat_template": chat_template,
        "ctx": ctx,
        "chunks": chunks,
        "imatrix_chunks": imatrix_chunks,
        "cross": cross,
        "errors": errors,
        "stop": stop_rule(stop_when, margin, precision),
        "engine": engine.model_dump(),
    }
    spec = make_spec(values, where="bitloss run")
    _experiment(spec, out or Path(f"{whole_stem(Path(name))}-run"), context, json=json, quiet=quiet)


def _refuse_more_settings(context: typer.Context, file: str) -> None:
    """An experiment file says everything; a flag beside it would be ignored without a word."""
    given = [
        name
        for name in context.params
        if name not in ("model", "out", "json", "quiet")
        and (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    ]
    if given:
        raise UsageError(
            "an experiment file says everything, but settings are given beside it",
            where=file,
            found=", ".join("--" + name.strip("_").replace("_", "-") for name in given),
            mend="write them into the file, or leave them out",
        )


def _experiment(spec: ExperimentSpec, out: Path, context: typer.Context, *, json: bool, quiet: bool) -> None:
    given = {
        "model": str(given_model(spec.model, None, quiet=quiet)),
        "text": tuple(given_text(each) for each in spec.text),
    }
    spec = spec.model_copy(update=given)
    with Screen(quiet=quiet) as screen, LocalExecutor() as executor:  # its process imports meanwhile
        from bitloss.run.founding import run_experiment

        results = run_experiment(
            spec,
            out=out,
            executor=executor,
            progress=screen.step,
            commands=(command_line(context.obj),),
        )
    _show(results, out, json=json)


def _show(results: Results, out: Path, *, json: bool) -> None:
    if json:
        print_json(results.model_dump(mode="json", by_alias=True))
        return
    console = output_console()
    if (nothing := no_candidates(results)) is not None:
        console.print(visible(nothing, 300), markup=False)
    else:
        console.print(Fitted(founding_table(results)))
        console.print(said(results, usual(results)), markup=False)
        if results.texts and any(each.by_text for each in results.candidates):
            console.print("\nEach text by itself", style="bold", markup=False)
            console.print(Fitted(texts_table(results)))
            console.print(texts_said(results), markup=False)
    _tell(results, out)


def _tell(results: Results, out: Path) -> None:
    """Findings by question, and where the report is."""
    console = output_console()
    for answer in answered(results):
        if answer.number:
            console.print(f"\n{answer.number}. {answer.question}", style="bold underline", markup=False)
        for finding in answer.findings:
            console.print(f"\n{finding.title}", style="bold", markup=False)
            console.print(finding.text, markup=False)
        if not answer.findings:
            console.print(f"\n{NO_AUDIT}", markup=False)
    console.print(
        f"\nreport: {out / 'report.html'}\nthe same as text: {out / 'report.md'}\nresults: {out / RESULTS_NAME}",
        markup=False,
    )


@app.command(epilog="Example: bitloss measure *.gguf --base base -o measured")
@with_engine
def measure(
    *,
    context: typer.Context,
    candidates: Annotated[list[Path], typer.Argument(help="GGUF files to measure.")],
    base: Annotated[
        Path,
        typer.Option(
            "--base",
            help="Folder made by `bitloss base`, a GGUF file with --text, or a FILE.kld of llama-perplexity.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results.json, tokens/ and report.md.")],
    engine: EngineSpec,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            "-f",
            help="Text, when --base is a GGUF file; repeatable. With a folder: what it must have been made from.",
        ),
    ] = None,
    documents: Documents = None,
    chat_template: ChatTemplate = False,
    base_model: Annotated[
        Path | None, typer.Option("--base-model", help="The base's GGUF file, if it was moved.")
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option("--ctx", "-c", min=8, help="Tokens in a chunk. [default: 512, or the base's]"),
    ] = None,
    chunks: GgufChunks = None,
    stop_when: StopWhen = None,
    margin: Margin = None,
    precision: Precision = None,
    force: Annotated[
        bool, typer.Option("--force", help="Accept a base made from something else; the results say so.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure finished files against a base: perplexity, KL divergence, Δp, same top token.

    Files measured into a folder that holds results against the same base are added to the table there.
    """
    texts = tuple(given_text(each) for each in text or ())
    stop = make_stop(stop_rule(stop_when, margin, precision), where="bitloss measure")
    with Screen(quiet=quiet) as screen, LocalExecutor() as executor:  # its process imports meanwhile
        from bitloss.report.write import get_ready
        from bitloss.run.earlier import contents, replaced
        from bitloss.run.measuring import Measuring, measure_files

        before = contents(out)
        check_base(base, texts)
        plan = Measuring(
            candidates=candidates,
            out=out,
            engine=engine,
            base=base,
            base_model=base_model,
            text=texts,
            n_ctx=ctx,
            chunks=chunks,
            documents=documents,
            chat_template=chat_template,
            force=force,
            commands=(command_line(context.obj),),
            stop=stop,
        )
        get_ready()
        results = measure_files(plan, executor=executor, progress=screen.step)
    _show(results, out, json=json)
    for line in replaced(before, results):
        warn(line)


@app.command(
    epilog="Example: bitloss sensitivity model-f32.gguf --type Q4_K_M --text wiki.test.raw -o sensitivity"
)
@with_engine
def sensitivity(
    *,
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="Full-precision GGUF.")],
    kind: Annotated[str, typer.Option("--type", help="Type of the plain file, as llama-quantize names it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for files, results and report.")],
    engine: EngineSpec,
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", help="Importance matrix (GGUF or .dat).")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base", help="Folder made by `bitloss base`, or a FILE.kld. [default: the source on --text]"
        ),
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option("--text", "-f", help="Text to measure on; repeatable.")
    ] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Raise attention and feed-forward of one layer at a time.")
    ] = False,
    ctx: Annotated[
        int | None,
        typer.Option("--ctx", "-c", min=8, help="Tokens in a chunk. [default: 512, or the base's]"),
    ] = None,
    chunks: SourceChunks = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Raise one group of tensors at a time to the source's precision and rank them by what that gains.

    A file of each group lies in OUT/candidates while it works and after.
    """
    from bitloss.run.measuring import Measuring
    from bitloss.run.sensing import Sensing, sense

    if not source.is_file():
        raise FileProblem("no such GGUF file", where=source)
    if base is not None:
        check_base(base, text)
    if base is None and not text:
        raise UsageError(
            "nothing to measure on", where="bitloss sensitivity", expected="--text FILE or --base DIR"
        )
    measuring = Measuring(
        candidates=(),
        out=out,
        engine=engine,
        base=base or source,
        text=tuple(given_text(each) for each in text or ()),
        n_ctx=ctx,
        chunks=chunks,
        commands=(command_line(context.obj),),
    )
    sensing = Sensing(source, kind, imatrix, per_layer, measuring)
    with Screen(quiet=quiet) as screen, LocalExecutor() as executor:
        results = sense(sensing, executor=executor, progress=screen.step)
    if json:
        print_json(results.model_dump(mode="json", by_alias=True))
        return
    console = output_console()
    console.print(Fitted(sensitivity_table(results)))
    _tell(results, out)
