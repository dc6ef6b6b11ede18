"""Addresses that a hub leads to: whose they are, and which of them a download follows."""

import re
from collections.abc import Sequence

from ..errors import DownloadError
from .foreign_text import shown

MOST_REDIRECTS, MOST_VISITS = 10, 2  # of a request, and to one address
# What libraries read in different ways is no address: a token could go to another host than was looked at.
_LOGIN, _HOST = r"(?:[\w.~!$&'()*+,;=:%-]*@)?", r"([a-z0-9][\w.-]*|\[[\da-f:.]+\])"
_ADDRESS = re.compile(rf"(?i)(https?)://{_LOGIN}{_HOST}(?::(\d{{1,5}}))?(?:[/?#][^\\]*)?", re.ASCII)
_PORTS = {"http": 80, "https": 443}


def origin(url: str) -> tuple[str, str, int]:
    """Returns an address's scheme, host and port.

    Raises: DownloadError for an address that no download goes to.
    """
    found = _ADDRESS.fullmatch(url)
    port = int(found[3] or _PORTS[found[1].lower()]) if found else 0
    if not 0 < port < 2**16 or not all("!" <= sign <= "~" for sign in url):
        raise DownloadError(
            f"The hub leads to '{shown(url, 80)}', which is no address that files come from; only http:// and https:// are. "
            "It was not asked. If you use a mirror (HF_ENDPOINT), try without it."
        )
    return found[1].lower(), found[2].lower(), port


def shares_origin(url: str, other: str) -> bool:
    """Returns whether two addresses have one scheme, host and port; False for what is no address."""
    try:
        return origin(url) == origin(other)
    except DownloadError:
        return False


def require_new(visited: Sequence[str], url: str) -> None:
    """Makes sure that a chain of redirects goes on to somewhere, and comes to an end.

    Args:
        visited: the addresses so far.
        url: the next one.
    Raises: DownloadError.
    """
    origin(url)
    if len(visited) > MOST_REDIRECTS or visited.count(url) >= MOST_VISITS:
        raise DownloadError(
            f"The hub leads from one address to the next without an end, at last to '{shown(url, 80)}'. Try again later, and "
            "without a mirror (HF_ENDPOINT) or proxy if you use one."
        )
