"""Who may log in: PLAIN and SCRAM, and what an account may do. No I/O; the cryptography is scramp's."""

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from scramp import ScramException, ScramMechanism  # type: ignore[import-untyped]

SCRAM_NAMES = {b"SCRAM-SHA512": "SCRAM-SHA-512", b"SCRAM-SHA256": "SCRAM-SHA-256", b"SCRAM-SHA1": "SCRAM-SHA-1"}
"""Mechanisms as Couchbase spells them, strongest first, and as the standard does."""

MECHANISMS = b" ".join([*SCRAM_NAMES, b"PLAIN"])

_AuthInfo = tuple[bytes, bytes, bytes, int]  # salt, stored key, server key, iterations


@dataclass(frozen=True)
class Account:
    """A user. `buckets` None means every bucket, those that do not exist too; `may_stream` is the DCP privilege."""

    name: str
    password: str
    buckets: frozenset[str] | None = None
    may_stream: bool = True

    def may_use(self, bucket: str) -> bool:
        """Whether the account has access to a bucket of that name."""
        return self.buckets is None or bucket in self.buckets


class SaslStep(NamedTuple):
    """Where a login stands: `account` once it succeeded, else `text` is the server's message and more must come."""

    text: bytes
    account: Account | None


class ScramLogin:
    """One SCRAM exchange of one connection."""

    def __init__(self, accounts: "Accounts", name: str) -> None:
        self._accounts = accounts
        self._mechanism = ScramMechanism(name)
        self._server = self._mechanism.make_server(self._auth_info)
        self._user = ""

    def first(self, message: bytes) -> SaslStep:
        """Answer the client's first message; an unknown user is not told so."""
        self._server.set_client_first(message.decode())
        return SaslStep(self._server.get_server_first().encode(), None)

    def final(self, message: bytes) -> SaslStep:
        """Judge the client's proof.

        Raises:
            ScramException: wrong password or unknown user.
        """
        self._server.set_client_final(message.decode())
        return SaslStep(self._server.get_server_final().encode(), self._accounts.by_name.get(self._user))

    def _auth_info(self, user: str) -> _AuthInfo:
        self._user = user
        return self._accounts.auth_info(user, self._mechanism)


class Accounts:
    """All accounts of the server. The salted passwords are computed when first needed: that takes milliseconds."""

    def __init__(self, accounts: Iterable[Account]) -> None:
        self.by_name = {account.name: account for account in accounts}
        self._auth_infos: dict[tuple[str, str], _AuthInfo] = {}

    def plain(self, message: bytes) -> SaslStep | None:
        """The login of a PLAIN message (authorization id, user, password); None if it is refused."""
        fields = message.split(b"\0")
        account = self.by_name.get(fields[1].decode(errors="replace")) if len(fields) == 3 else None
        if account is None or not hmac.compare_digest(account.password.encode(), fields[2]):
            return None
        return SaslStep(b"", account)

    def auth_info(self, user: str, mechanism: ScramMechanism) -> _AuthInfo:
        """What SCRAM keeps of a user's password; of an unknown user, of a password that nobody knows."""
        account = self.by_name.get(user)
        if account is None:
            unknown: _AuthInfo = mechanism.make_auth_info(secrets.token_urlsafe())
            return unknown
        return self._known_auth_info(account, mechanism)

    def _known_auth_info(self, account: Account, mechanism: ScramMechanism) -> _AuthInfo:
        place = (account.name, mechanism.name)
        if place not in self._auth_infos:
            self._auth_infos[place] = mechanism.make_auth_info(account.password)
        return self._auth_infos[place]


__all__ = ["MECHANISMS", "SCRAM_NAMES", "Account", "Accounts", "SaslStep", "ScramException", "ScramLogin"]
