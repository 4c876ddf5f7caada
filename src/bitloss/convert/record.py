"""What a conversion writes down: conversion.json."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from bitloss.convert.cast import SourceType


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
        bytes_compared: bytes read back from all files and found equal to what was computed from the model.
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
        engine: one entry per file.
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
        outputs: the files written.
        ignored_tensors: checkpoint tensors left out because they are computed from the settings or copies.
        notes: settings that the GGUF files do not carry, and what else a reader should know, in words.
        hub: id and commit of a model that was fetched ("owner/name@commit"), else None.
        proof: what was checked; None with `--no-proof`.
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
    hub: str | None = None
    proof: Proof | None = None
    bitloss: str
    seconds: float
