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
- A candidate appears under its name when it is complete, and not at all otherwise.

Peak memory: see `bitloss.quantize.onepass`; through llama.cpp the tensor at hand, at most 1 GiB of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bitloss.errors import BitlossError, EngineError
from bitloss.progress import ProgressCallback, silent
from bitloss.quantize.candidate import Candidate, plan_candidates
from bitloss.quantize.onepass import Wanted, Written, write_candidates
from bitloss.quantize.request import How, Quantized, QuantizeSpec, candidate_name
from bitloss.quantize.space import check_space
from bitloss.quantize.through_llama import write_through_llama
from bitloss.quantize.verify import opened, verify_candidate
from bitloss.quantize.weights import matrix_facts
from bitloss.store import sha256_file

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
        FileProblem: a file cannot be written.
        UnsupportedError: a value is too large for a type; the other candidates are finished first.
        GgufError: a value of the source is not finite.
        EngineError: llama.cpp gave up, or what was written is not what was planned.
        BitlossError: whatever `plan_candidates` raises.
    """
    started = time.monotonic()
    how = how or How()
    how.n_threads()
    candidates = plan_candidates(specs)
    check_space(file for candidate in candidates for file in candidate.files)
    written = _through_llama(candidates, how, progress)
    if how.encoder == "bitloss":
        wanted = [Wanted(each.kind.name, each.plan, each.weights, each.files) for each in candidates]
        written = write_candidates(candidates[0].source, wanted, how, progress)
    _raise_failure(candidates, written)
    made = []
    for candidate, result in zip(candidates, written, strict=True):
        assert isinstance(result, Written)
        if how.verify and how.encoder == "bitloss":
            _verify(candidate, result, progress)
        made.append(_told(candidate, result, how, time.monotonic() - started))
    return made


def _through_llama(
    candidates: Sequence[Candidate], how: How, progress: ProgressCallback
) -> list[Written | BitlossError]:
    if how.encoder != "llama.cpp":
        return []
    return [write_through_llama(each, how, progress) for each in candidates]


def _raise_failure(candidates: Sequence[Candidate], written: Sequence[Written | BitlossError]) -> None:
    """Raise the first failure, and say what was finished all the same."""
    finished = [
        each.files[0].path.name
        for each, result in zip(candidates, written, strict=True)
        if isinstance(result, Written)
    ]
    for result in written:
        if isinstance(result, BitlossError):
            more = f"; finished: {', '.join(finished)}" if finished else ""
            raise type(result)(
                result.what,
                where=result.where,
                expected=result.expected,
                found=result.found,
                mend=f"{result.mend or 'see above'}{more}",
            )


def _verify(candidate: Candidate, result: Written, progress: ProgressCallback) -> None:
    """Read back what was written: types, copied tensors, scales and hashes."""
    shown = candidate.files[0].path
    file = opened(shown, shown)
    verify_candidate(file, shown, candidate.source, candidate.plan, progress)
    hashes = {shown: (result.tensors_sha256, file.tensors_sha256(progress))}
    hashes |= {one.path: (one.sha256, sha256_file(one.path, progress)) for one in result.files}
    for path, (expected, found) in hashes.items():
        if found != expected:
            raise EngineError("read back otherwise than written", where=path, expected=expected, found=found)


def _told(candidate: Candidate, result: Written, how: How, seconds: float) -> Quantized:
    facts = matrix_facts(candidate.weights, candidate.plan) if candidate.weights else None
    single = len(result.files) == 1
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
        encoder=how.encoder,
        seconds=seconds,
    )
