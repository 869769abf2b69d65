"""Who may log in, and what an account may do. No I/O."""

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from devbucket.scram_server import ScramRefused, ScramServer, Verifier, verifier_for

HASH_BY_MECHANISM = {b"SCRAM-SHA512": "sha512", b"SCRAM-SHA256": "sha256", b"SCRAM-SHA1": "sha1"}
"""SCRAM mechanisms as Couchbase spells them, strongest first."""

MECHANISMS = b" ".join([*HASH_BY_MECHANISM, b"PLAIN"])


@dataclass(frozen=True)
class Account:
    """A user. `buckets` None means every bucket, those that do not exist too; `may_stream` is the DCP privilege.

    Without `may_write` the account is one of a reader, as by Couchbase's roles Data Reader and Data DCP Reader. Of one
    with `only_argon2` the server keeps no hash for SCRAM, as servers from 7.6 may: it can log in with PLAIN only.
    """

    name: str
    password: str
    buckets: frozenset[str] | None = None
    may_stream: bool = True
    may_write: bool = True
    only_argon2: bool = False

    def may_use(self, bucket: str) -> bool:
        """Return whether the account has access to a bucket of that name."""
        return self.buckets is None or bucket in self.buckets


class LoginStep(NamedTuple):
    """The state of a login: `text` is our message; `account` has logged in, None while more must come."""

    text: bytes
    account: Account | None


class Accounts:
    """All accounts of the server. What SCRAM keeps of a password is computed when first needed."""

    def __init__(self, accounts: Iterable[Account]) -> None:
        self._by_name = {account.name: account for account in accounts}
        self._verifiers: dict[tuple[str, str], Verifier] = {}

    def plain(self, message: bytes) -> LoginStep | None:
        """Return the login of a PLAIN message (authorization id, user, password); None if it is refused."""
        fields = message.split(b"\0")
        account = self._by_name.get(fields[1].decode(errors="replace")) if len(fields) == 3 else None
        if account is None or not hmac.compare_digest(account.password.encode(), fields[2]):
            return None
        return LoginStep(b"", account)

    def verifier(self, user: str, hash_name: str) -> Verifier:
        """Return what SCRAM keeps of a user's password; of an unknown user, of a password that nobody knows."""
        assert hash_name in HASH_BY_MECHANISM.values()
        if user not in self._by_name or self._by_name[user].only_argon2:
            return verifier_for(hash_name, secrets.token_urlsafe())
        place = (user, hash_name)
        if place not in self._verifiers:
            self._verifiers[place] = verifier_for(hash_name, self._by_name[user].password)
        return self._verifiers[place]

    def named(self, user: str) -> Account | None:
        """Return the account of that name."""
        return self._by_name.get(user)


class ScramLogin:
    """One SCRAM login of one connection. An unknown user is refused only at the end, like a wrong password."""

    def __init__(self, accounts: Accounts, mechanism: bytes) -> None:
        self._accounts = accounts
        self._hash_name = HASH_BY_MECHANISM[mechanism]
        self._server: ScramServer | None = None

    def first(self, message: bytes) -> LoginStep | None:
        """Answer the client's first message; None if it is malformed."""
        assert self._server is None, "a login is begun once"
        try:
            self._server = ScramServer(self._hash_name, message)
        except ScramRefused:
            return None
        return LoginStep(self._server.first(self._accounts.verifier(self._server.user, self._hash_name)), None)

    def final(self, message: bytes) -> LoginStep | None:
        """Judge the client's proof; None if it is refused."""
        if self._server is None:
            return None
        try:
            return LoginStep(self._server.final(message), self._accounts.named(self._server.user))
        except ScramRefused:
            return None
