"""Certificates of the tests' own: an authority, a server's, a client's, and those of a stranger."""

from dataclasses import dataclass
from pathlib import Path

import trustme

from devbucket.bucket_config import TlsFiles


@dataclass(frozen=True)
class Certificates:
    """Files in *folder*. The server's certificate is for localhost and 127.0.0.1 only."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Certificates":
        authority, stranger = trustme.CA(), trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        stranger.cert_pem.write_to_path(folder / "strangers-ca.pem")
        _write(authority.issue_cert("localhost", "127.0.0.1"), folder, "server")
        _write(authority.issue_cert("elsewhere.example"), folder, "elsewhere")
        _write(authority.issue_cert("client@example"), folder, "client")
        _write(stranger.issue_cert("client@example"), folder, "stranger")
        return cls(folder)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def server(self, name: str = "server", *, ask_clients: bool = False) -> TlsFiles:
        """What a dev bucket needs."""
        client_ca = self.folder / "ca.pem" if ask_clients else None
        return TlsFiles(self.folder / f"{name}.pem", self.folder / f"{name}.key", client_ca)


def _write(issued: trustme.LeafCert, folder: Path, name: str) -> None:
    issued.private_key_pem.write_to_path(folder / f"{name}.key")
    with (folder / f"{name}.pem").open("wb") as file:
        file.writelines(blob.bytes() for blob in issued.cert_chain_pems)
