"""What every test shares."""

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("harness")  # what it compares for tests says what it found

# Deadlines measure the machine's other load, not the code; pytest's own time-out is enough.
settings.register_profile("asyncdiff", deadline=None)
settings.load_profile("asyncdiff")
