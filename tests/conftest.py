"""What every test shares."""

from hypothesis import settings

# Deadlines measure the machine's other load, not the code; pytest's own time-out is enough.
settings.register_profile("asyncdiff", deadline=None)
settings.load_profile("asyncdiff")
