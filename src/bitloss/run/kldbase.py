"""A run whose base is a file of llama-perplexity (``.kld``): what such a file says, and what it leaves unsaid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from bitloss.divergence.kldfile import KldFile
from bitloss.errors import MismatchError, UsageError
from bitloss.model.gguf import GgufFile
from bitloss.model.text import scored_positions
from bitloss.model.vocabulary import refuse_other_vocabulary, vocabulary_sha256
from bitloss.records import Base, Model, Text
from bitloss.run.texts import TextRecords
from bitloss.store import sha256_file


class KldBase(NamedTuple):
    """A checked base file.

    Attributes:
        path: the file, absolute.
        sha256: of the file.
        n_ctx: tokens in a chunk.
        n_vocab: entries of the vocabulary.
        n_chunks: chunks.
        bytes: its size.
    """

    path: Path
    sha256: str
    n_ctx: int
    n_vocab: int
    n_chunks: int
    bytes: int


def refuse_options(given: Mapping[str, object]) -> None:
    """Refuse settings that such a file leaves no choice of.

    Args:
        given: by option, what was given for it; None where nothing was.

    Raises:
        UsageError: something was.
    """
    for option, value in given.items():
        if value is not None:
            raise UsageError(
                "does not go with a base file of llama-perplexity, which holds its own tokens and log-probabilities",
                where=option,
                mend=f"leave out {option}",
            )


def open_kld(path: Path, *, n_ctx: int | None = None) -> KldBase:
    """Check a base file and hash it.

    Args:
        path: the file.
        n_ctx: tokens a chunk should have; any number where None.

    Raises:
        FileProblem, BaseError: as `KldFile`.
        MismatchError: its chunks have another length.
    """
    with KldFile(path, bos=None) as file:
        chunks = file.chunks
        if n_ctx not in {None, chunks.n_ctx}:
            raise MismatchError(
                "the base file holds chunks of another length than asked for",
                where=path,
                expected=f"{n_ctx} tokens (--ctx)",
                found=f"{chunks.n_ctx} tokens",
                mend="leave out --ctx, or make the file again with llama-perplexity -c or bitloss base --kld --ctx",
            )
        return KldBase(
            path.resolve(), sha256_file(path), chunks.n_ctx, file.n_vocab, chunks.n_chunks, file.stored_bytes
        )


def check_candidates(base: KldBase, files: Mapping[Path, GgufFile]) -> None:
    """Refuse, before anything is computed, candidates that cannot belong to the file.

    The file does not hold the vocabulary, only its size; so candidates must at least agree with one another.

    Raises:
        MismatchError: vocabulary of another size, candidates of several vocabularies, or chunks longer than a
            candidate was made for.
    """
    vocabularies: dict[str, Path] = {}
    for path, file in files.items():
        found = len(file.value("tokenizer.ggml.tokens", []))
        if found != base.n_vocab:
            raise MismatchError(
                "vocabulary differs from the base's",
                where=path,
                expected=f"the {base.n_vocab} tokens of {base.path.name}",
                found=f"{found} tokens",
                mend="candidate and base must be made from the same model",
            )
        vocabularies.setdefault(vocabulary_sha256(file), path)
        longest = file.value(f"{file.architecture}.context_length", None)
        if isinstance(longest, int) and base.n_ctx > longest:
            raise MismatchError(
                f"the base's chunks are longer than {path.name} was made for",
                where=base.path,
                expected=f"at most {longest} tokens",
                found=base.n_ctx,
            )
    if len(vocabularies) > 1:
        (vocabulary, one), (_, other) = list(vocabularies.items())[:2]
        refuse_other_vocabulary(files[other], files[one], vocabulary=vocabulary, name=one.name)


class Described(NamedTuple):
    """What stands in the results of a run about its model, text and base."""

    model: Model
    texts: TextRecords
    base: Base


def kld_records(base: KldBase, candidate: GgufFile, steps: Sequence[Mapping[str, JsonValue]]) -> Described:
    """Describe model, text and base, as far as they are known.

    Args:
        base: the file.
        candidate: one that was measured against it; the model is taken to have its architecture.
        steps: results of the steps that measured.

    Raises:
        MismatchError: candidates read the tokens differently (one adds BOS, another does not).
    """
    first = steps[0]
    if any(step["tokens_sha256"] != first["tokens_sha256"] for step in steps):
        raise MismatchError(
            "candidates do not agree on BOS at the start of a chunk",
            where=base.path,
            mend="measure those that add BOS and those that do not apart",
        )
    scored = base.n_chunks * len(scored_positions(base.n_ctx))
    cut = first["targets_cut"]
    limits = (
        "the base is a file of llama-perplexity: log-probabilities in 16 bits, in steps of up to 0.00024 nats (which "
        "adds up to about 0.0000000025 to a token's KLD), cut 16 nats below the likeliest token; what lies lower is "
        "left out of KLD, and KLD the other way round is not defined. "
        f"{cut} of {scored} scored tokens lie below the cut and are taken to stand at it. "
        "The file does not name its model, its vocabulary or its text: that they are the candidates' is taken on trust"
    )
    name = base.path.name
    return Described(
        model=Model(
            name=name,
            architecture=candidate.architecture,
            parameters=sum(info.n_elements for info in candidate.tensors.values()),
            dtype="unknown",
            sha256=None,
        ),
        texts=TextRecords(
            Text(
                name=name,
                sha256=None,
                tokens_sha256=str(first["tokens_sha256"]),
                n_ctx=base.n_ctx,
                chunks=base.n_chunks,
                scored_tokens=scored,
                add_bos=bool(first["add_bos"]),
            )
        ),
        base=Base(
            name=name,
            file=name,
            bytes=base.bytes,
            sha256=base.sha256,
            stored_bytes=base.bytes,
            limits=limits,
        ),
    )
