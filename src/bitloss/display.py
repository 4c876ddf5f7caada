"""How numbers and names are shown, in one place: tables, findings and messages agree to the last digit.

Divergences and perplexities have llama-perplexity's six decimals, percentages its three. A number that would
keep fewer than three digits that way (a KLD below 1e-4, a percentage that rounds to 0.000) is written with an
exponent instead, so that nothing measured is shown as zero. A percentage has a space before its sign: ``99.62 %`` (rows
called ``99.9% KLD`` and the like have llama-perplexity's names).
"""

from __future__ import annotations

import math
import re

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def visible(text: str, limit: int = 80) -> str:
    """Return `text` in one line that cannot act on a terminal: controls escaped, the middle cut out."""
    shown = "".join(c if c.isprintable() else _escape(c) for c in text)
    if len(shown) > limit:
        half = (limit - 1) // 2
        shown = f"{shown[: limit - 1 - half]}…{shown[-half:]}"
    return shown


def many(count: int, noun: str, nouns: str | None = None) -> str:
    """Format a count with its noun: ``1 token``, ``2 tokens``, ``46,592 rows``; an irregular plural is `nouns`."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def json_kind(value: object) -> str:
    """Name what a JSON value is, as its author would: ``null``, ``true``, ``a text``, ``a list``, ``an object``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    kinds: dict[type, str] = {
        str: "a text",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), type(value).__name__)


_WORDING = (
    (r"^(Value error, |Input |Assertion failed, )", ""),
    (r"^Field required$", "missing"),
    (r"^Invalid JSON.*", "no JSON"),
    (r"\bTuple ", "list "),
    (r"^[Ss]tring should match pattern.*", "should be letters, digits and _, at most 32"),
    (r"a valid (integer|array|boolean|string|number)\b(, unable to parse string as an? \w+)?",
     lambda m: {"integer": "a whole number", "array": "a list", "boolean": "true or false", "string": "a text"}.get(
         m[1], "a number")),
    (r"an object", "a table"),
    (r"greater than or equal to", "at least"),
    (r"less than or equal to", "at most"),
    (r"\bgreater than\b", "more than"),
    (r"(?<=should be )(at least|at most|more than|less than) 1048576", r"\1 1,048,576"),
    (r"\.$", ""),
)  # fmt: skip


def plain_fault(message: str) -> str:
    """Put what pydantic says of a value in our words, lower case and without a full stop."""
    for pattern, words in _WORDING:
        message = re.sub(pattern, words, message)
    return message[:1].lower() + message[1:]


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def decimal(value: float, se: float | None = None, *, digits: int = 6, least: float = 1e-4) -> str:
    """Format ``6.344932 ± 0.038989``; below `least` in size ``2.500e-08 ± 1.2e-09``.

    Args:
        value: a finite number.
        se: its standard error.
        digits: decimals of both.
        least: smallest size, other than 0, that is written without an exponent.
    """
    small = value != 0 and abs(value) < least
    shown = f"{value:.3e}" if small else f"{value:.{digits}f}"
    if se is None:
        return shown
    error = f"{se:.{digits}f}"
    return f"{shown} ± {se:.1e}" if se != 0 and (small or float(error) == 0) else f"{shown} ± {error}"


def percent(value: float, se: float | None = None, *, digits: int = 3) -> str:
    """Format a fraction as ``-0.256 ± 0.010 %``.

    Args:
        value: a finite number.
        se: its standard error.
        digits: decimals of both; what would be 0 by them is written with an exponent.
    """
    return f"{percentage_points(value, se, digits=digits)} %"


def percentage_points(value: float, se: float | None = None, *, digits: int = 3) -> str:
    """Format a fraction as :func:`percent` does, without its sign."""
    return decimal(
        100 * value, None if se is None else 100 * se, digits=digits, least=0.5 * float(f"1e-{digits}")
    )


def rough_percent(value: float, *, digits: int = 2) -> str:
    """Format a fraction to so many significant digits: ``0.0029 %``, ``38 %``, ``0 %``; nearly all is not ``100 %``."""
    shown = f"{100 * value:.{digits}g}"
    if "e+" in shown:
        shown = f"{100 * value:.0f}"
    if value < 1 and shown == "100":
        shown = f"over {100 - float(f'1e{2 - digits}'):g}"
    return f"{shown} %"


def correlation(value: float) -> str:
    """Format ``99.62 %``; where that would round to 100.00 % without being it, with enough digits to tell."""
    digits = 2
    while value < 1 and digits < 12 and f"{100 * value:.{digits}f}" == f"{100:.{digits}f}":
        digits += 2
    return f"{100 * value:.{digits}f} %"


def probability(value: float) -> str:
    """Format a p-value: ``0.67``, ``0.0012``, ``< 1e-15``."""
    if value < 1e-15:
        return "< 1e-15"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"


def chance(value: float) -> str:
    """Format a probability: ``11.200 %``, ``0.0456 %``, ``1.23e-05 %``; three digits at least, however small."""
    shown = 100 * value
    if shown == 0 or shown >= 1:
        return f"{shown:.3f} %"
    if shown < 1e-4:
        return f"{shown:.2e} %"
    return f"{shown:.{2 - math.floor(math.log10(shown))}f} %"


def size(n_bytes: int) -> str:
    """Format a number of bytes in binary units: ``12.13 GiB``."""
    value = float(n_bytes)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{n_bytes} B" if unit == "B" else f"{value:.2f} {unit}"


def duration(seconds: float) -> str:
    """Format a time: ``0.42 s``, ``12.3 s``, ``6 min 52 s``, ``1 h 02 min``."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = math.floor(seconds + 0.5)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = math.floor(seconds / 60 + 0.5)
    return f"{minutes // 60} h {minutes % 60:02d} min"
