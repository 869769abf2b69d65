"""`channelindex quarantine`: lists the documents that could not be decoded, and retries them."""

import argparse
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from channelindex import exits
from channelindex.checking.quarantine import clock_before, fed_again, named, newest_of_each, outdated, still_undecodable
from channelindex.checking.rewind import Rewound, requester, rewind_partitions
from channelindex.config import REQUIRED_TO_READ, Config
from channelindex.errors import ConfigInvalid, InputInvalid, KeyMissing
from channelindex.reading.query import document_id
from channelindex.settings import MEMORY_URL
from channelindex.stores import open_owner, open_reader
from channelindex.stores.base import IndexReader, Quarantined
from channelindex.stores.records import QUARANTINE_DOCUMENTS
from coordinator.lock import job_lock
from workers.cli import options, output, rewind

_JOB = "quarantine retry"
_DEFAULT_LIMIT = 50

_EPILOG = f"""\
example:
  channelindex quarantine list --limit 20
  channelindex quarantine show order::1207
  channelindex quarantine retry order::1207 291:8811
  channelindex quarantine retry --all --yes

A document that cannot be decoded is in no channel. It is decoded again when it
is saved again; its record here stays until it is retried or displaced by {QUARANTINE_DOCUMENTS}
newer ones. Bodies are neither kept nor shown.

retry is for documents that are not at fault: damage in transit, or a decoder
that has been fixed (restart the nodes with it first). It rewinds the vbuckets of
these documents to just before them, and waits for the running nodes. Nothing is
written to the bucket. Exit code 1: some of them still cannot be decoded, or with
--all the quarantine was full, so that older documents may be forgotten: then
`rebuild`. With index.store = memory://, restart the node instead.

{rewind.READERS_MEANWHILE}
"""

