"""`bitloss run`: the whole experiment, from a specification to results and report in one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitloss.convert.families import family_of
from bitloss.convert.specials import optional_json, templates
from bitloss.errors import FileProblem, TextError, UnsupportedError, UsageError
from bitloss.model.chat_template import ChatTemplate
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.conversations import read_conversations
from bitloss.model.documents import DocumentRule, split_documents
from bitloss.model.gguf_split import absolute, open_model
from bitloss.model.source import model_bytes, model_facts, model_sha256, precision
from bitloss.model.text import read_text
from bitloss.quantize.types import parse_quant_type
from bitloss.records import (
    RESULTS_NAME,
    Base,
    Calibration,
    Importance,
    Model,
    Results,
    Source,
    TensorError,
    write_results,
)
from bitloss.report.write import get_ready, write_report
from bitloss.run.executor import Executor
from bitloss.run.experiment import Measured, Runner, spec_texts
from bitloss.run.results import MeasuredFile, Setting, Why, assemble
from bitloss.run.sequential import check_rule
from bitloss.run.stepping import RunProgress
from bitloss.run.steps import check_texts, texts_sha256
from bitloss.run.texts import text_records
from bitloss.spec import ExperimentSpec, dump_toml
from bitloss.store import RunFolder, atomic_write_text, sha256_file

_LOCK_SECONDS = 2.0


def run_experiment(
    spec: ExperimentSpec,
    *,
    out: Path,
    executor: Executor,
    progress: RunProgress,
    commands: Sequence[str] = (),
) -> Results:
    """Run an experiment, or go on with one that was stopped.

    Args:
        spec: what to do.
        out: the run folder.
        executor: runs the steps.
        progress: told about every step.
        commands: commands that repeat the run, for the report.

    Returns:
        The results, also written to ``results.json``, with ``report.md`` beside them.

    Raises:
        BitlossError: input that cannot be used (found before anything is written), or a step that failed.
    """
    spec = checked(spec)
    model = model_sha256(Path(spec.model))
    contents = {
        "model": model,
        "text": texts_sha256(spec_texts(spec).sha256),
        "calibration": sha256_file(spec.calibration) if spec.calibration else None,
    }
    with RunFolder.open(out, spec.key(**contents), spec.settings(), timeout=_LOCK_SECONDS) as folder:
        atomic_write_text(out / "spec.toml", dump_toml(spec.model_copy(update={"out": None})))
        get_ready("scipy.special")  # for comparisons
        measured = Runner(spec, folder, executor, progress, model_sha256=model).run()
        results = _results(spec, measured, contents, commands)
        write_results(results, out / RESULTS_NAME)
        write_report(results, out)
        folder.event("finished")
    return results


def checked(spec: ExperimentSpec) -> ExperimentSpec:
    """Check what can be checked before anything is written, and spell quantization types as llama.cpp does.

    Raises:
        FileProblem: model or text missing.
        FormatError: the model or a text is damaged.
        UnsupportedError: an architecture that cannot be converted.
        TextError: a text that is surely too short.
        UsageError: unknown quantization type (a close match is suggested), a context too long, `--from` of a GGUF,
            nothing to cross.
    """
    model = Path(spec.model)
    if not model.exists():
        raise FileProblem(
            "no such model",
            where=spec.model,
            mend="give an HF folder (config.json, safetensors, tokenizer) or a GGUF file",
        )
    _check_texts(model, spec)
    if not spec.quants:
        raise UsageError("no quantization types", where="--quants", expected="types such as Q8_0,Q4_K_M")
    quants = tuple(parse_quant_type(name).name for name in spec.quants)
    if len(set(quants)) != len(quants):
        raise UsageError("a quantization type is named twice", where="--quants", found=",".join(spec.quants))
    _check_model(model, spec)
    _check_cross(spec)
    check_rule(spec.stop, len(quants) * len(spec.sources))
    return spec.model_copy(update={"quants": quants, "model": str(absolute(model))})


def _check_texts(model: Path, spec: ExperimentSpec) -> None:
    check_texts(spec.text, documents=spec.documents, chat_template=spec.chat_template)
    if spec.calibration is not None:
        _check_text(spec.calibration, spec.ctx)
    if spec.chat_template:
        _check_template(model)
        for path in spec.text:
            read_conversations(read_text(path), path)
    elif spec.documents is not None:
        for path in spec.text:
            split_documents(read_text(path), DocumentRule.parse(spec.documents), path)
    else:
        for path in spec.text:
            _check_text(path, spec.ctx)


def _check_template(model: Path) -> None:
    """Refuse a model without a chat template before hours of work; a GGUF's is compiled as well."""
    if model.is_file():
        ChatTemplate.of(open_model(model))
        return
    checkpoint = Checkpoint.open(model)
    if "tokenizer.chat_template" not in templates(
        checkpoint, optional_json(checkpoint, "tokenizer_config.json")
    ):
        raise UnsupportedError(
            "the model has no chat template",
            where=model,
            expected="chat_template in tokenizer_config.json, or chat_template.jinja",
            mend="leave out --chat-template",
        )


