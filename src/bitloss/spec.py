"""The experiment file: what to make from a model and on what text to measure it.

A TOML file (``examples/founding.toml``) or the command line gives an :class:`ExperimentSpec`; the run
writes the resolved one to ``RUN/spec.toml``. Relative paths are taken from the folder of the file they stand
in. A key that is not known, a value of another type (the text ``"512"`` is not the number 512) or out of
range is refused in one line that names the key.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from bitloss.display import plain_fault
from bitloss.errors import UsageError, unreadable
from bitloss.store import content_key

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_BYTES = 1 << 20
# llama.cpp's short options, for the hint when somebody writes one of them as a key.
_SHORT = {
    "ngl": "engine.n_gpu_layers",
    "gpu_layers": "engine.n_gpu_layers",
    "fa": "engine.flash_attn",
    "sm": "engine.split_mode",
    "ts": "engine.tensor_split",
    "t": "engine.threads",
    "b": "engine.batch",
    "ub": "engine.ubatch",
    "batch_size": "engine.batch",
    "ubatch_size": "engine.ubatch",
    "c": "ctx",
    "n_ctx": "ctx",
    "sources": "from",
    "types": "quants",
}


COMMAND = "bitloss "
"""How `where` begins when values came from the command line; a fault then names the option."""
_OPTIONS = {
    "n_gpu_layers": "--gpu-layers",
    "batch": "--batch-size",
    "ubatch": "--ubatch-size",
    "stop": "--stop-when",
}


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return pattern


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({v for v in values if values.count(v) > 1})
    if twice:
        raise ValueError(f"{twice[0]} is there twice")
    return values


def _listed(value: object) -> object:
    """One text is a list of one; a list of JSON is a tuple, as strict validation wants it after this."""
    return (value,) if isinstance(value, str | Path) else tuple(value) if isinstance(value, list) else value


def _clean(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a null character")
    return text


TypeName = Annotated[str, Field(pattern="^[A-Za-z0-9_]{1,32}$")]
_Text = Annotated[str, Field(min_length=1), AfterValidator(_clean)]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        populate_by_name=True,
    )


class EngineSpec(_Part):
    """How llama.cpp computes; the names of `bitloss.engine.base.EngineOptions`."""

    n_gpu_layers: int = Field(default=0, ge=-1)
    """Layers kept on the GPU (``-ngl``); -1 for all."""
    flash_attn: Literal["auto", "on", "off"] = "auto"
    """Flash attention (``-fa``)."""
    split_mode: Literal["none", "layer", "row"] = "layer"
    """How a model is spread over several GPUs (``-sm``)."""
    tensor_split: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Share of the model for each GPU (``-ts``)."""
    threads: int = Field(default=0, ge=0)
    """CPU threads (``-t``); 0 takes the cores this process may use."""
    batch: int = Field(default=2048, ge=2)
    """Tokens handed over at a time (``-b``)."""
    ubatch: int = Field(default=512, ge=2)
    """Tokens computed at a time (``-ub``)."""
    max_memory: int | None = Field(default=None, ge=1)
    """Bytes to stay below when several candidates are measured in one pass; four fifths of what is free when left
    out."""


class TensorTypeSpec(_Part):
    """Another type for some tensors, as ``--tensor-type`` of llama-quantize."""

    pattern: Annotated[_Text, AfterValidator(_regex)]
    """Regular expression searched for in the tensor's name."""
    type: TypeName
    """The type those tensors get."""


