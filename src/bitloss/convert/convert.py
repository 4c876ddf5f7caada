"""Model -> `<model>-f32.gguf`, `-f16`, `-bf16` and `conversion.json`.

The weights are read once for all files asked for (`writing.py`). Files are written beside their place, read back,
proven (`bitloss.run.proof` does what needs the engine), and renamed when all are complete; a file that was there
before is replaced (with `ConvertOptions.replace` false, only one known to be made from the same model). With a
largest size given, a model that does not fit into one file of it becomes several, as
`llama-gguf-split --split-max-size` would make of it; of those the first takes its place last.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bitloss.convert.cast import SourceType
from bitloss.convert.folder import FolderMaterial
from bitloss.convert.material import Material, Target
from bitloss.convert.recast import GgufMaterial
from bitloss.convert.record import (
    Casts,
    Conversion,
    InputFile,
    OutputFile,
    Proof,
    TensorProof,
    keep_record,
    refuse_to_replace,
)
from bitloss.convert.writing import Part, Written, write_files
from bitloss.errors import FileProblem, UsageError
from bitloss.model.gguf import DEFAULT_ALIGNMENT
from bitloss.model.gguf_split import absolute, in_parts, part_path, whole_stem
from bitloss.model.hub import snapshot_of
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.store import atomic_path, sha256_file
from bitloss.store.atomic import explained
from bitloss.store.space import check_room

__all__ = [
    "Conversion",
    "ConvertOptions",
    "Prover",
    "SourceType",
    "convert",
    "source_path",
    "source_types",
]

_LONGEST_NAME = 150  # file systems hold 255 bytes; a type, a part and what marks a partial file come to it
Prover = Callable[[Path, Mapping[str, Path], ProgressCallback], Proof]
"""Checks files before they are put in their place: (model, file name -> where it is now, progress)."""


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert.

    Attributes:
        name: stem of the file names; the model's name when left out.
        allow_overflow: write infinity where a weight is out of a type's range, instead of failing.
        prover: what checks the files with the engine; None: they are only read back.
        split_max_bytes: parts of at most so many bytes of tensors; a larger tensor has a part of its own. None: one
            file of each type.
        replace: write over files that are there, whatever they are; else only over those that ``conversion.json``
            knows to be made from the same model.
    """

    name: str | None = None
    allow_overflow: bool = False
    prover: Prover | None = None
    split_max_bytes: int | None = None
    replace: bool = True


def source_path(out_dir: Path, name: str, kind: str) -> Path:
    """Return where `convert` writes the file of a type ("f16")."""
    return out_dir / f"{name}-{kind}.gguf"


def source_types(names: Iterable[str]) -> tuple[SourceType, ...]:
    """Return the types of those names ("f16", in any case), each once, in the order given.

    Raises:
        UsageError: a name is none of them.
    """
    types = []
    for name in names:
        try:
            types.append(SourceType(name.lower()))
        except ValueError:
            raise UsageError(
                "no type to convert to",
                expected=", ".join(SourceType),
                found=name,
                mend="other types are made by `bitloss quantize`",
            ) from None
    return tuple(dict.fromkeys(types))


def default_name(model: Path) -> str:
    """Return the stem of the files made from a model: its name, for a GGUF without its type and part."""
    snapshot = snapshot_of(model)
    if snapshot is not None:
        return snapshot.name
    model = absolute(model)
    if model.is_dir():
        return model.name
    stem = whole_stem(model)
    ends = [f"-{kind}" for kind in SourceType if stem.lower().endswith(f"-{kind}")]
    return stem[: -len(ends[0])] if ends and len(stem) > len(ends[0]) else stem


def checked_name(model: Path, types: Sequence[SourceType], options: ConvertOptions) -> str:
    """Return the stem of the files to write.

    Raises:
        UsageError: it is no plain name, or there are no types.
    """
    if not types:
        raise UsageError("nothing to write", expected="at least one type")
    name = default_name(model) if options.name is None else options.name
    if (
        not name.isprintable()
        or not name
        or Path(name).name != name
        or len(os.fsencode(name)) > _LONGEST_NAME
    ):
        raise UsageError(
            "no plain name for the files",
            where="--name",
            expected=f"no slash, at most {_LONGEST_NAME} bytes",
            found=f"{name[:80]!r}",
        )
    return name


def open_material(model: Path) -> Material:
    """Open and check what is to be converted: an HF folder or a GGUF file.

    Raises:
        UsageError: one file of an HF folder.
        BitlossError: as `FolderMaterial.of` and `GgufMaterial`.
    """
    if not model.is_file():
        return FolderMaterial.of(model)
    if model.suffix in {".safetensors", ".json", ".bin", ".model"}:
        raise UsageError("a file of an HF folder, not a model", where=model, mend=f"give {model.parent}")
    return GgufMaterial(model)


