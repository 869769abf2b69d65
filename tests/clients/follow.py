"""Follows one index with every client of Python, as an application would: from the beginning, and for ever.

`python follow.py URL DB TOKEN` prints a line {"client", "id", "rev", "deleted"} for each row, until its standard input
ends. A client that gives up is begun again from the last seq that it told.
"""

import asyncio
import json
import os
import sys
import threading
import time
from typing import Any

AGAIN_S = 0.2
_lock = threading.Lock()


def tell(client: str, row: dict[str, Any]) -> None:
    told = {"client": client, "id": row["id"], "rev": row["changes"][0]["rev"]}
    with _lock:
        print(json.dumps(told | {"deleted": "deleted" in row, "removed": "removed" in row}), flush=True)


def couchdb_python(url: str, db: str, token: str) -> None:
    import couchdb

    since: object = 0
    while True:
        try:
            server = couchdb.Server(url.replace("://", f"://reader:{token}@"))
            for row in server[db].changes(feed="continuous", since=since, heartbeat=5000):
                since = row.get("seq", row.get("last_seq"))
                if "id" in row:
                    tell("couchdb-python", row)
        except Exception:  # whatever it raises where its connection breaks
            time.sleep(AGAIN_S)


def cloudant(url: str, db: str, token: str) -> None:
    from ibm_cloud_sdk_core.authenticators import BasicAuthenticator
    from ibmcloudant.cloudant_v1 import CloudantV1
    from ibmcloudant.features.changes_follower import ChangesFollower

    service = CloudantV1(authenticator=BasicAuthenticator("reader", token))
    service.set_service_url(url)
    service.set_http_config({"timeout": (120, 120)})
    for row in ChangesFollower(service, db=db, since="0").start():
        tell("ibmcloudant", row.to_dict())


async def aiocouch(url: str, db: str, token: str) -> None:
    from aiocouch import CouchDB

    since: str | None = None
    while True:
        try:
            async with CouchDB(url, user="reader", password=token) as server:
                async for event in (await server[db]).changes(
                    feed="continuous", heartbeat=5000, last_event_id=since or "0"
                ):
                    since = event.sequence
                    tell("aiocouch", event.json)
        except Exception:  # whatever it raises where its connection breaks
            await asyncio.sleep(AGAIN_S)


def main(url: str, db: str, token: str) -> None:
    for follow in (couchdb_python, cloudant, lambda *given: asyncio.run(aiocouch(*given))):
        threading.Thread(target=follow, args=(url, db, token), daemon=True).start()
    sys.stdin.read()
    os._exit(0)  # none of them can be told to end


if __name__ == "__main__":
    main(*sys.argv[1:])
