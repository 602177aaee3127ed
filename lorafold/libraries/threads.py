"""How the threads of torch and llama.cpp wait for each other, and how many they are.

Both compute with OpenMP. A thread that has finished its part waits by spinning: GNU's library (libgomp) goes
round 300,000 times, about 17 ms, before it sleeps. On an idle machine that is the fastest way. If other work
is there, the core that spins is the core that the others wait for: training became 14 times slower at a load
of 10. A short wait keeps nearly all of the first and avoids the second (figures: docs/log.md).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from lorafold.machine import cores, cores_seen

SPINS = 3000  # rounds of libgomp's waiting loop, some 0.1 ms: longer than the gaps between two operations
# What a user may have set, by which the question is settled.
_SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def share_processor(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how OpenMP's threads wait, and as many of them as a container's quota allows.

    libgomp reads its settings when it is loaded, so this is called before torch and llama.cpp are imported.

    Args:
        environment: is changed; what the user has set in it stays.
    """
    if not any(name in environment for name in _SET_BY_USER):
        environment["GOMP_SPINCOUNT"] = str(SPINS)
    if cores() < cores_seen():
        environment.setdefault("OMP_NUM_THREADS", str(cores()))
