"""The admin interface of a dev bucket, and `devbucket ctl`."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from channelindex import exits
from channelindex.errors import ConfigInvalid, SourceUnavailable
from devbucket import DevBucket, DevBucketConfig, admin, ctl
from workers.cli import main


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "admin.sock")


@pytest.fixture
def bucket(address: str) -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=8, n_nodes=2, admin=address)) as running:
        yield running


def raw(address: str, *lines: bytes) -> list[dict[str, object]]:
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(address)
        link.sendall(b"".join(line + b"\n" for line in lines))
        with link.makefile("rb") as replies:
            return [json.loads(replies.readline()) for _ in lines]


def test_operations_are_answered_in_order(bucket, address):
    replies = raw(address, b'{"do":"owners"}', b'{"do":"move","vbs":[0,1],"node":1}', b'{"do":"owners"}')
    assert replies == [{"answer": [0] * 4 + [1] * 4}, {"answer": None}, {"answer": [1] * 2 + [0] * 2 + [1] * 4}]
    assert bucket.owners() == [1, 1, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"{", "unexpected end"),
        (b"[]", 'a text "do"'),
        (b'{"do":"explode"}', "no operation 'explode'"),
        (b'{"do":"bulk_load","documents":[]}', "no operation 'bulk_load'"),
        (b'{"do":"_server"}', "no operation '_server'"),
        (b'{"do":"failover"}', "missing a required argument: 'vb': failover VB [lose=0]"),
        (b'{"do":"failover","vb":1,"by":2}', "unexpected keyword argument 'by'"),
        (b'{"do":"failover","vb":true}', "vb=True is not a whole number"),
        (b'{"do":"move","vbs":["a"],"node":0}', "is not a list of numbers"),
        (b'{"do":"failover","vb":8}', "no vbucket 8"),
        (b'{"do":"failover","vb":1,"lose":1}', "cannot lose 1 of 0 seqnos"),
        (b'{"do":"set_state","vb":1,"state":"odd"}', "no state 'odd': active, replica, pending, dead"),
    ],
)
def test_refused_request_is_explained_and_the_next_one_served(bucket, address, line, error):
    refused, served = raw(address, line, b'{"do":"nodes"}')
    assert error in str(refused["error"])
    assert "answer" in served


def test_nodes_can_be_stopped_and_started(bucket, address):
    admin.ask(address, "stop_node", {"node": 1})
    assert [node["running"] for node in admin.ask(address, "nodes", {})] == [True, False]
    admin.ask(address, "start_node", {"node": 1})
    assert [node["running"] for node in bucket.nodes()] == [True, True]


def test_socket_file_goes_with_the_bucket(address):
    with DevBucket(DevBucketConfig(n_vbuckets=1, admin=address)):
        assert Path(address).exists()
    assert not Path(address).exists()
    with pytest.raises(SourceUnavailable, match="no dev bucket answers"):
        admin.ask(address, "nodes", {})


@pytest.mark.parametrize("text", ["192.0.2.1:80", "localhost", "nowhere", "127.0.0.1:x", "127.0.0.1:70000"])
def test_only_a_path_or_a_loopback_port_is_an_address(text):
    with pytest.raises(ConfigInvalid, match="neither a path with a slash nor a port"):
        admin.parse_address(text)


def test_addresses():
    assert admin.parse_address("./a") == Path("a")
    assert admin.parse_address("77") == admin.parse_address("127.0.0.1:77") == ("127.0.0.1", 77)


@pytest.mark.parametrize(
    ("operation", "words", "arguments"),
    [
        ("failover", ["3", "lose=2"], {"vb": 3, "lose": 2}),
        ("failover", ["lose=2", "3"], {"vb": 3, "lose": 2}),
        ("move", ["0-2,7", "1"], {"vbs": [0, 1, 2, 7], "node": 1}),
        ("stall", ["off", "name=x"], {"on": False, "name": "x"}),
        ("flip_byte", ["-1", "node=0"], {"offset": -1, "node": 0}),
        ("rebalance", [], {}),
    ],
)
def test_words_become_arguments(operation, words, arguments):
    assert ctl.arguments_of(operation, words) == arguments


@pytest.mark.parametrize(
    ("operation", "words", "error"),
    [
        ("failover", ["x"], "vb='x' is not a whole number"),
        ("move", ["0-", "1"], "vbs='0-' is not a list of numbers"),
        ("stall", ["perhaps"], "is not on or off"),
        ("rebalance", ["1"], "'1' is too much: rebalance"),
        ("failover", ["1", "by=2"], "there is no by: failover VB"),
    ],
)
def test_words_that_do_not_fit(operation, words, error):
    with pytest.raises(ConfigInvalid, match=error):
        ctl.arguments_of(operation, words)


def test_ctl_prints_answers_as_json_and_errors_as_a_line(bucket, address, capsys):
    def ctl(*words: str) -> int:
        return main(["devbucket", "ctl", "--admin", address, *words])

    assert ctl("failover", "3") == exits.OK
    assert ctl("nodes") == exits.OK
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["node"] for line in lines] == [0, 1]
    assert ctl("failover", "9") == exits.CONFIG
    assert capsys.readouterr().err == "channelindex: there is no vbucket 9: the vbuckets are 0 to 7\n"


def test_ctl_help_lists_every_operation(capsys):
    with pytest.raises(SystemExit):
        main(["devbucket", "ctl", "--help"])
    listed = capsys.readouterr().out
    for name in ctl.OPERATIONS:
        assert f"  {ctl.usage(name)}\n" in listed
        assert ctl.summary(name)


def test_document_tells_what_a_client_sees_of_every_operation():
    document = (Path(__file__).parents[2] / "docs/dev-bucket.md").read_text()
    assert [name for name in ctl.OPERATIONS if f"`{name}`" not in document] == []


def test_command_needs_certificate_and_key_together(capsys):
    assert main(["devbucket", "--tls-certificate", "c.pem"]) == exits.CONFIG
    assert "TLS needs both --tls-certificate and --tls-key" in capsys.readouterr().err


def test_command_serves_nodes_and_an_admin_port(tmp_path):
    address = str(tmp_path / "admin.sock")
    command = [sys.executable, "-m", "channelindex", "devbucket", "--port", "0", "--vbuckets", "4", "--nodes", "2"]
    with subprocess.Popen(
        [*command, "--admin", address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        assert url.count(",") == 1
        assert len(admin.ask(address, "nodes", {})) == 2
        child.terminate()
        _, said = child.communicate()
    assert child.returncode == exits.OK
    assert 'msg="for development only"' in said
