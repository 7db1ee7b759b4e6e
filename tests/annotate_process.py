"""`sepo-annotate` in its own process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command with these arguments, on one thread."""
    return subprocess.run(
        [sys.executable, "-m", "sepo_cli.annotate", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
