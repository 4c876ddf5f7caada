"""Rules for question 2: what a cast of the weights loses, from exact counts (`bitloss.explain.audit`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitloss.display import percent
from bitloss.explain.audit_text import verdict
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
    text += _exactly(w, loss, to)
    for blocks in audit.blocks:
        text += " " + _seen(blocks, getattr(blocks, name), to)
    evidence: dict[str, JsonValue] = {
        "values": w.values,
        "zeros": w.zeros,
        "below": w.below,
        "above": w.above,
        "largest": w.largest,
        "smallest": w.smallest,
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
        title=f"{dtype.upper()} to {to} is {verdict(loss)}"
        if not loss.overflowed
        else _overflow(w, loss, to),
        text=text,
        evidence=evidence,
        confidence=Confidence.PROVEN,
        question=2,
        rows=("#exponents",),
    )


def _overflow(w: Weights, loss: CastLoss, to: str) -> str:
    many = f"{loss.overflowed:,} weight{'' if loss.overflowed == 1 else 's'}"
    return f"{to} cannot hold {many}: the largest is {w.largest:.6g}"


def _interval(w: Weights) -> str:
    outside = w.below + w.above
    if not outside:
        return f"All {w.values:,} weights of matrices are 0 or inside [6e-5, 65504] in size; counted value by value, "
    parts = [f"{n:,} {where}" for n, where in ((w.below, "smaller"), (w.above, "larger")) if n]
    return (
        f"{outside:,} of {w.values:,} weights of matrices ({percent(outside / w.values)}) are not 0 and outside "
        f"[6e-5, 65504] in size ({', '.join(parts)}). That interval is a rule of thumb; counted value by value, "
    )


def _exactly(w: Weights, loss: CastLoss, to: str) -> str:
    odd = w.nan + w.positive_infinities + w.negative_infinities
    end = f" {odd:,} weights are NaN or infinite already." if odd else ""
    if not loss.changed:
        return f"every weight comes back from {to} as it was.{end}"
    text = f"{loss.changed:,} come{'s' if loss.changed == 1 else ''} back from {to} different"
    if loss.overflowed:
        text += f", {loss.overflowed:,} of them infinite (larger than the type can hold)"
    if loss.zeroed:
        text += f", {loss.zeroed:,} of them as 0"
    if loss.largest_error is not None:
        text += f"; the largest error of those that stay finite is {loss.largest_error:.3g}"
    return f"{text}.{end}"


def _seen(blocks: BlockLoss, through: Through, to: str) -> str:
    lost = f", {through.overflowed:,} because they hold an overflow" if through.overflowed else ""
    seen = "none" if not through.changed else f"{through.changed:,}"
    return f"Of {blocks.blocks:,} {blocks.type} blocks {seen} would come out different by way of {to}{lost}."


def not_counted(audit: Audit | None, sources: tuple[str, ...]) -> Finding | None:
    """Say that nothing was counted; fires when routes were measured without an audit."""
    if audit is not None or not sources:
        return None
    return Finding(
        id="cast-not-counted",
        title="Whether a cast to F16 loses anything was not counted",
        text="These results have no audit of the model's weights. `bitloss audit MODEL` counts them.",
        evidence={"sources": list(sources)},
        confidence=Confidence.PROVEN,
        question=2,
    )
