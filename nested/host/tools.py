"""Builds the lab's own programs for guests: nested/io, as a file that needs no library."""

import os
import subprocess
from pathlib import Path

from .roots import REPOSITORY

TARGET = "x86_64-unknown-linux-gnu"
OPTIONS = [
    f'target.{TARGET}.rustflags=["-Ctarget-feature=+crt-static"]',
    "profile.release.strip=true",
]


def lab_io() -> Path:
    """The program, built if it is not or its source has changed."""
    configs = [word for option in OPTIONS for word in ("--config", option)]
    command = ["cargo", "build", "--quiet", "--release", "--package", "lab-io", "--target", TARGET, *configs]
    # RUSTFLAGS would replace the target's flags.
    environment = {name: value for name, value in os.environ.items() if name != "RUSTFLAGS"}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    return REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target") / TARGET / "release" / "lab-io"
