"""SASL and the selection of the bucket, against what a real server answered."""

import base64
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import scramp  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from channelindex.errors import AuthenticationFailed, SourceUnavailable
from channelindex.feeds.dcp.auth import Credentials, authenticate
from channelindex.feeds.dcp.exchange import Conversation, Request
from channelindex.feeds.dcp.handshake import COMMON_FEATURES, open_bucket
from channelindex.feeds.dcp.scram import ScramClient, ScramError
from channelindex.mcbp import RESPONSE, Feature, Frame, Op, Status
from tests.support.dcp_replay import ADDRESS, cluster_config
from tests.support.recording import Line, by_connection
from tests.support.shared import shared_path

ALL_MECHANISMS = b"SCRAM-SHA512 SCRAM-SHA256 SCRAM-SHA1 PLAIN"
PLAIN = Credentials("Administrator", "password", allow_plain=True)


def frame(opcode: int, status: int = Status.SUCCESS, value: bytes = b"") -> Frame:
    return Frame(RESPONSE, opcode, status, 0, 0, 0, b"", b"", value)


def converse(conversation: Conversation[Any], answers: Iterable[Frame]) -> tuple[list[Request], Any]:
    """What was asked, and the result, when the server answers thus."""
    asked = [next(conversation)]
    for answer in answers:
        try:
            asked.append(conversation.send(answer))
        except StopIteration as finished:
            return asked, finished.value
    return asked, None


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[Line]]:
    return by_connection(shared_path("golden/a_hello_auth.jsonl"))


def answers(lines: list[Line], *opcodes: int) -> list[Frame]:
    return [line.frame for line in lines if line.direction == "s2c" and line.opcode in opcodes]


# -- SCRAM


@pytest.mark.parametrize("conn", ["c-sha512", "c-sha256", "c-sha1"])
def test_our_proof_is_the_one_a_real_server_accepted(conn: str, recorded: dict[str, list[Line]]) -> None:
    first, challenge, final, outcome = (
        line.frame for line in recorded[conn] if line.opcode in (Op.SASL_AUTH, Op.SASL_STEP)
    )
    nonce = first.value.rpartition(b"r=")[2].decode()
    client = ScramClient(first.key.decode().removeprefix("SCRAM-").lower(), "Administrator", "password", nonce)
    assert client.first() == first.value
    assert client.final(challenge.value) == final.value
    client.verify(outcome.value)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "SCRAM-SHA-256", "SCRAM-SHA-1"])
def test_the_server_of_a_library_accepts_us_and_we_it(mechanism: str) -> None:
    library = scramp.ScramMechanism(mechanism)
    stored = library.make_auth_info("pässword")
    users: dict[str, object] = {}
    server = library.make_server(lambda user: users.setdefault(user, stored))
    client = ScramClient(mechanism.removeprefix("SCRAM-").replace("-", "").lower(), "a=b,c", "pässword")
    server.set_client_first(client.first().decode())
    server.set_client_final(client.final(server.get_server_first().encode()).decode())
    client.verify(server.get_server_final().encode())
    assert list(users) == ["a=b,c"]


def test_a_server_without_the_password_is_found_out() -> None:
    client = ScramClient("sha256", "u", "p", "nonce")
    client.final(b"r=nonceX,s=c2FsdA==,i=4096")
    with pytest.raises(ScramError, match="did not prove"):
        client.verify(b"v=" + base64.b64encode(bytes(32)))


@pytest.mark.parametrize(
    "challenge",
    [
        b"",
        b"r=other,s=c2FsdA==,i=4096",
        b"r=nonce,s=c2FsdA==,i=4096",
        b"r=nonceX,s=,i=4096",
        b"r=nonceX,s=!!,i=4096",
        b"r=nonceX,s=c2FsdA==,i=0",
        b"r=nonceX,s=c2FsdA==,i=-5",
        b"r=nonceX,s=c2FsdA==,i=999999999",
        b"r=nonceX,s=c2FsdA==",
        b"\xff\xfe",
    ],
)
def test_a_challenge_that_is_none_is_refused(challenge: bytes) -> None:
    with pytest.raises(ScramError):
        ScramClient("sha256", "u", "p", "nonce").final(challenge)


@given(st.binary())
def test_no_challenge_raises_anything_else(challenge: bytes) -> None:
    with pytest.raises(ScramError):
        ScramClient("sha256", "u", "p", "nonce").final(challenge)


# -- which mechanism


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (ALL_MECHANISMS, b"SCRAM-SHA512"),
        (b"PLAIN SCRAM-SHA1 SCRAM-SHA256", b"SCRAM-SHA256"),
        (b"SCRAM-SHA1 OAUTHBEARER", b"SCRAM-SHA1"),
        (b"PLAIN", b"PLAIN"),
    ],
)
def test_the_strongest_mechanism_is_used(offered: bytes, chosen: bytes) -> None:
    asked, _ = converse(authenticate(PLAIN), [frame(Op.SASL_LIST_MECHS, value=offered)])
    assert asked[1].key == chosen


@pytest.mark.parametrize("offered", [b"PLAIN", b"", b"CRAM-MD5", b"\xff"])
def test_without_an_allowed_mechanism_no_password_is_sent(offered: bytes) -> None:
    with pytest.raises(AuthenticationFailed):
        converse(authenticate(Credentials("u", "p")), [frame(Op.SASL_LIST_MECHS, value=offered)])


