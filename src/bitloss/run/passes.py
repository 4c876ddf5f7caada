"""Which candidates are measured together: as many in one pass as fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bitloss.display import size
from bitloss.divergence.basefile import SHARD_BYTES, SHARDS_HELD
from bitloss.engine.memory import available_bytes, engine_bytes
from bitloss.engine.output_layer import SLICE_BYTES, output_weight_name
from bitloss.errors import UsageError
from bitloss.model.gguf import tensor_bytes
from bitloss.model.gguf_split import open_model
from bitloss.run.stepping import Measurement, Stepper
from bitloss.run.steps import engine_options
from bitloss.spec import EngineSpec
from bitloss.store import StepRecord

_SHARE_OF_FREE = 0.8


def measure_in_passes(
    steps: Stepper, todo: Sequence[Measurement], *, beside: int, n_ctx: int, part: str = ""
) -> list[StepRecord]:
    """Measure candidates against one base, in as few passes as memory allows; what was done before is found.

    Args:
        steps: does and keeps them.
        todo: of one base, one part of it and one setting of the engine.
        beside: what the base takes in memory beside the candidates.
        n_ctx: tokens in a chunk.
        part: said after the label of a pass.

    Returns:
        The records, in the order of ``todo``.

    Raises:
        UsageError: a candidate does not fit into ``--max-memory``.
        BitlossError: a pass failed.
    """
    records: dict[int, StepRecord] = {}
    for i, each in enumerate(todo):
        record = steps.found(each.step, [each.step.out])
        if record is not None:
            steps.reuse(each, record)
            records[i] = record
    left = [i for i in range(len(todo)) if i not in records]
    if left:
        engine = todo[left[0]].step.engine
        needed = [
            engine_bytes(open_model(todo[i].step.candidate), engine_options(engine), n_ctx=n_ctx)
            for i in left
        ]
        limit = _limit(engine)
        largest = todo[left[needed.index(max(needed))]].step.candidate
        _refuse_too_little(largest, beside + max(needed), engine)
        groups = plan_passes(needed, limit - beside)
        for number, group in enumerate(groups, start=1):
            members = [left[k] for k in group]
            names = ", ".join(todo[i].label.removeprefix("measure ").removesuffix(part) for i in members)
            about = size(beside + sum(needed[k] for k in group))
            of = f"pass {number} of {len(groups)}" if len(groups) > 1 else "one pass"
            within = f" of {size(limit)}" if limit else ""
            plan = f"{of}, about {about}{within}"
            done = steps.measure([todo[i] for i in members], f"measure {names}{part}", plan)
            records |= dict(zip(members, done, strict=True))
    return [records[i] for i in range(len(todo))]


def check_memory(candidates: Iterable[Path], engine: EngineSpec, *, base: Path, n_ctx: int) -> None:
    """Refuse a ``--max-memory`` that is surely too little, before a base is computed.

    Args:
        candidates: GGUF files.
        engine: how llama.cpp computes.
        base: the base's GGUF file.
        n_ctx: tokens in a chunk.

    Raises:
        UsageError: a candidate does not fit into ``--max-memory``.
    """
    if engine.max_memory is None:
        return
    beside = base_bytes(None, base)
    for path in candidates:
        needed = engine_bytes(open_model(path), engine_options(engine), n_ctx=n_ctx)
        _refuse_too_little(path, beside + needed, engine)


def check_model_memory(model: Path, engine: EngineSpec, *, n_ctx: int) -> None:
    """Refuse a ``--max-memory`` that is surely too little to compute one model with; arguments as above.

    Raises:
        UsageError: it does not fit.
    """
    if engine.max_memory is not None:
        needed = engine_bytes(open_model(model), engine_options(engine), n_ctx=n_ctx)
        _refuse_too_little(model, needed, engine, "to compute this model")


def _refuse_too_little(
    model: Path, needed: int, engine: EngineSpec, what: str = "to measure a candidate"
) -> None:
    if engine.max_memory is not None and needed > engine.max_memory:
        raise UsageError(
            f"too little memory {what}",
            where="--max-memory",
            expected=f"{size(needed)} for {model.name}",
            found=size(engine.max_memory),
            mend="allow more, or give a smaller --ctx or --ubatch-size",
        )


def _limit(engine: EngineSpec) -> int:
    """Bytes a pass may take; 0 (one candidate at a time) where candidates lie on a GPU of unknown size."""
    if engine.max_memory is not None:
        return engine.max_memory
    return 0 if engine.n_gpu_layers else int(_SHARE_OF_FREE * available_bytes())


def base_bytes(folder: Path | None, model: Path) -> int:
    """Estimate the bytes an opened base takes: the mapped output weight, the shards at hand, slices of logits.

    Without a folder the shards, which are not made yet, are left out.
    """
    file = open_model(model)
    info = file.tensors[output_weight_name(file)]
    shards = sum(path.stat().st_size for path in folder.glob("hidden-*.safetensors")) if folder else 0
    return tensor_bytes(info.shape, info.ggml_type) + min(shards, SHARDS_HELD * SHARD_BYTES) + 3 * SLICE_BYTES


def plan_passes(needed: Sequence[int], limit: int) -> list[list[int]]:
    """Group candidates, in their order, so that no group takes more than the limit.

    Args:
        needed: bytes of each.
        limit: bytes all of a group may take; a candidate that is too large is alone in its pass.

    Returns:
        Indices, grouped.
    """
    groups: list[list[int]] = []
    room = 0
    for i, taken in enumerate(needed):
        if groups and taken <= room:
            groups[-1].append(i)
            room -= taken
        else:
            groups.append([i])
            room = limit - taken
    return groups
