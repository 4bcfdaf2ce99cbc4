"""Refuse files over 4 MB, the most that a trained artefact in the repository may weigh."""

import sys
from pathlib import Path

LIMIT = 4 * 1024 * 1024

too_large = [(name, size) for name in sys.argv[1:] if (size := Path(name).stat().st_size) > LIMIT]
for name, size in too_large:
    print(f"{name}: {size / 2**20:.1f} MB; the limit is {LIMIT / 2**20:.0f} MB")
sys.exit(bool(too_large))
