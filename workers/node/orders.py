"""Carries out what the keeper reports beyond the leases: worker counts that were ordered, and an alarm."""

import dataclasses

from channelindex import logs
from channelindex.config import Config
from coordinator.keeper_link import KeeperReport, Scale

UNOWNED_SLACK_S = 2.0
"""Time beyond the TTL that a partition may be without an owner before the alarm."""
ALARM_INTERVAL_S = 10.0

_log = logs.get("supervisor")


def scaled(config: Config, scale: Scale | None) -> Config:
    """Return *config* with the worker counts that an operator ordered."""
    if scale is None:
        return config
    return dataclasses.replace(config, workers=dataclasses.replace(config.workers, **scale._asdict()))


class UnownedAlarm:
    """Logs that partitions have had no owner for longer than any take-over lasts, and when that is over."""

    def __init__(self, ttl_s: float) -> None:
        self._after_s = ttl_s + UNOWNED_SLACK_S
        self._next_at = 0.0
        self._raised = False

    def check(self, held: KeeperReport, now: float) -> None:
        """Log what the keeper's newest report is worth an alarm for."""
        overdue = {partition: age_s for partition, age_s in held.unowned.items() if age_s > self._after_s}
        if overdue and now >= self._next_at:
            self._next_at = now + ALARM_INTERVAL_S
            oldest_s = max(overdue.values())
            _log.error("partitions.unowned", partitions=sorted(overdue), for_s=round(oldest_s, 1))
        elif self._raised and not overdue:
            self._next_at = 0.0
            _log.info("partitions.owned", msg="every partition has an owner again")
        self._raised = bool(overdue)
