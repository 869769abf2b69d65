"""The configuration: which source wins, what is refused and how it is told, and that no password is ever shown."""

import dataclasses
from pathlib import Path

import pytest

from channelindex.config import REQUIRED_TO_READ, Config, ConfigProblems, check_reload, load_config
from channelindex.config_text import config_rows, format_value
from channelindex.errors import ConfigInvalid
from channelindex.redis_url import parse_redis_url
from channelindex.settings import SECTIONS, SETTINGS
from channelindex.urls import mask_url

MINIMUM = {"source.url": "couchbase://127.0.0.1:11210/docs", "index.store": "redis://127.0.0.1:6379/0"}


def write(folder: Path, text: str) -> Path:
    path = folder / "channelindex.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(path: Path | None = None, environ=None, overrides=None) -> tuple[str, ...]:
    with pytest.raises(ConfigProblems) as caught:
        load_config(path, environ or {}, MINIMUM | (overrides or {}))
    return caught.value.problems


def test_a_later_source_wins_and_the_origin_says_which(tmp_path: Path) -> None:
    path = write(tmp_path, '[index]\npartitions = 8\nname = "a"\n[workers]\nfeed_workers = 3\n')
    environ = {"CHANNELINDEX_INDEX_NAME": "b", "CHANNELINDEX_WORKERS_FEED_WORKERS": "4", "PATH": "/bin"}
    config = load_config(path, environ, MINIMUM | {"workers.feed_workers": "5"})
    assert (config.index.partitions, config.index.name, config.workers.feed_workers) == (8, "b", 5)
    assert config.origins["index.partitions"] == str(path)
    assert config.origins["index.name"] == "environment CHANNELINDEX_INDEX_NAME"
    assert config.origins["workers.feed_workers"] == "the command line"
    assert "workers.batch_writers" not in config.origins


@pytest.mark.parametrize("service", ["CHANNELINDEX", "CHANNELINDEX_METRICS", "CHANNELINDEX_INDEX_STORE"])
def test_what_kubernetes_sets_for_a_service_of_our_name_is_passed_over(service: str) -> None:
    environ = {
        f"{service}_SERVICE_HOST": "10.96.0.7",
        f"{service}_SERVICE_PORT": "4994",
        f"{service}_SERVICE_PORT_HTTP": "4994",
        f"{service}_PORT": "tcp://10.96.0.7:4994",
        f"{service}_PORT_4994_TCP": "tcp://10.96.0.7:4994",
        f"{service}_PORT_4994_TCP_PROTO": "tcp",
        f"{service}_PORT_4994_TCP_PORT": "4994",
        f"{service}_PORT_4994_TCP_ADDR": "10.96.0.7",
    }
    assert load_config(None, environ, MINIMUM) == load_config(None, {}, MINIMUM)
    assert not any(setting.variable.endswith("_PORT") for setting in SETTINGS.values())


def test_a_variable_of_somebody_else_is_a_warning_and_a_misspelt_key_a_problem() -> None:
    config = load_config(None, {"CHANNELINDEX_IMAGE_TAG": "7"}, MINIMUM)
    assert config.warnings == ("the environment variable CHANNELINDEX_IMAGE_TAG sets no key and is ignored",)
    assert "did you mean index.store" in problems_of(None, {"CHANNELINDEX_INDX_STORE": "x"})[0]
    assert "did you mean workers.feed_workers" in problems_of(None, {"CHANNELINDEX_WORKERS_FEEDWORKERS": "3"})[0]


@pytest.mark.parametrize(
    ("store", "file", "says"),
    [
        ("redis://h/0", "{ca}", "index.ca_file is set, but index.store is without TLS"),
        ("rediss://h/0?ssl_ca_certs=/x", "{ca}", "index.store has ssl_ca_certs, too"),
        ("rediss://h/0", "/nowhere/ca.pem", "there is no such file"),
    ],
)
def test_authorities_that_cannot_be_used_are_a_problem(tmp_path: Path, store: str, file: str, says: str) -> None:
    authority = tmp_path / "ca.pem"
    authority.touch()
    (problem,) = problems_of(None, {}, {"index.store": store, "index.ca_file": file.format(ca=authority)})
    assert says in problem


