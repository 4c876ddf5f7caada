"""`bitloss measure`: finished files against a base, in a run folder of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from bitloss.divergence.basefile import BaseHeader, read_header
from bitloss.divergence.kldfile import is_kld
from bitloss.divergence.measure import write_tokens
from bitloss.errors import FileProblem, UsageError
from bitloss.model.documents import Splitting
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import absolute, open_model, whole_stem
from bitloss.model.source import model_bytes, model_facts, model_sha256, refuse_matrix
from bitloss.model.vocabulary import graph_sha256, refuse_other_vocabulary, vocabulary_sha256
from bitloss.records import RESULTS_NAME, Base, Cost, Model, Results, write_results
from bitloss.report.write import write_report
from bitloss.run.basecheck import Wanted, check_base
from bitloss.run.bases import make_base, mended
from bitloss.run.candidates import measured_file, opened
from bitloss.run.earlier import Earlier, earlier, refuse_before_base, take_along
from bitloss.run.executor import Executor
from bitloss.run.kldbase import Described, KldBase, check_candidates, kld_records, open_kld, refuse_options
from bitloss.run.passes import base_bytes, check_memory, measure_in_passes
from bitloss.run.results import NOTHING_ELSE, MeasuredFile, Setting, Why, assemble
from bitloss.run.sequential import MeasuredBlock, Stopped, check_rule, measure_until, part_label
from bitloss.run.stepping import Measurement, RunProgress, Stepper
from bitloss.run.steps import BaseStep, EvaluationTexts, MeasureStep, Part, check_texts, rounding
from bitloss.run.texts import text_records
from bitloss.spec import EngineSpec, StopSpec
from bitloss.store import RunFolder, StepRecord, content_key, sha256_file

_LOCK_SECONDS = 2.0
_N_CTX = 512


class Measuring(NamedTuple):
    """What to measure against what.

    Attributes:
        candidates: GGUF files.
        out: folder for results, report and tokens.
        engine: how llama.cpp computes.
        base: folder made by `bitloss base`, a GGUF file, or a base file of llama-perplexity (``.kld``).
        base_model: the base's GGUF file, if it is no longer where the base says.
        text: evaluation texts, when `base` is a GGUF file; of a folder, what it should have been made from.
        n_ctx: tokens in a chunk, likewise; 512 when None.
        chunks: chunks of each text at most, when `base` is a GGUF file.
        documents: how texts are split into documents, as `text`.
        chat_template: texts are conversations, as `text`.
        force: accept a base made from something else, and say so in the results.
        commands: commands that repeat it, for the report.
        stop: when to stop before the text is at its end (a base is computed on the whole text all the same;
            not with a ``.kld`` file).
    """

    candidates: Sequence[Path]
    out: Path
    engine: EngineSpec
    base: Path
    base_model: Path | None = None
    text: tuple[Path, ...] = ()
    n_ctx: int | None = None
    chunks: int | None = None
    documents: str | None = None
    chat_template: bool = False
    force: bool = False
    commands: tuple[str, ...] = ()
    stop: StopSpec | None = None


class _Base(NamedTuple):
    folder: Path
    header: BaseHeader
    key: str
    model: Path
    step: BaseStep | None = None  # that made it, in this run


def prepare_measuring(plan: Measuring) -> tuple[Path, ...]:
    """Refuse what can be refused before candidates to be ranked are made, and take the folder.

    Returns:
        The folders made for it (`RunFolder.made`).

    Raises:
        BitlossError: as `measure_files`.
    """
    files = opened(plan.candidates)
    kld = _kld(plan, files)
    if kld is None:
        _check_base(plan, files)
    with _folder(plan, kld) as folder:
        earlier(plan.out, (), ranking=True, stopping=False)
    return folder.made


def _folder(plan: Measuring, kld: KldBase | None) -> RunFolder:
    settings: dict[str, JsonValue] = {
        "base": {"kld": kld.sha256} if kld else _base_identity(plan),
        "engine": rounding(plan.engine),
    }
    if plan.stop is not None:
        settings["stop"] = plan.stop.model_dump(mode="json")
    return RunFolder.open(plan.out, content_key("measure", settings), settings, timeout=_LOCK_SECONDS)


def measure_files(
    plan: Measuring,
    *,
    executor: Executor,
    progress: RunProgress,
    why: Why = NOTHING_ELSE,
    costs: Sequence[Cost] = (),
) -> Results:
    """Measure files against a base; several files with equal tensors are measured once.

    Args:
        plan: what to measure.
        executor: runs the steps.
        progress: told about every step.
        why: what else the results shall hold.
        costs: of steps done for these files before.

    Returns:
        The results, with those of files measured there before; also written to ``out/results.json`` with
        ``report.md`` beside it and ``tokens/``.

    Raises:
        FileProblem, GgufError: a candidate or the base is missing or damaged.
        MismatchError: a candidate's vocabulary is not the base's (found before anything is computed).
        RunFolderError: `out` holds something else, or what was measured there before would be lost.
    """
    files, out = opened(plan.candidates), plan.out
    kld = _kld(plan, files)
    forced = () if kld else _check_base(plan, files)
    check_rule(plan.stop, len(files))
    if plan.base.is_file() and kld is None:
        check_memory(files, plan.engine, base=plan.base, n_ctx=plan.n_ctx or _N_CTX)
    stopped: Stopped | None = None
    with _folder(plan, kld) as folder:
        steps = Stepper(folder, executor, progress)
        before = earlier(
            out,
            [whole_stem(path) for path in files],
            ranking=why.sensitivity is not None,
            stopping=plan.stop is not None,
        )
        if kld:
            measured = _measured(plan, files, kld, steps, before)
            described = kld_records(kld, next(iter(files.values())), [done for _, done in measured])
        else:
            base = _base(plan, steps, before)
            forced = tuple(dict.fromkeys([*before.forced, *forced]))
            if plan.stop is None:
                measured = _measured(plan, files, base, steps, before)
            else:
                stopped, tokens = _until(plan, plan.stop, files, base, steps)
                measured = [(measured_file(path, file, tokens[path]), {}) for path, file in files.items()]
            described = _described(base, stopped, forced)
        setting = Setting(
            model=described.model,
            texts=described.texts,
            calibration=None,
            base=described.base,
            sources=(),
            n_gpu_layers=plan.engine.n_gpu_layers,
            commands=tuple(dict.fromkeys([*before.commands, *plan.commands])),
            stopping=stopped.record if stopped else None,
        )
        every = [*costs, *steps.costs]
        table = before.ordered([file for file, _ in measured])
        results = assemble(setting, table, noise=None, costs=every, why=why)
        write_results(results, out / RESULTS_NAME)
        write_report(results, out)
    return results


def _kld(plan: Measuring, files: Mapping[Path, GgufFile]) -> KldBase | None:
    if not is_kld(plan.base):
        return None
    refuse_options(
        {
            "--text": plan.text or None,
            "--documents": plan.documents,
            "--chunks": plan.chunks,
            "--chat-template": plan.chat_template or None,
            "--base-model": plan.base_model,
            "--stop-when": plan.stop,
        }
    )
    base = open_kld(plan.base, n_ctx=plan.n_ctx)
    check_candidates(base, files)
    return base


def _described(base: _Base, stopped: Stopped | None, forced: tuple[str, ...]) -> Described:
    model = base.model
    facts, sha256 = model_facts(model, model), model_sha256(model)
    return Described(
        model=Model(
            name=facts.name,
            architecture=facts.architecture,
            parameters=facts.parameters,
            dtype=facts.dtype,
            sha256=sha256,
        ),
        texts=text_records(base.header.model_dump(mode="json"), stopped.which if stopped else None),
        base=Base(
            name=base.header.model,
            file=base.header.model,
            bytes=model_bytes(model),
            sha256=sha256,
            stored_bytes=sum(path.stat().st_size for path in base.folder.iterdir() if path.is_file()),
            forced=forced,
        ),
    )


def _check_base(plan: Measuring, files: Mapping[Path, GgufFile]) -> tuple[str, ...]:
    """Refuse a base that does not fit; returns the differences that ``--force`` accepts."""
    header, wanted = None, Wanted()
    if plan.base.is_file():
        refuse_matrix(source := open_model(plan.base))
        model, expected = plan.base, vocabulary_sha256(source)
    else:
        header = read_header(plan.base)
        expected = header.vocabulary_sha256
        model = plan.base_model or (plan.base / header.model_path).resolve()
        if not model.is_file():
            raise FileProblem(
                "the base's model is not there",
                where=model,
                mend="put the file back, or say where it is with --base-model",
            )
        if plan.chunks is not None and plan.chunks < header.n_chunks:
            raise UsageError(
                "a base is measured against as a whole",
                where="--chunks",
                expected=f"at least the {header.n_chunks} chunks of {plan.base}, or no --chunks",
                found=plan.chunks,
                mend="leave it out, make a base of fewer chunks, or stop sooner with --stop-when",
            )
        if plan.stop is not None and header.scored_tokens is not None:
            raise UsageError(
                "stopping by a rule needs chunks of one length, this base has documents",
                where="--stop-when",
                mend="measure the whole text",
            )
        check_texts(plan.text, documents=plan.documents, chat_template=plan.chat_template)
        split = Splitting.CONVERSATIONS.value if plan.chat_template else plan.documents
        wanted = Wanted(plan.text, plan.n_ctx, split, plan.engine)
    for file in files.values():
        refuse_other_vocabulary(file, open_model(model), vocabulary=expected, name=plan.base)
    return check_base(header, model, files, wanted, where=plan.base, force=plan.force)


def _texts(plan: Measuring) -> EvaluationTexts:
    return EvaluationTexts.of(
        plan.text,
        n_ctx=plan.n_ctx or _N_CTX,
        chunks=plan.chunks,
        documents=plan.documents,
        chat_template=plan.chat_template,
    )


def _base_identity(plan: Measuring) -> dict[str, JsonValue]:
    if plan.base.is_dir() or not plan.base.exists():
        header = read_header(plan.base)
        return {"tokens": header.tokens_sha256, "tensors": header.tensors_sha256, "engine": header.engine}
    texts = _texts(plan).identity()
    return {"model": model_sha256(plan.base), "ctx": texts.pop("n_ctx"), **texts}


def _base(plan: Measuring, steps: Stepper, before: Earlier) -> _Base:
    if plan.base.is_dir():
        header = read_header(plan.base)
        model = (plan.base_model or plan.base / header.model_path).resolve()
        return _Base(plan.base.resolve(), header, sha256_file(plan.base / "base.json"), model)
    step = BaseStep(
        source=absolute(plan.base),
        source_sha256=model_sha256(plan.base),
        texts=_texts(plan),
        engine=plan.engine,
        out=(plan.out / "base").resolve(),
    )
    refuse_before_base(before, step, steps)
    record = make_base(steps, step, f"base {plan.base.name}")
    return _Base(step.out, read_header(step.out), record.key, step.source, step)


def _computed(file: GgufFile) -> str:
    """Hash of what a file computes: its tensors, and the parameters of its graph."""
    return content_key("candidate", {"tensors": file.tensors_sha256(), "graph": graph_sha256(file)})


def _tokens(plan: Measuring, path: Path, computed: str, part: Part | None = None) -> Path:
    """Files that compute the same share one file of tokens, named by the first of them and by what was measured."""
    folder, tail = plan.out / ("parts" if part else "tokens"), f"-{part.tag}" if part else ""
    # an earlier file of the same content may have another name, or (of older versions) only the hash
    before = [*folder.glob(f"*-{computed[:8]}{tail}.parquet"), folder / f"{computed[:16]}{tail}.parquet"]
    name = f"{whole_stem(path)[:150]}-{computed[:8]}{tail}.parquet"
    return next((each for each in sorted(before) if each.is_file()), folder / name).resolve()


def _measure_step(
    plan: Measuring, path: Path, computed: str, base: _Base | KldBase, part: Part | None = None
) -> MeasureStep:
    return MeasureStep(
        candidate=path,
        candidate_tensors_sha256=computed,
        base=base.path if isinstance(base, KldBase) else base.folder,
        base_model=None if isinstance(base, KldBase) else base.model,
        base_key=base.sha256 if isinstance(base, KldBase) else base.key,
        part=part,
        engine=plan.engine,
        out=_tokens(plan, path, computed, part),
    )


def _measure(
    plan: Measuring,
    files: Mapping[Path, GgufFile],
    base: _Base | KldBase,
    steps: Stepper,
    part: Part | None = None,
) -> dict[str, tuple[Path, JsonValue]]:
    """Measure what computes differently once each; gives tokens and the step's result by `_computed`."""
    first: dict[str, Path] = {}
    for path, file in files.items():
        first.setdefault(_computed(file), path)
    todo = [
        Measurement(
            _measure_step(plan, path, computed, base, part),
            part_label(f"measure {whole_stem(path)}", part),
            None,
        )
        for computed, path in first.items()
    ]

    def passes() -> list[StepRecord]:
        return measure_in_passes(
            steps,
            todo,
            beside=0 if isinstance(base, KldBase) else base_bytes(base.folder, base.model),
            n_ctx=base.n_ctx if isinstance(base, KldBase) else base.header.n_ctx,
            part=part_label("", part),
        )

    if isinstance(base, _Base) and base.step is not None:
        records = mended(steps, base.step, f"base {base.model.name}", passes)
    else:
        records = passes()
    return {
        computed: (each.step.out, record.result)
        for computed, each, record in zip(first, todo, records, strict=True)
    }


