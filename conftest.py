"""Settings of all tests, here and in ``plugins/``."""

import os

# The models of the tests are tiny: threads that wait for each other cost more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")