def test_authorities_go_into_the_url_of_each_redis_that_takes_them(tmp_path: Path) -> None:
    authority = tmp_path / "c a.pem"
    authority.touch()
    store = {"index.store": "rediss+sentinel://h/main/0?a=b", "index.ca_file": str(authority)}
    config = load_config(None, {}, MINIMUM | store)
    assert parse_redis_url(config.index.store).options == {"a": "b", "ssl_ca_certs": str(authority)}
    assert config.coordination.redis == config.index.store
    bucket = {"index.store": "couchbases://h/b", "coordination.redis": "redis://h/1"}
    assert load_config(None, {}, MINIMUM | store | bucket).index.store == "couchbases://h/b"


def test_a_value_equal_to_the_default_still_counts_as_set(tmp_path: Path) -> None:
    path = write(tmp_path, "[index]\npartitions = 64\n")
    shown = {key: origin for key, _, origin in config_rows(load_config(path, {}, MINIMUM))}
    assert shown["index.partitions"] == str(path)
    assert shown["index.block_bytes"] == "default"


def test_every_key_can_be_set_by_its_variable() -> None:
    given = {
        "source.url": "couchbase://[::1]:11210/b",
        "source.decoder": "my.decoders:make",
        "index.store": "unix:///run/redis.sock",
        "coordination.redis": "rediss://h:1/2",
        "log.level": "debug",
        "log.format": "json",
        "workers.kernel": "off",
        "index.durability": "none",
        "source.collections": "shop.orders,shop.carts",
        "source.metadata": "xattr",
        "metrics.listen": "[::1]:9480",
        "serve.listen": "127.0.0.1:0",
        "serve.operator_listen": "[::1]:9481",
        "serve.origins": "https://app.example.com,http://localhost:8080",
        "index.ca_file": __file__,  # the file has to be there
    }
    for key, setting in SETTINGS.items():
        if key in {"source.password_file", "index.password_file"}:  # the file has to be there
            continue
        text = given.get(key) or ("x" if isinstance(setting.default, str) else str(setting.default))
        others = {**MINIMUM, "index.store": "rediss://h/0", "source.tls_cert_file": "cert.pem"}
        others.pop(key, None)
        config = load_config(None, {setting.variable: text}, others, required=())
        assert config.origins[key] == f"environment {setting.variable}"


def test_all_problems_are_reported_at_once_with_key_value_origin_and_fix(tmp_path: Path) -> None:
    path = write(tmp_path, 'node = 3\n[index]\npartitons = 8\n[workers]\nfeed_workers = 0\n[log]\nlevel = "trace"\n')
    problems = problems_of(path, {"CHANNELINDEX_COORDINATION_TTL_S": "soon"})
    assert problems == (
        f"node (set in {path}): must be a table, [node]",
        f"index.partitons (set in {path}): unknown key; did you mean index.partitions?",
        f"workers.feed_workers = 0 (set in {path}): must be 1 to 64 processes",
        f'log.level = "trace" (set in {path}): must be debug or info or warning or error',
        'coordination.ttl_s = "soon" (set in environment CHANNELINDEX_COORDINATION_TTL_S): must be a number',
    )


@pytest.mark.parametrize(
    ("key", "value", "wrong"),
    [
        ("index.partitions", 63, "must be a power of two"),
        ("index.partitions", "8.5", "must be a whole number"),
        ("index.partitions", True, "must be a whole number"),
        ("index.block_bytes", 1, "must be 1024 to 16777216 bytes"),
        ("index.name", "a:b", "must be 1 to 64 letters"),
        ("index.store", "http://h/1", "must be redis://"),
        ("index.store", "unix://", "must be redis://"),
        ("coordination.redis", "memory://", "must be redis://"),
        ("coordination.ttl_s", "nan", "must be 1 to 600 seconds"),
        ("coordination.ttl_s", False, "must be a number"),
        ("source.url", "http://host/b", "must look like couchbase://host:port/bucket"),
        ("source.url", "couchbase://one,/b", "must look like couchbase://host:port/bucket"),
        ("source.collections", "orders", "must be names scope.collection"),
        ("source.collections", "s.*,s.c", "must stand alone"),
        ("source.metadata", "none", "must be auto or inline or xattr"),
        ("source.url", "couchbase://host", "must look like couchbase://host:port/bucket"),
        ("source.url", "couchbase://me:pw@host/b", "must look like couchbase://host:port/bucket"),
        ("source.decoder", "sync-gateway", "must be sync_gateway or package.module:factory"),
        ("source.star_channel", "maybe", "must be true or false"),
        ("source.star_channel", 1, "must be true or false"),
        ("source.user", 7, "must be text"),
    ],
)
def test_a_wrong_value_is_refused_with_what_it_must_be(key: str, value, wrong: str) -> None:
    (problem,) = problems_of(overrides={key: value})
    assert problem.startswith(f"{key} = ")
    assert wrong in problem


