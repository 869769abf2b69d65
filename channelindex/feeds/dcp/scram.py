"""The client's half of SCRAM (RFC 5802) without channel binding, on the standard library's PBKDF2 and HMAC.

Not the library `scramp`, which the dev bucket uses for the server's half: it refuses fewer than 4,096 iterations, and
Couchbase up to 6.x has 4,000. Nor is SASLprep applied to passwords, because the server hashes them as they are.
"""

import base64
import binascii
import hashlib
import hmac
import secrets

_MAX_ITERATIONS = 1_000_000
"""About a second of work. A server that asks for more wants to stop us."""
_NO_BINDING = "n,,"


class ScramError(Exception):
    """The server's message is not what the protocol asks for, or does not prove that it knows the password."""


class ScramClient:
    """One authentication: `first`, then `final` for the server's answer, then `verify` for its last word."""

    def __init__(self, hash_name: str, user: str, password: str, nonce: str | None = None) -> None:
        self._hash_name = hash_name
        self._password = password
        self._nonce = nonce or secrets.token_urlsafe(18)
        escaped = user.replace("=", "=3D").replace(",", "=2C")
        self._first_bare = f"n={escaped},r={self._nonce}"
        self._server_signature = b""

    def first(self) -> bytes:
        """The client-first message."""
        return (_NO_BINDING + self._first_bare).encode()

    def final(self, server_first: bytes) -> bytes:
        """The client-final message, with our proof.

        Raises:
            ScramError: *server_first* is malformed, for another nonce, or asks for too much work.
        """
        fields = _fields(server_first)
        nonce, salt, iterations = fields.get("r", ""), _decode(fields.get("s", "")), _count(fields.get("i", ""))
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise ScramError("the server answered with another nonce")
        binding = base64.b64encode(_NO_BINDING.encode()).decode()
        without_proof = f"c={binding},r={nonce}"
        signed = f"{self._first_bare},{server_first.decode()},{without_proof}".encode()
        salted = hashlib.pbkdf2_hmac(self._hash_name, self._password.encode(), salt, iterations)
        client_key = self._hmac(salted, b"Client Key")
        signature = self._hmac(hashlib.new(self._hash_name, client_key).digest(), signed)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._server_signature = self._hmac(self._hmac(salted, b"Server Key"), signed)
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def verify(self, server_final: bytes) -> None:
        """Check the server's own proof.

        Raises:
            ScramError: it does not know the password either.
        """
        assert self._server_signature, "the proof comes after ours"
        if not hmac.compare_digest(_decode(_fields(server_final).get("v", "")), self._server_signature):
            raise ScramError("the server did not prove that it knows the password")

    def _hmac(self, key: bytes, message: bytes) -> bytes:
        return hmac.digest(key, message, self._hash_name)


def _fields(message: bytes) -> dict[str, str]:
    try:
        return {part[:1]: part[2:] for part in message.decode().split(",")}
    except UnicodeDecodeError as error:
        raise ScramError("the server's message is not text") from error


def _decode(text: str) -> bytes:
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ScramError("the server's message is not base64") from error
    if not decoded:
        raise ScramError("the server's message lacks a field")
    return decoded


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) <= _MAX_ITERATIONS):
        raise ScramError(f"the server asks for {text[:20]!r} iterations; between 1 and {_MAX_ITERATIONS} are accepted")
    return int(text)
