"""`channelindex tune`: measures on this machine, and recommends numbers of workers."""

import argparse
import os
import secrets
from contextlib import closing
from dataclasses import replace

from channelindex import exits, kernel
from channelindex.config import REQUIRED_TO_VERIFY, Config
from channelindex.decode.registry import make_decoder
from channelindex.errors import InputInvalid
from channelindex.stores import open_owner, open_writer, remove_index
from channelindex.urls import mask_url, split_url
from workers.cli import options, output
from workers.cli.tuning import Costs, WorkerCounts, all_counts, recommended
from workers.node.start import configured_meta
from workers.pipeline.source import high_seqnos, open_feed
from workers.pipeline.stage_trial import StageCosts, run_trial
from workers.signals import interrupt_on_termination

_DOCUMENTS = 20_000
_FEW_DOCUMENTS = 10_000
"""Fewer are read in moments: what the reading of so few shows is hardly what that of many costs."""
_SHOWN = 4
_HERE = ("", "localhost", "127.0.0.1", "::1")

_EPILOG = """\
examples:
  channelindex tune
  channelindex tune --documents 100000 --cores 8 --json

Reads the first documents of the bucket, indexes them in index.store under a name
of its own, which it removes again, and times each stage. The index index.name is
not touched, and the rights of a node are enough. Nodes may run meanwhile, but
take their part of the machine. The rates are calculated from these times: they
say which numbers of workers are worth their processes, not what a node will do.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    number = options.positive
    parser.add_argument(
        "--documents", type=number, default=_DOCUMENTS, metavar="N", help="documents to try (default: %(default)s)"
    )
    parser.add_argument("--cores", type=number, metavar="N", help="cores that a node may use (default: all)")
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, and print what follows."""
    interrupt_on_termination()  # the trial's index is removed, however this ends
    config = options.config_of(args, REQUIRED_TO_VERIFY)
    kernel.choose(config.workers.kernel)
    cores = args.cores or len(os.sched_getaffinity(0))
    found = _try(config, args.documents)
    if found.n_documents < min(_FEW_DOCUMENTS, args.documents):
        output.warn(f"the bucket has only {found.n_documents} documents: with {_FEW_DOCUMENTS} the figures are better")
    costs = Costs.of(found)
    counts = all_counts(costs, cores, store_is_here=_is_here(config.index.store))
    best = recommended(counts)
    if args.json:
        output.json_line(
            {
                "n_documents": found.n_documents,
                "channel_updates": found.n_updates,
                "kernel": kernel.description(),
                "cores": cores,
                **{name: round(us, 2) for name, us in costs._asdict().items()},
                "feed_workers": best.feed_workers,
                "batch_writers": best.batch_writers,
                "documents_per_s": round(best.rate),
            }
        )
    else:
        _print(found, costs, counts, best, cores)
    return exits.OK


def _try(config: Config, n_documents: int) -> StageCosts:
    meta, highs = configured_meta(config), high_seqnos(config.source)
    decoder = make_decoder(config.source.decoder, star_channel=config.source.star_channel)
    # within the names that a user of Redis with rights to this index alone may use
    settings = replace(config.index, name=f"{config.index.name}:tune-{secrets.token_hex(4)}")
    try:
        with (
            closing(open_feed(config.source, "tune", meta.source_uuid, highs, decoder=decoder)) as feed,
            closing(open_owner(settings)) as owner,
            closing(open_writer(settings)) as writer,
        ):
            found = run_trial(feed, decoder, meta, owner, writer, n_documents)
    finally:
        if not remove_index(settings):
            output.warn(
                f"the documents of the trial could not be removed from {mask_url(settings.store)}: remove them there, "
                f"their keys begin with ci:{settings.name}:"
            )
    if not found.n_documents:
        raise InputInvalid("the bucket has no document to try")
    return found


def _is_here(store: str) -> bool:
    """True if the store takes its part of this machine's cores."""
    parts = split_url(store)
    hosts = [host.rpartition("@")[2].rsplit(":", 1)[0] for host in parts.netloc.split(",")]
    return parts.scheme in ("unix", "memory") or all(host in _HERE for host in hosts)


def _print(found: StageCosts, costs: Costs, counts: list[WorkerCounts], best: WorkerCounts, cores: int) -> None:
    output.line(
        f"{found.n_documents} documents, {found.n_updates} channel updates, kernel: {kernel.description()}, "
        f"{cores} cores; in µs per document: feed worker {costs.feed_us:.1f}, batch writer {costs.writer_us:.1f}, "
        f"store {costs.store_us:.1f}"
    )
    output.line("")
    header = ("documents/s", *(f"{n} writer{'s' * (n > 1)}" for n in range(1, _SHOWN + 1)))
    rate = {(each.feed_workers, each.batch_writers): f"{each.rate:,.0f}" for each in counts}
    shown = range(1, _SHOWN + 1)
    output.table(
        header,
        [(f"{feeds} feed worker{'s' * (feeds > 1)}", *(rate[feeds, writers] for writers in shown)) for feeds in shown],
    )
    output.line("")
    output.line(f"  workers.feed_workers = {best.feed_workers}")
    output.line(f"  workers.batch_writers = {best.batch_writers}")