class StopSpec(_Part):
    """When to stop measuring before the text is at its end; see `bitloss.divergence.stopping`."""

    when: Literal["decided", "precise"] = "decided"
    """``decided``: every pair of candidates is told apart by mean KLD, or equivalent; ``precise``: every mean KLD is
    known to within `precision`."""
    margin: float | None = Field(default=None, gt=0, lt=1)
    """With ``decided``: candidates whose mean KLD differs by less than this share of it are equivalent (0.05: 5 %)."""
    precision: float | None = Field(default=None, gt=0, lt=1)
    """With ``precise``: half-width of the confidence sequence over the mean (0.02: 2 %)."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random order the chunks are taken in."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.when == "precise" and self.precision is None:
            raise ValueError("precise needs a precision")
        if self.when == "precise" and self.margin is not None:
            raise ValueError("a margin belongs to decided, not to precise")
        if self.when == "decided" and self.precision is not None:
            raise ValueError("a precision belongs to precise, not to decided")
        return self


class ExperimentSpec(_Part):
    """One experiment."""

    model: _Text
    """HF folder, hub id (``owner/name``) or GGUF file."""
    sources: tuple[Literal["f32", "f16", "bf16"], ...] = Field(
        default=("f32", "f16"), alias="from", min_length=1
    )
    """Full-precision files to convert to and quantize from; the first is the base. In TOML: ``from``."""
    quants: tuple[TypeName, ...] = ("Q8_0", "Q4_K_M")
    """Quantization types, as llama-quantize names them."""
    calibration: Path | None = None
    """Text of the importance matrices; without one, files are quantized without a matrix."""
    imatrix_chunks: int | None = Field(default=None, ge=1)
    """Chunks of the calibration text to use; all when left out."""
    text: Annotated[tuple[Path, ...], BeforeValidator(_listed), Field(min_length=1)]
    """Texts to measure on, each cut by itself; a single one needs no list."""
    documents: _Text | None = None
    """How the texts are split into documents, whose borders no chunk crosses: ``blank-line``, ``file``, ``jsonl`` (the
    ``text`` of each line) or ``line=TEXT``; llama-perplexity's way, as one, when left out."""
    chat_template: bool = False
    """The texts are conversations (JSON lines), rendered with the model's own template; the assistant's tokens are
    scored."""
    ctx: int = Field(default=512, ge=8, le=1 << 20)
    """Tokens per chunk; the second half of each is scored."""
    chunks: int | None = Field(default=None, ge=1)
    """Chunks of each text to measure on; all when left out."""
    out: Path | None = None
    """The run's folder; chosen by the command line when left out."""
    tensor_types: tuple[TensorTypeSpec, ...] = ()
    """Exceptions to the types' own plans."""
    output_tensor_type: TypeName | None = None
    """Type of the output layer, where it shall not be the plan's."""
    token_embedding_type: TypeName | None = None
    """Type of the token embedding, where it shall not be the plan's."""
    pure: bool = False
    """Quantize every tensor to the type itself, no mixture."""
    encoder: Literal["bitloss", "llama.cpp"] = "bitloss"
    """Who encodes: ``bitloss`` all types of a source in one pass, ``llama.cpp`` one after the other; the bytes are the
    same."""
    cross: bool = False
    """Make also the files with the weights of one source and the importance matrix of another, and say what makes the
    routes differ. Needs two sources and a calibration text."""
    errors: bool = False
    """Tell of each tensor of each candidate how far it is from the source's."""
    stop: StopSpec | None = None
    """When to stop measuring; the whole text is measured when left out."""
    engine: EngineSpec = EngineSpec()
    """How llama.cpp computes."""

    _each_once = field_validator("sources", "quants")(_unique)

    @field_validator("calibration", "text", "out")
    @classmethod
    def _no_null(cls, value: Path | tuple[Path, ...] | None) -> Path | tuple[Path, ...] | None:
        _clean(str(value) if not isinstance(value, tuple) else "".join(map(str, value)))
        return value

    @field_serializer("text")
    def _plain(self, texts: tuple[Path, ...]) -> str | list[str]:
        return str(texts[0]) if len(texts) == 1 else [str(text) for text in texts]

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.errors and self.encoder != "bitloss":
            raise ValueError("errors need the encoder bitloss")
        if self.stop is not None and (self.documents is not None or self.chat_template):
            raise ValueError("stop needs chunks of one length: not with documents or chat_template")
        return self

    def settings(self) -> dict[str, JsonValue]:
        """Return everything that makes this experiment what it is, as JSON.

        Left out are `out`, how much of the machine may be used (no result depends on that), and `cross`, which only
        adds to a run: one that is finished can be crossed in its own folder.
        """
        left_out: dict[str, Any] = {"out": True, "cross": True, "engine": {"threads", "max_memory"}}
        # what is not asked for leaves no trace: a run of an older version goes on
        left_out |= {
            name: True for name in ("stop", "documents", "chat_template", "errors") if not getattr(self, name)
        }
        values: dict[str, JsonValue] = self.model_dump(mode="json", by_alias=True, exclude=left_out)
        return values

    def key(self, **contents: str | None) -> str:
        """Return the experiment's content key.

        Args:
            contents: hashes of what `model`, `text` and `calibration` hold; they take the place of the paths.
        """
        return content_key("experiment", {**self.settings(), **contents})


