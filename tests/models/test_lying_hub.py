"""Hubs that lie in every way at once, made from a fixed seed: no wrong file, no token elsewhere, no foreign text as it came."""

import functools
import gzip
import hashlib
import logging
import random
import re
from dataclasses import dataclass, replace
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from hyper_sd.errors import DownloadError, HyperSDError
from hyper_sd.models import files
from hyper_sd.models.addresses import origin
from hyper_sd.models.download import open_hub_file
from hyper_sd.models.foreign_text import LONGEST, shown
from hyper_sd.models.hub_answers import LONGEST_ASKED, refusal, require_part, seconds_to_wait, sha256_said, size_said, xet_said
from hyper_sd.models.remote import StartAnew
from hyper_sd.models.transfer import Transfer
from hyper_sd.tests.models.loopback_hub import ALWAYS, Fault
from hyper_sd.tests.models.world import lora_bytes

SIZE, MOST_REQUESTS, CASES, TEXTS = 20_000, 60, 800, 8_000
SD15 = "lora_unet_down_blocks_0_attentions_0_proj_in"
SECRETS = ("hf_s3cret", "pa55word", "S1GNED")
RUDE = "\x9b2J \u202e see http://me:pa55word@x/?Signature=S1GNED or hf_s3cret \x85"
TRUE = lora_bytes(SIZE)
OTHERS = {
    "one byte changed": TRUE[:-1] + bytes([TRUE[-1] ^ 1]),
    "another family": lora_bytes(SIZE, layer=SD15),
    "noise": random.Random(1).randbytes(len(TRUE)),
    "cut": TRUE[:-9],
    "longer": TRUE + b"more",
    "nothing": b"",
}
REDIRECTS = (
    "file:///etc/passwd", "ftp://{cdn}/x", "data:text/plain,x", "gopher://x/", "/again", "//", "", "http://[", "https:///x",
    "{cdn}/a", "{cdn}/b", "{cdn}", "http://me:pa55word@127.0.0.1:1/?Signature=S1GNED", "http://a\\@127.0.0.1/", "javascript:0",
    "\\\\x", "http://x:99999/",
)  # fmt: skip
NUMBERS = (
    "-1", "1e9", "nan", "", "9" * 400, "\u00b2", "7 ", "Wed, 99 Foo", "inf", "-9", "0x10", "Thu, 01 Jan 1970 00:00:00 GMT",
)  # fmt: skip
PARTS = (
    *SECRETS, *REDIRECTS, *NUMBERS, RUDE, "http", "https", "://", ":", "/", "//", "\\", "@", "?", "#", "[", "]", "%40", "\t",
    "\x00", "\ud800", "hub.example", "HUB.EXAMPLE", ":443", ":0443", ".", "bytes 5-9/10", "a" * 64, "\u3002", " ", "\x1b[31m",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One lie: what the catalogue knows, whether it is asked of the hub itself, and what is answered.

    Args:
        knows: "hash" and "size" of the file, in any order.
        lies: how many parts of the answers are not what an honest hub sends.
    """

    knows: str
    is_hub: bool
    head: bytes
    get: bytes
    lies: int


def make(draw: random.Random) -> Case:
    """Returns a case; about one in five tells no lie."""
    lies = 0

    def part(honest, others):
        nonlocal lies
        if draw.random() < 0.75:
            return honest
        lies += 1
        return draw.choice(list(others))

    content = part(TRUE, OTHERS.values())
    said = {
        "X-Linked-Etag": part(f'"{hashlib.sha256(content).hexdigest()}"', ('"' + "0" * 64 + '"', '"x"', "", "a" * 5000)),
        "X-Linked-Size": part(str(len(content)), (*NUMBERS[:6], "20000000000", str(SIZE))),
        "Retry-After": draw.choice(NUMBERS),
        "X-Error-Message": RUDE,
        "Content-Length": "0",
    }
    if draw.random() < 0.2:
        said |= {"X-Xet-Hash": "a" * 64, "Link": '<{cdn}/xet?S1GNED>; rel="xet-auth"'}
    head_status = part(200, (302, 302, 206, 204, 401, 404, 418, 429, 500, 503, 599))
    get_status = part(200, (302, 302, 206, 206, 403, 416, 429, 502, 304))
    body = {
        "Content-Length": part(str(len(content)), (str(len(content) + 7), "5")),
        "Content-Range": draw.choice((f"bytes 0-{len(content) - 1}/{len(content)}", "bytes 9-99/100", "bytes */5", "x")),
        "Retry-After": draw.choice(NUMBERS),
        "X-Error-Message": RUDE,
    }
    if head_status == 302:
        said["Location"] = draw.choice(REDIRECTS)
        if draw.random() < 0.5:
            del said["X-Linked-Etag"]
    if get_status == 302:
        body["Location"] = draw.choice(REDIRECTS)
    knows = draw.choice(("hash size", "hash", "size", ""))
    return Case(knows, draw.random() < 0.5, answer(head_status, said), answer(get_status, body) + content, lies)


def answer(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items()), "Connection: close", "", ""]
    return "\r\n".join(lines).encode("utf-8")


def is_clean(text: str) -> bool:
    """Whether a text may be shown: short, one line, without secrets and signs that no screen shows."""
    return len(text) < 700 and text.isprintable() and not any(secret in text for secret in SECRETS)


def problem(entry, path, case: Case, is_right: bool, said: list[str], requests: list) -> str:
    """Returns what went wrong with a case, empty where nothing did."""
    found = files.look(entry, files.index_folders([path.parent]))
    unsaid = not found.note or not (case.is_hub or any("Not verified" in text for text in said))
    allowed = (TRUE,) if entry.sha256 else (TRUE, OTHERS["one byte changed"])
    is_there = path.is_file()
    checks = {
        f"says {said}": not all(map(is_clean, said)),
        "sent the token elsewhere": any(SECRETS[0] in str(request.headers) for request in requests if request.server == "cdn"),
        f"{len(requests)} requests": len(requests) > MOST_REQUESTS,
        "the outcome and the file differ": is_there != is_right,
        f"refused what was right: {said}": not is_there and not case.lies,
        "took a wrong file": is_there and path.read_bytes() not in allowed,
        "calls verified what is not": is_there and not entry.sha256 and unsaid,
    }
    return ", ".join(text for text, went_wrong in checks.items() if went_wrong)


@pytest.fixture
def lying(world, monkeypatch, caplog):
    """Runs cases: returns "right", "refused" or what went wrong."""
    said = []
    monkeypatch.setattr("hyper_sd.models.transfer.LONGEST_WAIT", 0.0)
    monkeypatch.setattr(Transfer, "say", lambda self, note: said.append(note))
    monkeypatch.setenv("HF_TOKEN", SECRETS[0])
    caplog.set_level(logging.WARNING)
    known = {"sha256": hashlib.sha256(TRUE).hexdigest(), "size": len(TRUE)}

    def run(number: int, case: Case) -> str:
        told = {name: value if name.replace("sha256", "hash") in case.knows else None for name, value in known.items()}
        entry = replace(world.entry, approximate_size=SIZE, **told)
        monkeypatch.setattr("hyper_sd.models.download.HUB", world.hub.endpoint if case.is_hub else "https://hub.invalid")
        world.hub.faults[:] = [Fault(ALWAYS, "HEAD", raw=case.head), Fault(ALWAYS, "GET", "resolve", raw=case.get)]
        for seen in (world.hub.requests, said, caplog.records):
            seen.clear()
        root = world.root / str(number)
        outcome = "refused"
        try:
            Transfer(entry, root, functools.partial(open_hub_file, endpoint=world.hub.endpoint)).run()
            outcome = "right"
        except HyperSDError as error:
            said.append(str(error))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        said.extend(record.getMessage() for record in caplog.records if record.name == "hyper_sd")
        return problem(entry, root / entry.name, case, outcome == "right", said, world.hub.requests) or outcome

    return run


def test_lying_hub_gives_the_right_file_or_a_refusal(lying, reliability):
    draw = random.Random(21)
    counts, wrong = {"right": 0, "refused": 0}, []
    for number in range(CASES):
        case = make(draw)
        outcome = lying(number, case)
        if outcome in counts:
            counts[outcome] += 1
        else:
            wrong.append((number, outcome, case.knows, case.head[:300], case.get[:200]))
    assert not wrong, "\n".join(map(str, wrong[:5]))
    reliability("downloads from a hub that lies", tried=CASES, wrong=len(wrong), **counts)


def test_foreign_words_and_addresses_are_taken_apart_safely(reliability):
    draw = random.Random(22)
    counts, wrong = {"right": 0, "refused": 0}, []
    for _ in range(TEXTS):
        pieces = [draw.choice(PARTS) for _ in range(draw.randint(1, 6))]
        text = "".join(pieces) if draw.random() < 0.5 else "https://hub.example" + "".join(pieces)
        outcome = read_all(text)
        if outcome in counts:
            counts[outcome] += 1
        else:
            wrong.append((text, outcome))
    assert not wrong, wrong[:5]
    reliability("words and addresses of a hub that lies", tried=TEXTS, wrong=len(wrong), **counts)


def read_all(text: str) -> str:
    """Reads a text in each way that a hub's words are read; "right" where it is an address that files may come from."""
    words = shown(f"see https://me:pa0word@x/{text} or hf_s0cret?S0GNED")
    if not words.isprintable() or len(words) > LONGEST or re.search("pa0word@|s0cret|S0GNED", words):
        return f"shown as {words}"
    headers = dict.fromkeys(("X-Linked-Size", "X-Linked-Etag", "X-Xet-Hash", "X-Xet-Refresh-Route", "Content-Range"), text)
    size, sha256 = size_said(headers), sha256_said(headers)
    if not (size is None or 0 <= size < 10**15) or not (sha256 is None or re.fullmatch("[0-9a-f]{64}", sha256)):
        return f"read as {size}, {sha256}"
    xet_said(headers, {})
    starts = bool(re.fullmatch(r"bytes 5-9/[0-9]{1,15}", text))
    if not 0 <= seconds_to_wait(text) <= LONGEST_ASKED or starts_at(206, headers) != starts or starts_at(200, headers):
        return f"waits {seconds_to_wait(text)}, or takes another part of the file"
    try:
        told = origin(text)
        goes_to = set(map(whole, urls_of(text)))
    except DownloadError as error:
        return "refused" if str(error).isprintable() else f"says {error}"
    except Exception:  # each library has its own for an address that it does not take
        return "refused"
    return "right" if goes_to == {told} else f"goes to {goes_to}, said {told}"


def starts_at(status: int, headers: dict[str, str]) -> bool:
    try:
        require_part(status, headers, 5)
    except (StartAnew, DownloadError):
        return False
    return True


def urls_of(text: str):
    """Returns an address as Python and as the client's HTTP library take it apart."""
    from huggingface_hub import get_session

    session = get_session()
    if hasattr(session, "build_request"):
        url = session.build_request("GET", text).url
        return urlsplit(text), SimpleNamespace(scheme=url.scheme, hostname=url.host, port=url.port)
    from requests import Request

    return urlsplit(text), urlsplit(session.prepare_request(Request("GET", text)).url)


def whole(url) -> tuple[str, str, int]:
    return url.scheme, url.hostname.strip("[]"), url.port or {"http": 80, "https": 443}[url.scheme]


def test_refusal_shows_the_servers_words_escaped_and_without_secrets(world):
    told = str(refusal(world.entry, 418, {"X-Error-Message": RUDE}))
    assert is_clean(told)
    assert r"\x9b2J \u202e see http://...@x/?... or ..." in told


def test_packed_answer_is_refused_since_it_may_unpack_to_nothing_for_ever(lying, world):
    head = answer(200, {"X-Linked-Etag": f'"{hashlib.sha256(TRUE).hexdigest()}"', "X-Linked-Size": str(len(TRUE))})
    for encoding, outcome in (
        ("gzip", "refused"),
        ("identity, GZip", "refused"),
        ("identity", "right"),
        ("aws-chunked", "right"),
    ):
        body = gzip.compress(TRUE) if outcome == "refused" else TRUE
        case = Case("hash size", True, head, answer(200, {"Content-Encoding": encoding}) + body, 1)
        assert lying(encoding, case) == outcome
        assert len(world.hub.requests) == 2


@pytest.mark.parametrize(
    "text", ["http://x/?a='S1GNED", "http://x/#a)S1GNED", 'http://x/?a="b"&c=S1GNED', f"http://me:pa55word{'a' * 1000}@x/"]
)
def test_no_sign_and_no_length_lets_a_secret_through(text):
    assert is_clean(shown(text))