_ADVICE = """\
If the document is malformed, fix and save it: it is then decoded again.
If the fault was elsewhere and is fixed: channelindex quarantine retry"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=tuple(_ACTIONS), help="list all, show some in full, or retry some")
    parser.add_argument("documents", nargs="*", default=(), metavar="KEY", help="a document's key, or VBUCKET:SEQNO")
    parser.add_argument("--all", action="store_true", help="show or retry all documents in quarantine")
    parser.add_argument(
        "--limit",
        type=options.positive,
        default=_DEFAULT_LIMIT,
        metavar="N",
        help="list the newest N (default: %(default)s)",
    )
    rewind.add_rewind_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    config = options.config_of(args, REQUIRED_TO_READ)
    with closing(open_reader(config.index, config.node.run_dir)) as store:
        store.meta()
        return _ACTIONS[args.action](config, store, args)


def _list(_config: Config, store: IndexReader, args: argparse.Namespace) -> int:
    if args.documents:
        raise InputInvalid("list takes no documents; show does")
    total, records = store.quarantined(QUARANTINE_DOCUMENTS)
    documents = newest_of_each(records)
    shown = [_as_dict(each) for each in documents[: args.limit]]
    if args.json:
        output.json_line({"total": total, "documents": len(documents), "newest": shown})
        return exits.OK
    if not documents:
        output.line("no document is in quarantine" + (f"; {total} records were written in all" if total else ""))
    else:
        output.line(f"{len(documents)} documents, the newest {len(shown)} of them; {total} records were written in all")
        output.table(list(shown[0]), [list(each.values()) for each in shown])
    return exits.OK


def _show(_config: Config, store: IndexReader, args: argparse.Namespace) -> int:
    _, records = store.quarantined(QUARANTINE_DOCUMENTS)
    for each in _chosen(records, args):
        if args.json:
            output.json_line(_as_dict(each))
            continue
        for name, value in _as_dict(each).items():
            output.line(f"{name + ':':<8}{value}")
        output.line("")
    if not args.json:
        output.paragraph(_ADVICE)
    return exits.OK


def _retry(config: Config, store: IndexReader, args: argparse.Namespace) -> int:
    if config.index.store == MEMORY_URL:
        raise ConfigInvalid(
            "index.store = memory:// is indexed anew whenever its node starts: restart the node instead"
        )
    _, records = store.quarantined(QUARANTINE_DOCUMENTS)
    chosen = _chosen(records, args)
    if chosen and not args.yes:
        rewind.confirm(f"retry {len(chosen)} documents of index {config.index.name!r}?")
    rewound = _rewind(config, store, chosen)
    retried = fed_again(chosen, rewound)
    if not args.json:
        output.line(f"{len(retried)} of {len(chosen)} documents are fed again; the others are above the stable clock")
    is_back = not args.no_wait and rewind.wait_until_stable(store, rewound)
    is_full = args.all and len(records) >= QUARANTINE_DOCUMENTS
    records = store.quarantined(QUARANTINE_DOCUMENTS)[1] if is_back else []
    failed = still_undecodable(retried, records, rewound)
    _print_outcome(args, retried, failed, is_back)
    if is_full and not args.json:
        output.line(
            f"the quarantine was full ({QUARANTINE_DOCUMENTS} records): older ones may be forgotten, of documents that "
            "were not retried; channelindex rebuild indexes all anew"
        )
    return exits.DIFFERENCES if failed or is_full else exits.OK


def _rewind(config: Config, store: IndexReader, chosen: Sequence[Quarantined]) -> list[Rewound]:
    """Rewind the vbuckets of *chosen* to before these documents, and remove the records that this makes outdated.

    In this order, an interruption between the two leaves outdated records, but forgets no document.
    """
    clock = clock_before(chosen)
    assert all(seqno >= 0 for seqno in clock.values()), "0 is before the first document"
    width = store.meta().partition_width
    partitions = sorted({vb // width for vb in clock})
    with (
        closing(open_owner(config.index)) as owner,
        job_lock(config.coordination.redis, config.index.name, _JOB.replace(" ", "-")),
    ):
        _, records = store.quarantined(QUARANTINE_DOCUMENTS)  # before: records added from now on are new
        rewound = list(rewind_partitions(owner, store, partitions, clock, requester(_JOB)))
        owner.forget_quarantined(outdated(records, rewound))
    return rewound


def _print_outcome(
    args: argparse.Namespace, retried: Sequence[Quarantined], failed: Sequence[Quarantined], is_back: bool
) -> None:
    if args.json:
        output.json_line({"retried": len(retried), "back": is_back, "undecodable": [_as_dict(each) for each in failed]})
    elif is_back:
        output.line(f"{len(failed)} of them still cannot be decoded")
        if failed:
            output.table(list(_as_dict(failed[0])), [list(_as_dict(each).values()) for each in failed])


def _chosen(records: Sequence[Quarantined], args: argparse.Namespace) -> list[Quarantined]:
    """The documents that *args* name, each once.

    Raises:
        InputInvalid: they name none.
        KeyMissing: one that they name is not in quarantine.
    """
    documents = newest_of_each(records)
    if args.all == bool(args.documents):
        raise InputInvalid("name documents by key or VBUCKET:SEQNO, or give --all; `quarantine list` shows them")
    if args.all:
        return documents
    found = [named(documents, name) for name in args.documents]
    for name, those in zip(args.documents, found, strict=True):
        if not those:
            raise KeyMissing(f"{name} is not in quarantine; `quarantine list` shows what is")
    return list(dict.fromkeys(each for those in found for each in those))


def _as_dict(document: Quarantined) -> dict[str, Any]:
    return {
        "vb": document.vb,
        "seqno": document.seqno,
        "key": document_id(document.key),
        "reason": document.reason,
        "at": datetime.fromtimestamp(document.at, UTC).isoformat(timespec="seconds"),
    }


_ACTIONS = {"list": _list, "show": _show, "retry": _retry}
