"""Plots of results, drawn by gnuplot (Debian's gnuplot-nox)."""

import math
import subprocess
from itertools import cycle

from .cases import CASES
from .results import FIGURES, GRANARY, Results, Spread

PLOTS = {"iops": "iops.svg", "instructions": "instructions.svg"}
"""A file for each of these figures."""

# Okabe and Ito's, which colour-blind people tell apart: cold ones for Granary, warm and dark ones for others.
GRANARY_COLOURS = ["#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#999999"]
OTHER_COLOURS = ["#D55E00", "#E69F00", "#000000", "#F0E442"]

# Wide enough for nine cases of eight backends; white, so that the text can be read on a dark page.
SCRIPT = """\
set terminal svg size 1280,{height} font 'sans-serif,13' background '#ffffff' noenhanced
set encoding utf8
set datafile missing 'NaN'
set style data histogram
set style histogram errorbars gap 1.5
set style fill solid 1 noborder
set errorbars 0.5 linecolor '#333333' linewidth 1
set logscale y
set yrange [{bottom:g}:{top:g}]
set format y '%.0s%c'
set grid ytics linecolor '#cccccc' linewidth 1
set tics nomirror
set border 3
set bmargin 5
set key outside center top horizontal
{data}set multiplot layout {nr_panels},1
{panels}unset multiplot
"""

Spreads = dict[str, list[Spread | None]]
"""By case, in the order of the backends."""


def svg(figure: str, results: Results) -> bytes:
    """The plot itself. gnuplot puts neither a date nor a path into it."""
    drawn = subprocess.run(["gnuplot"], input=script(figure, results).encode(), capture_output=True, check=True)
    return drawn.stdout


def script(figure: str, results: Results) -> str:
    """What gnuplot is told: a panel for each sort of grants, in it a bar for each case and backend.

    There must be a measurement.
    """
    sorts = {
        "persistent grants": _spreads(figure, results, persistent=True),
        "no persistent grants": _spreads(figure, results, persistent=False),
    }
    sorts = {title: spreads for title, spreads in sorts.items() if spreads}
    found = [spread for spreads in sorts.values() for row in spreads.values() for spread in row if spread]
    return SCRIPT.format(
        height=430 * len(sorts),
        # Whole decades, the same for both panels.
        bottom=10 ** math.floor(math.log10(min(spread.least for spread in found))),
        top=10 ** math.ceil(math.log10(max(spread.most for spread in found))),
        nr_panels=len(sorts),
        data="".join(_data(f"$data{index}", spreads) for index, spreads in enumerate(sorts.values())),
        panels="".join(
            _panel(f"$data{index}", f"{FIGURES[figure]}, {title} (logarithmic)", results.backends) for index, title in enumerate(sorts)
        ),
    )


def _spreads(figure: str, results: Results, *, persistent: bool) -> Spreads:
    """Of the cases that were measured."""
    spreads = {
        case.name: [results.spread(backend, case.name, figure, persistent=persistent) for backend in results.backends] for case in CASES
    }
    return {case: row for case, row in spreads.items() if any(row)}


def _data(block: str, spreads: Spreads) -> str:
    """A line for each case: its name, then median, least and most of each backend."""
    lines = []
    for case, row in spreads.items():
        # Narrow enough to stand below its bars.
        label = case.replace("iB ", "iB\\n", 1).replace(", ", "\\n")
        values = [f"{spread.median:g} {spread.least:g} {spread.most:g}" if spread else "NaN NaN NaN" for spread in row]
        lines.append(f'"{label}" {" ".join(values)}\n')
    return f"{block} << END\n{''.join(lines)}END\n"


def _panel(block: str, title: str, backends: list[str]) -> str:
    granary, other = cycle(GRANARY_COLOURS), cycle(OTHER_COLOURS)
    bars = []
    for index, backend in enumerate(backends):
        columns = ":".join(str(2 + 3 * index + value) for value in range(3))
        colour = next(granary if backend.startswith(GRANARY) else other)
        quoted = backend.replace("'", "''")
        bars.append(f"{block} using {columns}:xtic(1) title '{quoted}' linecolor '{colour}'")
    return f"set title '{title}'\nplot " + ", \\\n     ".join(bars) + "\n"
