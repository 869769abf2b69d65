"""`channelindex tune`: measures on this machine, and recommends numbers of workers."""

import argparse
import os
import secrets
from contextlib import closing
from dataclasses import replace

from channelindex import exits, kernel
from channelindex.blocks import FORMAT_VERSION
from channelindex.config import REQUIRED_TO_VERIFY, Config
from channelindex.decode.registry import make_decoder
from channelindex.errors import InputInvalid
from channelindex.model import IndexMeta
from channelindex.stores import open_owner, open_writer, remove_index
from channelindex.urls import mask_url, split_url
from workers.cli import options, output
from workers.cli.tuning import Costs, WorkerCounts, all_counts, recommended
from workers.pipeline.source import describe, high_seqnos, open_feed
from workers.pipeline.stage_trial import StageCosts, run_trial

_DOCUMENTS = 20_000
_SHOWN = 4
_HERE = ("", "localhost", "127.0.0.1", "::1")

_EPILOG = """\
examples:
  channelindex tune
  channelindex tune --documents 100000 --cores 8 --json

Reads the first documents of the bucket, indexes them in index.store under a name
of its own, which it removes again, and times each stage. Nodes may run meanwhile,
but take their part of the machine. The rates are calculated from these times:
they say which numbers of workers are worth their processes, not what a node will
do.
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
    config = options.config_of(args, REQUIRED_TO_VERIFY)
    kernel.choose(config.workers.kernel)
    cores = args.cores or len(os.sched_getaffinity(0))
    found = _try(config, args.documents)
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
    source, highs = describe(config.source), high_seqnos(config.source)
    meta = IndexMeta(FORMAT_VERSION, source.n_vbuckets, config.index.partitions, source.uuid, secrets.token_hex(16))
    decoder = make_decoder(config.source.decoder, star_channel=config.source.star_channel)
    settings = replace(config.index, name=f"tune-{secrets.token_hex(4)}")
    try:
        with (
            closing(open_feed(config.source, "tune", source.uuid, highs, decoder=decoder)) as feed,
            closing(open_owner(settings)) as owner,
            closing(open_writer(settings)) as writer,
        ):
            found = run_trial(feed, decoder, meta, owner, writer, n_documents)
    finally:
        if not remove_index(settings):
            output.warn(f"index {settings.name} could not be removed from {mask_url(settings.store)}: remove it there")
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
    header = ("documents/s", *(f"{n} writers" for n in range(1, _SHOWN + 1)))
    rate = {(each.feed_workers, each.batch_writers): f"{each.rate:,.0f}" for each in counts}
    shown = range(1, _SHOWN + 1)
    output.table(header, [(f"{feeds} feed workers", *(rate[feeds, writers] for writers in shown)) for feeds in shown])
    output.line("")
    output.line(f"  workers.feed_workers = {best.feed_workers}")
    output.line(f"  workers.batch_writers = {best.batch_writers}")
