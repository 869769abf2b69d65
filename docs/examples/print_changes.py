"""Prints every change of a bucket, from its beginning on: BUCKET_PASSWORD=… python print_changes.py URL USER."""

import os
import sys
import time

from channelindex.feeds.base import EXPIRATION
from channelindex.feeds.bounded import events
from channelindex.feeds.dcp import Credentials, DcpFeed, parse_source_url, source_info
from channelindex.model import ORIGIN

address = parse_source_url(sys.argv[1])
credentials = Credentials(sys.argv[2], os.environ["BUCKET_PASSWORD"])
bucket = source_info(address, credentials, deadline=time.monotonic() + 10)
feed = DcpFeed(address, credentials, name="print_changes", source_uuid=bucket.uuid)
feed.start(dict.fromkeys(range(bucket.n_vbuckets), ORIGIN))
for event in events(feed):
    if event[0] <= EXPIRATION:
        kind, vb, seqno, key, datatype, value = event
        print(("changed", "deleted", "expired")[kind], f"{vb}:{seqno}", key.decode(), len(value), flush=True)
