"""Settings as people write them by hand, with quotation marks, blanks or a part missing: what the real client makes of them."""

import importlib.util
import socket
import struct
import threading

import pytest
from hyper_sd.errors import DownloadError
from hyper_sd.models import transfer as transfer_module
from hyper_sd.models.download import open_hub_file
from hyper_sd.models.hub_settings import endpoint_problem, proxy_problem, socks_problem, token_problem, token_source

NO_PROXIES = ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture
def waits(transfer, monkeypatch):
    """How often a download waited for its next try."""
    seen = []
    monkeypatch.setattr(transfer_module.Transfer, "pause", lambda self, seconds: seconds and seen.append(seconds))
    return seen


@pytest.fixture
def client(monkeypatch):
    """Sets variables for a client that has not read them yet."""
    import huggingface_hub

    close = getattr(huggingface_hub, "close_session", lambda: None)  # requests reads the variables at every request

    def set_variables(**variables):
        for name in NO_PROXIES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        close()

    yield set_variables
    monkeypatch.undo()
    close()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hf-mirror.example", "with https:// in front, got 'hf-mirror.example'"),
        ("", "with https:// in front, got ''"),
        ("ftp://hf-mirror.example", "with https:// in front"),
        ("https:/hf-mirror.example", "with https:// in front"),
        ("https://hf mirror.example", "with https:// in front"),
        ('"https://hf-mirror.example"', "quotation marks or blanks"),
        (" https://hf-mirror.example", "quotation marks or blanks"),
        ("\u201chttps://hf-mirror.example\u201d", "quotation marks or blanks"),
    ],
)
def test_wrong_mirror_is_told_at_once(world, waits, monkeypatch, value, words):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", value)
    with pytest.raises(DownloadError, match=words) as told:
        world.download(opener=open_hub_file)
    assert "HF_ENDPOINT" in str(told.value)
    assert waits == []


@pytest.mark.parametrize(
    "value", ["https://huggingface.co", "http://127.0.0.1:8080", "https://mirror.example/hub", "https://[::1]:80"]
)
def test_right_mirror_has_no_problem(value):
    assert endpoint_problem(value) == ""


@pytest.mark.parametrize(
    ("token", "sign"),
    [
        ("\u201chf_secret\u201d", r"'\u201c' \(U\+201C\)"),
        ('"hf_secret"', "U\\+0022"),
        ("hf_sec ret", "U\\+0020"),
        ("hf_s\u00e9cret", "U\\+00E9"),
    ],
)
def test_token_with_a_sign_that_no_token_has_is_told_without_the_token(world, waits, monkeypatch, token, sign):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DownloadError, match=f"the token in HF_TOKEN has .*{sign}") as told:
        world.download()
    assert "secret" not in str(told.value)
    assert (waits, world.hub.requests) == ([], [])


def test_token_of_a_file_is_told_by_the_files_name(world, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "token").write_text("\u2018hf_secret\u2019", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(DownloadError, match=r"the token in .*token has"):
        world.download()


@pytest.mark.parametrize("kind", ["a folder", "UTF-16", "no permission"])
def test_token_that_cannot_be_read_is_named_and_not_the_models_folder(world, waits, monkeypatch, tmp_path, kind):
    path = tmp_path / "token"
    if kind == "a folder":
        path.mkdir()
    else:
        path.write_bytes("hf_secret".encode("utf-16"))
    if kind == "no permission":  # a stub, since a superuser may read everything
        monkeypatch.setattr("huggingface_hub.utils.build_hf_headers", refuse)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(path))
    with pytest.raises(DownloadError, match=r"The token of the hub in .*token cannot be read") as told:
        world.download()
    assert "cannot be written" not in str(told.value)
    assert "hf auth login" in str(told.value)
    assert waits == []


def refuse(*arguments, **options):
    raise PermissionError(13, "Permission denied", "token")


