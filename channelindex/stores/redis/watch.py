"""Has Redis say which channels have changed since they were read (docs/design/019-channel-watch.md).

Redis remembers what a connection that tracks has read, and names each key once, on a second connection, when it is
changed. Messages come in the order of the changes, and an answer after those that were sent before it: so after a PING
all is known that was changed before it.
"""

from typing import NoReturn

from channelindex.errors import AuthenticationFailed, InvariantBroken, StoreUnavailable
from channelindex.redis.link import ServerLink
from channelindex.stores.base import IndexReader
from channelindex.stores.redis.keys import SETTING, Keys

_INVALIDATIONS = "__redis__:invalidate"


class RedisWatch:
    """`ChannelWatch` of an index in one Redis.

    *reader* reads by *link*; neither that nor *messages* reconnects unasked: what was watched ends with them.

    Raises:
        AuthenticationFailed, InvariantBroken: this server does not let us, or cannot.
        StoreUnavailable: it is away.
    """

    def __init__(self, reader: IndexReader, link: ServerLink, messages: ServerLink, keys: Keys) -> None:
        self.reader = reader
        self._link = link
        self._messages = messages
        self._keys = keys
        self._counter: int | None = None
        self._n_early = 0
        """Messages about the stable counter that came before we read that it had changed: 1 or none."""
        client = messages.execute("CLIENT", "ID")
        messages.execute("SUBSCRIBE", _INVALIDATIONS)
        link.execute("CLIENT", "TRACKING", "ON", "REDIRECT", client)
        messages.messages()  # may we PING?
        self._sessions = link.session, messages.session

    @property
    def is_whole(self) -> bool:
        """See `ChannelWatch.is_whole`."""
        return self._sessions == (self._link.session, self._messages.session)

    def changed(self, counter: int) -> set[str] | None:
        """See `ChannelWatch.changed`.

        Each read of the counter is one of a watched key, too. So for each that finds it changed there is a message, or
        nothing that it reports may be believed.
        """
        now = self.reader.stable_counter()
        before = counter if self._counter is None else self._counter
        if not before <= counter <= now:
            self._fail(f"its stable counter was {before} and is {now}, and others read {counter}: from another server")
        keys = self._changed_keys()
        has_moved = self._counter is not None and self._counter != now
        self._counter = now
        self._n_early += keys.count(self._keys.stable.encode()) - has_moved
        if self._n_early < 0:
            return None
        self._n_early = min(1, self._n_early)
        return {channel for key in keys if (channel := self._channel_of(key)) is not None}

    def _changed_keys(self) -> list[bytes]:
        keys: list[bytes] = []
        for _, _, named in self._messages.messages():
            if not isinstance(named, list):
                self._fail("it was emptied")
            keys += named
        return keys

    def _channel_of(self, key: bytes) -> str | None:
        channel = self._keys.channel_of(key)
        if channel is not None:
            return channel
        block = self._keys.block_of(key)
        return block.channel if block is not None else None

    def _fail(self, why: str) -> NoReturn:
        self.close()
        raise StoreUnavailable(f"{SETTING} {self._link.where}: {why}")

    def close(self) -> None:
        """See `ChannelWatch.close`."""
        self.reader.close()
        self._messages.close()


def begin_watch(reader: IndexReader, link: ServerLink, messages: ServerLink, keys: Keys) -> RedisWatch | None:
    """Begin a watch; None where Redis cannot do that, or does not let us. See `RedisWatch`.

    Raises:
        StoreUnavailable: Redis is away.
    """
    try:
        return RedisWatch(reader, link, messages, keys)
    except (AuthenticationFailed, InvariantBroken):
        reader.close()
        messages.close()
        return None
