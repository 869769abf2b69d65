"""Prints a bucket's changes, and in the end where to go on: BUCKET_PASSWORD=… stream_changes.py URL USER [SINCE]."""

import asyncio
import os
import sys

from channelindex.feeds.dcp import DcpChange, stream


async def main(url: str, user: str, since: str = "") -> None:
    """Print until Ctrl-C, then the position."""
    async with stream(url, user, os.environ["BUCKET_PASSWORD"], since=since) as changes:
        try:
            async for event in changes:  # a DcpChange, or RolledBack: what came above event.seqno is no longer true
                print(event.key.decode() if isinstance(event, DcpChange) else event, flush=True)
        finally:
            print(changes.position, file=sys.stderr)


asyncio.run(main(*sys.argv[1:]))
