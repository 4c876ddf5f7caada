"""One candidate through llama.cpp's own encoder, `llama_model_quantize`, and a look at what it wrote."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from bitloss.errors import BitlossError, EngineError, UsageError
from bitloss.model.gguf import DEFAULT_ALIGNMENT
from bitloss.progress import Progress, ProgressCallback
from bitloss.quantize.call import QuantizeCall
from bitloss.quantize.onepass import Written
from bitloss.quantize.request import How, WrittenFile
from bitloss.quantize.verify import opened, verify_candidate
from bitloss.store import atomic_path, sha256_file
from bitloss.store.space import not_enough_room

if TYPE_CHECKING:
    from pathlib import Path

    from bitloss.model.gguf import GgufFile
    from bitloss.quantize.candidate import Candidate
    from bitloss.quantize.plan import TypePlan

_COUNT = re.compile(r"\[ *(\d+)/ *(\d+)\] ")


def write_through_llama(candidate: Candidate, how: How, progress: ProgressCallback) -> Written:
    """Write a candidate.

    Raises:
        UsageError: the candidate shall be split.
        DiskFull: the disk ran full.
        EngineError: llama.cpp gave up, or what it wrote is not what it planned.
    """
    spec, source, plan, weights = candidate.spec, candidate.source, candidate.plan, candidate.weights
    if spec.keep_split or spec.split_max_bytes is not None:
        raise UsageError(
            "the candidate cannot be split", where="--encoder llama.cpp", mend="use bitloss's encoder"
        )
    if how.errors:
        raise UsageError(
            "errors of quantization are measured by bitloss's encoder only",
            where="--encoder llama.cpp",
            mend="leave out --errors, or --encoder llama.cpp",
        )
    call = QuantizeCall(
        candidate.rules,
        weights.by_tensor if weights else {},
        [*_alignment_key(source), *(weights.metadata if weights else ())],
        how.n_threads(),
        spec.allow_requantize,
    )
    stage = f"quantize {candidate.kind.name}"
    with atomic_path(spec.out) as partial:
        try:
            call.run(spec.source, partial, _Counter(stage, progress))
            progress(Progress(stage, len(plan.tensors), len(plan.tensors), "tensors"))
            file = opened(partial, spec.out)
            verify_candidate(file, spec.out, source, plan, progress)
        except EngineError as error:
            raise _explained(error, spec.out, partial, plan) from error
        tensors_sha256 = file.tensors_sha256(progress)
        written = WrittenFile(spec.out, file.size, sha256_file(partial, progress))
    return Written((written,), tensors_sha256, {})


class _Counter:
    """Progress from the log: "[  12/ 147] blk.0..." starts tensor 12."""

    def __init__(self, stage: str, progress: ProgressCallback) -> None:
        self.stage = stage
        self.progress = progress

    def __call__(self, piece: str) -> None:
        match = _COUNT.match(piece)
        if match:
            self.progress(Progress(self.stage, int(match[1]) - 1, int(match[2]), "tensors"))


def _alignment_key(source: GgufFile) -> list[tuple[str, int | str]]:
    # llama.cpp copies the key but places data and tensors by 32: read by the key they are elsewhere.
    return [] if source.alignment == DEFAULT_ALIGNMENT else [("general.alignment", DEFAULT_ALIGNMENT)]


def _explained(error: EngineError, out: Path, partial: Path, plan: TypePlan) -> BitlossError:
    """Return `DiskFull` where that is the cause: llama.cpp goes on without a word when the disk is full."""
    free = shutil.disk_usage(out.parent).free
    written = partial.stat().st_size if partial.exists() else 0
    if plan.n_bytes > written + free:
        return not_enough_room(out, plan.n_bytes, written + free)
    return error
