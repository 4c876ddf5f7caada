"""The one number of a finding, large on its card, and what it is of.

Taken from the finding's evidence and written as everywhere (`bitloss.display`). A finding without one, or from results
of another version that do not hold it, has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from bitloss.display import decimal, percent, size
from bitloss.records import Finding


class Key(NamedTuple):
    """A number and its words."""

    number: str
    words: str


def key_of(finding: Finding) -> Key | None:
    """The number that a finding stands for."""
    rule = _RULES.get(finding.id)
    if rule is None:
        return None
    try:
        return rule(finding.evidence)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None  # results of another version


def _identical(e: Mapping[str, Any]) -> Key | None:
    return Key("0", "weights differ") if e["tensors_sha256"] else None


def _why_identical(e: Mapping[str, Any]) -> Key | None:
    if "blocks_changed" in e:
        return Key(
            f"{e['blocks_changed']:,} of {e['blocks']:,}",
            f"blocks see what the cast to {e.get('cast', 'F16')} changes",
        )
    return Key(f"{e['blocks_that_differ']:,}", "blocks differ between the crossed files")


def _cast(to: str) -> Callable[[Mapping[str, Any]], Key | None]:
    return lambda e: Key(f"{e['changed']:,} of {e['values']:,}", f"weights are others after a cast to {to}")


def _pair(e: Mapping[str, Any]) -> Key | None:
    row = next(row for row in [*e["comparisons"], {}] if not row or row["metric"] == "kld_mean")
    if row.get("difference") is None:
        return None
    first, second = e["candidates"]
    interval = row.get("ci95")
    within = f", 95 % interval {decimal(interval[0])} to {decimal(interval[1])}" if interval else ""
    return Key(decimal(row["difference"]), f"nats: mean KLD of {first} less that of {second}{within}")


def _why_different(e: Mapping[str, Any]) -> Key | None:
    unit = "blocks" if e["blocks"]["whole"] else "values"
    counts = e[unit]
    return Key(f"{counts['whole']:,} of {counts['total']:,}", f"{unit} differ")


def _imatrix(e: Mapping[str, Any]) -> Key | None:
    if e.get("route_over_text") is None:
        return Key(percent(e["route"]["spread"]), "difference of the mean squares of columns")
    return Key(f"{100 * e['route_over_text']:.3g} %", "of what another text of the length would change")


def _ties(e: Mapping[str, Any]) -> Key | None:
    return Key(f"{len(e['ties'])} of {e['pairs']}", "pairs are a tie")


def _costs(e: Mapping[str, Any]) -> Key | None:
    sizes = e["source_bytes"]
    if len(sizes) != 2 or len(set(sizes.values())) == 1:
        return None
    small, large = sorted(sizes, key=lambda name: sizes[name])
    return Key(
        f"{size(sizes[small])} or {size(sizes[large])}", f"on the disk for the source {small} or {large}"
    )


def _noise(e: Mapping[str, Any]) -> Key | None:
    return Key(decimal(e["noise_floor_kld_mean"]), "nats: mean KLD of the base against itself")


def _sensitive(e: Mapping[str, Any]) -> Key | None:
    gains = {name: gain for name, gain in e["gain"].items() if gain is not None}
    best = max(gains, key=lambda name: gains[name])
    return Key(decimal(gains[best]), f"nats of mean KLD less with {best} raised")


def _overlap(e: Mapping[str, Any]) -> Key | None:
    return Key(f"{e['shared']:,} of {e['windows']:,}", f"windows of {e['window']} tokens seen before")


def _stopped(e: Mapping[str, Any]) -> Key | None:
    if e.get("chunks_needed"):
        return Key(f"{e['chunks_needed']:,} of {e['chunks_available']:,}", "chunks needed")
    return Key(f"{e['chunks']:,} of {e['chunks_available']:,}", "chunks measured")


_RULES: Final[Mapping[str, Callable[[Mapping[str, Any]], Key | None]]] = {
    "identical-tensors": _identical,
    "why-identical": _why_identical,
    "cast-to-f16": _cast("F16"),
    "cast-to-bf16": _cast("BF16"),
    "same-type-pair": _pair,
    "why-different": _why_different,
    "imatrix-route": _imatrix,
    "ties": _ties,
    "route-costs": _costs,
    "engine-noise": _noise,
    "most-sensitive": _sensitive,
    "calibrated-on-the-measured-text": _overlap,
    "stopped-by-rule": _stopped,
}
