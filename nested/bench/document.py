"""docs/benchmarks.md and what belongs to it, as results make them."""

import shutil
import sys
from pathlib import Path

from . import plots, tables
from .results import Results

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"
FOLDER = REPOSITORY / "docs" / "benchmarks"
RESULTS = FOLDER / "results.json"
"""What the document was made of."""

BEGIN, END = "<!-- scripts/bench writes from here -->\n", "<!-- to here -->\n"


def need_gnuplot() -> None:
    """Ends the program where the plots could not be drawn."""
    if shutil.which("gnuplot") is None:
        sys.exit("bench: no gnuplot. To get it: apt-get install gnuplot-nox")


def report(results: Results) -> str:
    """Every table, as Markdown."""
    return f"{_summary(results)}\n{_details(results)}"


def section(results: Results) -> str:
    """What stands between the document's markers."""
    images = "".join(f"![{figure} by case and backend]({FOLDER.name}/{name})\n" for figure, name in plots.PLOTS.items())
    return f"{_summary(results)}\n### Plots\n\n{images}\n{_details(results)}"


def _summary(results: Results) -> str:
    noisy = f"{tables.NOISY}\n" if results.clock != "instructions" else ""
    return f"{noisy}{tables.method(results)}\n### What it has to reach\n\n{tables.goals(results)}"


def _details(results: Results) -> str:
    return f"### Every figure\n\n{tables.figures(results)}\n### Apart from loads\n\n{tables.facts(results)}"


def written(text: str, results: Results) -> str:
    """The document's text with these results in their place."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"bench: {DOCUMENT.relative_to(REPOSITORY)} has no place for the figures")
    return f"{before}{BEGIN}{section(results)}{END}{after}"


def update(results: Results) -> None:
    """Writes the document, the plots and the results that they are of."""
    DOCUMENT.write_text(written(DOCUMENT.read_text(), results))
    results.save(RESULTS)
    for figure, name in plots.PLOTS.items():
        (FOLDER / name).write_bytes(plots.svg(figure, results))
