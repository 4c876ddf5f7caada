"""What a conversion writes down: conversion.json.

Files of an earlier conversion stay in it as long as they are there, byte for byte, and come from the same model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bitloss.convert.cast import SourceType
from bitloss.errors import FileProblem
from bitloss.store import atomic_write_text, sha256_file

NAME = "conversion.json"
_MAX_BYTES = 64 << 20


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputFile(_Record):
    """A file: name in its folder, bytes, SHA-256."""

    name: str
    bytes: int
    sha256: str


class Casts(_Record):
    """What casting did to the weights of a file (`bitloss.convert.cast.CastCounts`).

    Attributes:
        changed: weights that are another number now, those below included.
        overflowed: of them, those that became infinite (only with `--allow-overflow`).
        zeroed: of them, those that became zero.
    """

    changed: int
    overflowed: int
    zeroed: int


class OutputFile(_Record):
    """A GGUF file written, or one in parts.

    Attributes:
        type: its type.
        file: its name in the output folder; of parts the first.
        bytes: of all parts.
        sha256: of the file; None for parts.
        tensors_sha256: `GgufFile.tensors_sha256`.
        bits_per_weight: over all tensors.
        casts: what casting did; None for a file that another converter made.
        parts: empty for a file in one.
    """

    type: SourceType
    file: str
    bytes: int
    sha256: str | None
    tensors_sha256: str
    bits_per_weight: float
    casts: Casts | None = None
    parts: tuple[InputFile, ...] = ()


class TensorProof(_Record):
    """Every tensor of the model is accounted for, and what is stored is the cast of it.

    Attributes:
        checkpoint: tensors of the model.
        used: of them, those in the files, each once (stacked or alone).
        ignored: of them, those left out by name (`Conversion.ignored_tensors`).
        written: tensors in each file.
        made: of them, those computed from the settings (rotary factors).
        bytes_compared: bytes read back from all files proven and found equal to what was computed from the model.
    """

    checkpoint: int
    used: int
    ignored: int
    written: int
    made: int
    bytes_compared: int


class TokenProof(_Record):
    """The vocabulary splits texts as the model's own tokenizer does.

    Attributes:
        witness: what split them, with its version.
        texts: number of texts compared.
        tokens: tokens in them.
        known_differences: texts that llama.cpp splits otherwise for a reason known by name, with the reason.
    """

    witness: str
    texts: int
    tokens: int
    known_differences: tuple[str, ...]


class EngineProof(_Record):
    """llama.cpp loaded a file and computed with it.

    Attributes:
        file: its name.
        logits: number of logits computed, all finite.
        spread: their standard deviation.
    """

    file: str
    logits: int
    spread: float


class Proof(_Record):
    """What was checked after the conversion; None where a check does not apply to the input.

    Attributes:
        tensors: accounting and comparison of tensors.
        tokens: comparison of tokens.
        engine: one entry per file proven.
        llama_cpp: version and commit of the engine.
    """

    tensors: TensorProof | None
    tokens: TokenProof | None
    engine: tuple[EngineProof, ...]
    llama_cpp: str


class Conversion(_Record):
    """What was converted from what; conversion.json.

    Attributes:
        model: name given to the model.
        architecture: the class named in config.json, or the architecture of a GGUF.
        gguf_architecture: llama.cpp's name of it.
        weights: number of weights.
        checkpoint: files of the HF folder (or the GGUF files) that decided the result.
        outputs: the files written, then those of earlier conversions that are kept.
        ignored_tensors: checkpoint tensors left out because they are computed from the settings or copies.
        notes: settings that the GGUF files do not carry, and what else a reader should know, in words.
        hub: id and commit of a model that was fetched ("owner/name@commit"), else None.
        proof: what was checked; None with `--no-proof`.
        bitloss: version of this tool.
        seconds: time taken; this and all but `outputs` and `proof` is of the last conversion.
    """

    model: str
    architecture: str
    gguf_architecture: str
    weights: int
    checkpoint: tuple[InputFile, ...]
    outputs: tuple[OutputFile, ...]
    ignored_tensors: tuple[str, ...]
    notes: tuple[str, ...]
    hub: str | None = None
    proof: Proof | None = None
    bitloss: str
    seconds: float


def keep_record(record: Conversion, folder: Path) -> None:
    """Write ``conversion.json``: what was converted now, and what is kept of earlier conversions of the same model.

    Raises:
        DiskFull, FileProblem: it cannot be written.
    """
    whole = _with_earlier(record, read_record(folder / NAME), folder)
    atomic_write_text(folder / NAME, whole.model_dump_json(indent=2) + "\n")


def read_record(path: Path) -> Conversion | None:
    """Return what a ``conversion.json`` says; None where it is missing or damaged."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        return Conversion.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def refuse_to_replace(targets: Iterable[Path], model: Sequence[Path], folder: Path) -> None:
    """Refuse to write over a file that an earlier conversion of the same model did not make.

    Args:
        targets: what is to be written; files that are not there yet are as good as known.
        model: files of the model (`Conversion.checkpoint`); hashed only where a target is there.
        folder: of the targets, with its ``conversion.json``.

    Raises:
        FileProblem: a file is there, and is not the one the record has of this model.
    """
    there = {path.name: path for path in targets if path.is_file()}
    if not there:
        return
    record = read_record(folder / NAME)
    known: set[str] = set()
    for output in record.outputs if record is not None else ():
        names = {file.name for file in _files(output)}
        if names & there.keys() and _is_there(output, folder):
            known |= names
    strange = [path for name, path in there.items() if name not in known]
    if not strange and record is not None and _contents(record) != {sha256_file(path) for path in model}:
        strange = list(there.values())
    if strange:
        raise FileProblem(
            "already there, and not known to be made from this model",
            where=strange[0],
            mend="choose another --out or --name, or replace the file with --force",
        )


