"""An audit in words: verdicts, the lines under the table, the histogram as bars."""

from __future__ import annotations

from bitloss.records.audit import Audit, BlockLoss, CastLoss, TensorAudit, Weights

_BAR = 60
TABLE_HEAD = ("tensor", "type", "values", "zeros", "smallest", "largest", "F16", "BF16")


def verdict(loss: CastLoss) -> str:
    """``lossless``, ``lossless except 413 values (largest error 2.98e-08)``, ``overflows: 1 value``."""
    if loss.verdict == "lossless":
        return "lossless"
    if loss.verdict == "overflows":
        rest = loss.changed - loss.overflowed
        return f"overflows: {_values(loss.overflowed)}" + (
            f" ({_values(rest)} changed besides)" if rest else ""
        )
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
            f"opaque: {tensor.opaque}",
            "",
            *("" for _ in kinds),
        )
    by_type = {each.type: each for each in tensor.blocks}
    return (
        tensor.name,
        f"{tensor.type} (decoded)" if tensor.decoded else tensor.type,
        f"{w.values:,}",
        f"{w.zeros:,}",
        _size(w.smallest),
        _size(w.largest),
        verdict(w.f16),
        verdict(w.bf16),
        *(_through(by_type[kind]) if kind in by_type else "" for kind in kinds),
    )


def block_heads(audit: Audit) -> list[str]:
    """Heads of the columns of blocks."""
    return [f"{each.type} blocks changed (F16 / BF16)" for each in audit.blocks]


def _through(blocks: BlockLoss) -> str:
    return f"{blocks.f16.changed:,} / {blocks.bf16.changed:,} of {blocks.blocks:,}"


def _size(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def summary(audit: Audit) -> list[str]:
    """The model in a few lines."""
    w = audit.total
    lines = [
        f"{audit.model}: {len(audit.tensors):,} tensors, {w.values:,} values, {w.zeros:,} zeros"
        + (f", magnitudes {w.smallest:.4g} to {w.largest:.4g}" if w.largest is not None else "")
    ]
    if audit.opaque:
        some = ", ".join(audit.opaque[:3]) + (", ..." if len(audit.opaque) > 3 else "")
        lines.append(f"not counted: {len(audit.opaque)} opaque tensor(s): {some}")
    if odd := _not_finite(w):
        lines.append(f"not finite: {odd}")
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


def _not_finite(w: Weights) -> str:
    counts = ((w.nan, "NaN"), (w.positive_infinities, "+infinity"), (w.negative_infinities, "-infinity"))
    return ", ".join(f"{n:,} {name}" for n, name in counts if n)


def block_sentence(blocks: BlockLoss) -> str:
    """What the casts change in blocks of one type."""
    parts = []
    for name, through in (("F16", blocks.f16), ("BF16", blocks.bf16)):
        part = f"{through.changed:,} of {blocks.blocks:,} would change by way of {name}"
        if through.overflowed:
            part += f" ({through.overflowed:,} hold an overflow)"
        parts.append(part)
    left_out = f" ({blocks.not_finite:,} blocks hold a value that is not finite)" if blocks.not_finite else ""
    return f"{blocks.type} blocks: {', '.join(parts)}{left_out}"


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