def test_whole_numbers_are_taken_where_fractions_may_stand(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "[coordination]\nttl_s = 5\n"), {}, MINIMUM)
    assert config.coordination.ttl_s == 5.0
    assert isinstance(config.coordination.ttl_s, float)


def test_required_keys_depend_on_what_is_to_be_done() -> None:
    with pytest.raises(ConfigProblems) as caught:
        load_config(None, {}, {})
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == ["source.url", "index.store"]
    assert "CHANNELINDEX_SOURCE_URL" in caught.value.problems[0]
    config = load_config(None, {}, {"index.store": MINIMUM["index.store"]}, required=REQUIRED_TO_READ)
    assert config.source.url == ""


def test_a_refused_required_key_is_reported_once() -> None:
    (problem,) = problems_of(overrides={"source.url": "nonsense"})
    assert problem.startswith("source.url = ")


def test_leases_live_in_the_store_unless_it_is_no_redis() -> None:
    config = load_config(None, {}, MINIMUM)
    assert config.coordination.redis == MINIMUM["index.store"]
    assert config.origins["coordination.redis"] == "index.store"
    config = load_config(None, {}, MINIMUM | {"index.store": "memory://"})
    assert config.coordination.redis == ""


def test_an_index_in_a_bucket_can_be_read_without_a_redis() -> None:
    store = {"index.store": "couchbase://h1,h2:11210/index"}
    assert load_config(None, {}, store, required=REQUIRED_TO_READ).coordination.redis == ""
    (problem,) = problems_of(overrides=store)
    assert problem.startswith("coordination.redis is not set (leases need a Redis, and index.store is couchbase://")


@pytest.mark.parametrize("url", ["couchbases://h/b", "couchbase://[::1]:11210/b", "couchbase://h/b?network=external"])
def test_urls_of_a_bucket_for_the_index(url: str) -> None:
    assert load_config(None, {}, {"index.store": url}, required=REQUIRED_TO_READ).index.store == url


@pytest.mark.parametrize(
    "url", ["couchbase://h", "couchbase:///b", "couchbase://user:hunter2@h/b", "couchbase://h/b/c"]
)
def test_urls_that_name_no_bucket_or_hold_a_password_are_refused(url: str) -> None:
    (problem,) = problems_of(overrides={"index.store": url})
    assert "must look like couchbase://host,host/bucket; user and password have their own keys" in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize("section", ["source", "index"])
def test_the_password_comes_from_its_file(section: str, tmp_path: Path) -> None:
    key, file_key = f"{section}.password", f"{section}.password_file"
    secret = tmp_path / "password"
    secret.write_text("hunter2\n", encoding="utf-8")
    config = load_config(None, {}, MINIMUM | {file_key: str(secret)})
    assert getattr(config, section).password == "hunter2"
    assert config.origins[key] == f"{file_key} {secret}"
    (problem,) = problems_of(overrides={file_key: str(secret), key: "hunter3"})
    assert f"{key} is set too (the command line)" in problem
    assert "hunter" not in problem
    (problem,) = problems_of(overrides={file_key: str(tmp_path / "absent")})
    assert problem.endswith("cannot be read: No such file or directory")