def _check_text(path: Path, n_ctx: int) -> None:
    """Refuse what is no text, or surely too short: no token is shorter than a byte, and BOS is one more."""
    most = len(read_text(path).encode()) + 1
    if most < 2 * n_ctx:
        raise TextError(
            "text too short",
            where=path,
            expected=f"at least {2 * n_ctx} tokens (two chunks of {n_ctx})",
            found=f"{most} tokens at most",
            mend="give a longer text or a smaller --ctx",
        )


def _check_model(model: Path, spec: ExperimentSpec) -> None:
    """Refuse a model that cannot be converted, or a context it was not made for."""
    if model.is_file():
        file = open_model(model)
        if spec.sources != (name := precision(file),):
            raise UsageError(
                "a GGUF is taken as it is",
                where="--from",
                expected=name,
                found=",".join(spec.sources),
                mend="give the HF folder to make several sources",
            )
        longest = file.value(f"{file.architecture}.context_length", None)
    else:
        checkpoint = Checkpoint.open(model)
        family_of(checkpoint.architecture, model)
        longest = checkpoint.config.get("max_position_embeddings")
    if isinstance(longest, int) and spec.ctx > longest:
        raise UsageError(
            "context longer than the model was made for",
            where="--ctx",
            expected=f"at most {longest}",
            found=spec.ctx,
        )


def _check_cross(spec: ExperimentSpec) -> None:
    """Refuse to cross what there is only one of."""
    if not spec.cross:
        return
    if len(spec.sources) < 2:
        raise UsageError(
            "nothing to cross",
            where="--cross",
            expected="two sources or more",
            found=",".join(spec.sources),
            mend="give an HF folder and --from f32,f16",
        )
    if spec.calibration is None:
        raise UsageError(
            "nothing to cross",
            where="--cross",
            expected="importance matrices",
            found="no calibration text",
            mend="give --calibration FILE",
        )


def _results(
    spec: ExperimentSpec, measured: Measured, contents: dict[str, str | None], commands: Sequence[str]
) -> Results:
    stopped = measured.stopped
    source = measured.base_source
    facts = model_facts(Path(spec.model), source.file)
    calibration = None
    if spec.calibration is not None:
        calibration = Calibration(
            name=spec.calibration.name,
            sha256=str(contents["calibration"]),
            n_ctx=spec.ctx,
            chunks=measured.imatrix_chunks or 1,
        )
    setting = Setting(
        model=Model(
            name=facts.name,
            architecture=facts.architecture,
            parameters=facts.parameters,
            dtype=facts.dtype,
            sha256=str(contents["model"]),
        ),
        texts=text_records(measured.header, stopped.which if stopped else None, measured.overlap),
        calibration=calibration,
        base=Base(
            name=source.name,
            file=source.file.name,
            bytes=model_bytes(source.file),
            sha256=source.sha256,
            stored_bytes=measured.stored_bytes,
        ),
        sources=tuple(
            Source(name=each.name, file=each.file.name, bytes=model_bytes(each.file), sha256=each.sha256)
            for each in measured.sources.values()
        ),
        n_gpu_layers=spec.engine.n_gpu_layers,
        commands=tuple(commands),
        stopping=stopped.record if stopped else None,
    )
    files = [
        MeasuredFile(
            name=each.name,
            type=each.type,
            weights_from=each.source.name,
            imatrix_from=each.imatrix_from,
            file=each.file.name,
            bytes=each.file.stat().st_size,
            bits_per_weight=open_model(each.file).bits_per_weight(),
            sha256=each.sha256,
            tensors_sha256=each.made["tensors_sha256"],
            tokens=measured.tokens[each.made["tensors_sha256"]],
            path=each.file,
            tensor_errors=tuple(
                TensorError(name=name, **told) for name, told in (each.made.get("errors") or {}).items()
            ),
            importance=None if each.imatrix_from is None else _importance(each.made),
        )
        for each in measured.candidates
    ]
    noise = measured.noise_engine
    how = f"the base again, in micro-batches of {noise.ubatch} tokens with flash attention {noise.flash_attn}"
    return assemble(
        setting,
        files,
        noise=(how, measured.noise_tokens),
        costs=measured.costs,
        why=Why(measured.audit, measured.cross),
    )


def _importance(made: Mapping[str, Any]) -> Importance:
    """What `bitloss.quantize` told of a candidate's importance matrix."""
    return Importance(
        missing=tuple(made["without_imatrix"]),
        unused_experts=made["unused_experts"],
        zero_weights=made["zero_weights"],
        lost=tuple(made.get("lost", ())),  # records of earlier versions have no such key
    )
