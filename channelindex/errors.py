"""Defines every error that the project raises, sorted by what the caller must do about it.

A foreign exception (redis, socket, json) is wrapped at the edge where it enters, with the original as its cause.
Each branch names its exit code in `exits`; nothing below the command line calls `sys.exit`.
"""

from collections.abc import Mapping


class ChannelIndexError(Exception):
    """Base of all errors of this project; the message is one line for a person."""


class Transient(ChannelIndexError):
    """Nothing happened; the same call may succeed later. Retry with backoff until the deadline."""


class OutcomeUnknown(Transient):
    """The reply was lost, so the operation may have taken effect. Repeat it (it is idempotent) or re-read."""


class OwnershipLost(ChannelIndexError):
    """Another worker owns the partition now. Stop writing it and drop its buffers; never retry."""


class StaleEpoch(OwnershipLost):
    """A newer epoch of the partition exists; nothing was changed."""

    def __init__(self, partition: int, ours: int, current: int) -> None:
        super().__init__(f"partition {partition}: epoch {ours} is stale, the current one is {current}")
        self.partition = partition
        self.ours = ours
        self.current = current


class ConfigInvalid(ChannelIndexError):
    """A setting is wrong; a restart will not help. The message names the setting, its value and the fix."""


class ExtraMissing(ConfigInvalid, ImportError):
    """A package is missing that the request needs. The message names the extra that installs it."""

    def __init__(self, extras: str, module: str) -> None:
        super().__init__(f"{module} is not installed: pip install 'channelindex[{extras}]'")
        self.extras = extras


class AuthenticationFailed(ConfigInvalid):
    """Redis or the bucket refused our credentials."""


class SourceUnavailable(Transient):
    """The bucket cannot be reached or does not answer as it should."""


class StoreUnavailable(Transient):
    """The index store cannot be reached; nothing is known to have been written."""


class RequestTooLarge(StoreUnavailable):
    """The index store refused a request for its size; a smaller one may succeed."""


class CoordinationUnavailable(Transient):
    """The Redis that holds the leases cannot be reached."""


class ReaderClosed(ChannelIndexError):
    """A reader was asked after it had been closed."""

    def __init__(self) -> None:
        super().__init__("the reader is closed")


class ChangesForgotten(ChannelIndexError):
    """An index that holds only the newest changes was asked for older ones. Read on from *floor* to get what it has.

    `floor` is the clock, by vbucket, up to which it may have forgotten something of the channel.
    """

    def __init__(self, channel: str, floor: Mapping[int, int]) -> None:
        super().__init__(
            f"channel {channel!r}: since is older than the changes that index.store = memory:// retains of it; "
            "see index.memory_max_entries and index.memory_max_age_s"
        )
        self.channel = channel
        self.floor = dict(floor)


class RemovalsForgotten(ChangesForgotten):
    """Compaction dropped removals for their age that the holder of the token may not have got."""

    def __init__(self, channel: str, floor: Mapping[int, int]) -> None:
        ChannelIndexError.__init__(
            self,
            f"channel {channel!r}: since is older than compaction.removal_retention_s: removals after it were dropped; "
            "begin again without a token, and drop the documents that do not come",
        )
        self.channel = channel
        self.floor = dict(floor)


class OutputFailed(ChannelIndexError):
    """The result could not be written to standard output."""


class IndexMissing(ChannelIndexError):
    """There is no index of this name in the store."""


class KeyMissing(IndexMissing):
    """There is no such block, channel or partition in the index."""


class IndexMismatch(ConfigInvalid):
    """The index in the store has another format, shape or source bucket than we were configured for."""


class IndexCorrupt(ChannelIndexError):
    """Stored bytes fail their checksum or their layout. The message names the key."""


class BlockGone(IndexCorrupt):
    """A writer appended to a block of *channel* that is gone: compacted, if the channel ever was, else lost."""

    def __init__(self, message: str, channel: str) -> None:
        super().__init__(message)
        self.channel = channel


class TokenInvalid(ChannelIndexError):
    """A `since` token is garbled, of another index, made for other channels, or from a future not reached yet."""


class TokenAhead(TokenInvalid):
    """A `since` token is ahead of this index: of another one, or of a store that lost its newest writes and is caught
    up by its nodes within moments.
    """


class NotConfirmed(ChannelIndexError):
    """A person declined, or could not be asked for confirmation; nothing was changed."""


class InputInvalid(ChannelIndexError):
    """A file given by the user cannot be read or has a malformed line. The message names file and line."""


class NodeUnknown(InputInvalid):
    """No node of the name that was given is alive, or died not long ago. The message names those there are."""


class ProtocolError(ChannelIndexError):
    """The peer sent bytes that break the protocol; the connection must be closed."""


class InvariantBroken(ChannelIndexError):
    """The program contradicts itself. Crash this process; a person should look."""
