"""How property tests run: the same examples each time, whatever the machine is doing meanwhile.

    python -m pytest --hypothesis-profile=explore tests/sources

looks for new ones, five times as many; what it finds becomes a test of its own, or an `@example`.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A machine shared with the live tests has slow moments; hangs are what pytest's own timeout is for.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "explore", deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("steady")
