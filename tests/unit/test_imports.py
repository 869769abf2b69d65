"""A node does not import at its start what it does not use."""

import subprocess
import sys

NOT_FOR_A_NODE = (
    "couchbase",
    "http.server",
    "prometheus_client",
    "rich",
    "uvicorn",
    "channelindex.reading.async_reader",
    "devbucket",
    "workers.serving",
    "workers.telemetry.monitor",
)
"""What an index in a bucket, metrics, or another command needs. Each process of a node would have it in memory, too."""


def test_a_node_with_an_index_in_redis_and_without_metrics_imports_nothing_for_others():
    code = f"import sys, workers.cli.run; print([name for name in {NOT_FOR_A_NODE!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
