"""Carries out what the keeper reports beyond the leases: worker counts that were ordered, trouble, and an alarm."""

import dataclasses

from channelindex import exits, logs
from channelindex.config import Config
from coordinator.keeper_link import KeeperReport, Scale, Trouble

UNOWNED_SLACK_S = 2.0
"""Time beyond the TTL that a partition may be without an owner before the alarm."""
ALARM_INTERVAL_S = 10.0
TROUBLE_INTERVAL_S = 30.0
"""Time after which trouble that lasts is logged again: who looks at the end of a log should see it."""

_log = logs.get("supervisor")


def scaled(config: Config, scale: Scale | None) -> Config:
    """Return *config* with the worker counts that an operator ordered."""
    if scale is None:
        return config
    return dataclasses.replace(config, workers=dataclasses.replace(config.workers, **scale._asdict()))


class TroubleLog:
    """Logs that the leases cannot be renewed and why, again while it lasts, and when it is over."""

    def __init__(self) -> None:
        self._code = exits.OK
        self._next_at = 0.0

    def note(self, trouble: Trouble | None, now: float) -> None:
        """Log what the keeper's newest report is worth a line for."""
        if trouble and (trouble.exit_code != self._code or now >= self._next_at):
            self._next_at = now + TROUBLE_INTERVAL_S
            _log.warning("leases.trouble", msg=trouble.message)
        elif self._code and not trouble:
            _log.info("leases.recovered", msg="the leases are renewed again")
        self._code = trouble.exit_code if trouble else exits.OK


class UnownedAlarm:
    """Logs that partitions have had no owner for longer than any take-over lasts, and when that is over."""

    def __init__(self, ttl_s: float) -> None:
        assert ttl_s > 0
        self._after_s = ttl_s + UNOWNED_SLACK_S
        self._next_at = 0.0
        self._raised = False

    def check(self, report: KeeperReport, now: float) -> None:
        """Log what the keeper's newest report is worth an alarm for."""
        overdue = {partition: age_s for partition, age_s in report.unowned.items() if age_s > self._after_s}
        if overdue and now >= self._next_at:
            self._next_at = now + ALARM_INTERVAL_S
            oldest_s = max(overdue.values())
            _log.error("partitions.unowned", partitions=sorted(overdue), for_s=round(oldest_s, 1))
        elif self._raised and not overdue:
            self._next_at = 0.0
            _log.info("partitions.owned", msg="every partition has an owner again")
        self._raised = bool(overdue)
