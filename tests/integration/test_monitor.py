"""The node's HTTP endpoint: real nodes, scraped as Prometheus does, with the parser that its maintainers ship."""

import re
import signal
import socket
from contextlib import contextmanager
from functools import partial

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from channelindex import exits
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.support.node import Node, until
from tests.support.ports import free_port
from tests.support.running import await_stable, cli, connect
from tests.support.scrape import get


def total(text: str, name: str) -> float:
    families = text_string_to_metric_families(text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


@pytest.fixture
def running(tmp_path, redis_url):
    @contextmanager
    def start(port: int, **settings):
        settings = {"coordination__ttl_s": 1.0, "index__partitions": 16, **settings}
        with (
            DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket,
            connect(bucket) as client,
            Node("n1", tmp_path, redis_url, bucket, metrics__listen=f"127.0.0.1:{port}", **settings).start() as node,
        ):
            source = synthetic_revisions(seed=5, n_documents=100)
            loader = Loader(client, InlineLayout())
            yield node, bucket, lambda n: loader.load([next(source) for _ in range(n)])

    return start


def test_a_node_tells_what_it_did_and_becomes_ready(running, redis_url):
    port = free_port()
    with running(port) as (node, bucket, write):
        write(300)
        await_stable(redis_url, bucket)
        until(lambda: get(port, "/readyz")[0] == 200, "the node to be ready")
        assert get(port, "/readyz") == (200, "ok\n")
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/")[0] == 404
        _, text = get(port, "/metrics")
        assert total(text, "channelindex_feed_events_total") > 0
        assert total(text, "channelindex_leases") == total(text, "channelindex_partition_streaming") == 16
        assert total(text, "channelindex_writer_store_seconds_count") > 0
        assert total(text, "channelindex_process_restarts_total") == 0
        assert total(text, "channelindex_process_resident_bytes") > 50e6
        assert node.drain() == exits.OK


def seconds_of_lag(port: int) -> int:
    """What `/readyz` says of the lag; 0 where it says nothing of it."""
    found = re.search(r"lags by (\d+) s", get(port, "/readyz")[1])
    return int(found[1]) if found else 0


def test_lag_in_seconds_grows_while_nothing_is_written_and_outlives_a_feed_worker(running, redis_url):
    port = free_port()
    with running(port, metrics__ready_lag_s=1.0) as (node, bucket, write):
        until(lambda: get(port, "/readyz")[0] == 200, "the node to be ready")
        writers = node.children("batch_writer")
        for writer in writers:
            writer.send_signal(signal.SIGSTOP)
        write(100)
        until(lambda: seconds_of_lag(port) > 1, "the lag to pass the limit")
        lag = seconds_of_lag(port)
        for worker in node.children("feed_worker"):
            worker.kill()
        until(lambda: total(get(port, "/metrics")[1], "channelindex_process_restarts_total") >= 2, "restarts")
        until(lambda: seconds_of_lag(port) > 0, "the lag to be known again")
        assert seconds_of_lag(port) >= lag
        for writer in writers:
            writer.send_signal(signal.SIGCONT)
        await_stable(redis_url, bucket)
        until(lambda: get(port, "/readyz")[0] == 200, "the node to be ready again")
        assert total(get(port, "/metrics")[1], "channelindex_partition_lag_seconds") == 0


def test_a_port_that_is_taken_costs_the_metrics_and_nothing_else(running, redis_url):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with running(taken.getsockname()[1]) as (node, bucket, write):
            until(lambda: "monitor.not_listening" in node.log.read_text(), "the log to say so")
            write(50)
            await_stable(redis_url, bucket)
            assert node.running


def test_a_monitor_that_dies_or_hangs_is_replaced_and_a_reload_moves_it(running):
    port, other = free_port(), free_port()
    with running(port, workers__heartbeat_timeout_s=6.0) as (node, _bucket, _write):
        until(lambda: get(port, "/healthz")[0] == 200, "the monitor")
        node.children("monitor")[0].kill()
        until(lambda: get(port, "/healthz")[0] == 200, "another monitor")
        (frozen,) = node.children("monitor")
        frozen.send_signal(signal.SIGSTOP)
        until(lambda: not psutil.pid_exists(frozen.pid), "the frozen monitor to be killed")
        until(lambda: get(port, "/healthz")[0] == 200, "another monitor")
        node.config.write_text(node.config.read_text().replace(str(port), str(other)))
        node.signal(signal.SIGHUP)
        until(lambda: get(other, "/healthz")[0] == 200, "the monitor at its new address")
        assert get(port, "/healthz")[0] == 0


def test_clients_that_say_nothing_do_not_keep_others_out(running):
    port = free_port()
    with running(port) as (node, _bucket, _write):
        until(lambda: get(port, "/healthz")[0] == 200, "the monitor")
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        until(lambda: get(port, "/healthz")[0] == 200, "an answer when the silent have been left")
        for client in silent:
            client.close()
        assert node.running


def test_top_shows_the_node_and_refuses_what_is_no_terminal(running, redis_url):
    with running(free_port()) as (node, bucket, write):
        write(100)
        await_stable(redis_url, bucket)
        once = partial(cli, "top", "--once", "--interval", "0.2", "--config", node.config)
        until(lambda: "feed 0" in once().stdout, "the node to have told of its processes")
        shown = once()
        assert shown.returncode == exits.OK, shown.stderr
        assert "1/1 nodes" in shown.stdout
        assert "16/16 partitions" in shown.stdout
        assert cli("top", "--config", node.config).returncode == exits.INPUT
