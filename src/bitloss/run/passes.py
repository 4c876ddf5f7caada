"""Which candidates are measured together: as many in one pass as fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

from bitloss.display import size
from bitloss.engine.memory import available_bytes, engine_bytes
from bitloss.errors import UsageError
from bitloss.model.gguf_split import open_model
from bitloss.run.stepping import Measurement, Stepper
from bitloss.run.steps import engine_options
from bitloss.spec import EngineSpec
from bitloss.store import StepRecord

_SHARE_OF_FREE = 0.8


def measure_in_passes(
    steps: Stepper, todo: Sequence[Measurement], *, base_bytes: int, n_ctx: int, part: str = ""
) -> list[StepRecord]:
    """Measure candidates against one base, in as few passes as memory allows; what was done before is found.

    Args:
        steps: does and keeps them.
        todo: of one base, one part of it and one setting of the engine.
        base_bytes: what the base takes in memory beside the candidates.
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
        if engine.max_memory is not None and base_bytes + max(needed) > engine.max_memory:
            largest = todo[left[needed.index(max(needed))]].step.candidate
            raise UsageError(
                "too little memory to measure a candidate",
                where="--max-memory",
                expected=f"{size(base_bytes + max(needed))} for {largest.name}",
                found=size(engine.max_memory),
                mend="allow more, or give a smaller --ctx or --ubatch-size",
            )
        groups = plan_passes(needed, limit - base_bytes)
        for number, group in enumerate(groups, start=1):
            members = [left[k] for k in group]
            names = ", ".join(todo[i].label.removeprefix("measure ").removesuffix(part) for i in members)
            about = size(base_bytes + sum(needed[k] for k in group))
            of = f"pass {number} of {len(groups)}" if len(groups) > 1 else "one pass"
            within = f" of {size(limit)}" if limit else ""
            plan = f"{of}, about {about}{within}"
            done = steps.measure([todo[i] for i in members], f"measure {names}{part}", plan)
            records |= dict(zip(members, done, strict=True))
    return [records[i] for i in range(len(todo))]


def _limit(engine: EngineSpec) -> int:
    """Bytes a pass may take; 0 (one candidate at a time) where candidates lie on a GPU of unknown size."""
    if engine.max_memory is not None:
        return engine.max_memory
    return 0 if engine.n_gpu_layers else int(_SHARE_OF_FREE * available_bytes())


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
