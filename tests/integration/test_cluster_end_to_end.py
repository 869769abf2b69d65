"""A node indexes a bucket of several nodes over TLS, without bodies, while the bucket is rebalanced and fails over."""

from pathlib import Path

from devbucket import DevBucket, DevBucketConfig
from devbucket.sync_gateway.layouts import XattrLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.certificates import Certificates
from tests.support.node import Node, until
from tests.support.running import assert_verified, await_stable, connect

N_VBUCKETS = 48


def save(bucket: DevBucket, generation: int) -> None:
    digest = f"{generation:032x}"
    with connect(bucket) as client:
        Loader(client, XattrLayout()).load(
            Revision(f"doc-{n:03}", f"{generation}-{digest}", ("a", f"c{n % 7}")) for n in range(300)
        )


def test_an_index_follows_a_bucket_whose_vbuckets_move_and_fail_over(tmp_path: Path, redis_url: str) -> None:
    certificates = Certificates.make(tmp_path)
    config = DevBucketConfig(n_vbuckets=N_VBUCKETS, n_nodes=3, tls=certificates.server())
    with DevBucket(config) as bucket:
        settings = {
            "source__url": bucket.tls_url,
            "source__tls_ca_file": certificates.path("ca.pem"),
            "coordination__ttl_s": 1.0,
            "index__partitions": 8,
        }
        with Node("n1", tmp_path, redis_url, bucket, **settings).start() as node:
            save(bucket, 1)
            await_stable(redis_url, bucket)
            bucket.move(range(0, N_VBUCKETS, 3), 1)
            save(bucket, 2)
            bucket.move(range(0, N_VBUCKETS, 2), 2)
            bucket.drop_connections("channelindex")
            save(bucket, 3)
            await_stable(redis_url, bucket)
            assert "feed.rolled_back" not in node.log.read_text()

            bucket.failover_node(2, 1)
            until(lambda: "feed.rolled_back" in node.log.read_text(), "the node to notice the rollback")
            save(bucket, 4)
            await_stable(redis_url, bucket)
            assert_verified(node.config)
            assert "feed.bodies_requested" not in node.log.read_text()
            assert node.drain() == 0
