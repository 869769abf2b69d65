"""SASL: proving who we are, with the strongest mechanism that both sides know."""

from dataclasses import dataclass, field

from channelindex.errors import AuthenticationFailed
from channelindex.feeds.dcp.exchange import Conversation, Request, error_text, refusal
from channelindex.feeds.dcp.scram import ScramClient, ScramError
from channelindex.mcbp import Frame, Op, Status

_HASH_BY_MECHANISM = {"SCRAM-SHA512": "sha512", "SCRAM-SHA256": "sha256", "SCRAM-SHA1": "sha1"}
"""As the server spells them, the strongest first."""
_PLAIN = "PLAIN"


class _LoginRefused(AuthenticationFailed):
    """The server refused user and password."""


@dataclass(frozen=True)
class Credentials:
    """Who we are. Without a user nothing is proven, and the server decides what that is good for.

    *allow_plain* lets the password cross the network readable, without TLS, if the server knows no SCRAM mechanism.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    allow_plain: bool = False


def authenticate(credentials: Credentials, *, encrypted: bool = False) -> Conversation[None]:
    """Authenticate the connection.

    On an *encrypted* one PLAIN is tried where SCRAM was refused: a directory outside of the cluster (LDAP) can check
    a password, but nothing that was derived from it.

    Raises:
        AuthenticationFailed: user and password do not match, or no mechanism is left that we may use.
    """
    listed = yield Request(Op.SASL_LIST_MECHS)
    if listed.status != Status.SUCCESS:
        raise refusal(listed)
    offered = listed.value.decode("ascii", "replace").split()
    mechanism = _strongest(offered, encrypted or credentials.allow_plain)
    if mechanism == _PLAIN:
        yield from _plain(credentials)
        return
    try:
        yield from _scram(mechanism, credentials)
    except _LoginRefused as error:
        if not encrypted:
            raise AuthenticationFailed(f"{error}{_ONLY_ARGON2}") from error
        if _PLAIN not in offered:
            raise
        yield from _plain(credentials)


_ONLY_ARGON2 = (
    "; a server that keeps the user's password as argon2 only cannot check it by SCRAM: then use couchbases:// in "
    "source.url, or have the password set anew with SCRAM hashes"
)


def _strongest(offered: list[str], plain_allowed: bool) -> str:
    for mechanism in _HASH_BY_MECHANISM:
        if mechanism in offered:
            return mechanism
    if _PLAIN not in offered:
        raise AuthenticationFailed(f"the server offers no SASL mechanism that we know, only {' '.join(offered)!r}")
    if not plain_allowed:
        raise AuthenticationFailed(
            "the server offers only PLAIN, which sends source.password readable; it takes couchbases:// in source.url, "
            "or source.allow_plain = true, to do that"
        )
    return _PLAIN


def _plain(credentials: Credentials) -> Conversation[None]:
    message = f"\0{credentials.user}\0{credentials.password}".encode()
    _accepted((yield Request(Op.SASL_AUTH, key=_PLAIN.encode(), value=message)), credentials)


def _scram(mechanism: str, credentials: Credentials) -> Conversation[None]:
    client = ScramClient(_HASH_BY_MECHANISM[mechanism], credentials.user, credentials.password)
    challenge = yield Request(Op.SASL_AUTH, key=mechanism.encode(), value=client.first())
    if challenge.status != Status.AUTH_CONTINUE:
        raise _refused(challenge, credentials)
    try:
        step = Request(Op.SASL_STEP, key=mechanism.encode(), value=client.final(challenge.value))
        outcome = yield step
        _accepted(outcome, credentials)
        client.verify(outcome.value)
    except ScramError as error:
        raise AuthenticationFailed(f"{mechanism} with the server failed: {error}") from error


def _accepted(outcome: Frame, credentials: Credentials) -> None:
    if outcome.status != Status.SUCCESS:
        raise _refused(outcome, credentials)


def _refused(outcome: Frame, credentials: Credentials) -> Exception:
    if outcome.status == Status.AUTH_ERROR:
        return _LoginRefused(
            f"the server does not accept source.user = {credentials.user!r} with source.password: {error_text(outcome)}"
        )
    return refusal(outcome)
