"""The founding experiment: sources, importance matrices, candidates, measurements, results.

Every step is looked up by its content key in the run folder first; what is there is not done again. The order is
that of the pipeline, so that a run that is stopped goes on where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from bitloss.divergence.measure import TokenTable, read_tokens, write_tokens
from bitloss.model.gguf_split import open_model, whole_stem
from bitloss.records import Audit, Cost, Cross
from bitloss.run.bases import make_base, mended
from bitloss.run.crossing import compare_squares, cross_record
from bitloss.run.executor import Executor
from bitloss.run.noise import NOISE, NOISE_SEED, noise_chunks, other_arithmetic
from bitloss.run.passes import base_bytes, measure_in_passes
from bitloss.run.quantizing import CandidateFile, Source, make_candidates
from bitloss.run.sequential import MeasuredBlock, Stopped, measure_until, part_label
from bitloss.run.stepping import Measurement, RunProgress, Stepper
from bitloss.run.steps import (
    AuditStep,
    BaseStep,
    ConvertStep,
    EvaluationTexts,
    ImatrixStep,
    MeasureStep,
    OverlapStep,
    Part,
)
from bitloss.run.texts import text_records
from bitloss.spec import EngineSpec, ExperimentSpec, StopSpec
from bitloss.store import RunFolder, StepRecord, sha256_file


class Measured(NamedTuple):
    """What the steps of a run left, ready to be put into results.

    Attributes:
        sources: by name.
        base_source: what candidates are measured against.
        header: of the base, of the whole text.
        stored_bytes: what the base takes on the disk.
        candidates: in the order of the table.
        tokens: tensors_sha256 -> Parquet of per-token metrics (candidates with equal tensors share one).
        noise_tokens: Parquet of the base measured against itself, computed in another order.
        noise_engine: the engine's settings for that.
        imatrix_chunks: chunks of the calibration text used; None when no importance matrix was made.
        costs: of every step.
        overlap: of texts and calibration text, as `bitloss.run.steps.OverlapStep` found it; None without one.
        audit: what the model's weights would lose.
        cross: what makes the routes differ; None when they were not crossed.
        stopped: the rule measuring stopped by; None when the whole text was measured.
    """

    sources: dict[str, Source]
    base_source: Source
    header: dict[str, Any]
    stored_bytes: int
    candidates: list[CandidateFile]
    tokens: dict[str, Path]
    noise_tokens: Path
    noise_engine: EngineSpec
    imatrix_chunks: int | None
    costs: list[Cost]
    overlap: dict[str, Any] | None
    audit: Audit
    cross: Cross | None = None
    stopped: Stopped | None = None


class _Base(NamedTuple):
    """The base, or what was computed of it on a part of the text; the step that made it, and how that is called."""

    record: StepRecord
    source: Source
    step: BaseStep
    label: str

    @property
    def part(self) -> Part | None:
        """Chunks it holds; None for all."""
        return self.step.part


class _Evaluated(NamedTuple):
    """Base and candidates, measured on the same chunks."""

    bases: list[_Base]
    tokens: dict[str, Path]
    noise: Path
    stopped: Stopped | None = None


class Runner:
    """Runs the steps of one experiment in one folder.

    Args:
        spec: what to do, resolved.
        folder: the run folder, held.
        executor: runs the steps.
        progress: told about every step.
        model_sha256: `bitloss.model.source.model_sha256` of its model.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        folder: RunFolder,
        executor: Executor,
        progress: RunProgress,
        *,
        model_sha256: str,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.steps = Stepper(folder, executor, progress)
        self._model_sha256 = model_sha256
        self._hashes: dict[Path, str] = {}
        self.texts = spec_texts(spec)

    def run(self) -> Measured:
        """Do what is not done yet.

        Raises:
            BitlossError: a step failed; what was finished stays and is used next time.
        """
        audit = self._audit()
        sources = self._sources()
        imatrices = (
            {name: self._imatrix(source) for name, source in sources.items()} if self.spec.calibration else {}
        )
        candidates = make_candidates(self.spec, self.folder.path, self.steps, sources, imatrices)
        base_source = next(iter(sources.values()))
        overlap = self._overlap(base_source)
        found = (
            self._whole(base_source, candidates)
            if self.spec.stop is None
            else self._until(self.spec.stop, base_source, candidates)
        )
        counted = [record.result for record in imatrices.values()]
        cross = None
        if self.spec.cross:
            compared = compare_squares(candidates, self.folder.path, self.steps)
            which = found.stopped.which if found.stopped else None
            texts = text_records(_object(found.bases[0].record.result), which)
            cross = cross_record(compared, found.tokens, imatrices, self.folder.path, texts)
        return Measured(
            sources=sources,
            base_source=base_source,
            header=_object(found.bases[0].record.result),
            stored_bytes=sum(output.bytes for base in found.bases for output in base.record.outputs),
            candidates=candidates,
            tokens=found.tokens,
            noise_tokens=found.noise,
            noise_engine=self._noise_engine(),
            imatrix_chunks=_field(counted[0], "chunks") if counted else None,
            costs=self.steps.costs,
            overlap=overlap,
            audit=audit,
            cross=cross,
            stopped=found.stopped,
        )

    # ---------------------------------------------------------------------------------------------- stages

    def _audit(self) -> Audit:
        model = Path(self.spec.model)
        step = AuditStep(
            model=model,
            model_sha256=self._model_sha256,
            threads=self.spec.engine.threads,
            out=self.folder.path / "audit.json",
        )
        self.steps.do(step, f"audit {model.name}", None, [step.out])
        return Audit.model_validate_json(step.out.read_bytes())

    def _sources(self) -> dict[str, Source]:
        model = Path(self.spec.model)
        if model.is_file():
            name = self.spec.sources[0]  # a GGUF is taken as it is: see `bitloss.run.founding.checked`
            return {name: Source(name, model, self._model_sha256)}
        from bitloss.convert.convert import default_name, source_path

        out = self.folder.path / "sources"
        step = ConvertStep(
            model=model, model_sha256=self._model_sha256, types=tuple(self.spec.sources), out=out
        )
        files = {name: source_path(out, default_name(model), name) for name in self.spec.sources}
        record = self.steps.do(
            step, f"convert {', '.join(files)}", None, [*files.values(), out / "conversion.json"]
        )
        hashes = {output.path: output.sha256 for output in record.outputs}
        tensors = {made["type"]: made["tensors_sha256"] for made in _field(record.result, "outputs")}
        return {
            name: Source(name, file, hashes[file.relative_to(self.folder.path).as_posix()], tensors[name])
            for name, file in files.items()
        }

    def _imatrix(self, source: Source) -> StepRecord:
        assert self.spec.calibration is not None
        step = ImatrixStep(
            source=source.file,
            source_sha256=source.sha256,
            text=self.spec.calibration,
            text_sha256=self._hash(self.spec.calibration),
            n_ctx=self.spec.ctx,
            chunks=self.spec.imatrix_chunks,
            engine=self.spec.engine,
            out=self.folder.path / "imatrix" / f"{whole_stem(source.file)}.imatrix.gguf",
        )
        return self.steps.do(step, f"imatrix {source.name}", source.name, [step.out])

    def _whole(self, source: Source, candidates: list[CandidateFile]) -> _Evaluated:
        """Measure on the whole text."""
        base = self._base(source, None)
        noise = self._noise(base)
        return _Evaluated([base], self._measure_all(candidates, base), noise)

    def _until(self, stop: StopSpec, source: Source, candidates: list[CandidateFile]) -> _Evaluated:
        """Measure block by block until the rule is met; base and noise floor are computed on those chunks only."""
        bases: list[_Base] = []

        def block(part: Part) -> MeasuredBlock:
            bases.append(self._base(source, part))
            available = _field(bases[-1].record.result, "n_chunks")
            return MeasuredBlock(available, self._measure_all(candidates, bases[-1]))

        measured_as = {each.name: str(each.made["tensors_sha256"]) for each in candidates}
        stopped = measure_until(stop, measured_as, block)
        noise = TokenTable.join([read_tokens(self._noise(base))[0] for base in bases], stopped.which)
        tokens = {
            tensors: self._join(candidate.name, stopped.tables[tensors])
            for tensors, candidate in _distinct(candidates).items()
        }
        return _Evaluated(bases, tokens, self._join(NOISE, noise), stopped)

    def _measure_all(self, candidates: list[CandidateFile], base: _Base) -> dict[str, Path]:
        distinct = _distinct(candidates)
        todo = [
            self._measurement(candidate.name, tensors, candidate, base, self.spec.engine)
            for tensors, candidate in distinct.items()
        ]
        self._measure(todo, base)
        return {tensors: each.step.out for tensors, each in zip(distinct, todo, strict=True)}

    def _join(self, name: str, table: TokenTable) -> Path:
        path = self._tokens_path("tokens", name)
        path.parent.mkdir(exist_ok=True)
        write_tokens(table, path, {"candidate": name})
        return path

    def _tokens_path(self, folder: str, name: str) -> Path:
        return self.folder.path / folder / f"{name.replace('/', '-').replace(' ', '-')}.parquet"

    def _noise_engine(self) -> EngineSpec:
        return other_arithmetic(self.spec.engine, self.spec.ctx)

    def _noise(self, base: _Base) -> Path:
        tensors = base.source.tensors_sha256 or open_model(base.source.file).tensors_sha256()
        few = None
        n_chunks = _field(base.record.result, "n_chunks")
        if base.part is None and noise_chunks(n_chunks) < n_chunks:
            few = Part(seed=NOISE_SEED, first=0, last=noise_chunks(n_chunks))
        noise = self._measurement(NOISE, tensors, base.source, base, self._noise_engine(), few)
        self._measure([noise], base)
        return noise.step.out

    def _base(self, source: Source, part: Part | None) -> _Base:
        folder = self.folder.path / "base"
        step = BaseStep(
            source=source.file,
            source_sha256=source.sha256,
            texts=self.texts,
            part=part,
            engine=self.spec.engine,
            out=folder / part.tag if part else folder,
        )
        label = part_label(f"base {source.name}", part)
        return _Base(make_base(self.steps, step, label), source, step, label)

    def _measurement(
        self,
        name: str,
        tensors_sha256: str,
        what: Source | CandidateFile,
        base: _Base,
        engine: EngineSpec,
        few: Part | None = None,
    ) -> Measurement:
        """Measure on all chunks of the base (those of its part), or on a ``few`` of a whole base."""
        part = base.part
        step = MeasureStep(
            candidate=what.file,
            candidate_tensors_sha256=tensors_sha256,
            base=base.step.out,
            base_model=base.source.file.resolve(),  # a GGUF may have been moved since the base was made
            base_key=base.record.key,
            part=few,
            engine=engine,
            out=self._tokens_path("parts", f"{name}-{part.tag}")
            if part
            else self._tokens_path("tokens", name),
        )
        route = what.source.name if isinstance(what, CandidateFile) else None
        return Measurement(step, part_label(f"measure {name}", part), route)

    def _measure(self, todo: list[Measurement], base: _Base) -> None:
        def passes() -> None:
            measure_in_passes(
                self.steps,
                todo,
                beside=base_bytes(base.step.out, base.source.file),
                n_ctx=self.spec.ctx,
                part=part_label("", base.part),
            )

        mended(self.steps, base.step, base.label, passes)

    def _overlap(self, source: Source) -> dict[str, Any] | None:
        """What texts and calibration text have in common; None without a calibration text."""
        if self.spec.calibration is None:
            return None
        step = OverlapStep(
            source=source.file,
            source_sha256=source.sha256,
            texts=self.texts,
            calibration=self.spec.calibration,
            calibration_sha256=self._hash(self.spec.calibration),
            calibration_chunks=self.spec.imatrix_chunks,
            out=self.folder.path / "overlap.json",
        )
        return _object(self.steps.do(step, "overlap of the texts", None, [step.out]).result)

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256_file(path)
        return self._hashes[path]


def spec_texts(spec: ExperimentSpec) -> EvaluationTexts:
    """The texts of an experiment, hashed.

    Raises:
        FileProblem, UsageError: as `EvaluationTexts.of`.
    """
    return EvaluationTexts.of(
        spec.text,
        n_ctx=spec.ctx,
        chunks=spec.chunks,
        documents=spec.documents,
        chat_template=spec.chat_template,
    )


def _distinct(candidates: list[CandidateFile]) -> dict[str, CandidateFile]:
    """The first candidate with each tensors' hash."""
    found: dict[str, CandidateFile] = {}
    for candidate in candidates:
        found.setdefault(candidate.made["tensors_sha256"], candidate)
    return found


def _object(result: JsonValue) -> dict[str, Any]:
    assert isinstance(result, dict)
    return result


def _field(result: JsonValue, name: str) -> Any:
    return _object(result)[name]
