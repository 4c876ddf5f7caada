"""HF folder -> `<model>-f32.gguf`, `-f16`, `-bf16` and `conversion.json`.

The weights are read once for all files asked for: each tensor is taken in blocks of whole rows, widened to
float32, checked, narrowed to each type and written. Memory is a few blocks (64 MB each), whatever the model's
size. Files are written beside their place, verified, and renamed when all are complete; a file that was there
before is replaced.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from pydantic import BaseModel, ConfigDict

from bitloss.convert.cast import SourceType, narrow, widen
from bitloss.convert.dimensions import Dimensions, dimensions, head_keys, setting_keys, settings
from bitloss.convert.families import Family, family_of
from bitloss.convert.plan import Job, Plan, describe_unused, plan_tensors, rope_rows
from bitloss.convert.rope import rope
from bitloss.convert.vocab import vocabulary
from bitloss.errors import CheckpointError, DiskFull, UnsupportedError, UsageError
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.gguf import GgufFile, GgufType, GgufValue
from bitloss.model.gguf_writer import GgufStream, TensorPlan
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.store import atomic_path, atomic_write_text, sha256_file
from bitloss.store.atomic import explained

__all__ = ["Conversion", "InputFile", "OutputFile", "SourceType", "convert", "source_path", "source_types"]

_BLOCK = 16 << 20  # weights
_F32 = int(gguf.GGMLQuantizationType.F32)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputFile(_Record):
    """A file of the checkpoint: name in the folder, bytes, SHA-256."""

    name: str
    bytes: int
    sha256: str


class OutputFile(_Record):
    """A GGUF file written: name in the output folder, type, bytes, SHA-256, and `GgufFile.tensors_sha256`."""

    type: SourceType
    file: str
    bytes: int
    sha256: str
    tensors_sha256: str
    bits_per_weight: float


class Conversion(_Record):
    """What was converted from what; conversion.json.

    Attributes:
        model: name given to the model.
        architecture: the class named in config.json.
        gguf_architecture: llama.cpp's name of it.
        weights: number of weights.
        checkpoint: files of the HF folder that decided the result.
        outputs: the files written.
        ignored_tensors: checkpoint tensors left out because they are computed from the settings.
        notes: settings that the GGUF files do not carry, in words.
        bitloss: version of this tool.
        seconds: time taken.
    """

    model: str
    architecture: str
    gguf_architecture: str
    weights: int
    checkpoint: tuple[InputFile, ...]
    outputs: tuple[OutputFile, ...]
    ignored_tensors: tuple[str, ...]
    notes: tuple[str, ...]
    bitloss: str
    seconds: float


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


def convert(
    model: Path,
    types: Sequence[SourceType],
    out_dir: Path,
    *,
    name: str | None = None,
    allow_overflow: bool = False,
    progress: ProgressCallback = silent,
) -> Conversion:
    """Convert an HF folder to full-precision GGUF files.

    Args:
        model: HF folder with config.json, safetensors weights and tokenizer.json or tokenizer.model.
        types: types wanted, each at least once.
        out_dir: folder for the results, made when missing.
        name: stem of the file names; the folder's name when left out.
        allow_overflow: write infinity where a weight is out of a type's range, instead of failing.
        progress: called per block, in weights.

    Returns:
        What is also written to `out_dir / "conversion.json"`.

    Raises:
        FileProblem: the folder or a file of it is missing, or the output cannot be written.
        DiskFull: not enough room.
        CheckpointError: the checkpoint is damaged or contradicts itself.
        UnsupportedError: an architecture, tokenizer or number format that cannot be converted here.
    """
    begun = time.monotonic()
    types = tuple(dict.fromkeys(types))
    name = model.resolve().name if name is None else name
    if not types or not name.isprintable() or not name or Path(name).name != name:
        raise UsageError(
            "nothing to write",
            expected="at least one type and a plain name",
            found=f"{list(types)}, {name!r}",
        )
    checkpoint = Checkpoint.open(model)
    work = _Work.of(checkpoint, name)
    targets = {kind: source_path(out_dir, name, kind) for kind in types}
    with explained(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
    work.refuse_too_little_room(types, out_dir)
    with ExitStack() as stack:
        partial = {kind: stack.enter_context(atomic_path(path)) for kind, path in targets.items()}
        work.write(partial, allow_overflow=allow_overflow, progress=progress)
        outputs = tuple(
            _verified(kind, path, targets[kind].name, work, progress) for kind, path in partial.items()
        )
        inputs = tuple(
            InputFile(name=file.name, bytes=file.stat().st_size, sha256=sha256_file(file))
            for file in checkpoint.files()
        )
    record = Conversion(
        model=name,
        architecture=work.family.architecture,
        gguf_architecture=work.family.gguf,
        weights=work.n_weights,
        checkpoint=inputs,
        outputs=outputs,
        ignored_tensors=work.plan.ignored,
        notes=describe_unused(work.family, checkpoint.config),
        bitloss=_version(),
        seconds=round(time.monotonic() - begun, 3),
    )
    atomic_write_text(out_dir / "conversion.json", record.model_dump_json(indent=2) + "\n")
    return record


class _Work:
    """Everything known before the first byte is written."""

    def __init__(self, checkpoint: Checkpoint, family: Family, dims: Dimensions, plan: Plan) -> None:
        self.checkpoint = checkpoint
        self.family = family
        self.dims = dims
        self.plan = plan
        self.rope = rope(family, checkpoint.config, dims.head)
        self.metadata: dict[str, GgufValue] = {}

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str) -> _Work:
        family = family_of(checkpoint.architecture)
        if checkpoint.config.get("quantization_config"):
            raise UnsupportedError(
                "the checkpoint is already quantized",
                where=checkpoint.folder / "config.json[quantization_config]",
                mend="use the original, unquantized model",
            )
        found = settings(family, checkpoint.config)
        dims = dimensions(family, checkpoint.config, found)
        work = cls(checkpoint, family, dims, plan_tensors(checkpoint, family, dims))
        u32 = GgufType.UINT32
        keys = setting_keys(family, found) | dict(work.rope.keys)
        keys |= head_keys(family, checkpoint.config, dims.head)
        work.metadata = (
            {"general.architecture": GgufValue(GgufType.STRING, family.gguf)}
            | general_metadata(checkpoint.folder.resolve(), work.sizes())
            | {f"{family.gguf}.{key}": value for key, value in keys.items()}
            | {"general.quantization_version": GgufValue(u32, int(gguf.GGML_QUANT_VERSION))}
            | vocabulary(checkpoint, family.vocabulary, dims.words["vocab"])
        )
        return work

    @property
    def n_weights(self) -> int:
        factors = sum(tensor.size for tensor in self.rope.tensors.values())
        return factors + sum(math.prod(job.shape) for job in self.plan.jobs)

    def sizes(self) -> Sizes:
        stacks = [job.shape for job in self.plan.jobs if len(job.sources) > 1]
        expert = sum(math.prod(shape[1:]) for shape in stacks)
        shared = self.n_weights - sum(math.prod(shape) for shape in stacks)
        return Sizes(self.n_weights, shared, expert, self.dims.experts)

    def tensor_plans(self, kind: SourceType) -> list[TensorPlan]:
        plans = [TensorPlan(name, tensor.shape, _F32) for name, tensor in self.rope.tensors.items()]
        for job in self.plan.jobs:
            plans.append(TensorPlan(job.target, job.shape[::-1], _F32 if job.always_f32 else kind.ggml_type))
        return plans

    def refuse_too_little_room(self, types: Sequence[SourceType], out_dir: Path) -> None:
        needed = sum(plan.n_bytes for kind in types for plan in self.tensor_plans(kind))
        free = shutil.disk_usage(out_dir).free
        if needed > free:
            raise DiskFull(
                "not enough room on the disk",
                where=out_dir,
                expected=f"{needed / 1e9:.1f} GB",
                found=f"{free / 1e9:.1f} GB",
                mend="free some space, choose a folder on another disk, or write fewer types",
            )

    def write(
        self, paths: Mapping[SourceType, Path], *, allow_overflow: bool, progress: ProgressCallback
    ) -> None:
        done, total = 0, self.n_weights
        with ExitStack() as stack:
            streams: dict[SourceType, GgufStream] = {}
            for kind, path in paths.items():
                file_type = {"general.file_type": GgufValue(GgufType.UINT32, kind.file_type)}
                stream = GgufStream(path, self.metadata | file_type, self.tensor_plans(kind))
                streams[kind] = stack.enter_context(stream)
                for factors in self.rope.tensors.values():
                    stream.write(factors)
            for job in self.plan.jobs:
                for block in self._blocks(job):
                    for kind, stream in streams.items():
                        to = SourceType.F32 if job.always_f32 else kind
                        stream.append(narrow(block.values, to, block.where, allow_overflow=allow_overflow))
                    done += block.values.size
                    progress(Progress(f"convert {self.checkpoint.folder.name}", done, total, "weights"))

    def _blocks(self, job: Job) -> Iterator[_Block]:
        """Yield the rows of a tensor, or of those stacked into it, as float32 in the order they are written."""
        for name in job.sources:
            data = self.checkpoint.tensor(name)
            data = data.reshape(data.shape[0], -1)
            rows = rope_rows(len(data), job.rope_heads) if job.rope_heads else np.arange(len(data))
            step = max(1, _BLOCK // data.shape[1])
            for begin in range(0, len(data), step):
                taken = rows[begin : begin + step]
                source = data[taken] if job.rope_heads else data[begin : begin + step]
                yield _Block(source, taken, job.shift, f"{self.checkpoint.folder}[{name}")


class _Block:
    """Some rows of a tensor as float32, and where they stand in the checkpoint."""

    def __init__(
        self, source: np.ndarray[Any, Any], rows: np.ndarray[Any, np.dtype[np.intp]], shift: float, label: str
    ) -> None:
        self._rows = rows
        self._label = label
        self._columns = source.shape[1]
        self.values = widen(source, self.where)
        if shift:
            self.values = self.values + np.float32(shift)

    def where(self, index: int) -> str:
        row, column = divmod(index, self._columns)
        return f"{self._label}, row {self._rows[row]}, column {column}]"


class Sizes(NamedTuple):
    """Numbers of weights: in all, outside the experts, of one expert; and the number of experts."""

    total: int
    shared: int
    expert: int
    experts: int


def general_metadata(folder: Path, sizes: Sizes) -> dict[str, GgufValue]:
    """Return the `general.*` keys: names, licence and sampling settings found in the folder.

    They are worked out by the `gguf` package, from the model card, config.json and the folder's name. Nothing
    computes with them, so a model card that cannot be parsed only costs them, not the conversion.
    """
    kind = {"general.type": GgufValue(GgufType.STRING, "model")}
    try:
        facts = gguf.Metadata.load(None, folder, None, sizes.total)
        facts.name = facts.name or folder.name
        facts.size_label = facts.size_label or gguf.size_label(*sizes)
        recorder = gguf.GGUFWriter(None, arch="")
        facts.set_gguf_meta_model(recorder)
        found = {key: _recorded(entry) for key, entry in recorder.kv_data[0].items()}
    except Exception:
        return kind | {"general.name": GgufValue(GgufType.STRING, folder.name)}
    return kind | found


def _recorded(entry: Any) -> GgufValue:
    if entry.type != gguf.GGUFValueType.ARRAY:
        return GgufValue(GgufType(int(entry.type)), entry.value)
    item = entry.sub_type or gguf.GGUFValueType.get_type(entry.value[0])
    return GgufValue(GgufType.ARRAY, list(entry.value), GgufType(int(item)))


def _verified(kind: SourceType, path: Path, file: str, work: _Work, progress: ProgressCallback) -> OutputFile:
    """Read the finished file back and compare it with the plan."""
    written = GgufFile.open(path)
    planned = [(plan.name, plan.shape, plan.ggml_type) for plan in work.tensor_plans(kind)]
    found = [(info.name, info.shape, info.ggml_type) for info in written.tensors.values()]
    if planned != found:
        raise CheckpointError(
            "the file written is not the one planned", where=path, expected=len(planned), found=len(found)
        )
    return OutputFile(
        type=kind,
        file=file,
        bytes=written.size,
        sha256=sha256_file(path),
        tensors_sha256=written.tensors_sha256(progress),
        bits_per_weight=written.bits_per_weight(),
    )


def _version() -> str:
    try:
        return version("bitloss")
    except PackageNotFoundError:
        return "unknown"
