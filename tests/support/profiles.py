"""Hypothesis profiles: how many examples a property is shown, by the variable HYPOTHESIS_PROFILE.

A property does not name a number of its own; one whose examples are dear takes a share of the profile's.
"""

import os

from hypothesis import HealthCheck, settings

MAX_EXAMPLES = {"dev": 25, "ci": 100, "nightly": 5000}


def load_profile() -> None:
    """Put the named profile in force: `ci` where CI is set, else `dev`, unless HYPOTHESIS_PROFILE says another."""
    for name, max_examples in MAX_EXAMPLES.items():
        settings.register_profile(
            name,
            max_examples=max_examples,
            deadline=None,  # a busy machine is no finding
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow],
        )
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


def examples(share: float) -> int:
    """*share* of the examples of the profile in force, at least two."""
    return max(2, round(settings().max_examples * share))
