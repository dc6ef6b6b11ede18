"""Text that others wrote, such as a server's words and addresses, in a form that a message or a log may hold."""

import re

LONGEST = 200  # characters
_READ = 1000  # characters that are looked at
_TOKEN = re.compile(r"(?i)\bhf_\w+|\b(?:bearer|basic)\s+[^\s'\"]+")
_LOGIN = re.compile(
    r"://[^\n]*@|(?<![^\s'\"(])(?:(?!://)[^\s'\"(])*@"
)  # a password may hold any sign, so all before the last @ goes
_QUERY = re.compile(r"[?#]\S+")  # a signature may stand behind any sign


def shown(text: object, longest: int = LONGEST) -> str:
    """Returns foreign text without names and passwords, tokens and queries of addresses, escaped and short.

    What no screen shows as it is (control codes, line ends, signs that turn the direction of writing) stands there as its code.

    Args:
        text: or an error.
        longest: characters that are kept.
    """
    plain = str(text)
    plain = plain if len(plain) <= _READ else f"{plain[:_READ]}@"  # the end of a long password may be cut off
    plain = _LOGIN.sub(lambda found: "://...@" if found[0].startswith("://") else "...@", plain)
    plain = _QUERY.sub("?...", _TOKEN.sub("...", plain))
    plain = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in plain)
    return plain if len(plain) <= longest else f"{plain[: longest - 3]}..."
