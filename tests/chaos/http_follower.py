"""Readers that follow an index over HTTP, each with a token of its own, by `channelindex serve`.

What they are told has no vbucket and no seqno, and may come twice: they are judged by what they believe at the end.
"""

import http.client
import json
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from channelindex import exits
from tests.chaos.record import NOWHERE, Reader, Told
from tests.chaos.watch import Watch
from tests.support.running import cli
from tests.support.served import Service

HEARTBEAT_MS = 1000
LONGPOLL_MS = 2000
RETRY_S = 0.2
CATCH_UP_S = 120.0
"""How long the service may be away at the end: what is there must still be told."""

_Rows = dict[str, Any]


class Followed(NamedTuple):
    """A service, and the file of the tokens that it knows."""

    service: Service
    tokens: Path

    @classmethod
    def of(cls, folder: Path, store_url: str, settings: Mapping[str, object]) -> "Followed":
        """A service that is not started, of the index in a store; *settings* are those of nodes."""
        tokens = folder / "tokens"
        tokens.touch(mode=0o600)
        flat = {name.replace("__", "_"): value for name, value in settings.items()}
        service = Service(folder, store_url, "channels", serve_tokens_file=tokens, **flat)
        return cls(service, tokens)

    def new_token(self, channel: str) -> str:
        """A token that may read one channel."""
        made = cli("token", "new", f"follower-{time.monotonic_ns()}", "--file", self.tokens, "--channels", channel)
        assert made.returncode == exits.OK, made.stderr
        return made.stdout.strip()


class HttpFollower(Watch):
    """Follows one channel by one kind of feed, until it is asked to stop; then it reads what is left."""

    def __init__(self, reader: Reader, service: Service, token: str, feed: str) -> None:
        super().__init__(reader.name)
        self.reader = reader
        self.told: list[Told] = []
        self._service = service
        self._token = token
        self._follow: Callable[[], None] = {"continuous": self._stay, "longpoll": self._poll}[feed]
        self._since = "0"

    def watch(self) -> None:
        """See `Watch`."""
        while not self.stop_asked.is_set():
            if not self._is_done(self._follow):
                self.stop_asked.wait(RETRY_S)
        deadline = time.monotonic() + CATCH_UP_S
        while not self._is_done(self._read_rest):
            assert time.monotonic() < deadline, f"{self.name}: the service did not come back"
            time.sleep(RETRY_S)

    def _is_done(self, act: Callable[[], None]) -> bool:
        """Carry out *act*; False if the answer broke off, or there was none. What broke off is asked for again."""
        try:
            act()
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return False
        return True

    def _stay(self) -> None:
        with self._service.open(
            token=self._token,
            channels=self.reader.channel,
            since=self._since,
            feed="continuous",
            heartbeat=HEARTBEAT_MS,
        ) as stream:
            self._check(stream.status, stream.rest if stream.status != HTTPStatus.OK else bytes)
            while not self.stop_asked.is_set():
                line = stream.line()
                if not line and stream.has_ended:
                    return
                if line:
                    self._note(json.loads(line))

    def _poll(self) -> None:
        self._read(feed="longpoll", timeout=LONGPOLL_MS)

    def _read_rest(self) -> None:
        self._read(feed="normal")

    def _read(self, **parameters: Any) -> None:
        asked = {"channels": self.reader.channel, "since": self._since, **parameters}
        answer = self._service.changes(token=self._token, **asked)
        self._check(answer.status, lambda: answer.body)
        whole = answer.json  # what parses is whole
        for row in whole["results"]:
            self._note(row)
        self._since = whole["last_seq"]

    def _check(self, status: int, body: Callable[[], bytes]) -> None:
        """Go on with an answer; one that may be given later is as good as none."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise http.client.HTTPException(f"{status}")
        assert status == HTTPStatus.OK, f"{self.name}: {status} {body()!r} for since={self._since}"

    def _note(self, row: _Rows) -> None:
        if "id" not in row:
            self._since = row["last_seq"]
            return
        (change,) = row["changes"]
        removed, deleted = bool(row.get("removed")), row.get("deleted", False)
        at, channel = time.monotonic(), self.reader.channel
        withdrawn = row.get("withdrawn", False)
        self.told.append(
            Told(self.name, at, channel, row["id"], change["rev"], NOWHERE, 0, removed, deleted, -1, withdrawn)
        )
        self._since = row["seq"]
