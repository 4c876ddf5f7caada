"""Where the bits matter: from measured files with one group raised to a ranking.

The gain of a group is the mean KLD of the plain file minus that of the file with the group at the source's precision,
token by token, its error clustered (`bitloss.divergence.clusters`). P-values and verdicts are those of the
table of comparisons, Holm-corrected over it. ``gain_per_bit`` is the gain over the bits per weight that the file grew
by: what a bit spent on this group alone buys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bitloss.divergence.clusters import Clusters
from bitloss.divergence.measure import TokenTable
from bitloss.divergence.statistics import mean_with_errors
from bitloss.quantize.groups import Group
from bitloss.records import Raised, Results, Sensitivity, Verdict


class Plan(NamedTuple):
    """What was made.

    Attributes:
        source: name of the source's file.
        type: quantization type.
        imatrix: name of the importance matrix's file; None without one.
        per_layer: whether groups are of single layers.
        plain: name of the plain candidate.
        raised: name of the candidate -> its group and how many tensors were raised.
    """

    source: str
    type: str
    imatrix: str | None
    per_layer: bool
    plain: str
    raised: Mapping[str, tuple[Group, int]]


def sensitivity(
    plan: Plan, results: Results, tables: Mapping[str, TokenTable], clusters: Clusters
) -> Sensitivity:
    """Rank the groups by what raising them gains.

    Args:
        plan: what was made.
        results: with the comparisons of the plain candidate with each other one.
        tables: per-token results by candidate.
        clusters: how their tokens are drawn.

    Raises:
        MismatchError: candidates were scored on different tokens.
    """
    rows = [_row(plan, name, results, tables, clusters) for name in plan.raised]
    rows.sort(key=lambda row: (row.gain is None, -(row.gain or 0.0)))
    return Sensitivity(
        source=plan.source,
        type=plan.type,
        plain=plan.plain,
        imatrix=plan.imatrix,
        per_layer=plan.per_layer,
        groups=tuple(rows),
    )


def _row(
    plan: Plan, name: str, results: Results, tables: Mapping[str, TokenTable], clusters: Clusters
) -> Raised:
    group, tensors = plan.raised[name]
    plain, raised = tables[plan.plain], tables[name]
    figure = mean_with_errors(plain.metrics.kld - raised.metrics.kld, clusters)
    added = results.candidate(name).bits_per_weight - results.candidate(plan.plain).bits_per_weight
    whole = results.candidate(plan.plain).metrics["kld_mean"].value
    compared = next(
        (c for c in results.comparisons if (c.a, c.b, c.metric) == (plan.plain, name, "kld_mean")), None
    )
    reasons = [each for each in (figure.reason, compared.reason if compared else "not compared") if each]
    if figure.value is not None and added <= 0:
        reasons.append("nothing was raised")
    interval = None if compared is None or compared.ci95 is None else compared.ci95
    return Raised(
        group=group.name,
        kind=group.kind,
        layer=group.layer,
        candidate=name,
        tensors=tensors,
        bits_per_weight_added=max(0.0, added),
        gain=figure.value,
        se=figure.se_clustered,
        ci95=interval,
        p_holm=compared.p_holm if compared else None,
        verdict=_turned(compared.verdict if compared else None),
        gain_share=figure.value / whole if figure.value is not None and whole else None,
        gain_per_bit=figure.value / added if figure.value is not None and added > 0 else None,
        reason="; ".join(dict.fromkeys(reasons)) or None,
    )


def _turned(verdict: Verdict | None) -> Verdict | None:
    """The verdict on the raised file, from that on the plain one."""
    turned = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER}
    return None if verdict is None else turned.get(verdict, verdict)
