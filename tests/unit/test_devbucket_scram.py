"""The server's half of SCRAM, by the example of RFC 7677 and against the client's half."""

import base64

import pytest

from channelindex.feeds.dcp.scram import ScramClient
from devbucket.scram_server import ScramRefused, ScramServer, verifier_for

CLIENT_FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
SERVER_NONCE = b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
CLIENT_FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)


def rfc_exchange() -> ScramServer:
    server = ScramServer("sha256", CLIENT_FIRST, SERVER_NONCE)
    server.first(verifier_for("sha256", "pencil", SALT))
    return server


def test_example_of_rfc_7677():
    server = ScramServer("sha256", CLIENT_FIRST, SERVER_NONCE)
    assert server.user == "user"
    first = server.first(verifier_for("sha256", "pencil", SALT))
    assert first == b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    assert server.final(CLIENT_FINAL) == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.mark.parametrize(
    "final",
    [
        CLIENT_FINAL.replace(b"p=dHz", b"p=eHz"),
        CLIENT_FINAL.replace(b"r=rO", b"r=rP"),
        CLIENT_FINAL.replace(b"c=biws", b"c=eSws"),
        CLIENT_FINAL[:-8],
        CLIENT_FINAL[:-1],
        CLIENT_FINAL.partition(b",p=")[0],
        b"",
    ],
)
def test_any_other_final_message_is_refused(final):
    with pytest.raises(ScramRefused):
        rfc_exchange().final(final)


@pytest.mark.parametrize("first", [b"", b"n,,", b"p=tls-unique,,n=user,r=x", b"n=user,r=x"])
def test_first_messages_without_user_or_with_channel_binding(first):
    with pytest.raises(ScramRefused):
        ScramServer("sha256", first)


@pytest.mark.parametrize("hash_name", ["sha1", "sha256", "sha512"])
def test_client_and_server_prove_themselves_to_each_other(hash_name):
    client = ScramClient(hash_name, "a,b=c", "pässword", nonce="0x36 0xffffff9f")
    server = ScramServer(hash_name, client.first())
    assert server.user == "a,b=c"
    first = server.first(verifier_for(hash_name, "pässword"))
    client.verify(server.final(client.final(first)))