def test_token_source_is_the_first_that_the_client_takes():
    assert token_source({"HF_TOKEN": "x", "HUGGING_FACE_HUB_TOKEN": "y"}, "file") == "HF_TOKEN"
    assert token_source({"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "y"}, "file") == "HUGGING_FACE_HUB_TOKEN"
    assert token_source({}, "file") == "file"
    assert token_problem("hf_AbC0123", "file") == token_problem("", "file") == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("socks://127.0.0.1:1080/", "HTTP_PROXY must begin with one of http://, https://, socks5://, socks5h://, got 'socks:"),
        ('"http://127.0.0.1:7890"', "HTTP_PROXY has quotation marks or blanks"),
        (" http://127.0.0.1:7890", "HTTP_PROXY has quotation marks or blanks"),
        ("\u201chttp://127.0.0.1:7890\u201d", "HTTP_PROXY has quotation marks or blanks"),
        ("http:127.0.0.1:7890", "check HF_ENDPOINT and the proxies"),
    ],
)
def test_wrong_proxy_is_told_at_once(world, waits, client, value, words):
    client(HTTP_PROXY=value)
    with pytest.raises(DownloadError, match=words):
        world.download()
    assert (waits, world.hub.requests) == ([], [])


@pytest.mark.parametrize("value", [" http://me:secret@host", "'me:secret@host'", "socks4://me:p@secret@host"])
def test_password_in_an_address_is_not_told(value):
    for problem in (proxy_problem({"https_proxy": value}), endpoint_problem(value)):
        assert "secret" not in problem
        assert "...@host" in problem


def test_right_proxy_has_no_problem():
    assert proxy_problem({"https_proxy": "http://me:secret@127.0.0.1:7890", "ALL_PROXY": "127.0.0.1:7890"}) == ""


def test_socks_proxy_names_the_package_it_needs(world, waits, client):
    if importlib.util.find_spec(socks_package()):
        pytest.skip("the package that the error would name is installed")
    client(HTTP_PROXY="socks5://127.0.0.1:1")
    with pytest.raises(DownloadError, match=r"a SOCKS proxy is set .* needs the package (socksio|PySocks); install it with"):
        world.download()
    assert waits == []


def socks_package() -> str:
    """What the client's HTTP library imports for a SOCKS proxy: httpx socksio, requests PySocks."""
    import huggingface_hub

    return "socksio" if hasattr(huggingface_hub, "close_session") else "socks"


def test_socks_package_is_that_of_the_http_library():
    requests = pytest.importorskip("requests")
    assert "PySocks" in socks_problem(requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support."))
    assert socks_problem(requests.exceptions.ConnectionError("SOCKS server failure")) == ""
    assert socks_problem(ImportError("No module named 'h2'")) == ""


def test_named_package_makes_a_socks_proxy_work(world, client):
    pytest.importorskip(socks_package(), reason="the package that the error names")
    with Socks() as proxy:
        client(HTTP_PROXY=f"socks5://127.0.0.1:{proxy.port}")
        assert world.download().read_bytes() == world.content
    assert proxy.connections


class Socks:
    """A SOCKS5 proxy on 127.0.0.1 that asks for no password; RFC 1928."""

    def __enter__(self):
        self.listening, self.connections = socket.create_server(("127.0.0.1", 0)), []
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.listening.close()

    def _accept(self):
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        _, count = client.recv(2)
        client.recv(count)
        client.sendall(b"\x05\x00")
        kind = client.recv(4)[3]
        host = socket.inet_ntoa(client.recv(4)) if kind == 1 else client.recv(client.recv(1)[0]).decode()
        (port,) = struct.unpack(">H", client.recv(2))
        server = socket.create_connection((host, port))
        self.connections.append((host, port))
        client.sendall(b"\x05\x00\x00\x01" + bytes(6))
        threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
        self._pump(server, client)

    @staticmethod
    def _pump(source, sink):
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return
