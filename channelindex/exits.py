"""The exit codes of every command, what each means, and which error leads to which.

The systemd unit lists those that no restart can cure in RestartPreventExitStatus, `CONFIG` and `AUTH` among them.
"""

from channelindex import errors

OK = 0
DIFFERENCES = 1
USAGE = 2
CONFIG = 64
INPUT = 65
MISSING = 66
OUTPUT = 67
UNKNOWN = 68
SOURCE = 69
STORE = 70
COORDINATION = 71
MISMATCH = 72
CORRUPT = 73
TOKEN = 74
DRAIN_TIMEOUT = 75
FORGOTTEN = 76
AUTH = 77
INTERNAL = 78
NAME_TAKEN = 79
INTERRUPTED = 130

MEANING_BY_CODE = {
    OK: "done",
    DIFFERENCES: "`verify`, `compare`, `demo`, `status --check` or `quarantine retry` found the index to be wrong",
    USAGE: "the arguments make no sense",
    CONFIG: "a setting is wrong",
    INPUT: "an argument or a line of a given file cannot be used, or the file cannot be read",
    MISSING: "there is no index of this name in the store, nothing in it by this key, no node of this name, or none",
    OUTPUT: "standard output cannot be written, for example because a disk is full",
    UNKNOWN: "a reply was lost, so it may have happened, or others were faster: give the same command again",
    SOURCE: "the bucket cannot be reached or does not answer as it should",
    STORE: "the index store cannot be reached",
    COORDINATION: "the Redis of the leases cannot be reached",
    MISMATCH: "the index has another format or shape, or is of another bucket",
    CORRUPT: "stored bytes are damaged",
    TOKEN: "a `since` token is garbled, of another index or other channels, or from the future",
    DRAIN_TIMEOUT: "a stopping node was not done in time and left the rest to its successor",
    FORGOTTEN: "`since` is older than what a `memory://` index holds, or than removals that compaction dropped",
    AUTH: "bucket or Redis refused our credentials",
    INTERNAL: "a fault of this program",
    NAME_TAKEN: "another node of the same `node.name` is alive",
    INTERRUPTED: "ended by Ctrl-C, by a second signal, or by not saying yes",
}
"""Every exit code of `channelindex` with its meaning, ascending; the manual and docs/commands.md print it."""

_CODE_BY_ERROR: tuple[tuple[type[errors.ChannelIndexError], int], ...] = (
    (errors.AuthenticationFailed, AUTH),
    (errors.IndexMismatch, MISMATCH),
    (errors.ConfigInvalid, CONFIG),
    (errors.NodeUnknown, MISSING),
    (errors.InputInvalid, INPUT),
    (errors.OutputFailed, OUTPUT),
    (errors.NotConfirmed, INTERRUPTED),
    (errors.IndexMissing, MISSING),
    (errors.IndexCorrupt, CORRUPT),
    (errors.TokenInvalid, TOKEN),
    (errors.ChangesForgotten, FORGOTTEN),
    (errors.SourceUnavailable, SOURCE),
    (errors.ProtocolError, SOURCE),
    (errors.StoreUnavailable, STORE),
    (errors.CoordinationUnavailable, COORDINATION),
    (errors.Transient, UNKNOWN),
)


def code_for(error: errors.ChannelIndexError) -> int:
    """The exit code of the most specific class in the table that *error* is an instance of."""
    for kind, code in _CODE_BY_ERROR:
        if isinstance(error, kind):
            return code
    return INTERNAL
