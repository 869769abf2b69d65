"""TLS as it is in earnest: certificates of the tests' own, on real sockets."""

from collections.abc import Iterator

import pytest

from channelindex.errors import AuthenticationFailed, ChannelIndexError, ConfigInvalid, SourceUnavailable
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import SourceAddress, parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from channelindex.feeds.dcp.tls import TlsOptions, make_context
from devbucket import DevBucket, DevBucketConfig
from devbucket.accounts import Account
from tests.support.certificates import Certificates
from tests.support.dcp_reading import ADMIN, Reading, fill

N_VBUCKETS = 8


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def bucket(certificates: Certificates) -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS, n_nodes=2, tls=certificates.server())) as started:
        yield started


@pytest.fixture(scope="module")
def strict(certificates: Certificates) -> Iterator[DevBucket]:
    """Asks clients for a certificate."""
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS, tls=certificates.server(ask_clients=True))) as started:
        yield started


def address(bucket: DevBucket, options: TlsOptions, host: str = "127.0.0.1") -> SourceAddress:
    return parse_source_url(bucket.tls_url.replace("127.0.0.1", host), options)


def refused(bucket: DevBucket, where: SourceAddress, credentials: Credentials = ADMIN) -> ChannelIndexError:
    """The error with which both clients give up."""
    with pytest.raises(ChannelIndexError) as by_kv:
        KvClient(where, credentials, timeout_s=5.0)
    with (
        Reading(bucket, address=where, credentials=credentials) as reading,
        pytest.raises(ChannelIndexError) as by_feed,
    ):
        reading.until(lambda: False)
    assert type(by_kv.value) is type(by_feed.value)
    return by_feed.value


def test_documents_come_through_tls(bucket: DevBucket, certificates: Certificates) -> None:
    where = address(bucket, TlsOptions(certificates.path("ca.pem")))
    with KvClient(where, ADMIN) as kv, Reading(bucket, address=where) as reading:
        fill(kv, 200, "tls")
        assert kv.store(b"large", b"x" * 5_000_000)
        reading.until_caught_up(bucket)
        assert max(len(event[5]) for event in reading.events if event[0] == 0) == 5_000_000
        assert [node["connections"] for node in bucket.nodes()] == [2, 2]


def test_user_of_whom_the_server_has_no_scram_hash_logs_in_by_tls_only(certificates: Certificates) -> None:
    """As servers from 7.6 may keep Argon2 alone. That SCRAM then fails as a wrong password does is a guess."""
    modern = Account("modern", "pw", only_argon2=True)
    config = DevBucketConfig(n_vbuckets=N_VBUCKETS, tls=certificates.server(), more_accounts=(modern,))
    with DevBucket(config) as bucket:
        with KvClient(address(bucket, TlsOptions(certificates.path("ca.pem"))), Credentials("modern", "pw")) as kv:
            assert kv.store(b"k", b"{}")
        with pytest.raises(AuthenticationFailed):
            KvClient(parse_source_url(bucket.url), Credentials("modern", "pw"), timeout_s=5.0)


def test_an_authority_that_is_not_ours_is_refused(bucket: DevBucket, certificates: Certificates) -> None:
    error = refused(bucket, address(bucket, TlsOptions(certificates.path("strangers-ca.pem"))))
    assert isinstance(error, AuthenticationFailed)
    assert "source.tls_ca_file" in str(error)


def test_the_systems_authorities_do_not_know_ours(bucket: DevBucket) -> None:
    assert isinstance(refused(bucket, address(bucket, TlsOptions())), AuthenticationFailed)


def test_a_certificate_for_another_host_is_refused_unless_hosts_are_not_checked(certificates: Certificates) -> None:
    config = DevBucketConfig(n_vbuckets=N_VBUCKETS, tls=certificates.server("elsewhere"))
    with DevBucket(config) as bucket:
        error = refused(bucket, address(bucket, TlsOptions(certificates.path("ca.pem"))))
        assert isinstance(error, AuthenticationFailed)
        assert "source.tls_verify_host" in str(error)
        with KvClient(address(bucket, TlsOptions(certificates.path("ca.pem"), verify_host=False)), ADMIN) as kv:
            fill(kv, 10)


def test_a_client_shows_its_certificate(strict: DevBucket, certificates: Certificates) -> None:
    options = TlsOptions(certificates.path("ca.pem"), certificates.path("client.pem"), certificates.path("client.key"))
    with KvClient(address(strict, options), ADMIN) as kv, Reading(strict, address=address(strict, options)) as reading:
        fill(kv, 20)
        reading.until_caught_up(strict)


@pytest.mark.parametrize("name", ["", "stranger"])
def test_without_a_certificate_that_the_server_wants_there_is_no_connection(
    name: str, strict: DevBucket, certificates: Certificates
) -> None:
    files = (certificates.path(f"{name}.pem"), certificates.path(f"{name}.key")) if name else ()
    where = address(strict, TlsOptions(certificates.path("ca.pem"), *files))
    with pytest.raises((AuthenticationFailed, SourceUnavailable)):
        KvClient(where, ADMIN, timeout_s=5.0)


def test_a_port_without_tls_is_reported(bucket: DevBucket, certificates: Certificates) -> None:
    where = parse_source_url(bucket.url.replace("couchbase", "couchbases"), TlsOptions(certificates.path("ca.pem")))
    with pytest.raises(SourceUnavailable, match=r"is it a TLS port|closed the connection"):
        KvClient(where, ADMIN, timeout_s=5.0)


def test_a_wrong_password_is_reported_and_never_logged(
    bucket: DevBucket, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "channelindex")
    where = address(bucket, TlsOptions(certificates.path("ca.pem")))
    error = refused(bucket, where, Credentials("Administrator", "hunter2"))
    assert isinstance(error, AuthenticationFailed)
    assert "source.password" in str(error)
    assert "hunter2" not in str(error) + "".join(str(record.__dict__) for record in caplog.records)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (TlsOptions(ca_file="/nowhere/ca.pem"), r"source\.tls_ca_file"),
        (TlsOptions(ca_file=__file__), r"source\.tls_ca_file"),
        (TlsOptions(cert_file="/nowhere/cert.pem"), r"source\.tls_cert_file"),
        (TlsOptions(cert_file=__file__), r"source\.tls_cert_file"),
    ],
)
def test_files_that_are_none_are_reported_by_their_setting(options: TlsOptions, key: str) -> None:
    with pytest.raises(ConfigInvalid, match=key):
        make_context(options)


def test_a_key_with_a_passphrase_is_refused_rather_than_asked_for(certificates: Certificates) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key((certificates.folder / "client.key").read_bytes(), None)
    encrypted = certificates.folder / "encrypted.key"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigInvalid, match="take its passphrase off"):
        make_context(TlsOptions(cert_file=certificates.path("client.pem"), key_file=str(encrypted)))
