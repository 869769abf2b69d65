"""The embedded redis-server starts, answers and leaves nothing behind."""

import redis

from devbucket.embedded_redis import EmbeddedRedis


def test_server_answers_and_its_folder_is_gone_after_close():
    with EmbeddedRedis() as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        folder = server.folder
    assert not folder.exists()


def test_close_twice_is_harmless():
    server = EmbeddedRedis()
    server.close()
    server.close()


def test_saved_data_is_there_after_a_restart(tmp_path):
    with EmbeddedRedis(tmp_path, save=True) as server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
    with EmbeddedRedis(tmp_path, save=True) as server, redis.Redis.from_url(server.url) as client:
        assert client.get("key") == b"value"
