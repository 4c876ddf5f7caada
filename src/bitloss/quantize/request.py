"""What to quantize and how, and what is told of the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bitloss.engine.llama import usable_cores
from bitloss.errors import FileProblem, UsageError, unreadable
from bitloss.model.gguf_split import whole_stem
from bitloss.quantize.call import TypeRules
from bitloss.quantize.types import QuantType, parse_quant_type, parse_tensor_type

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Encoder = Literal["bitloss", "llama.cpp"]
ENCODERS: tuple[Encoder, ...] = ("bitloss", "llama.cpp")
_MAX_RECIPE_BYTES = 1 << 20
_RECIPE = "REGEX=TYPE, one a line"


@dataclass(frozen=True, slots=True)
class QuantizeSpec:
    """What to make.

    Attributes:
        source: GGUF file with F32, F16 or BF16 tensors; of a split model its first part.
        type: name of the file type ("Q4_K_M"), in any case.
        out: the candidate; an existing file is replaced. Parts of a split one are named after it.
        imatrix: importance matrix, GGUF or .dat.
        tensor_types: (pattern, tensor type); the first pattern found in a tensor's name decides its type.
        output_tensor_type: tensor type of output.weight.
        token_embedding_type: tensor type of token_embd.weight.
        pure: one type for all tensors, no mix.
        allow_requantize: accept a source that is quantized already.
        keep_split: parts with the tensors of the source's parts.
        split_max_bytes: parts of at most so many bytes of tensors; a larger tensor has a part of its own.
    """

    source: Path
    type: str
    out: Path
    imatrix: Path | None = None
    tensor_types: tuple[tuple[str, str], ...] = ()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    pure: bool = False
    allow_requantize: bool = False
    keep_split: bool = False
    split_max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class How:
    """What does not change a byte of the candidates.

    Attributes:
        encoder: "bitloss", one pass over the source for all candidates; "llama.cpp", one call for each.
        threads: 0 takes the cores this process may use.
        verify: read every file back: types, copied tensors, scales, hashes. Always done after llama.cpp.
        errors: decode what was encoded and tell how far it is from the source.
        resume: take finished files of the same inputs as they are, go on where an interrupted pass stopped, and keep
            what the next one needs for that (`quantization.json`, hidden files while a pass is under way).
        replace: write over files that are there, whatever they are; else only over those `quantization.json` knows to
            be of the same inputs.
    """

    encoder: Encoder = "bitloss"
    threads: int = 0
    verify: bool = False
    errors: bool = False
    resume: bool = False
    replace: bool = True

    def n_threads(self) -> int:
        """Return the number of threads to use; `UsageError` if it is impossible."""
        if self.threads < 0:
            found = self.threads
            raise UsageError("impossible number of threads", expected="0 (all cores) or more", found=found)
        return self.threads or usable_cores()


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that was written.

    Attributes:
        path: where it is.
        bytes: its size.
        sha256: of the file.
    """

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorError:
    """How far a tensor is from the source's, as shares of the source's root mean square.

    Attributes:
        type: its type.
        rms: sqrt(sum (decoded - source)^2 / sum source^2); None for a tensor of zeros.
        rms_weighted: the same with every square times the importance of its column; None without a matrix, and for
            types that take no notice of one.
    """

    type: str
    rms: float | None
    rms_weighted: float | None


@dataclass(frozen=True, slots=True)
class LostTensor:
    """A tensor, or experts of it, that importance 0 leaves without its values.

    Attributes:
        type: its type in the candidate.
        experts: which of its matrices; (0,) of a plain tensor.
        n_experts: how many it has.
        becomes: "zeros", or "noise" where the type stores values as far from the tensor's as 0 would be, or nearly.
    """

    type: str
    experts: tuple[int, ...]
    n_experts: int
    becomes: Literal["zeros", "noise"]


