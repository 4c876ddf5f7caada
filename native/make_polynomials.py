"""Print native/polynomials.hpp: near-minimax polynomials of the divergence kernel.

    python native/make_polynomials.py > native/polynomials.hpp

Chebyshev interpolation in 60 digits (mpmath), each with the largest relative error it leaves over its interval. Where
an interval is not the only one of interest, the first coefficients are those of the Taylor series: the error then
vanishes towards 0, as a power of the argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mpmath

mpmath.mp.dps = 60
Function = Callable[[mpmath.mpf], mpmath.mpf]


class Fit(NamedTuple):
    """A function, its formula in words, its interval, the degree for each name, and what is fixed.

    Attributes:
        degree: by name of the array; a name that ends in "float" is of floats.
        fixed: the first coefficients.
    """

    formula: str
    function: Function
    low: mpmath.mpf
    high: mpmath.mpf
    degree: dict[str, int]
    fixed: tuple[mpmath.mpf, ...] = ()


def _with_limit(function: Function, limit: str) -> Function:
    """Give the function its limit at 0, where the formula is 0/0."""
    return lambda t: mpmath.mpf(limit) if abs(t) < mpmath.mpf("1e-20") else function(t)


def _phi(t: mpmath.mpf) -> mpmath.mpf:
    return (mpmath.exp(t) - 1 - t) / t**2


def _reverse(t: mpmath.mpf) -> mpmath.mpf:
    return (1 + mpmath.exp(t) * (t - 1)) / t**2


def _js(t: mpmath.mpf) -> mpmath.mpf:
    u = mpmath.exp(t)
    return (u * t - (1 + u) * mpmath.log((1 + u) / 2)) / 2 / t**2


LN2 = mpmath.log(2)
ONE = mpmath.mpf(1)
FITS = (
    Fit(
        "(e^r - 1 - r) / r^2 on |r| <= ln 2 / 2",
        _with_limit(lambda r: (mpmath.exp(r) - 1 - r) / r**2, "0.5"),
        *(-LN2 / 2, LN2 / 2, {"exp_tail_double": 9}),
    ),
    *(
        Fit(
            f"(e^r - 1) / r on |r| <= ln 2 / {2 * steps}",
            _with_limit(lambda r: mpmath.expm1(r) / r, "1"),
            *(-LN2 / 2 / steps, LN2 / 2 / steps, {f"exp_{steps}_float": degree}),
        )
        for steps, degree in ((1, 5), (8, 3), (16, 2))
    ),
    Fit(
        "(e^t - 1 - t) / t^2 on |t| <= 1",
        _with_limit(_phi, "0.5"),
        *(-ONE, ONE, {"phi_double": 11, "phi_float": 7}),
    ),
    Fit(
        "(t e^t - (1 + e^t) ln((1 + e^t) / 2)) / (2 t^2) on |t| <= 1",
        _with_limit(_js, "0.125"),
        *(-ONE, ONE, {"js_double": 12, "js_float": 6}),
    ),
    Fit(
        "(e^t - 1 - t) / t^2 on |t| <= 1",
        _with_limit(_phi, "0.5"),
        *(-ONE, ONE, {"near_phi": 7}, (ONE / 2, ONE / 6)),
    ),
    Fit(
        "(1 + e^t (t - 1)) / t^2 on |t| <= 1",
        _with_limit(_reverse, "0.5"),
        *(-ONE, ONE, {"near_reverse": 7}, (ONE / 2, ONE / 3)),
    ),
    Fit(
        "(t e^t - (1 + e^t) ln((1 + e^t) / 2)) / (2 t^2) on |t| <= 1",
        _with_limit(_js, "0.125"),
        *(-ONE, ONE, {"near_js": 7}, (ONE / 8, ONE / 16)),
    ),
    Fit(
        "ln(1 + a) / a on 0 <= a <= 1/e",
        _with_limit(lambda a: mpmath.log1p(a) / a, "1"),
        *(mpmath.mpf(0), mpmath.exp(-1), {"log1p_double": 12, "log1p_float": 6}),
    ),
)


def coefficients(fit: Fit, degree: int) -> list[mpmath.mpf]:
    """Return the coefficients of a polynomial of that degree, from the lowest power up."""
    done = len(fit.fixed)

    def rest(t: mpmath.mpf) -> mpmath.mpf:
        return (fit.function(t) - mpmath.polyval(fit.fixed[::-1], t)) / t**done

    found, _ = mpmath.chebyfit(
        rest if done else fit.function, [fit.low, fit.high], degree + 1 - done, error=True
    )
    return [*fit.fixed, *reversed(found)]


def main() -> None:
    """Print the header."""
    print("#pragma once")
    print("// Written by native/make_polynomials.py. Coefficients from the lowest power up.")
    print("namespace bitloss::polynomial {")
    for fit in FITS:
        print(f"\n// {fit.formula}")
        for name, degree in fit.degree.items():
            kind = "float" if name.endswith("float") else "double"
            suffix, digits = ("f", 9) if kind == "float" else ("", 17)
            found = coefficients(fit, degree)
            values = [mpmath.nstr(c, digits, min_fixed=0, max_fixed=0) + suffix for c in found]
            # an odd number of intervals: not at 0, where what is fitted is 0/0
            grid = mpmath.linspace(fit.low, fit.high, 402)
            worst = max(abs(mpmath.polyval(found[::-1], t) / fit.function(t) - 1) for t in grid)
            print(f"// degree {degree}, relative error below {mpmath.nstr(worst, 2)}")
            print(f"constexpr {kind} {name}[] = {{{', '.join(values)}}};")
    powers = ", ".join(mpmath.nstr(mpmath.mpf(2) ** (mpmath.mpf(j) / 16), 9) + "f" for j in range(16))
    print(f"\n// 2^(j/16)\nconstexpr float powers[] = {{{powers}}};")
    print("\n}  // namespace bitloss::polynomial")


if __name__ == "__main__":
    main()
