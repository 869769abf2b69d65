"""Asks a node's monitor, which may not listen yet, or not any more."""

import urllib.error
import urllib.request

TIMEOUT_S = 30.0


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body; 0 and nothing where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""