@dataclass(frozen=True, slots=True)
class MatrixFacts:
    """What an importance matrix does not say, and the rule for it.

    Attributes:
        missing: quantized tensors it has no weights for: encoded as without a matrix.
        unused_experts: tensor -> experts no token reached: every column counts 1.
        zero_weights: tensor -> experts whose columns are all zero though tokens reached them: taken as they are.
        lost: those of `zero_weights` whose type then keeps nothing, or little, of them.
    """

    missing: tuple[str, ...] = ()
    unused_experts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    zero_weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    lost: Mapping[str, LostTensor] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the facts as JSON holds them."""
        return {
            "without_imatrix": list(self.missing),
            "unused_experts": {name: list(which) for name, which in self.unused_experts.items()},
            "zero_weights": {name: list(which) for name, which in self.zero_weights.items()},
            "lost": {
                name: {**asdict(each), "experts": list(each.experts)} for name, each in self.lost.items()
            },
        }


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was made.

    Attributes:
        out: the candidate; the first part of a split one.
        type: name of its file type.
        bytes: its size, of all parts together.
        sha256: of the file; None for a split one.
        tensors_sha256: of its tensors (`GgufFile.tensors_sha256`).
        bits_per_weight: 8 x tensor bytes / weights.
        type_counts: tensor type -> number of tensors.
        n_fallback: tensors whose row length refused the type of the mix.
        without_imatrix: quantized tensors the importance matrix says nothing about, if one was given.
        matrix: what else the importance matrix does not say; None without one.
        parts: of a split candidate; empty else.
        errors: tensor name -> error of each quantized tensor; None when not asked for.
        error: of all of them together, see `mean_error`; None when not asked for.
        encoder: what encoded it.
        seconds: wall time, of all candidates made together.
        reused: it was there already, made of the same inputs.
        verified: it was read back and compared with what was written.
    """

    out: Path
    type: str
    bytes: int
    sha256: str | None
    tensors_sha256: str
    bits_per_weight: float
    type_counts: dict[str, int]
    n_fallback: int
    without_imatrix: tuple[str, ...]
    matrix: MatrixFacts | None
    parts: tuple[WrittenFile, ...]
    errors: dict[str, TensorError] | None
    error: TensorError | None
    encoder: Encoder
    seconds: float
    reused: bool = False
    verified: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON holds it; paths are file names."""
        return {
            **{name: value for name, value in asdict(self).items() if name != "matrix"},
            "out": self.out.name,
            **(self.matrix or MatrixFacts()).as_json(),
            "parts": [{**asdict(part), "path": part.path.name} for part in self.parts],
        }


def mean_error(kind: str, errors: Mapping[str, TensorError], sizes: Mapping[str, int]) -> TensorError:
    """Return the root mean square of tensors' errors, every weight of the model counting alike.

    sqrt(sum n e^2 / sum n) of the tensors that have an error, n weights each: every tensor is measured by its own size,
    as its products are by the norms around it.

    Args:
        kind: name of the file type.
        errors: by tensor.
        sizes: weights of each tensor.
    """

    def mean(told: Mapping[str, float | None]) -> float | None:
        squares = {name: each**2 * sizes[name] for name, each in told.items() if each is not None}
        n_weights = sum(sizes[name] for name in squares)
        return (sum(squares.values()) / n_weights) ** 0.5 if n_weights else None

    return TensorError(
        kind,
        mean({name: each.rms for name, each in errors.items()}),
        mean({name: each.rms_weighted for name, each in errors.items()}),
    )


def candidate_name(source: Path, kind: str) -> str:
    """Return the file name of a candidate: `<source stem>-<TYPE>.gguf`."""
    return f"{whole_stem(source)}-{parse_quant_type(kind).name}.gguf"


def rules_of(spec: QuantizeSpec) -> tuple[QuantType, TypeRules]:
    """Return the file type and what decides the types of its tensors.

    Raises:
        UsageError: an unknown type, or settings that do not go together.
    """
    kind = parse_quant_type(spec.type)
    if spec.tensor_types and kind.name in {"F32", "F16", "BF16"}:
        # llama.cpp looks at the patterns only when the file's type is quantized.
        raise UsageError("tensor types need a quantized file type", where=kind.name)
    if spec.keep_split and spec.split_max_bytes is not None:
        raise UsageError("two ways to split", where="--keep-split", mend="leave out --split-max-size")

    def tensor_type(name: str | None) -> int | None:
        return None if name is None else int(parse_tensor_type(name))

    return kind, TypeRules(
        ftype=kind.ftype,
        has_imatrix=spec.imatrix is not None,
        tensor_types=tuple((pattern, int(parse_tensor_type(name))) for pattern, name in spec.tensor_types),
        output_tensor_type=tensor_type(spec.output_tensor_type),
        token_embedding_type=tensor_type(spec.token_embedding_type),
        pure=spec.pure,
        keep_split=spec.keep_split,
    )


def parse_override(text: str, where: object) -> tuple[str, str]:
    """Split PATTERN=TYPE at its first equals sign, as llama-quantize does.

    Raises:
        UsageError: one of the two is missing.
    """
    pattern, equals, kind = text.partition("=")
    if not pattern or not equals or not kind:
        raise UsageError("not a tensor type override", where=where, expected="REGEX=TYPE", found=text)
    return pattern, kind


def read_recipe(path: Path) -> tuple[tuple[str, str], ...]:
    """Read a list of PATTERN=TYPE, between white space, as llama-quantize's --tensor-type-file has it.

    Raises:
        FileProblem: the file cannot be read, is no text, or is too large to be one.
        UsageError: something in it is no PATTERN=TYPE, or the file is empty.
    """
    try:
        if path.stat().st_size > _MAX_RECIPE_BYTES:
            raise FileProblem("too large for a list of tensor types", where=path)
        words = path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise FileProblem("list of tensor types that is not UTF-8", where=path, expected=_RECIPE) from error
    except (OSError, ValueError) as error:
        raise unreadable(
            error, where=path, what="list of tensor types", mend=f"give a text file of {_RECIPE}"
        ) from error
    if not words:
        raise UsageError("the list of tensor types is empty", where=path, expected="REGEX=TYPE")
    return tuple(parse_override(word, path) for word in words)


def parse_size(text: str, where: str) -> int:
    """Read a size as llama-gguf-split does: a whole number and M or G, of thousands.

    Raises:
        UsageError: it is something else.
    """
    factor = {"M": 10**6, "G": 10**9}.get(text.strip()[-1:].upper())
    number = text.strip()[:-1]
    if factor is None or not (number.isascii() and number.isdigit()) or int(number) < 1:
        raise UsageError("not a size", where=where, expected="a size such as 500M or 2G", found=text)
    return int(number) * factor