def _measured(
    plan: Measuring,
    files: Mapping[Path, GgufFile],
    base: _Base | KldBase,
    steps: Stepper,
    before: Earlier,
) -> list[tuple[MeasuredFile, Mapping[str, JsonValue]]]:
    measured: list[tuple[MeasuredFile, Mapping[str, JsonValue]]] = []
    now = [_measure_step(plan, path, _computed(file), base) for path, file in files.items()]
    for kept, told in take_along(before, now, steps):
        assert isinstance(told, dict)
        measured.append((kept, told))
    done = _measure(plan, files, base, steps)
    for path, file in files.items():
        tokens, result = done[_computed(file)]
        assert isinstance(result, dict)
        measured.append((measured_file(path, file, tokens), result))
    return measured


def _until(
    plan: Measuring, stop: StopSpec, files: Mapping[Path, GgufFile], base: _Base, steps: Stepper
) -> tuple[Stopped, dict[Path, Path]]:
    """Measure block by block until the rule is met; returns each file's per-token results as well."""
    computed = {path: _computed(file) for path, file in files.items()}

    def block(part: Part) -> MeasuredBlock:
        done = _measure(plan, files, base, steps, part)
        return MeasuredBlock(base.header.n_chunks, {key: tokens for key, (tokens, _) in done.items()})

    stopped = measure_until(stop, {whole_stem(path): key for path, key in computed.items()}, block)
    (plan.out / "tokens").mkdir(exist_ok=True)
    first = {key: path for path, key in reversed(computed.items())}
    for key, path in first.items():
        write_tokens(stopped.tables[key], _tokens(plan, path, key), {"candidate": path.name})
    return stopped, {path: _tokens(plan, first[key], key) for path, key in computed.items()}
