"""How the threads of torch and llama.cpp wait for each other, and how many they are.

Both compute with OpenMP. A thread that has finished its part waits by spinning: GNU's library (libgomp) goes
round 300,000 times, which takes milliseconds, before it sleeps. If the machine has other work to do, the core
that spins is the core that the other threads need: training became several times slower. A hundredth of that
still outlasts the gap between two operations (figures: docs/log.md; `tools/bench_load.py` measures them).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from lorafold.machine import cores, cores_seen

SPINS = 3000  # rounds of libgomp's waiting loop: 0.03 ms, where 300,000 take 3.4 ms
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
