"""How hypothesis works in all tests: the same examples each time, and no clock, since cores may be shared."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "lorafold", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lorafold")