def test_no_output_shows_a_password(tmp_path: Path) -> None:
    path = write(tmp_path, '[source]\npasword = "hunter2"\n[index]\nstore = "http://:hunter2@h"\n')
    assert "hunter2" not in " ".join(problems_of(path, {"CHANNELINDEX_SOURCE_SECRET": "hunter2"}))
    config = load_config(None, {}, MINIMUM | {"source.password": "hunter2", "index.store": "redis://me:hunter2@h:1/0"})
    assert "hunter2" not in repr(config)
    rows = list(config_rows(config))
    assert "hunter2" not in repr(rows)
    assert ("source.password", '"***"', "the command line") in rows


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://me:p/w@x:y@h/0", "redis://me:***@h/0"),
        ("redis://h/0?password=pw&db=1", "redis://h/0?password=***&db=1"),
        ("no reply from redis://:pw@h, again", "no reply from redis://:***@h, again"),
        ("a:b@c", "a:b@c"),
    ],
)
def test_passwords_in_urls_are_masked(text: str, masked: str) -> None:
    assert mask_url(text) == masked


@pytest.mark.parametrize("content", [b"[index\n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_broken_file_is_one_problem_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "channelindex.toml"
    path.write_bytes(content)
    (problem,) = problems_of(path)
    assert problem.startswith(f"the configuration file {path} cannot be read: ")


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path / "absent.toml")
    assert problem.endswith("No such file or directory")
    assert issubclass(ConfigProblems, ConfigInvalid)


def test_the_model_names_each_section_once_and_all_defaults_are_allowed() -> None:
    assert list(SECTIONS) == [entry.name for entry in dataclasses.fields(Config) if entry.name in SECTIONS]
    for setting in SETTINGS.values():
        assert setting.doc.endswith(".")
        if setting.default != "":
            assert setting.wrong(setting.default) is None
        assert format_value(setting, setting.default)


def credentials(folder: Path, text: str) -> dict[str, str]:
    (folder / "source.password").write_text(text)
    return {"CREDENTIALS_DIRECTORY": str(folder)}


def test_a_password_comes_from_systemds_credential(tmp_path: Path) -> None:
    config = load_config(None, credentials(tmp_path, "s3cret\n"), MINIMUM)
    assert config.source.password == "s3cret"
    assert config.origins["source.password"] == f"source.password_file {tmp_path}/source.password"
    assert not any("s3cret" in shown for _, shown, _ in config_rows(config))


def test_a_password_that_is_set_wins_over_the_credential(tmp_path: Path) -> None:
    environ = {**credentials(tmp_path, "one"), "CHANNELINDEX_SOURCE_PASSWORD": "two"}
    assert load_config(None, environ, MINIMUM).source.password == "two"
    file = write(tmp_path, "three")
    assert load_config(None, credentials(tmp_path, "one"), {**MINIMUM, "source.password_file": str(file)}) == (
        load_config(None, {}, {**MINIMUM, "source.password_file": str(file)})
    )


def test_without_a_credential_of_that_name_there_is_no_password(tmp_path: Path) -> None:
    assert load_config(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}, MINIMUM).source.password == ""


def test_a_folder_of_credentials_that_is_closed_to_us_has_none(tmp_path, monkeypatch):
    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    assert load_config(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}, MINIMUM).source.password == ""


def test_a_key_without_its_certificate_is_refused() -> None:
    with pytest.raises(ConfigProblems, match=r"source\.tls_key_file is set without source\.tls_cert_file"):
        load_config(None, {}, {**MINIMUM, "source.tls_key_file": "key.pem"})


def test_a_file_that_cannot_be_read_is_the_only_problem_reported(tmp_path):
    with pytest.raises(ConfigProblems) as raised:
        load_config(tmp_path / "missing.toml", {}, {})
    assert len(raised.value.problems) == 1


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("node.name", "other", "node"),
        ("index.name", "other", "index"),
        ("coordination.ttl_s", 20.0, "coordination"),
        ("source.url", "couchbase://elsewhere/bucket", "source.url"),
    ],
)
def test_a_reload_that_would_make_another_node_is_refused(key, value, named):
    base = {"source.url": "couchbase://h/b", "index.store": "redis://h/0", "node.name": "n1"}
    present = load_config(None, {}, base)
    check_reload(present, load_config(None, {}, {**base, "workers.feed_workers": 4}))
    with pytest.raises(ConfigInvalid, match=named):
        check_reload(present, load_config(None, {}, {**base, key: value}))
