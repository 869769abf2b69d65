"""The exit codes of every command, and which error leads to which.

The systemd unit lists those that no restart can cure in RestartPreventExitStatus, `CONFIG` and `AUTH` among them.
"""

from channelindex import errors

OK = 0
DIFFERENCES = 1  # verify, compare, demo or quarantine retry: the index is not what the bucket says
USAGE = 2  # argparse's own
CONFIG = 64
INPUT = 65
MISSING = 66
OUTPUT = 67
UNKNOWN = 68  # a reply was lost, or others were faster; to be asked for again
SOURCE = 69
STORE = 70
COORDINATION = 71
MISMATCH = 72
CORRUPT = 73
TOKEN = 74
DRAIN_TIMEOUT = 75  # a stopping node was not done in time and left the rest to its successor
FORGOTTEN = 76
AUTH = 77
INTERNAL = 78
INTERRUPTED = 130

_CODE_BY_ERROR: tuple[tuple[type[errors.ChannelIndexError], int], ...] = (
    (errors.AuthenticationFailed, AUTH),
    (errors.IndexMismatch, MISMATCH),
    (errors.ConfigInvalid, CONFIG),
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
