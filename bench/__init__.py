"""What the project costs over the libraries it stands on: `python -m bench`, explained in docs/benchmarks.md."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The servers are the tests' own.
sys.path.insert(1, str(ROOT / "tests"))
