"""An audit in words: verdicts, the lines under the table, the histogram as bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bitloss.display import visible
from bitloss.records.audit import Audit, BlockLoss, CastLoss, TensorAudit, Weights

_BAR = 60
BLIND = {"Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"}
"""Types that no importance matrix changes."""
_NAMED = 3
TABLE_HEAD = ("tensor", "type", "values", "zeros", "outside", "smallest", "largest", "F16", "BF16")


def verdict(loss: CastLoss) -> str:
    """``lossless``, ``lossless except 413 values (largest error 2.98e-08)``, ``overflows: 1 value``.

    It speaks of the finite values that were counted; `not_finite` and `opaque` tell of the others.
    """
    if loss.verdict == "lossless":
        return "lossless"
    if loss.verdict == "overflows":
        rest = loss.changed - loss.overflowed
        besides = (
            f" ({_values(rest)} changed besides, largest error {loss.largest_error:.3g})" if rest else ""
        )
        return f"overflows: {_values(loss.overflowed)}{besides}"
    return f"lossless except {_values(loss.changed)} (largest error {loss.largest_error:.3g})"


def _values(n: int) -> str:
    return f"{n:,} value{'s' if n != 1 else ''}"


def table_rows(audit: Audit) -> list[tuple[str, ...]]:
    """The rows of the table, a tensor each, under `TABLE_HEAD` and a column for each type of blocks."""
    kinds = [each.type for each in audit.blocks]
    return [_table_row(tensor, kinds) for tensor in audit.tensors]


def _table_row(tensor: TensorAudit, kinds: list[str]) -> tuple[str, ...]:
    w = tensor.weights
    if w is None:
        return (
            tensor.name,
            tensor.type,
            "",
            "",
            "",
            "",
            "",
            f"opaque: {tensor.opaque}",
            "",
            *("" for _ in kinds),
        )
    by_type = {each.type: each for each in tensor.blocks}
    return (
        tensor.name,
        f"{tensor.type} (decoded)" if tensor.decoded else tensor.type,
        f"{w.values:,}" + (f" ({odd})" if (odd := not_finite(w)) else ""),
        f"{w.zeros:,}" + (" (all)" if w.zeros == w.values > 0 else ""),
        f"{w.below + w.above:,}",
        _size(w.smallest),
        _size(w.largest),
        _cell(w, w.f16),
        _cell(w, w.bf16),
        *(_through(by_type[kind]) if kind in by_type else "" for kind in kinds),
    )


def _cell(w: Weights, loss: CastLoss) -> str:
    if not w.values:
        return ""
    return verdict(loss) + (f", {loss.zeroed:,} to zero" if loss.zeroed else "")


def block_heads(audit: Audit) -> list[str]:
    """Heads of the columns of blocks."""
    return [f"{each.type} blocks changed (F16 / BF16)" for each in audit.blocks]


def _through(blocks: BlockLoss) -> str:
    return f"{blocks.f16.changed:,} / {blocks.bf16.changed:,} of {blocks.blocks:,}"


def _size(value: float | None) -> str:
    """Six digits: with four, 65519 (which F16 holds) would read as 65520 (which it does not)."""
    return "" if value is None else f"{value:.6g}"


def summary(audit: Audit) -> list[str]:
    """The model in a few lines."""
    w = audit.total
    lines = [
        f"{audit.model}: {_plural(len(audit.tensors), 'tensor')}, {_values(w.values)}, {_plural(w.zeros, 'zero')}"
        + (f", magnitudes {_size(w.smallest)} to {_size(w.largest)}" if w.largest is not None else "")
    ]
    if audit.opaque:
        many = _plural(len(audit.opaque), "opaque tensor")
        lines.append(f"not counted: {many}: {some(audit.opaque)}; what follows is of the others")
    if not w.values:
        return [*lines, "no value was counted, so nothing is known of what a cast would lose"]
    if odd := not_finite(w):
        lines.append(
            f"not finite: {odd}, in {some(_named(audit, not_finite))}; what follows is of the other values"
        )
    if zeros := zero_tensors(audit):
        lines.append(f"all zero: {_plural(len(zeros), 'tensor')}: {some(zeros)}")
    outside = w.below + w.above
    lines.append(
        f"outside [6e-05, 65504]: {outside:,} ({w.below:,} below, {w.above:,} above); a rule of thumb only, exactly:"
    )
    for name, loss, inner in (("F16", w.f16, audit.matrices.f16), ("BF16", w.bf16, audit.matrices.bf16)):
        extra = ""
        if loss.changed:
            extra = f"; {loss.zeroed:,} to zero"
            if loss.largest_relative_error is not None:
                extra += f", largest relative error {loss.largest_relative_error:.3g}"
        if inner != loss:
            extra += f"; the matrices alone (a conversion keeps vectors at F32): {verdict(inner)}"
        lines.append(f"{name}: {verdict(loss)}{extra}")
    lines += [block_sentence(blocks) for blocks in audit.blocks]
    return lines


def _named(audit: Audit, of: Callable[[Weights], object]) -> list[str]:
    return [each.name for each in audit.tensors if each.weights is not None and of(each.weights)]


def zero_tensors(audit: Audit) -> list[str]:
    """Names of the tensors all of whose values are zero."""
    return _named(audit, lambda w: w.zeros == w.values > 0)


def some(names: Sequence[str]) -> str:
    """``a, b, c and 4 more``."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(visible(name) for name in names[:_NAMED]) + more


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def not_finite(w: Weights) -> str:
    """``1 NaN, 2 -infinity``; empty without one."""
    counts = ((w.nan, "NaN"), (w.positive_infinities, "+infinity"), (w.negative_infinities, "-infinity"))
    return ", ".join(f"{n:,} {name}" for n, name in counts if n)


def block_sentence(blocks: BlockLoss) -> str:
    """What the casts change in blocks of one type."""
    if not blocks.blocks and not blocks.not_finite:
        return f"{blocks.type} blocks: no matrix that was counted has any"
    parts = []
    for name, through in (("F16", blocks.f16), ("BF16", blocks.bf16)):
        part = f"{through.changed:,} of {blocks.blocks:,} would change by way of {name}"
        if through.overflowed:
            part += f" ({through.overflowed:,} hold{'s' if through.overflowed == 1 else ''} an overflow)"
        parts.append(part)
    n = blocks.not_finite
    left_out = f"; {_plural(n, 'block')} left out: a value there is not finite" if n else ""
    without = "" if blocks.type in BLIND else "; without an importance matrix, with one it may be others"
    return f"{blocks.type} blocks: {', '.join(parts)}{left_out}{without}"


def histogram(w: Weights) -> list[str]:
    """Bars of values by binary exponent, zeros first; a bar of full length is the most frequent exponent."""
    lines = [f"{'zero':>6} {w.zeros:>16,}"]
    if w.lowest_exponent is None:
        return lines
    most = max(w.exponents)
    for i, n in enumerate(w.exponents):
        bar = "#" * (max(1, round(_BAR * n / most)) if n else 0)
        lines.append(f"{f'2^{w.lowest_exponent + i}':>6} {n:>16,} {bar}".rstrip())
    return lines