REFUSED = frame(Op.SASL_AUTH, Status.AUTH_ERROR)


def test_over_tls_a_user_of_a_directory_gets_in_with_plain() -> None:
    given = [frame(Op.SASL_LIST_MECHS, value=ALL_MECHANISMS), REFUSED, frame(Op.SASL_AUTH)]
    asked, _ = converse(authenticate(Credentials("u", "p"), encrypted=True), given)
    assert [request.key for request in asked] == [b"", b"SCRAM-SHA512", b"PLAIN"]
    assert asked[2].value == b"\0u\0p"


def test_over_tls_plain_needs_no_permission() -> None:
    given = [frame(Op.SASL_LIST_MECHS, value=b"PLAIN"), frame(Op.SASL_AUTH)]
    asked, _ = converse(authenticate(Credentials("u", "p"), encrypted=True), given)
    assert asked[1].key == b"PLAIN"


@pytest.mark.parametrize("credentials", [Credentials("u", "p"), PLAIN])
def test_without_tls_a_refused_password_is_never_sent_readable(credentials: Credentials) -> None:
    with pytest.raises(AuthenticationFailed, match=r"source\.password"):
        converse(authenticate(credentials), [frame(Op.SASL_LIST_MECHS, value=ALL_MECHANISMS), REFUSED])


def test_credentials_do_not_show_the_password() -> None:
    assert "hunter2" not in repr(Credentials("u", "hunter2"))


# -- what a real server answered


def test_a_wrong_password_is_reported_by_the_settings_to_change(recorded: dict[str, list[Line]]) -> None:
    given = [frame(Op.SASL_LIST_MECHS, value=b"PLAIN"), *answers(recorded["c-badpw"], Op.SASL_AUTH)]
    with pytest.raises(AuthenticationFailed, match=r"source\.user.*source\.password.*af76bafa"):
        converse(authenticate(PLAIN), given)


def test_with_scram_a_wrong_password_shows_at_the_step(recorded: dict[str, list[Line]]) -> None:
    challenge = b"r=%s,s=c2FsdA==,i=4000"
    conversation = authenticate(Credentials("Administrator", "wrong"))
    next(conversation)
    first = conversation.send(frame(Op.SASL_LIST_MECHS, value=ALL_MECHANISMS))
    nonce = first.value.rpartition(b"r=")[2] + b"server"
    step = conversation.send(frame(Op.SASL_AUTH, Status.AUTH_CONTINUE, challenge % nonce))
    assert step.opcode == Op.SASL_STEP
    with pytest.raises(AuthenticationFailed, match=r"source\.password"):
        conversation.send(answers(recorded["c-badscram"], Op.SASL_STEP)[0])


def selection(recorded: dict[str, list[Line]], conn: str) -> list[Frame]:
    lines = recorded[conn]
    return [
        *answers(lines, Op.HELLO),
        frame(Op.SASL_LIST_MECHS, value=b"PLAIN"),
        *answers(lines, Op.SASL_AUTH),
        *answers(lines, Op.SELECT_BUCKET)[:1],
    ]


def test_a_bucket_that_is_not_there_may_come(recorded: dict[str, list[Line]]) -> None:
    with pytest.raises(SourceUnavailable, match=r"'nosuch' of source\.url does not exist, or is not loaded yet"):
        converse(
            open_bucket(replace(ADDRESS, bucket="nosuch"), PLAIN, COMMON_FEATURES), selection(recorded, "c-nobucket")
        )


def test_a_bucket_that_is_not_ours_will_not(recorded: dict[str, list[Line]]) -> None:
    with pytest.raises(AuthenticationFailed, match=r"source\.user = 'Administrator' may not use the bucket 'other'"):
        converse(
            open_bucket(replace(ADDRESS, bucket="other"), PLAIN, COMMON_FEATURES), selection(recorded, "c-noaccess")
        )


def test_only_features_that_were_asked_for_count_as_granted(recorded: dict[str, list[Line]]) -> None:
    hello = answers(recorded["c-sha512"], Op.HELLO)[0]
    config = frame(Op.GET_CLUSTER_CONFIG, value=cluster_config(11210))
    given = [hello, frame(Op.SELECT_BUCKET), config]
    _, greeting = converse(open_bucket(ADDRESS, Credentials(), (Feature.XATTR, Feature.COLLECTIONS)), given)
    assert greeting.features == {Feature.XATTR}
    assert greeting.config == config.value


@pytest.mark.parametrize("status", [Status.NO_BUCKET, Status.ETMPFAIL, Status.KEY_ENOENT])
def test_a_bucket_that_warms_up_is_asked_again(status: Status) -> None:
    given = [frame(Op.HELLO), frame(Op.SELECT_BUCKET), frame(Op.GET_CLUSTER_CONFIG, status)]
    with pytest.raises(SourceUnavailable):
        converse(open_bucket(ADDRESS, Credentials(), COMMON_FEATURES), given)


def test_without_a_user_nothing_is_proven() -> None:
    given = [frame(Op.HELLO), frame(Op.SELECT_BUCKET), frame(Op.GET_CLUSTER_CONFIG, value=cluster_config(11210))]
    asked, _ = converse(open_bucket(ADDRESS, Credentials(), COMMON_FEATURES), given)
    assert [request.opcode for request in asked] == [Op.HELLO, Op.SELECT_BUCKET, Op.GET_CLUSTER_CONFIG]
