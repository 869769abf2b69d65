"""The programs of a node's children: what each opens for itself after the fork, and nothing of its parent's."""

import os
from contextlib import closing, suppress
from functools import partial

from channelindex import __version__, exits, kernel
from channelindex.checking.rewind import requested_by
from channelindex.config import Config
from channelindex.decode.registry import make_decoder
from channelindex.errors import Transient
from channelindex.logs import get
from channelindex.model import IndexMeta
from channelindex.settings import IndexSettings
from channelindex.stores import open_compaction, open_compaction_reader, open_owner, open_reader, open_writer
from coordinator.keeper import LeaseKeeper
from coordinator.keeper_link import KeeperLink, keeper_link
from coordinator.tick import Identity
from workers.node.child import spawn
from workers.node.child_slot import ChildSlot
from workers.node.incarnation import NodeIncarnation
from workers.node.shared import Shared
from workers.pipeline.assignment import WorkerLink, assignment_link
from workers.pipeline.batch_writer import BatchWriter
from workers.pipeline.feed_worker import FeedWorker
from workers.pipeline.outbox import RingOutbox
from workers.pipeline.round import RoundBuilder
from workers.pipeline.source import open_feed
from workers.signals import StopFlag
from workers.telemetry.board import Board
from workers.telemetry.hot_channels import HotChannels

_COMPACTOR_NICE = 10
"""Its priority: whatever else wants the core gets it first."""


class Roles:
    """Spawns the children of one node for the index *meta*, as configured."""

    def __init__(self, config: Config, meta: IndexMeta, incarnation: NodeIncarnation, board: Board) -> None:
        self._meta = meta
        self._incarnation = incarnation
        self._board = board
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Give *config* to children that are spawned from now on."""
        self._config = config
        kernel.choose(config.workers.kernel)

    def spawn_keeper(self, slot: ChildSlot, now: float) -> KeeperLink:
        """Fork the lease keeper; return the supervisor's end of the link to it."""
        config = self._config
        ours, its = keeper_link()
        coordination = config.coordination
        identity = Identity(
            config.node.name,
            self._incarnation.incarnation,
            coordination.ttl_s,
            self._incarnation.predecessor,
            config.node.weight,
            config.node.zone,
            coordination.grace_s,
        )

        def main(stop: StopFlag) -> int:  # noqa: ARG001 it ends by the link, after the leases are given back
            slot.stats.start()
            LeaseKeeper(
                coordination.redis, config.index.name, self._meta.n_partitions, identity, its, coordination.moves
            ).run()
            return exits.OK

        slot.attach(spawn(slot.role, main, [its]), now)
        its.close()
        return ours

    def spawn_monitor(self, slot: ChildSlot, now: float) -> None:
        """Fork the process that serves metrics and health."""
        from workers.telemetry.monitor import Monitor, listen_address  # noqa: PLC0415 what it imports, nobody else needs

        config = self._config
        info = {"node": config.node.name, "index": config.index.name, "version": __version__}
        address = listen_address(config.metrics.listen)

        def main(stop: StopFlag) -> int:
            slot.stats.start()
            return Monitor(address, self._board, slot.stats, info, config.metrics).run(stop)

        slot.attach(spawn(slot.role, main), now)

    def spawn_compactor(self, slot: ChildSlot, now: float) -> None:
        """Fork the process that compacts the index."""
        config = self._config

        def main(stop: StopFlag) -> int:
            from workers.pipeline.compaction_worker import CompactionWorker  # noqa: PLC0415 only a node that compacts

            slot.stats.start()
            os.nice(_COMPACTOR_NICE)
            store = open_compaction(config.index)
            reader = open_compaction_reader(config.index, store)
            worker = CompactionWorker(
                store, reader, config.compaction, config.index.block_bytes, config.node.name, slot.stats, stop
            )
            return worker.run()

        slot.attach(spawn(slot.role, main), now)

    def spawn_batch_writer(self, slot: ChildSlot, shared: Shared, now: float) -> None:
        """Fork the batch writer of one channel shard."""
        config, number = self._config, slot.number

        def main(stop: StopFlag) -> int:
            slot.stats.start()
            store = open_writer(config.index)
            writer = BatchWriter(
                store=store,
                rings=shared.rings_of_writer(number),
                commit_bells=shared.commit_bells,
                data_bell=shared.data_bells[number],
                batch_bytes=config.workers.batch_bytes,
                stats=slot.stats,
                hot_channels=HotChannels(self._board.hot_channels[number]),
                stop=stop,
                log=get(slot.role),
            )
            return writer.run()

        slot.attach(spawn(slot.role, main, shared.bells), now)

    def spawn_feed_worker(self, slot: ChildSlot, shared: Shared, partitions: frozenset[int], now: float) -> None:
        """Fork the feed worker of one vbucket group."""
        assert partitions, "it has something to work on"
        ours, its = assignment_link(partitions)

        def main(stop: StopFlag) -> int:
            slot.stats.start()
            return self._feed_worker(slot, shared, partitions, its, stop).run()

        slot.attach(spawn(slot.role, main, [*shared.bells, its]), now, ours)
        its.close()

    def _feed_worker(
        self, slot: ChildSlot, shared: Shared, partitions: frozenset[int], link: WorkerLink, stop: StopFlag
    ) -> FeedWorker:
        number = slot.number
        config, source = self._config, self._config.source
        decoder = make_decoder(source.decoder, star_channel=source.star_channel)
        feed_name = f"{config.index.name}/{config.node.name}/{number}"
        return FeedWorker(
            owner=config.node.name,
            partitions=sorted(partitions),
            meta=self._meta,
            store=open_owner(config.index),
            feed=open_feed(source, feed_name, self._meta.source_uuid, decoder=decoder),
            new_builder=lambda checkpoints: RoundBuilder(decoder, shared.n_writers, checkpoints),
            outbox=RingOutbox(shared.rings[number], shared.data_bells),
            space_bell=shared.space_bells[number],
            stats=slot.stats,
            rows=self._board.partitions,
            stop=stop,
            assignment=link,
            log=get(slot.role),
            requested_by=partial(_requested_by, config.index),
        )


def _requested_by(settings: IndexSettings, partition: int) -> str:
    """See `checking.rewind.requested_by`; "" where the store does not answer."""
    with suppress(Transient), closing(open_reader(settings)) as reader:
        return requested_by(reader, partition)
    return ""
