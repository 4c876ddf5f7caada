"""Rules for question 2: what a cast of the weights loses, from exact counts (`bitloss.explain.audit`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitloss.display import percent
from bitloss.explain.audit_text import BLIND, not_finite, some, verdict, zero_tensors
from bitloss.records import Audit, Confidence, Finding

if TYPE_CHECKING:
    from pydantic import JsonValue

    from bitloss.records.audit import BlockLoss, CastLoss, Through, Weights

_CASTS = {"f16": "F16", "bf16": "BF16"}


def cast_losses(audit: Audit | None, dtype: str, sources: tuple[str, ...]) -> list[Finding]:
    """Say what casts to F16, and to BF16 where that was a route, change in the matrices' weights.

    Args:
        audit: the counts.
        dtype: type the model's weights are stored in.
        sources: names of the routes.

    Fires whenever there is an audit with finite values; BF16 only where a source of that type was made from weights of
    another.
    """
    if audit is None or not audit.matrices.values:
        return []
    casts = ["f16"]
    if "bf16" in sources and dtype.upper() != "BF16":
        casts.append("bf16")
    return [_cast(audit, dtype, name) for name in casts]


def _cast(audit: Audit, dtype: str, name: str) -> Finding:
    w, to = audit.matrices, _CASTS[name]
    loss: CastLoss = getattr(w, name)
    text = _interval(w) if name == "f16" else "Counted value by value, "
    text += _exactly(w, loss, to) + _where(audit, name)
    if name == "f16" and (zeros := zero_tensors(audit)):
        text += (
            f" {len(zeros):,} tensor{' is' if len(zeros) == 1 else 's are'} zero throughout: {some(zeros)}."
        )
    if name == "f16" and audit.opaque:
        text += f" Not counted, so not in these figures: {some(audit.opaque)}."
    for blocks in audit.blocks:
        text += " " + _seen(blocks, getattr(blocks, name), to)
    evidence: dict[str, JsonValue] = {
        "values": w.values,
        "zeros": w.zeros,
        "below": w.below,
        "above": w.above,
        "largest": w.largest,
        "smallest": w.smallest,
        "not_counted": list(audit.opaque),
        "not_finite": w.nan + w.positive_infinities + w.negative_infinities,
        "verdict": loss.verdict,
        "changed": loss.changed,
        "overflowed": loss.overflowed,
        "zeroed": loss.zeroed,
        "largest_error": loss.largest_error,
        "blocks_changed": {each.type: getattr(each, name).changed for each in audit.blocks},
    }
    return Finding(
        id=f"cast-to-{name}",
        title=f"{dtype.upper()} to {to} is {verdict(loss)}{_but(audit)}"
        if not loss.overflowed
        else _overflow(w, loss, to),
        text=text,
        evidence=evidence,
        confidence=Confidence.PROVEN,
        question=2,
        rows=("#exponents",),
    )


def _but(audit: Audit) -> str:
    """What a verdict in a title does not speak of."""
    left = [
        words
        for words, there in (
            (not_finite(audit.matrices), True),
            ("tensors that were not counted", audit.opaque),
        )
        if words and there
    ]
    return f", but for {' and '.join(left)}" if left else ""


def _where(audit: Audit, name: str) -> str:
    """The tensors in which values change, and those with values that are not finite."""
    matrices = [(each.name, each.weights) for each in audit.tensors if each.weights and len(each.shape) > 1]
    losses: list[tuple[str, CastLoss]] = [(of, getattr(w, name)) for of, w in matrices]
    text = ""
    if over := [of for of, loss in losses if loss.overflowed]:
        text += f" Too large are values of {some(over)}."
    changed = [of for of, loss in losses if loss.changed > loss.overflowed]
    if 0 < len(changed) < len(losses):
        text += f" Values that change lie in {some(changed)}."
    if odd := [of for of, w in matrices if not_finite(w)]:
        text += f" What is not finite lies in {some(odd)}."
    return text


def _overflow(w: Weights, loss: CastLoss, to: str) -> str:
    many = f"{loss.overflowed:,} weight{'' if loss.overflowed == 1 else 's'}"
    return f"{to} cannot hold {many}: the largest is {w.largest:.6g}"


def _interval(w: Weights) -> str:
    outside = w.below + w.above
    if not outside:
        those = f"{'All finite ones of' if not_finite(w) else 'All'} {w.values:,} weights of matrices"
        return f"{those} are 0 or inside [6e-5, 65504] in size; counted value by value, "
    parts = [f"{n:,} {where}" for n, where in ((w.below, "smaller"), (w.above, "larger")) if n]
    verb = "is" if outside == 1 else "are"
    return (
        f"{outside:,} of {w.values:,} weights of matrices ({percent(outside / w.values)}) {verb} not 0 and outside "
        f"[6e-5, 65504] in size ({', '.join(parts)}). That interval is a rule of thumb; counted value by value, "
    )


def _exactly(w: Weights, loss: CastLoss, to: str) -> str:
    odd = not_finite(w)
    end = f" Not finite already: {odd}." if odd else ""
    if not loss.changed:
        return f"every {'finite ' if odd else ''}weight comes back from {to} as it was.{end}"
    text = f"{loss.changed:,} come{'s' if loss.changed == 1 else ''} back from {to} different"
    if loss.overflowed:
        text += f", {loss.overflowed:,} of them infinite (larger than the type can hold)"
    if loss.zeroed:
        text += f", {loss.zeroed:,} of them as 0"
    if loss.largest_error is not None:
        text += f"; the largest error of those that stay finite is {loss.largest_error:.3g}"
    return f"{text}.{end}"


def _seen(blocks: BlockLoss, through: Through, to: str) -> str:
    one = through.overflowed == 1
    lost = (
        f", {through.overflowed:,} because {'it holds' if one else 'they hold'} an overflow"
        if through.overflowed
        else ""
    )
    without = "" if blocks.type in BLIND else " (without an importance matrix)"
    seen = "none" if not through.changed else f"{through.changed:,}"
    return f"Of {blocks.blocks:,} {blocks.type} blocks {seen} would come out different by way of {to}{lost}{without}."


def not_counted(audit: Audit | None, sources: tuple[str, ...]) -> Finding | None:
    """Say that nothing was counted; fires when routes were measured without an audit, or with one of no value."""
    if not sources or (audit is not None and audit.matrices.values):
        return None
    return Finding(
        id="cast-not-counted",
        title="Whether a cast to F16 loses anything was not counted",
        text="These results have no audit of the model's weights. `bitloss audit MODEL` counts them."
        if audit is None
        else f"No matrix of the model is of a type whose values are counted: {some(audit.opaque) or 'there is none'}.",
        evidence={"sources": list(sources)},
        confidence=Confidence.PROVEN,
        question=2,
    )
