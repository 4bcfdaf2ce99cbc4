"""What holds for every test."""

from hypothesis import settings

# A shared or slow machine is no failure: pytest-timeout bounds a test as a whole. All else stays as hypothesis has it:
# the same examples in every run where CI is set, new ones elsewhere.
settings.register_profile("unspool", deadline=None)
settings.load_profile("unspool")
