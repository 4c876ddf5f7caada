"""Print native/polynomials.hpp: near-minimax polynomials of the divergence kernel.

    python native/make_polynomials.py > native/polynomials.hpp

Chebyshev interpolation in 60 digits (mpmath), each with the largest relative error it leaves over its interval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mpmath

mpmath.mp.dps = 60


class Fit(NamedTuple):
    """A function, its formula in words, its interval and the degree for each precision."""

    name: str
    formula: str
    function: Callable[[mpmath.mpf], mpmath.mpf]
    low: mpmath.mpf
    high: mpmath.mpf
    degree: dict[str, int]


def _even_limit(
    function: Callable[[mpmath.mpf], mpmath.mpf], limit: str
) -> Callable[[mpmath.mpf], mpmath.mpf]:
    """Give the function its limit at 0, where the formula is 0/0."""
    return lambda t: mpmath.mpf(limit) if abs(t) < mpmath.mpf("1e-20") else function(t)


def _js(t: mpmath.mpf) -> mpmath.mpf:
    u = mpmath.exp(t)
    return (u * t - (1 + u) * mpmath.log((1 + u) / 2)) / 2 / t**2


HALF_LN2 = mpmath.log(2) / 2
FITS = (
    Fit(
        "exp_tail",
        "(e^r - 1 - r) / r^2 on |r| <= ln 2 / 2",
        _even_limit(lambda r: (mpmath.exp(r) - 1 - r) / r**2, "0.5"),
        *(-HALF_LN2, HALF_LN2, {"double": 9, "float": 5}),
    ),
    Fit(
        "phi",
        "(e^t - 1 - t) / t^2 on |t| <= 1",
        _even_limit(lambda t: (mpmath.exp(t) - 1 - t) / t**2, "0.5"),
        *(mpmath.mpf(-1), mpmath.mpf(1), {"double": 11, "float": 7}),
    ),
    Fit(
        "js",
        "(t e^t - (1 + e^t) ln((1 + e^t) / 2)) / (2 t^2) on |t| <= 1",
        _even_limit(_js, "0.125"),
        *(mpmath.mpf(-1), mpmath.mpf(1), {"double": 12, "float": 6}),
    ),
    Fit(
        "log1p",
        "ln(1 + a) / a on 0 <= a <= 1/e",
        _even_limit(lambda a: mpmath.log1p(a) / a, "1"),
        *(mpmath.mpf(0), mpmath.exp(-1), {"double": 12, "float": 6}),
    ),
)


def main() -> None:
    """Print the header."""
    print("#pragma once")
    print("// Written by native/make_polynomials.py. Coefficients from the lowest power up.")
    print("namespace bitloss::polynomial {")
    for fit in FITS:
        print(f"\n// {fit.name}: {fit.formula}")
        for kind, degree in fit.degree.items():
            coefficients, _ = mpmath.chebyfit(fit.function, [fit.low, fit.high], degree + 1, error=True)
            suffix = "f" if kind == "float" else ""
            digits = 9 if kind == "float" else 17
            values = [
                mpmath.nstr(c, digits, min_fixed=0, max_fixed=0) + suffix for c in reversed(coefficients)
            ]
            grid = mpmath.linspace(fit.low, fit.high, 401)
            worst = max(abs(mpmath.polyval(coefficients, t) / fit.function(t) - 1) for t in grid)
            print(f"// degree {degree}, relative error below {mpmath.nstr(worst, 2)}")
            print(f"constexpr {kind} {fit.name}_{kind}[] = {{{', '.join(values)}}};")
    print("\n}  // namespace bitloss::polynomial")


if __name__ == "__main__":
    main()
