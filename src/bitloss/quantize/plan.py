"""Which tensor gets which type, asked from the installed llama.cpp.

`llama_model_quantize` with `dry_run` writes nothing and logs, for each tensor:

  [   3/ 147] blk.0.attn_k.weight    - [  4096,  1024,     1,     1], type = f32, size = A MiB -> B MiB (q4_K)
  [   4/ 147] blk.0.attn_norm.weight - [  4096,     1,     1,     1], type = f32, size = A MiB

so the plan is that of the engine in use and cannot drift from it. Every line must be understood and every
tensor of the file be covered once, else it is an error. A type that does not fit a row's length is replaced
by llama.cpp (Q4_K -> Q5_0); those lines are read too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from bitloss.engine.limits import check_limits
from bitloss.errors import EngineError, UnsupportedError, UsageError
from bitloss.model.gguf import GgufFile, TensorInfo, tensor_bytes, type_name
from bitloss.model.tensor_types import TensorType, block_of, tensor_types
from bitloss.quantize.call import QuantizeCall, TypeRules

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LINE = re.compile(
    r"\[ *(?P<index>\d+)/ *(?P<total>\d+)\] (?P<name>.+?) *- \[(?P<shape>[ \d,]+)\], "
    r"type = *(?P<source>\S+), size = *[\d.]+ MiB(?: -> *[\d.]+ MiB \((?P<target>\S+)\))?"
)
_FALLBACK = re.compile(
    r"warning: (?P<name>.+?) *- ncols +\d+ not divisible by +\d+ \(required for type +(?P<wanted>\S+?)\).*"
    r"-> falling back to +(?P<target>\S+)"
)
_BY_NAME: Mapping[str, TensorType] = {kind.name.lower(): kind for kind in tensor_types()}


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor's way from source to candidate.

    Attributes:
        name: its name.
        shape: ggml order.
        source_type: ggml type in the source.
        target_type: ggml type in the candidate; the same when it is copied.
        fallback_from: the ggml type the mix asked for and the row length refused, else None.
    """

    name: str
    shape: tuple[int, ...]
    source_type: int
    target_type: int
    fallback_from: int | None = None

    @property
    def is_copied(self) -> bool:
        """The bytes are the source's."""
        return self.source_type == self.target_type

    @property
    def n_bytes(self) -> int:
        """Bytes of data in the candidate."""
        return tensor_bytes(self.shape, self.target_type)


@dataclass(frozen=True, slots=True)
class TypePlan:
    """What llama.cpp will do with each tensor of a source.

    Attributes:
        source: the file.
        tensors: name -> plan, in the order of the candidate.
    """

    source: Path
    tensors: Mapping[str, PlannedTensor]

    @property
    def types(self) -> dict[str, str]:
        """Tensor name -> type name in the candidate ("Q4_K")."""
        return {name: type_name(tensor.target_type) for name, tensor in self.tensors.items()}

    @property
    def n_bytes(self) -> int:
        """Bytes of tensor data in the candidate."""
        return sum(tensor.n_bytes for tensor in self.tensors.values())

    @property
    def n_fallback(self) -> int:
        """Tensors whose row length refused the type of the mix."""
        return sum(tensor.fallback_from is not None for tensor in self.tensors.values())


def type_plan(source: GgufFile, rules: TypeRules) -> TypePlan:
    """Ask llama.cpp for the type of each tensor; nothing is written.

    Raises:
        UsageError: a rule that cannot be followed: a pattern that is no pattern or matches nothing, a type
        that
            does not fit the row length of the tensor it is forced on.
        GgufError: the header has a hyperparameter that would end the process.
        UnsupportedError: llama.cpp plans a type that is not known here.
        EngineError: llama.cpp refused the file, or its log was not understood.
    """
    check_limits(source)
    _check_rules(source, rules)
    log = "".join(QuantizeCall(rules).run(source.path, None))
    return parse_plan(source, log)


def parse_plan(source: GgufFile, log: str) -> TypePlan:
    """Read the log of a dry run; see the module's head.

    Raises:
        UnsupportedError: an unknown type name.
        EngineError: a tensor is missing, listed twice, or told with another shape or type than the file's.
    """
    fallbacks = {
        match["name"]: int(_kind(source, match["name"], match["wanted"])) for match in _FALLBACK.finditer(log)
    }
    tensors: dict[str, PlannedTensor] = {}
    for line in log.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        name = match["name"]
        info = source.tensors.get(name)
        if info is None or name in tensors:
            raise _misunderstood(source, "lists a tensor twice or one the file does not have", name)
        told = _kind(source, name, match["source"])
        shape = tuple(int(n) for n in match["shape"].split(","))
        if told != info.ggml_type or _trimmed(shape) != _trimmed(info.shape):
            raise _misunderstood(source, "tells another type or shape than the file's", line)
        target = told if match["target"] is None else _kind(source, name, match["target"])
        if info.shape[0] % block_of(target).weights:
            raise _misunderstood(source, "plans a type that does not fit the row length", line)
        tensors[name] = PlannedTensor(name, info.shape, info.ggml_type, int(target), fallbacks.get(name))
        if int(match["index"]) != len(tensors) or int(match["total"]) != len(source.tensors):
            raise _misunderstood(source, "counts other tensors than the file's", line)
    for name in source.tensors:
        if name not in tensors:
            raise _misunderstood(source, "does not cover a tensor of the file", name)
    return TypePlan(source.path, tensors)


def _kind(source: GgufFile, name: str, told: str) -> TensorType:
    try:
        return _BY_NAME[told.lower()]
    except KeyError:
        raise UnsupportedError(
            "llama.cpp plans a type that is not known here",
            where=f"{source.path}[{name}]",
            found=told,
        ) from None


def _misunderstood(source: GgufFile, what: str, found: str) -> EngineError:
    return EngineError(
        f"the type plan of llama.cpp {what}",
        where=source.path,
        found=found,
        mend="install the llama-cpp-python version pinned in pyproject.toml",
    )


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop trailing ones: ggml gives every tensor four dimensions."""
    return _trimmed(shape[:-1]) if shape and shape[-1] == 1 else shape


def _check_rules(source: GgufFile, rules: TypeRules) -> None:
    """Refuse what llama.cpp would ignore quietly, or answer by ending the process."""
    forced = {"output.weight": rules.output_tensor_type, "token_embd.weight": rules.token_embedding_type}
    forced["per_layer_token_embd.weight"] = rules.token_embedding_type
    for name, kind in forced.items():
        if kind is not None and name in source.tensors:
            _check_fits(source.tensors[name], kind, source.path)
    for pattern, _ in rules.tensor_types:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"not a regular expression ({error})", where=pattern) from None
        if not any(compiled.search(name) for name in source.tensors):
            found = (
                f"{len(source.tensors)} tensors in {source.path}, such as {next(reversed(source.tensors))}"
            )
            raise UsageError(
                "the pattern matches no tensor",
                where=pattern,
                found=found,
                mend="mend the pattern, or leave it out",
            )


def _check_fits(info: TensorInfo, kind: int, path: Path) -> None:
    block = block_of(kind).weights
    if prod(info.shape) and info.shape[0] % block:
        raise UsageError(
            f"{type_name(kind)} does not fit the row length",
            where=f"{path}[{info.name}]",
            expected=f"a multiple of {block}",
            found=info.shape[0],
        )
