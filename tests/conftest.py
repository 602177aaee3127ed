"""What holds in all tests: hypothesis draws the same examples, and the user's cache is left alone."""

import atexit
import os
import shutil
import tempfile

from hypothesis import HealthCheck, settings

settings.register_profile(
    # No clock: cores may be shared.
    "lorafold",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("lorafold")

# One for each process of pytest, so that none removes what another one keeps.
_CACHE = tempfile.mkdtemp(prefix="lorafold-tests-cache-")
os.environ["LORAFOLD_CACHE"] = _CACHE
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
