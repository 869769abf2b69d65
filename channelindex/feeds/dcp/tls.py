"""TLS without I/O: the cipher text of one connection in and out, whoever moves it."""

import ssl
from dataclasses import dataclass

from channelindex.errors import AuthenticationFailed, ConfigInvalid, SourceUnavailable

_READ_BYTES = 64 * 1024


@dataclass(frozen=True)
class TlsOptions:
    """Whom to trust and who we are. *ca_file* empty: the system's authorities.

    With *cert_file* we show a certificate of our own; its key is in *key_file*, or in the same file. Without
    *verify_host* any certificate of the authorities will do, whatever host it is for.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    verify_host: bool = True


def make_context(options: TlsOptions) -> ssl.SSLContext:
    """A client's context. Reads the files each time: renewed certificates are in force with the next connection.

    Raises:
        ConfigInvalid: a file cannot be read, or is none of its kind.
    """
    try:
        context = ssl.create_default_context(cafile=options.ca_file or None)
    except (OSError, ValueError) as error:
        raise ConfigInvalid(f"source.tls_ca_file = {options.ca_file!r} cannot be used: {_reason(error)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = options.verify_host
    # Python 3.13 also refuses authorities that lack an extension which many a cluster's own certificates lack.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if options.cert_file:
        try:
            context.load_cert_chain(options.cert_file, options.key_file or None, _no_passphrase)
        except (OSError, ValueError) as error:
            files = f"source.tls_cert_file = {options.cert_file!r}, source.tls_key_file = {options.key_file!r}"
            raise ConfigInvalid(f"{files} cannot be used: {_reason(error)}") from error
    return context


def _no_passphrase() -> str:
    """Without this OpenSSL would ask at the terminal."""
    raise ValueError("the key is encrypted; take its passphrase off")


class TlsLayer:
    """One connection's encryption. `outgoing` is what is to be sent; whoever sends it removes it."""

    def __init__(self, options: TlsOptions, host: str) -> None:
        """*host* is whom the certificate must be for.

        Raises:
            ConfigInvalid: as `make_context`.
            SourceUnavailable: *host* cannot be the name of one.
        """
        self._options = options
        self._host = host
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        context = make_context(options)
        try:
            self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        except ValueError as error:
            raise SourceUnavailable(f"{host!r} (source.url) is no name of a host: {error}") from error
        self._established = False
        self._unsent = bytearray()
        self.outgoing = bytearray()
        self._advance()

    def send(self, data: bytes | bytearray) -> None:
        """Encrypt *data*; it waits for the end of the handshake."""
        self._unsent += data
        self._advance()

    def receive(self, data: bytes) -> bytes:
        """The plain text that *data* completes; empty while there is none.

        Raises:
            AuthenticationFailed: the server's certificate is not one that we trust, or it does not trust ours.
            SourceUnavailable: the peer does not speak TLS as it should.
        """
        self._incoming.write(data)
        self._advance()
        return self._decrypted() if self._established else b""

    def _advance(self) -> None:
        """Go on with the handshake, and encrypt what waits once it is over."""
        try:
            if not self._established:
                self._ssl.do_handshake()
                self._established = True
            if self._unsent:
                self._ssl.write(self._unsent)  # into memory: all of it at once
                self._unsent.clear()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise self._failed(error) from error
        finally:
            self.outgoing += self._outgoing.read()

    def _decrypted(self) -> bytes:
        parts = []
        try:
            while part := self._ssl.read(_READ_BYTES):
                parts.append(part)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError as error:
            raise self._failed(error) from error
        self.outgoing += self._outgoing.read()  # answers to the peer's changes of keys
        return b"".join(parts)

    def _failed(self, error: ssl.SSLError) -> AuthenticationFailed | SourceUnavailable:
        if isinstance(error, ssl.SSLCertVerificationError):
            return AuthenticationFailed(
                f"the certificate of {self._host} is not trusted: {error.verify_message}; see source.tls_ca_file "
                f"= {self._options.ca_file!r} and source.tls_verify_host"
            )
        if error.reason and ("CERTIFICATE" in error.reason or "UNKNOWN_CA" in error.reason):
            return AuthenticationFailed(
                f"{self._host} wants another client certificate: {_reason(error)}; see source.tls_cert_file"
            )
        return SourceUnavailable(f"TLS with {self._host} (source.url) failed: {_reason(error)}; is it a TLS port?")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
