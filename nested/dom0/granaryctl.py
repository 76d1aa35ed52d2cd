"""scripts/granaryctl as a module. It is one file, so that it can be copied anywhere, and has no .py."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

_loader = SourceFileLoader("granaryctl", str(Path(__file__).resolve().parents[2] / "scripts" / "granaryctl"))
granaryctl = module_from_spec(spec_from_loader(_loader.name, _loader))
_loader.exec_module(granaryctl)
