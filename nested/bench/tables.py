"""Results as Markdown."""

from collections import Counter
from collections.abc import Iterable

from .cases import CASES
from .goals import DRIVER_DOMAIN, Verdict, grants, verdicts
from .results import DERIVED, FACTS, FIGURES, GRANARY, Results, Spread

NOT_MEASURED = "–"

NOISY = (
    "> **NOISY: measured by the wall's clock.** These figures depend on what else the machine did, an emulated\n"
    "> exit takes far longer than a real one, and what is called an instruction is a nanosecond of CPU time. They\n"
    "> prove nothing; the exact figures are those of `scripts/bench` without `--clock`.\n"
)


def number(value: float) -> str:
    """Three digits at least, thousands apart."""
    decimals = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{decimals}f}"


def spread(measured: Spread | None) -> str:
    """The median, with least and most where they say anything else: "1,877 (1,870–1,902)"."""
    if measured is None:
        return NOT_MEASURED
    least, median, most = number(measured.least), number(measured.median), number(measured.most)
    return median if least == median == most else f"{median} ({least}–{most})"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], alignments: str) -> str:
    """A table of Markdown; of `alignments` each letter is a column's: l or r."""
    first, *others = [f"| {' | '.join(cells)} |\n" for cells in (head, *rows)]
    marks = ["---" if alignment == "l" else "--:" for alignment in alignments]
    return f"{first}|{'|'.join(marks)}|\n{''.join(others)}"


def goals(results: Results) -> str:
    """Granary beside Linux: a sentence that counts, what was missed, and each figure."""
    found = list(verdicts(results))
    met, missed, unknown = ([one for one in found if one.met is verdict] for verdict in (True, False, None))
    says = f"{len(met)} of {len(found)} figures are met, {len(missed)} missed, {len(unknown)} not measured."
    if missed:
        says += " **Missed:**\n\n" + "".join(f"- {one.what}: {_ratio(one)}, should be {_bound(one)}\n" for one in missed)
    else:
        says += "\n"
    head = ["Figure", "Goal", results.granary or GRANARY, "Linux", "Ratio", ""]
    return says + "\n" + table(head, [_verdict(one) for one in found], "llrrrl")


def figures(results: Results) -> str:
    """A table for each figure and sort of grants: cases by backends."""
    sections = []
    for figure, title in {**FIGURES, **DERIVED}.items():
        for persistent in (True, False):
            if text := _figure(results, figure, persistent=persistent):
                sections.append(f"{title[0].upper()}{title[1:]}, {grants(persistent=persistent)}:\n\n{text}")
    return "\n".join(sections)


def facts(results: Results) -> str:
    """What was measured apart from loads: facts by backends."""
    backends = list(dict.fromkeys(fact.backend for fact in results.facts))
    rows = [[says, *(spread(results.fact(backend, name)) for backend in backends)] for name, says in FACTS.items()]
    return table(["", *backends], rows, "l" + "r" * len(backends)) if backends else ""


def method(results: Results) -> str:
    """What the figures were measured of."""
    of = " and ".join(f"{name} {text}" for name, text in results.versions.items())
    counts = Counter((sample.backend, sample.persistent, sample.case) for sample in results.samples if "iops" in sample.figures)
    repetitions = max(counts.values(), default=0)
    return f"Measured with {of or 'unknown versions'}; medians of {repetitions}, in brackets the least and the most.\n"


def _figure(results: Results, figure: str, *, persistent: bool) -> str:
    """One table; nothing where nothing was measured."""
    measured = {
        (backend, case.name): found
        for backend in results.backends
        for case in CASES
        if (found := results.spread(backend, case.name, figure, persistent=persistent))
    }
    backends = [backend for backend in results.backends if any(key[0] == backend for key in measured)]
    cases = [case.name for case in CASES if any(key[1] == case.name for key in measured)]
    rows = [[case, *(spread(measured.get((backend, case))) for backend in backends)] for case in cases]
    return table(["", *backends], rows, "l" + "r" * len(backends)) if measured else ""


def _verdict(one: Verdict) -> list[str]:
    ratio = "" if one.reference is None else _ratio(one)
    word = {True: "met", False: "**missed**", None: "not measured"}[one.met]
    return [one.what, _bound(one), spread(one.granary), spread(one.theirs) if one.reference else "", ratio, word]


def _bound(one: Verdict) -> str:
    sign = "≤" if one.bound == "at most" else "≥"
    if one.reference is None:
        return f"{sign} {number(one.factor)}"
    return f"{sign} {one.factor:g}×" + ("" if one.reference == DRIVER_DOMAIN else f" {one.reference}")


def _ratio(one: Verdict) -> str:
    """What is held against the bound."""
    if one.reference is None and one.granary:
        return number(one.granary.median)
    return NOT_MEASURED if one.ratio is None else f"{one.ratio:.3f}×"
