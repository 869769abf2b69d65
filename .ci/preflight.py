"""Says in one line what is missing to make the virtual environment. Runs on any Python, however old."""

import sys


def missing():
    """What has to be done first, or None."""
    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        return "Python >= 3.11 is needed and %s is %s: name a newer one, as in `make PY=python3.12 test`" % (
            sys.executable,
            found,
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        package = "python%d.%d-venv" % sys.version_info[:2]
        return "%s cannot make virtual environments: on Debian and Ubuntu `apt-get install %s` provides it" % (
            sys.executable,
            package,
        )
    return None


if __name__ == "__main__":
    problem = missing()
    if problem:
        sys.exit("make: " + problem)
