"""The pictures of a report, each drawn wide and narrow, with its numbers as a table beside it."""

from __future__ import annotations

from bitloss.report.exponents import exponents
from bitloss.report.groups import by_entropy, by_position
from bitloss.report.heat import cross_blocks, sensitivity, tensor_errors
from bitloss.report.looks import Look, Plot
from bitloss.report.scatter import ppl_kld, size_kld
from bitloss.report.spread import dp_bands, kld_curve


def all_plots(look: Look) -> tuple[Plot, ...]:
    """Every picture there are numbers for."""
    made = (
        size_kld(look),
        kld_curve(look),
        dp_bands(look),
        ppl_kld(look),
        by_position(look),
        by_entropy(look),
        exponents(look),
        tensor_errors(look),
        cross_blocks(look),
        sensitivity(look),
    )
    return tuple(plot for plot in made if plot is not None)
