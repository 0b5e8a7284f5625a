"""Downloads resume, are checked, and unpack only what stays in its folder; served from the loopback interface."""

import io
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from overlays.archives import unpack_beside
from overlays.domains.cuprite.download import fetch
from overlays.errors import UserError
from overlays.files import sha256
from tests.commands import run_script

ROOT = Path(__file__).resolve().parents[3]
CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def server(monkeypatch):
    """A server of CONTENT with ranges; `.cut` ends a connection after so many bytes, `.asked` lists the ranges."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state = self.server
            if self.path.startswith("/none"):
                self.send_error(404)
                return
            start = 0
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if asked and self.headers.get("If-Range") == state.version:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
            else:
                self.send_response(200)
            self.send_header("ETag", state.version)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            body = CONTENT[start:]
            self.wfile.write(body[:state.cut] if state.cut else body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.cut, running.asked, running.version = 0, [], '"v1"'
        running.url = f"http://127.0.0.1:{running.server_port}/scene.bin"
        Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_a_cut_download_is_continued_where_it_stopped(server, tmp_path):
    server.cut = 300_000
    with pytest.raises(UserError, match="run this again"):
        fetch(server.url, tmp_path)
    assert not (tmp_path / "scene.bin").exists()
    assert (tmp_path / "scene.bin.part").stat().st_size == 300_000
    server.cut = 0
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]
    assert {path.name for path in tmp_path.iterdir()} == {"scene.bin", "checksums.json"}


def test_a_file_that_changed_on_the_server_is_fetched_anew(server, tmp_path):
    server.cut = 1000
    with pytest.raises(UserError):
        fetch(server.url, tmp_path)
    server.cut, server.version = 0, '"v2"'
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT


def test_a_whole_file_is_not_fetched_again_and_a_damaged_one_is_noticed(server, tmp_path):
    path = fetch(server.url, tmp_path)
    fetch(server.url, tmp_path)
    assert len(server.asked) == 1
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="delete it and run this again"):
        fetch(server.url, tmp_path)


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(UserError, match="expected 00"):
        fetch(server.url, tmp_path, "00" * 32)
    assert not any(tmp_path.iterdir())
    good = tmp_path / "good"
    good.write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "out", sha256(good)).read_bytes() == CONTENT


def test_without_a_network_one_sentence_says_what_to_fetch_and_where_to_put_it(server, tmp_path):
    server.shutdown()
    server.server_close()
    done = run_script("download_cuprite_data.py", "--url", server.url, "--output", "raw", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"fetch {server.url} by hand and put it at raw/scene.bin" in done.stderr


def test_a_refusal_and_strange_addresses_are_named(server, tmp_path):
    with pytest.raises(UserError, match="answered 404"):
        fetch(server.url.replace("scene", "none"), tmp_path)
    for url in ("file:///etc/hostname", "http://127.0.0.1/", "http://127.0.0.1/a/%2e%2e", "scene.bin"):
        with pytest.raises(UserError, match="not an http address"):
            fetch(url, tmp_path)


def test_archives_unpack_into_their_own_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "scene.zip", "w") as archive:
        archive.writestr("deep/cube.hdr", "ENVI")
    with tarfile.open(tmp_path / "scene2.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("cube.img")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"data"))
    assert (unpack_beside(tmp_path / "scene.zip") / "deep" / "cube.hdr").read_text() == "ENVI"
    assert (unpack_beside(tmp_path / "scene2.tar.gz") / "cube.img").read_bytes() == b"data"
    (tmp_path / "plain.bin").write_bytes(CONTENT)
    assert unpack_beside(tmp_path / "plain.bin") is None


@pytest.mark.parametrize("name", ["../escape", "/escape", "a/../../escape", "link"])
def test_archives_that_reach_outside_are_refused_whole(tmp_path, name):
    home = tmp_path / "home"
    home.mkdir()
    with tarfile.open(home / "scene.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(member)
    with zipfile.ZipFile(home / "scene.zip", "w") as archive:
        entry = zipfile.ZipInfo(name)
        if name == "link":
            entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "x")
    for archive in ("scene.tar", "scene.zip"):
        with pytest.raises(UserError, match="would leave its folder|is not a plain file"):
            unpack_beside(home / archive)
    assert {path.name for path in tmp_path.rglob("*")} == {"home", "scene.tar", "scene.zip"}
