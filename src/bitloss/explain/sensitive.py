"""Where the bits matter: what raising one group of tensors gains (`bitloss.records.sensitivity`)."""

from __future__ import annotations

from bitloss.display import decimal, percent
from bitloss.records import Confidence, Finding, Raised, Sensitivity, Verdict

_NAMED = 3


def most_sensitive(found: Sensitivity | None) -> Finding | None:
    """Name the groups that gain most, and most for a bit; fires when some group's gain could be measured."""
    if found is None:
        return None
    rows = [each for each in found.groups if each.gain is not None]
    if not rows:
        return None
    told = [each for each in rows if each.verdict is Verdict.BETTER]
    tested = [each for each in found.groups if each.verdict is not None]
    spent = [each for each in told if each.gain_per_bit is not None]
    best = max(spent, key=lambda each: each.gain_per_bit or 0.0) if spent else None
    text = (
        "Raised to the source's precision, one at a time: "
        + "; ".join(_row(each) for each in rows[:_NAMED])
        + "."
    )
    if best is not None:
        per_bit = decimal(best.gain_per_bit or 0.0)
        text += f" For a bit spent, {best.group} gains most ({per_bit} nats a bit per weight)."
    if tested:
        text += f" Beyond chance (paired, Holm-corrected): {len(told)} of {len(tested)} groups"
        untested = len(found.groups) - len(tested)
        text += f"; {untested} could not be tested." if untested else "."
    else:
        reasons = dict.fromkeys(each.reason for each in rows if each.reason)
        text += f" Whether any of this is beyond chance was not tested: {'; '.join(reasons) or 'no reason was kept'}."
    text += " Gains of several groups need not add up."
    if told:
        title = f"{found.type} gains most where {told[0].group} is raised"
    elif tested:
        title = f"No group of {found.type} gains anything that this text can show"
    else:
        title = f"Which group of {found.type} gains beyond chance was not tested"
    return Finding(
        id="most-sensitive",
        title=title,
        text=text,
        evidence={
            "gain": {each.group: each.gain for each in rows},
            "gain_per_bit": {each.group: each.gain_per_bit for each in rows},
            "beyond_chance": [each.group for each in told],
            "tested": len(tested),
        },
        confidence=Confidence.MEASURED,
        rows=(found.plain, *(each.candidate for each in rows[:_NAMED]), "#sensitivity"),
    )


def _row(each: Raised) -> str:
    share = "" if each.gain_share is None else f", {percent(each.gain_share)} of the plain file's"
    return (
        f"{each.group} gains {decimal(each.gain or 0.0, each.se)} nats of mean KLD{share} for "
        f"{each.bits_per_weight_added:.3f} bits per weight"
    )
