"""What holds for every test."""

import os

from hypothesis import settings

from unspool.models.storage import cache_dir

# Tests with a cache of their own use the kernels that this machine has compiled already.
os.environ.setdefault("UNSPOOL_KERNELS", str(cache_dir() / "native"))

# A shared or slow machine is no failure: pytest-timeout bounds a test as a whole. All else stays as hypothesis has it:
# the same examples in every run where CI is set, new ones elsewhere.
settings.register_profile("unspool", deadline=None)
settings.load_profile("unspool")