def _with_earlier(record: Conversion, earlier: Conversion | None, folder: Path) -> Conversion:
    if earlier is None or _contents(earlier) != _contents(record):
        return record
    mine = {output.file for output in record.outputs}
    kept = tuple(
        output for output in earlier.outputs if output.file not in mine and _is_there(output, folder)
    )
    if not kept:
        return record
    outputs = (*record.outputs, *kept)
    return record.model_copy(update={"outputs": outputs, "proof": _proof(record, earlier.proof, kept)})


def _contents(record: Conversion) -> set[str]:
    return {file.sha256 for file in record.checkpoint}


def _files(output: OutputFile) -> tuple[InputFile, ...]:
    """Its parts, or itself."""
    return output.parts or (InputFile(name=output.file, bytes=output.bytes, sha256=output.sha256 or ""),)


def _is_there(output: OutputFile, folder: Path) -> bool:
    for file in _files(output):
        path = folder / file.name
        if Path(file.name).name != file.name or not path.is_file() or path.stat().st_size != file.bytes:
            return False
        if sha256_file(path) != file.sha256:
            return False
    return True


def _proof(record: Conversion, earlier: Proof | None, kept: tuple[OutputFile, ...]) -> Proof | None:
    """What was checked of the files of both conversions."""
    if earlier is None:
        return record.proof
    names = {output.file for output in kept}
    engine = tuple(each for each in earlier.engine if each.file in names)
    proven = {each.file for each in engine}
    compared = sum(
        round(output.bits_per_weight * record.weights / 8)
        for output in kept
        # neither what was written without a proof nor what another converter made was compared
        if output.file in proven and output.casts is not None
    )
    now, tensors = record.proof, earlier.tensors
    if now is not None and now.tensors is not None and tensors is not None:
        compared += now.tensors.bytes_compared
    if tensors is not None:
        tensors = tensors.model_copy(update={"bytes_compared": compared})
    if now is None:
        return earlier.model_copy(update={"tensors": tensors, "engine": engine})
    return now.model_copy(update={"tensors": tensors or now.tensors, "engine": (*now.engine, *engine)})
