"""Model -> `<model>-f32.gguf`, `-f16`, `-bf16` and `conversion.json`.

The weights are read once for all files asked for (`writing.py`). Files are written beside their place, read back,
proven (`bitloss.run.proof` does what needs the engine), and renamed when all are complete; a file that was there
before is replaced.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bitloss.convert.cast import SourceType
from bitloss.convert.folder import FolderMaterial
from bitloss.convert.material import Material
from bitloss.convert.recast import GgufMaterial
from bitloss.convert.record import Conversion, InputFile, OutputFile, Proof, TensorProof
from bitloss.convert.writing import Hashes, read_back, write_files
from bitloss.errors import DiskFull, UsageError
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import whole_stem
from bitloss.model.hub import snapshot_of
from bitloss.progress import ProgressCallback, silent
from bitloss.store import atomic_path, atomic_write_text, sha256_file
from bitloss.store.atomic import explained

__all__ = [
    "Conversion",
    "ConvertOptions",
    "Prover",
    "SourceType",
    "convert",
    "source_path",
    "source_types",
]

Prover = Callable[[Path, Mapping[str, Path], ProgressCallback], Proof]
"""Checks files before they are put in their place: (model, file name -> where it is now, progress)."""


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert.

    Attributes:
        name: stem of the file names; the model's name when left out.
        allow_overflow: write infinity where a weight is out of a type's range, instead of failing.
        prover: what checks the files with the engine; None: they are only read back.
    """

    name: str | None = None
    allow_overflow: bool = False
    prover: Prover | None = None


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
    model = model.resolve()
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
    name = default_name(model) if options.name is None else options.name
    if not types or not name.isprintable() or not name or Path(name).name != name:
        raise UsageError(
            "nothing to write",
            expected="at least one type and a plain name",
            found=f"{list(types)}, {name!r}",
        )
    return name


def open_material(model: Path) -> Material:
    """Open and check what is to be converted: an HF folder or a GGUF file.

    Raises:
        BitlossError: as `FolderMaterial.of` and `GgufMaterial`.
    """
    return GgufMaterial(model) if model.is_file() else FolderMaterial.of(model)


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
        What is also written to `out_dir / "conversion.json"`.

    Raises:
        FileProblem: the folder or a file of it is missing, or the output cannot be written.
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
    targets = {kind: source_path(out_dir, name, kind) for kind in types}
    for path in targets.values():
        if path.resolve() in {file.resolve() for file in material.files()}:
            raise UsageError(
                "the file would take the place of the model", where=path, mend="give another --out or --name"
            )
    with explained(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    _refuse_too_little_room(material, types, out_dir)
    with ExitStack() as stack:
        partial = {kind: stack.enter_context(atomic_path(path)) for kind, path in targets.items()}
        written = write_files(material, partial, allow_overflow=options.allow_overflow, progress=progress)
        outputs, inputs = _hashed(material, partial, targets, written, progress)
        proof = None
        if options.prover is not None:
            files = {targets[kind].name: path for kind, path in partial.items()}
            proof = options.prover(model, files, progress)
            proof = proof.model_copy(update={"tensors": _account(material, partial)})
    record = Conversion(
        model=name,
        architecture=material.architecture,
        gguf_architecture=material.gguf_architecture,
        weights=sum(target.size for target in material.targets),
        checkpoint=inputs,
        outputs=outputs,
        ignored_tensors=material.ignored,
        notes=material.notes,
        hub=str(snapshot) if (snapshot := snapshot_of(model)) else None,
        proof=proof,
        bitloss=tool_version(),
        seconds=round(time.monotonic() - begun, 3),
    )
    atomic_write_text(out_dir / "conversion.json", record.model_dump_json(indent=2) + "\n")
    return record


def _refuse_too_little_room(material: Material, types: Sequence[SourceType], out_dir: Path) -> None:
    needed = sum(target.plan(kind).n_bytes for kind in types for target in material.targets)
    free = shutil.disk_usage(out_dir).free
    if needed > free:
        raise DiskFull(
            "not enough room on the disk",
            where=out_dir,
            expected=f"{needed / 1e9:.1f} GB",
            found=f"{free / 1e9:.1f} GB",
            mend="free some space, choose a folder on another disk, or write fewer types",
        )


def _hashed(
    material: Material,
    partial: Mapping[SourceType, Path],
    targets: Mapping[SourceType, Path],
    written: Mapping[SourceType, Hashes],
    progress: ProgressCallback,
) -> tuple[tuple[OutputFile, ...], tuple[InputFile, ...]]:
    """Read the finished files back and hash the model's, two at a time."""

    def output(kind: SourceType) -> OutputFile:
        hashes = read_back(partial[kind], written[kind], progress)
        file = GgufFile.open(partial[kind])
        return OutputFile(
            type=kind,
            file=targets[kind].name,
            bytes=file.size,
            sha256=hashes.sha256,
            tensors_sha256=hashes.tensors_sha256,
            bits_per_weight=file.bits_per_weight(),
        )

    def given(file: Path) -> InputFile:
        return InputFile(name=file.name, bytes=file.stat().st_size, sha256=sha256_file(file))

    with ThreadPoolExecutor(2) as pool:
        outputs = [pool.submit(output, kind) for kind in partial]
        inputs = [pool.submit(given, file) for file in material.files()]
        return tuple(each.result() for each in outputs), tuple(each.result() for each in inputs)


def _account(material: Material, partial: Mapping[SourceType, Path]) -> TensorProof:
    """Count what the plan placed and `read_back` compared."""
    assert len(set(material.sources)) == len(material.sources)
    assert {*material.sources, *material.ignored} == set(material.names)
    files = [GgufFile.open(path) for path in partial.values()]
    return TensorProof(
        checkpoint=len(material.names),
        used=len(material.sources),
        ignored=len(material.ignored),
        written=len(material.targets),
        made=material.made,
        bytes_compared=sum(info.n_bytes for file in files for info in file.tensors.values()),
    )


def tool_version() -> str:
    """Return bitloss's version."""
    try:
        return version("bitloss")
    except PackageNotFoundError:
        return "unknown"
