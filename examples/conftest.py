"""Make the example plugins importable in their own tests, which run without installing them."""

import sys
from pathlib import Path

sys.path += [str(file.parent) for file in sorted(Path(__file__).parent.glob("*/pyproject.toml"))]
