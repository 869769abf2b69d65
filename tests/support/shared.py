"""Finds the material that tests use and the product does not: recordings, documents, real data."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


def shared_path(relative: str) -> Path:
    """The path of a file or folder of the test material.

    Skips the test where the material is missing; on CI, where it always is, that is a failure.
    """
    path = SHARED / relative
    if not path.exists():
        message = f"the test material {relative} is missing (looked in {SHARED})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path
