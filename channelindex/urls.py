"""Masks passwords in URLs before a URL is logged or printed."""

import re


def mask_url(text: str) -> str:
    """*text* with the password of any URL in it replaced by asterisks."""
    text = re.sub(r"(://[^:/?#\s]*):[^\s]*@", r"\1:***@", text)
    return re.sub(r"([?&]\w*password=)[^&\s]*", r"\1***", text)


def mask_value(value: str) -> str:
    """*value*, all of which may be one URL: masked up to its last @, because a password may reach that far."""
    return mask_url(re.sub(r"(://[^:/?#]*):.*@", r"\1:***@", value, flags=re.DOTALL))