def convert(
    model: Path,
    types: Sequence[SourceType],
    out_dir: Path,
    options: ConvertOptions | None = None,
    *,
    progress: ProgressCallback = silent,
) -> Conversion:
    """Convert a model to full-precision GGUF files.

    Args:
        model: HF folder with config.json, safetensors weights and tokenizer.json or tokenizer.model; or a GGUF file
            of any precision, of a split one the first part.
        types: types wanted, each at least once.
        out_dir: folder for the results, made when missing.
        options: how.
        progress: called per block, in weights.

    Returns:
        What was converted; also written to `out_dir / "conversion.json"`, with what that keeps of earlier conversions.

    Raises:
        FileProblem: the folder or a file of it is missing, a file that may not be replaced is there, or the output
            cannot be written.
        DiskFull: not enough room.
        CheckpointError: the checkpoint is damaged or contradicts itself.
        UnsupportedError: an architecture, tokenizer or number format that cannot be converted here.
        BitlossError: what the prover raises.
    """
    begun = time.monotonic()
    options = options or ConvertOptions()
    types = tuple(dict.fromkeys(types))
    name = checked_name(model, types, options)
    material = open_material(model)
    files = {kind: _parts(material, kind, source_path(out_dir, name, kind), options) for kind in types}
    given = {file.resolve() for file in material.files()}
    for part in (part for parts in files.values() for part in parts if part.path.resolve() in given):
        raise UsageError(
            "the file would take the place of the model", where=part.path, mend="give another --out or --name"
        )
    with explained(out_dir):
        if out_dir.exists() and not out_dir.is_dir():
            raise FileProblem("a file is in the way of a folder", where=out_dir)
    if not options.replace:
        refuse_to_replace(
            (part.path for parts in files.values() for part in parts), material.files(), out_dir
        )
    check_room((parts[0].path, _tensor_bytes(parts, kind)) for kind, parts in files.items())
    with explained(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    proof = None
    with ExitStack() as stack:
        partial = {
            kind: [Part(stack.enter_context(atomic_path(part.path)), part.targets) for part in parts]
            for kind, parts in files.items()
        }
        hashing = stack.enter_context(_hashing(material.files()))
        written = write_files(material, partial, allow_overflow=options.allow_overflow, progress=progress)
        if options.prover is not None:
            with _by_name(files, partial) as named:
                proof = options.prover(model, named, progress)
            proof = proof.model_copy(update={"tensors": _account(material, written)})
        inputs = tuple(each.result() for each in hashing)
    record = Conversion(
        model=name,
        architecture=material.architecture,
        gguf_architecture=material.gguf_architecture,
        weights=sum(target.size for target in material.targets),
        checkpoint=inputs,
        outputs=tuple(_output(material, kind, files[kind], each) for kind, each in written.items()),
        ignored_tensors=material.ignored,
        notes=material.notes,
        hub=str(snapshot) if (snapshot := snapshot_of(model)) else None,
        proof=proof,
        bitloss=tool_version(),
        seconds=round(time.monotonic() - begun, 3),
    )
    keep_record(record, out_dir)
    return record


def _tensor_bytes(parts: Sequence[Part], kind: SourceType) -> int:
    return sum(target.plan(kind).n_bytes for part in parts for target in part.targets)


def _parts(material: Material, kind: SourceType, whole: Path, options: ConvertOptions) -> list[Part]:
    """Share the tensors of a type out to its file, or to parts."""
    entry = material.metadata.get("general.alignment")
    alignment = int(entry.value) if entry else DEFAULT_ALIGNMENT

    def size(target: Target) -> int:
        return -(-target.plan(kind).n_bytes // alignment) * alignment

    groups = in_parts(material.targets, size, options.split_max_bytes)
    if len(groups) == 1:
        return [Part(whole, groups[0])]
    return [Part(part_path(whole, index, len(groups)), group) for index, group in enumerate(groups)]


class _StoppedError(Exception):
    """Nobody waits for the hash any more."""


@contextlib.contextmanager
def _hashing(paths: Sequence[Path]) -> Iterator[list[Future[InputFile]]]:
    """Hash the model's files while it is converted; given up when that fails."""
    stop = threading.Event()

    def look(_: Progress) -> None:
        if stop.is_set():
            raise _StoppedError

    def given(file: Path) -> InputFile:
        return InputFile(name=file.name, bytes=file.stat().st_size, sha256=sha256_file(file, look))

    with ThreadPoolExecutor(1) as pool:
        try:
            yield [pool.submit(given, path) for path in paths]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _by_name(
    files: Mapping[SourceType, Sequence[Part]], partial: Mapping[SourceType, Sequence[Part]]
) -> Iterator[dict[str, Path]]:
    """Yield name -> where the file is now; parts under links of their names, by which llama.cpp finds them."""
    named: dict[str, Path] = {}
    with ExitStack() as stack:
        for kind, parts in files.items():
            named[parts[0].path.name] = partial[kind][0].path
            if len(parts) == 1:
                continue
            links = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for part, now in zip(parts, partial[kind], strict=True):
                (links / part.path.name).symlink_to(now.path.absolute())
            named[parts[0].path.name] = links / parts[0].path.name
        yield named


def _output(material: Material, kind: SourceType, parts: Sequence[Part], written: Written) -> OutputFile:
    files = tuple(
        InputFile(name=part.path.name, bytes=file.bytes, sha256=file.sha256)
        for part, file in zip(parts, written.files, strict=True)
    )
    return OutputFile(
        type=kind,
        file=files[0].name,
        bytes=sum(file.bytes for file in files),
        sha256=files[0].sha256 if len(files) == 1 else None,
        tensors_sha256=written.tensors_sha256,
        bits_per_weight=8 * written.tensor_bytes / sum(target.size for target in material.targets),
        casts=Casts(**written.counts._asdict()),
        parts=files if len(files) > 1 else (),
    )


def _account(material: Material, written: Mapping[SourceType, Written]) -> TensorProof:
    """Count what the plan placed and `write_files` compared."""
    assert len(set(material.sources)) == len(material.sources)
    assert {*material.sources, *material.ignored} == set(material.names)
    return TensorProof(
        checkpoint=len(material.names),
        used=len(material.sources),
        ignored=len(material.ignored),
        written=len(material.targets),
        made=material.made,
        bytes_compared=sum(each.tensor_bytes for each in written.values()),
    )


def tool_version() -> str:
    """Return bitloss's version."""
    try:
        return version("bitloss")
    except PackageNotFoundError:
        return "unknown"
