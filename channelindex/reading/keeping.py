"""Keeps a consumer's `since` token where it outlives the consumer: in a file, or in Redis."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from channelindex.errors import InputInvalid, OutputFailed, StoreUnavailable
from channelindex.redis.connect import open_redis
from channelindex.redis.errors import Purpose
from channelindex.redis.scripts import Scripts


class TokenStore(Protocol):
    """Keeps one token, for one consumer at a time. Anything with these two methods will do: a row of a database, say.

    A reader that writes it in the transaction in which it stores a page gets nothing twice.
    """

    def load(self) -> str | None:
        """The token that was saved last; None where there is none yet."""
        ...

    def save(self, token: str) -> None:
        """Replace the token. When this returns, the new one outlives a crash; when it raises, either is there."""
        ...


class TokenFile:
    """`TokenStore` in the file at *path*, which is replaced whole: a crash, also of the machine, leaves old or new."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._next = self._path.with_name(f"{self._path.name}.next")

    def load(self) -> str | None:
        """See `TokenStore.load`.

        Raises:
            InputInvalid: the file cannot be read, or is empty, which we never leave it.
        """
        try:
            token = self._path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise InputInvalid(f"{self._path}: no token can be read: {error}") from error
        if not token:
            raise InputInvalid(f"{self._path}: the file is empty; remove it to begin anew")
        return token

    def save(self, token: str) -> None:
        """See `TokenStore.save`.

        Raises:
            OutputFailed: the file cannot be written; the old one is there.
        """
        try:
            with self._next.open("w", encoding="ascii") as file:
                file.write(f"{token}\n")
                file.flush()
                os.fsync(file.fileno())
            self._next.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)  # the new name, too
            finally:
                os.close(folder)
        except OSError as error:
            raise OutputFailed(f"{self._path}: the token cannot be written: {error}") from error


class TokenInRedis:
    """`TokenStore` in the value of *key* in the Redis at *url*, any that `index.store` may name. For one thread.

    It is as safe there as Redis is configured to be: one that loses its newest writes has an earlier token, and what
    came after that comes again.

    Raises:
        ConfigInvalid: *url* is not usable.
    """

    def __init__(self, url: str, key: str) -> None:
        scripts = Scripts(files("channelindex.redis"))  # none is run
        self._link = open_redis(url, Purpose("TokenInRedis", scripts, StoreUnavailable, StoreUnavailable))
        self._key = key

    def load(self) -> str | None:
        """See `TokenStore.load`.

        Raises:
            StoreUnavailable: Redis is away.
            AuthenticationFailed: it refused us.
            InputInvalid: the key holds what is no token.
        """
        value: bytes | None = self._link.execute("GET", self._key)
        if value is None:
            return None
        try:
            return value.decode("ascii")
        except UnicodeDecodeError as error:
            raise InputInvalid(f"key {self._key} holds what is no token") from error

    def save(self, token: str) -> None:
        """See `TokenStore.save`; raises as `load`."""
        self._link.execute("SET", self._key, token)

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self._link.close()
