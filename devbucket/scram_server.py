"""The server's half of SCRAM (RFC 5802) without channel binding, on the standard library's PBKDF2 and HMAC.

Not the library `scramp`: it insists that a client's nonce has no blanks, and the official Couchbase SDK's have (seen in
Python SDK 4.6.3); real servers take them.
"""

import base64
import hashlib
import hmac
import secrets
from typing import NamedTuple

ITERATIONS = 4096
"""Rounds of PBKDF2. The least that clients accept: this password guards nothing."""

_NONCE_BYTES = 18
_SALT_BYTES = 16


class ScramRefused(Exception):
    """The client's message is malformed, or its proof does not fit the password."""


class Verifier(NamedTuple):
    """The part of a password that a server keeps."""

    salt: bytes
    stored_key: bytes
    server_key: bytes


def verifier_for(hash_name: str, password: str, salt: bytes | None = None, iterations: int = ITERATIONS) -> Verifier:
    """Return the verifier of a password; takes milliseconds."""
    assert iterations > 0
    salt = salt or secrets.token_bytes(_SALT_BYTES)
    salted = hashlib.pbkdf2_hmac(hash_name, password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", hash_name)
    stored_key = hashlib.new(hash_name, client_key).digest()
    return Verifier(salt, stored_key, hmac.digest(salted, b"Server Key", hash_name))


class ScramServer:
    """One exchange: `first`, then `final`."""

    def __init__(self, hash_name: str, client_first: bytes, nonce: bytes = b"") -> None:
        """Read the client's first message; *nonce* is our part of the nonce, random if not given.

        Raises:
            ScramRefused: the message is malformed or asks for channel binding.
        """
        parts = client_first.split(b",", 2)
        if len(parts) != 3 or parts[0] not in (b"n", b"y"):
            raise ScramRefused("the first message has no header without channel binding")
        self._header = b",".join(parts[:2]) + b","
        self._client_first_bare = parts[2]
        fields = _fields(parts[2])
        if not fields[b"n"] or not fields[b"r"]:
            raise ScramRefused("the first message lacks user or nonce")
        self.user = fields[b"n"].replace(b"=2C", b",").replace(b"=3D", b"=").decode(errors="replace")
        self._nonce = fields[b"r"] + (nonce or base64.b64encode(secrets.token_bytes(_NONCE_BYTES)))
        self._hash_name = hash_name

    def first(self, verifier: Verifier, iterations: int = ITERATIONS) -> bytes:
        """Our first message, for the user that `user` names."""
        assert iterations > 0
        self._verifier = verifier
        salt = base64.b64encode(verifier.salt)
        self._server_first = b"r=%b,s=%b,i=%d" % (self._nonce, salt, iterations)
        return self._server_first

    def final(self, client_final: bytes) -> bytes:
        """Our last message, which proves to the client that we know the password.

        Raises:
            ScramRefused: the client did not prove it, or the message is malformed.
        """
        without_proof, separator, proof = client_final.rpartition(b",p=")
        fields = _fields(without_proof)
        if not separator or fields[b"r"] != self._nonce or fields[b"c"] != base64.b64encode(self._header):
            raise ScramRefused("the final message belongs to another exchange")
        signed = b",".join((self._client_first_bare, self._server_first, without_proof))
        signature = hmac.digest(self._verifier.stored_key, signed, self._hash_name)
        client_key = _xor(_decoded(proof), signature)
        if not hmac.compare_digest(hashlib.new(self._hash_name, client_key).digest(), self._verifier.stored_key):
            raise ScramRefused("wrong password")
        return b"v=" + base64.b64encode(hmac.digest(self._verifier.server_key, signed, self._hash_name))


def _fields(message: bytes) -> dict[bytes, bytes]:
    """Return the fields of a message by their letter; those that every message must have are there, if empty."""
    found = (field.partition(b"=") for field in message.split(b","))
    return {b"n": b"", b"r": b"", b"c": b""} | {letter: value for letter, _, value in found}


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ScramRefused("the proof is not base64") from error


def _xor(left: bytes, right: bytes) -> bytes:
    if len(left) != len(right):
        raise ScramRefused("the proof has another length")
    return bytes(a ^ b for a, b in zip(left, right, strict=True))
