"""Takes URLs apart that name several hosts, and masks passwords before a URL is logged or printed."""

import re
from urllib.parse import SplitResult, urlsplit


def split_url(url: str) -> SplitResult:
    """Split *url* as `urlsplit` does, whatever hosts it lists: `h1,[::1]:2` is a netloc that Python 3.14 refuses.

    Raises:
        ValueError: it is no URL.
    """
    scheme, mark, rest = url.partition("://")
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
    credentials, at, hosts = netloc.rpartition("@")
    before, behind = f"{scheme}{mark}{credentials}{at}", rest.removeprefix(netloc)
    first, *others = [urlsplit(f"{before}{host}{behind}") for host in hosts.split(",")]
    return first._replace(netloc=",".join([first.netloc, *(each.netloc.rpartition("@")[2] for each in others)]))


def mask_url(text: str) -> str:
    """*text* with the password of any URL in it replaced by asterisks."""
    text = re.sub(r"(://[^:/?#\s]*):[^\s]*@", r"\1:***@", text)
    return re.sub(r"([?&]\w*password=)[^&\s]*", r"\1***", text)


def mask_value(value: str) -> str:
    """*value*, all of which may be one URL: masked up to its last @, because a password may reach that far."""
    return mask_url(re.sub(r"(://[^:/?#]*):.*@", r"\1:***@", value, flags=re.DOTALL))
