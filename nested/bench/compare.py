"""Two runs of the same, before a change and after it."""

from .cases import CASES
from .goals import grants
from .results import DERIVED, FIGURES, Results, Spread
from .tables import spread


def difference(before: Results, after: Results) -> str:
    """For each load the figures of both, and by how much the median has changed."""
    lines = [
        f"{name} was {before.versions[name]}, is {text}: what differs below may come from that"
        for name, text in after.versions.items()
        if text != before.versions.get(name, text)
    ]
    for persistent in (True, False):
        for case in CASES:
            for backend in after.backends:
                lines += _load(before, after, backend, case.name, persistent=persistent)
    return "".join(f"{line}\n" for line in lines)


def _load(before: Results, after: Results, backend: str, case: str, *, persistent: bool) -> list[str]:
    """A load's lines; none where it was not measured."""
    lines = []
    for figure in [*FIGURES, *DERIVED]:
        is_ = after.spread(backend, case, figure, persistent=persistent)
        was = before.spread(backend, case, figure, persistent=persistent)
        if is_:
            lines.append(f"    {figure:22} {_change(was, is_)}")
    return [f"{backend}, {grants(persistent=persistent)}, {case}", *lines] if lines else []


def _change(was: Spread | None, is_: Spread) -> str:
    """ "1,877 (1,870–1,902), was 1,950 (1,948–1,955): -3.7 %"."""
    if was is None:
        return f"{spread(is_)}, was not measured"
    says = f"{spread(is_)}, was {spread(was)}"
    if was == is_:
        return f"{says}: the same"
    if was.median:
        says += f": {100 * (is_.median - was.median) / was.median:+.1f} %"
    overlap = is_.least <= was.most and was.least <= is_.most
    return f"{says}, within the spread" if overlap else says
