"""What a person has set for the way to the hub, and what is wrong with it, as sentences without their full stops."""

import re
import string
import sys
from collections.abc import Mapping

from .foreign_text import shown

HUB = "https://huggingface.co"  # the client's own endpoint, whose word on a file counts
TOKEN_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
PROXY_NAMES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")  # what httpx and requests both speak
# Straight quotation marks, those of text programs (single, double, low, angled), and a byte order mark.
_AROUND = "\"'`\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb\ufeff" + string.whitespace
_AGAIN = "set it anew and start the host again"


def _around(name: str, value: str) -> str:
    if value.strip(_AROUND) == value:
        return ""
    return f"{name} has quotation marks or blanks around its value ('{shown(value)}'); {_AGAIN}"


def endpoint_problem(value: str) -> str:
    """Returns what is wrong with the hub's address, empty where nothing is.

    Args:
        value: of HF_ENDPOINT.
    """
    problem = _around("HF_ENDPOINT", value)
    if problem or re.fullmatch(r"https?://[^\s/]\S*", value):
        return problem
    example = "https://huggingface.co, with https:// in front"
    return f"HF_ENDPOINT must be an address such as {example}, got '{shown(value)}'; {_AGAIN}"


def token_problem(token: str, source: str) -> str:
    """Returns what is wrong with a token, empty where nothing is. The token itself is not told.

    Args:
        token: as it would be sent.
        source: the variable or the file it was read from.
    """
    wrong = next((sign for sign in token if sign in _AROUND or not "!" <= sign <= "~"), "")
    if not wrong:
        return ""
    return (
        f"the token in {source} has {wrong!r} (U+{ord(wrong):04X}) in it, which no token of the hub has; copy it again "
        f"without quotation marks, {_AGAIN}, or log in with `hf auth login`"
    )


def token_source(environment: Mapping[str, str], file: str) -> str:
    """Returns where the client has a person's token from.

    Args:
        environment: the variables.
        file: of the client, which it reads where no variable has a token.
    """
    return next((name for name in TOKEN_NAMES if environment.get(name)), file)


def proxy_problem(environment: Mapping[str, str]) -> str:
    """Returns what is wrong with the proxies that the variables name, in either case; empty where nothing is."""
    for name in (written for upper in PROXY_NAMES for written in (upper, upper.lower())):
        value = environment.get(name, "")
        problem = _around(name, value)
        scheme, separator, _ = value.partition("://")
        if not problem and separator and scheme.lower() not in PROXY_SCHEMES:
            allowed = ", ".join(f"{scheme}://" for scheme in PROXY_SCHEMES)
            problem = f"{name} must begin with one of {allowed}, got '{shown(value)}'; {_AGAIN}"
        if problem:
            return problem
    return ""


def socks_problem(error: Exception) -> str:
    """Returns which package a SOCKS proxy needs, empty where an HTTP library's error says nothing of it."""
    if isinstance(error, ImportError) and "socks" in str(error).lower():
        package = "socksio"  # of httpx and its successor
    elif "Missing dependencies for SOCKS" in str(error):
        package = "PySocks"  # of requests
    else:
        return ""
    return (
        f"a SOCKS proxy is set ({', '.join(PROXY_NAMES)}), which needs the package {package}; install it with "
        f'`"{sys.executable}" -m pip install {package}` and start the host again, or name an HTTP proxy'
    )
