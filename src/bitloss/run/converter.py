"""Somebody else's converter, in a process of its own, and the same proof for what it made.

Meant for llama.cpp's convert_hf_to_gguf.py and architectures there is no table for. Where there is one, every tensor
must be, bit for bit, what bitloss would have written; tokens and logits are proven as ever.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bitloss.convert.cast import SourceType
from bitloss.convert.compared import compare
from bitloss.convert.convert import ConvertOptions, checked_name, source_path, tool_version
from bitloss.convert.folder import FolderMaterial
from bitloss.convert.record import (
    Conversion,
    InputFile,
    OutputFile,
    TensorProof,
    keep_record,
    refuse_to_replace,
)
from bitloss.errors import BitlossError, FileProblem, UnsupportedError, UsageError
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.gguf import GgufFile
from bitloss.model.hub import snapshot_of
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.store import atomic_path, sha256_file

_HOURS = 24 * 3600


class Converter(NamedTuple):
    """A converter: script, and the interpreter that runs it."""

    script: Path
    python: str


def convert_by(
    converter: Converter,
    model: Path,
    types: Sequence[SourceType],
    out_dir: Path,
    options: ConvertOptions,
    progress: ProgressCallback = silent,
) -> Conversion:
    """Let another converter make the files, prove them, and put them in their place.

    It is called as ``PYTHON SCRIPT MODEL --outtype f16 --outfile FILE``, once for each type.

    Raises:
        UsageError: the model is no folder.
        FileProblem: a file that may not be replaced is there; or the converter cannot be run, fails (its last words are
            told) or writes nothing.
        CheckpointError: a tensor differs from what bitloss makes of it, or tokens do.
        BitlossError: as `bitloss.run.proof.prove`.
    """
    begun = time.monotonic()
    if model.is_file():
        raise UsageError(
            "another converter takes an HF folder, not a file", where=model, mend="leave --converter out"
        )
    types, name = tuple(dict.fromkeys(types)), checked_name(model, types, options)
    checkpoint = Checkpoint.open(model)
    targets = {kind: source_path(out_dir, name, kind) for kind in types}
    made_of = [*checkpoint.files(), converter.script]
    if not options.replace:
        refuse_to_replace(targets.values(), made_of, out_dir)
    with ExitStack() as stack:
        partial = {kind: stack.enter_context(atomic_path(path)) for kind, path in targets.items()}
        for number, (kind, path) in enumerate(partial.items()):
            progress(Progress(f"run {converter.script.name}", number, len(partial), "files"))
            _run(converter, model, kind, path)
        proof, notes = None, [f"made by {converter.script.name}"]
        if options.prover is not None:
            proof = options.prover(
                model, {targets[kind].name: path for kind, path in partial.items()}, progress
            )
            try:
                tensors = _compare(
                    FolderMaterial.of(model),
                    partial,
                    converter.script.name,
                    allow_overflow=options.allow_overflow,
                    progress=progress,
                )
                proof = proof.model_copy(update={"tensors": tensors})
            except UnsupportedError as error:
                notes.append(f"tensors not compared: {error.what}{f': {error.found}' if error.found else ''}")
        outputs = tuple(_output(kind, path, targets[kind].name, progress) for kind, path in partial.items())
        file = GgufFile.open(partial[types[0]])
    record = Conversion(
        model=name,
        architecture=checkpoint.architecture,
        gguf_architecture=file.architecture,
        weights=sum(info.n_elements for info in file.tensors.values()),
        checkpoint=tuple(
            InputFile(name=each.name, bytes=each.stat().st_size, sha256=sha256_file(each)) for each in made_of
        ),
        outputs=outputs,
        ignored_tensors=(),
        notes=tuple(notes),
        hub=str(snapshot) if (snapshot := snapshot_of(model)) else None,
        proof=proof,
        bitloss=tool_version(),
        seconds=round(time.monotonic() - begun, 3),
    )
    keep_record(record, out_dir)
    return record


def _run(converter: Converter, model: Path, kind: SourceType, path: Path) -> None:
    command = [converter.python, str(converter.script), str(model), "--outtype", kind, "--outfile", str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=_HOURS
        )
    except OSError as error:
        raise FileProblem(
            f"the interpreter cannot be run ({error.strerror or error})",
            where=converter.python,
            mend="--converter-python names another",
        ) from None
    except subprocess.TimeoutExpired:
        raise FileProblem("the converter did not end within a day", where=converter.script) from None
    words = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    last = (words or ["no message"])[-1][:200]
    if done.returncode != 0:
        lacking = "--converter-python names the interpreter that has what it needs"
        raise FileProblem(
            f"the converter failed (exit code {done.returncode})",
            where=converter.script,
            found=last,
            mend=lacking if "ModuleNotFoundError" in last or "ImportError" in last else None,
        )
    if not path.is_file():
        raise FileProblem(
            "the converter wrote no file where --outfile says", where=converter.script, found=last
        )


def _compare(
    material: FolderMaterial,
    files: Mapping[SourceType, Path],
    maker: str,
    *,
    allow_overflow: bool,
    progress: ProgressCallback,
) -> TensorProof:
    """Compare files with what bitloss would have written."""
    compared = 0
    for kind, path in files.items():
        name = f"the {kind} file of {maker}"
        compared += compare(
            material, kind, GgufFile.open(path), name, allow_overflow=allow_overflow, progress=progress
        )
    return TensorProof(
        checkpoint=len(material.names),
        used=len(material.sources),
        ignored=len(material.ignored),
        written=len(material.targets),
        made=material.made,
        bytes_compared=compared,
    )


def _output(kind: SourceType, path: Path, name: str, progress: ProgressCallback) -> OutputFile:
    file = GgufFile.open(path)
    if not file.tensors:
        raise BitlossError("the converter wrote a file without tensors", where=name)
    return OutputFile(
        type=kind,
        file=name,
        bytes=file.size,
        sha256=sha256_file(path),
        tensors_sha256=file.tensors_sha256(progress),
        bits_per_weight=file.bits_per_weight(),
    )
