"""Quantize a source into any number of candidates: checks first, then one pass, or a call of llama.cpp for each.

The tensors are those of `llama-quantize` with the same arguments, byte for byte, whichever encoder is used, and so
is the whole file. Different on purpose from that tool:
- `quantize.imatrix.file` names the matrix by file name and content, `NAME (sha256:16 digits)`, and
  `quantize.imatrix.dataset` by file name: a published file must not show a local path.
- What the tool only logs is an error here: an importance matrix whose weights or widths are not the model's,
  a pattern that matches no tensor. What ends the tool's process (GGML_ASSERT) is found before.
- Patterns of tensor types are taken as they are; the tool turns them to lower case.
- A source of another alignment than 32 bytes gives a candidate of alignment 32; what the tool writes is refused
  or read as garbage, as it keeps the key and aligns to 32 all the same.
- A candidate appears under its name when it is complete, and not at all otherwise. With `How.resume` one that is there
  and whole is not made again (`bitloss.quantize.finished`), and an interrupted pass goes on where it stopped.

Peak memory: see `bitloss.quantize.onepass`; through llama.cpp the tensor at hand, at most 1 GiB of it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from bitloss.errors import BitlossError, EngineError
from bitloss.progress import ProgressCallback, silent
from bitloss.quantize.candidate import Candidate, plan_candidates
from bitloss.quantize.finished import content_key_of, find_finished, keep_finished, refuse_to_replace
from bitloss.quantize.onepass import Wanted, Written, write_candidates
from bitloss.quantize.request import How, Quantized, QuantizeSpec, candidate_name, mean_error
from bitloss.quantize.space import check_space
from bitloss.quantize.through_llama import write_through_llama
from bitloss.quantize.verify import opened, verify_candidate
from bitloss.quantize.weights import matrix_facts
from bitloss.store import clean_partials, sha256_file

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Candidate",
    "How",
    "QuantizeSpec",
    "Quantized",
    "candidate_name",
    "plan_candidates",
    "quantize",
    "quantize_all",
]


def quantize(spec: QuantizeSpec, progress: ProgressCallback = silent, how: How | None = None) -> Quantized:
    """Make one candidate; see `quantize_all`."""
    return quantize_all([spec], progress, how)[0]


def quantize_all(
    specs: Sequence[QuantizeSpec], progress: ProgressCallback = silent, how: How | None = None
) -> list[Quantized]:
    """Make candidates of one source; see the module's head.

    Raises:
        DiskFull: less space than all of them need, or the disk ran full.
        FileProblem: a file cannot be written, or is there and shall not be replaced.
        UnsupportedError: a value is too large for a type; the other candidates are finished first.
        GgufError: a value of the source is not finite.
        EngineError: llama.cpp gave up, or what was written is not what was planned.
        BitlossError: whatever `plan_candidates` raises.
    """
    started = time.monotonic()
    how = how or How()
    how.n_threads()
    candidates = plan_candidates(specs)
    for folder in {file.path.parent for candidate in candidates for file in candidate.files}:
        clean_partials(folder)  # what a killed process left takes space
    keys = [content_key_of(each, how.encoder) if how.resume else None for each in candidates]
    found = [
        None if key is None else find_finished(each, key, progress, errors=how.errors)
        for each, key in zip(candidates, keys, strict=True)
    ]
    todo = [_Todo(c, key) for c, key, done in zip(candidates, keys, found, strict=True) if done is None]
    if not how.replace:
        for each in todo:
            refuse_to_replace(each.candidate, each.key, progress)
    check_space((file for each in todo for file in each.candidate.files), kept=how.resume)
    written = _write(todo, how, progress) if todo else []
    _raise_failure(todo, written, [c for c, done in zip(candidates, found, strict=True) if done is not None])
    made, rest = [], iter(written)
    for candidate, done in zip(candidates, found, strict=True):
        result = next(rest) if done is None else done
        assert isinstance(result, Written)
        if how.verify and how.encoder == "bitloss":
            _verify(candidate, result, progress)
        told = _told(candidate, result, how, time.monotonic() - started)
        made.append(replace(told, reused=done is not None))
    return made


class _Todo(NamedTuple):
    """A candidate that is not there, and its key; None keeps nothing for a repeat."""

    candidate: Candidate
    key: str | None


def _write(todo: Sequence[_Todo], how: How, progress: ProgressCallback) -> list[Written | BitlossError]:
    source = todo[0].candidate.source

    def keep(index: int, written: Written, source_sha256: str) -> None:
        candidate, key = todo[index]
        if key is not None:
            keep_finished(candidate, key, written, source_sha256, errors=how.errors)

    if how.encoder == "bitloss":
        wanted = [Wanted(c.kind.name, c.plan, c.weights, c.files, key) for c, key in todo]
        return write_candidates(source, wanted, how, progress, keep)
    results: list[Written | BitlossError] = []
    for index, (candidate, key) in enumerate(todo):
        done = write_through_llama(candidate, how, progress)
        if key is not None:
            keep(index, done, source.tensors_sha256(progress))
        results.append(done)
    return results


def _raise_failure(
    todo: Sequence[_Todo], written: Sequence[Written | BitlossError], found: Sequence[Candidate]
) -> None:
    """Raise the first failure; name the others, and what was finished all the same."""
    results = list(zip((each.candidate for each in todo), written, strict=True))
    failed = [(each, error) for each, error in results if isinstance(error, BitlossError)]
    if not failed:
        return
    finished = [each.files[0].path.name for each in found]
    finished += [each.files[0].path.name for each, result in results if isinstance(result, Written)]
    (_, first), *others = failed
    mend = first.mend or "see above"
    if others:
        mend += f"; failed likewise: {', '.join(f'{e.where} ({e.what})' for _, e in others)}"
    if finished:
        mend += f"; finished: {', '.join(finished)}"
    raise type(first)(first.what, where=first.where, expected=first.expected, found=first.found, mend=mend)


def _verify(candidate: Candidate, result: Written, progress: ProgressCallback) -> None:
    """Read back what was written: types, copied tensors, scales and hashes."""
    shown = candidate.files[0].path
    file = opened(shown, shown)
    verify_candidate(file, shown, candidate.source, candidate.plan, progress)
    hashes = {shown: (result.tensors_sha256, file.tensors_sha256(progress))}
    hashes |= {one.path: (one.sha256, sha256_file(one.path, progress)) for one in result.files}
    for path, (expected, found) in hashes.items():
        if found != expected:
            raise EngineError(
                "read back otherwise than written",
                where=path,
                expected=expected,
                found=found,
                mend="disk or memory changed bytes: make the file again, at best on another disk",
            )


def _told(candidate: Candidate, result: Written, how: How, seconds: float) -> Quantized:
    facts = matrix_facts(candidate.weights, candidate.plan) if candidate.weights else None
    single = len(result.files) == 1
    sizes = {name: info.n_elements for name, info in candidate.source.tensors.items()}
    return Quantized(
        out=result.files[0].path,
        type=candidate.kind.name,
        bytes=sum(file.bytes for file in result.files),
        sha256=result.files[0].sha256 if single else None,
        tensors_sha256=result.tensors_sha256,
        bits_per_weight=candidate.bits_per_weight,
        type_counts=candidate.type_counts,
        n_fallback=candidate.plan.n_fallback,
        without_imatrix=facts.missing if facts else (),
        matrix=facts,
        parts=() if single else result.files,
        errors=result.errors if how.errors else None,
        error=mean_error(candidate.kind.name, result.errors, sizes) if how.errors else None,
        encoder=how.encoder,
        seconds=seconds,
        verified=how.verify or how.encoder == "llama.cpp",
    )