def _resolved(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Take relative paths from `folder`."""
    found = dict(values)
    for key in ("calibration", "text", "out"):
        value = found.get(key)
        if isinstance(value, str) and value:
            found[key] = str(_below(folder, value))
        elif isinstance(value, list):
            found[key] = [
                str(_below(folder, each)) if isinstance(each, str) and each else each for each in value
            ]
    if isinstance(model := found.get("model"), str) and model:
        path = _below(folder, model)
        # A hub id looks like a relative path; what is on the disk, or says it is a path, is one.
        if model.startswith((".", "/", "~")) or _exists(path):
            found["model"] = model if path == Path(model) else str(path)
    return found


def _below(folder: Path, path: str) -> Path:
    try:
        return folder / Path(path).expanduser()
    except RuntimeError:  # no home folder of that name
        return folder / path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def make_spec(values: Mapping[str, Any], *, where: str, folder: Path | None = None) -> ExperimentSpec:
    """Check the values of an experiment.

    Args:
        values: as in the TOML file: plain numbers, texts, lists and tables; a `Path` counts as its text.
        where: what the values come from, for the message.
        folder: where relative paths start; None leaves them as they are.

    Raises:
        UsageError: a key is unknown or missing, or a value is not what it has to be; the key is named.
    """
    try:
        # Strict, by way of JSON: there lists are tuples and texts are paths, yet "512" is no number.
        document = json.dumps(dict(values) if folder is None else _resolved(values, folder), default=str)
        return ExperimentSpec.model_validate_json(document, strict=True)
    except ValidationError as error:
        raise _refusal(error, where) from error


def make_stop(values: Mapping[str, Any] | None, *, where: str) -> StopSpec | None:
    """Check the values of a table ``[stop]`` that stands alone.

    Raises:
        UsageError: as :func:`make_spec`.
    """
    if values is None:
        return None
    try:
        return StopSpec.model_validate(values, strict=True)
    except ValidationError as error:
        raise _refusal(error, where) from error


def read_spec(path: Path) -> ExperimentSpec:
    """Read an experiment file.

    Raises:
        FileProblem: the file is missing or cannot be read.
        UsageError: it is no TOML, or :func:`make_spec` refuses what it holds.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise unreadable(
            error,
            where=path,
            what="experiment file",
            mend="give a TOML file with at least `model` and `text`, or the model itself: "
            "bitloss run MODEL --text FILE",
        ) from error
    if len(data) > _MAX_BYTES:
        raise UsageError("too large for an experiment file", where=path, expected="at most 1 MiB")
    try:
        values = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # TOML and UTF-8 errors are ValueErrors
        raise UsageError(f"no TOML: {str(error)[:200] or type(error).__name__}", where=path) from error
    return make_spec(values, where=str(path), folder=path.resolve().parent)


def dump_toml(spec: ExperimentSpec) -> str:
    """Write the resolved experiment as TOML; :func:`read_spec` gives the same one back. Null is left out."""
    return tomli_w.dumps(spec.model_dump(mode="json", by_alias=True, exclude_none=True))


def known_keys() -> tuple[str, ...]:
    """Return every key of an experiment file, those of tables as ``engine.threads``."""
    top = [field.alias or name for name, field in ExperimentSpec.model_fields.items()]
    return (
        *top,
        *(f"stop.{name}" for name in StopSpec.model_fields),
        *(f"engine.{name}" for name in EngineSpec.model_fields),
        *(f"tensor_types.{name}" for name in TensorTypeSpec.model_fields),
    )


def _refusal(error: ValidationError, where: str) -> UsageError:
    """Put the first fault in one line; unknown keys come first, since they explain the missing ones."""
    faults = error.errors(include_url=False, include_context=False)
    fault = min(faults, key=lambda f: f["type"] != "extra_forbidden")
    key = ".".join(str(p) for p in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return UsageError(f"unknown key {key[:80]!r}", where=where, mend=_hint(fault["loc"]))
    message = plain_fault(fault["msg"])
    found = None if fault["type"] == "missing" else json.dumps(fault["input"], default=str)[:80]
    if where.startswith(COMMAND) and (option := _option(fault["loc"])):
        return UsageError(message, where=option, found=found)
    if not key:  # of values that do not go together
        return UsageError(message, where=where)
    return UsageError(f"{key}: {message}", where=where, found=found)


def _option(loc: tuple[int | str, ...]) -> str:
    """The option of the command line that gives the value at `loc`; empty for the model, which has none."""
    names = [part for part in loc if isinstance(part, str)]
    if names[:1] in ([], ["model"]):
        return ""
    return _OPTIONS.get(names[-1], f"--{names[-1].replace('_', '-')}")


def _hint(loc: tuple[int | str, ...]) -> str:
    table = ".".join(str(p) for p in loc[:-1] if not isinstance(p, int))
    last = str(loc[-1])
    keys = known_keys()
    if short := _SHORT.get(last.replace("-", "_")):
        return f"did you mean {short!r}?"
    names = {k.rpartition(".")[2]: k for k in sorted(keys, key=lambda k: k.rpartition(".")[0] == table)}
    if close := difflib.get_close_matches(last.replace("-", "_"), list(names), n=1):
        return f"did you mean {names[close[0]]!r}?"
    inside = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == table]
    return f"known keys{f' of {table}' if table else ''}: {', '.join(inside)}"
