"""What a URL may do: be opened by the client of its scheme. What braces may do: name so many files."""

import http.server
import os
import subprocess
import sys
import threading
import time

import pytest

from ssl_vit.data import urls
from ssl_vit.data.urls import expanded, open_file, open_url, require_readable


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("x-{0..2}.tar", ["x-0.tar", "x-1.tar", "x-2.tar"]),
        ("{08..11..2}", ["08", "10"]),
        ("{2..-1}", ["2", "1", "0", "-1"]),
        ("{a..e..2}{,z}", ["a", "az", "c", "cz", "e", "ez"]),
        ("p{2.{5..6},3}", ["p2.5", "p2.6", "p3"]),
        ("{http://h/{a,b},c}/x", ["http://h/a/x", "http://h/b/x", "c/x"]),
        ("{a}{b,c}", ["{a}b", "{a}c"]),
        (r"\{a,b\}{1,2}", ["{a,b}1", "{a,b}2"]),
        ("plain", ["plain"]),
        ("{1..99999999999999999999}", ["{1..99999999999999999999}"]),
    ],
)
def test_braces_are_those_of_bash(path, names):
    assert expanded("data.path", path) == names


@pytest.mark.parametrize(
    "path",
    [
        "x-{0..99999999}.tar", "{0..999}{0..999}{0..9}", "{{0..9},{0..99999999}}", "{a,b}" * 2000,
        "{" * 15 + "{0..9999999}" + "}" * 15,
        "{0..99999}" + "x" * 99999,
    ],
)  # fmt: skip
def test_braces_that_name_too_many_files_are_one_line_at_once(path):
    """`x-{0..99999999}.tar` took gigabytes before anything was said."""
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"^data.path=[^\n]* stands for too many files: braces may name 1,000,000$"):
        expanded("data.path", path)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("path", ["a{b", "a}b", "}{", "{" * 3000 + "}" * 3000])
def test_braces_without_a_partner_are_one_line(path):
    with pytest.raises(ValueError, match=r"^data.path=[^\n]* has braces without a partner, or over 20 within"):
        expanded("data.path", path)


@pytest.mark.parametrize(
    "scheme", ["rclone", "sftp", "ftps", "scp", "htgs", "ais", "file+x", "memory", "simplecache::s3"]
)
def test_a_scheme_that_is_not_known_is_refused(scheme):
    """WebDataset hands some of these to programs, older versions of it http to a shell."""
    with pytest.raises(
        ValueError, match=r"is of a kind that is not opened: one of file, http, https, s3, .*, or a path$"
    ):
        require_readable("data.path", f"{scheme}://host/a.tar")


def test_the_package_of_a_scheme_is_named(monkeypatch):
    monkeypatch.setitem(urls.PACKAGES, "s3", "a_package_that_is_not_there")
    with pytest.raises(
        ImportError, match=r"^data.path=s3://b/a.tar needs a_package_that_is_not_there: pip install a_pack"
    ):
        require_readable("data.path", "s3://b/a.tar")


def test_other_schemes_are_opened_by_fsspec_without_chains(monkeypatch):
    """fsspec.open would take what follows "::" for another URL, of any scheme."""
    memory_files = pytest.importorskip("fsspec.implementations.memory")
    monkeypatch.setitem(urls.PACKAGES, "memory", "fsspec")
    name = "memory://folder/a::file:///etc/passwd"
    with memory_files.MemoryFileSystem().open(name, "wb") as file:
        file.write(b"content")
    with open_url(name) as file:
        assert file.read() == b"content"


def test_a_command_needs_the_permission_and_its_status_counts(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is a shell command: set SSL_VIT_ALLOW_PIPE=1 in the environment to run it"):
        open_url(f"pipe:touch {tmp_path}/MARK")
    monkeypatch.setenv("SSL_VIT_ALLOW_PIPE", "1")
    with open_url("pipe:printf ab | cat") as file:
        assert file.read() == b"ab"
    with open_url("pipe:printf ab; exit 3") as file, pytest.raises(OSError, match="its command ended with status 3"):
        file.read()
    start = time.perf_counter()
    with open_url("pipe:printf ab; exec sleep 60") as file:
        assert file.read(2) == b"ab"
    assert time.perf_counter() - start < 30
    assert not list(tmp_path.iterdir())


def test_nothing_rests_on_assert(tmp_path):
    """python -O drops assertions."""
    code = "from ssl_vit.data.urls import open_url; open_url('pipe:touch MARK')"
    done = subprocess.run([sys.executable, "-O", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "is a shell command" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_opened(tmp_path):
    """A named pipe would be waited for, forever."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match="it is no regular file"):
            open_file(path)
    (tmp_path / "touch MARK |.tar; $(touch MARK)").write_bytes(b"x")
    with open_url(f"file://{tmp_path}/touch MARK |.tar; $(touch MARK)") as file:
        assert file.read() == b"x"


class Server(http.server.BaseHTTPRequestHandler):
    """Answers in the ways that servers fail."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        if target := {"/away": "/whole", "/local": "file:///etc/passwd", "/ftp": "ftp://127.0.0.1/x"}.get(self.path):
            self.send_response(302)
            self.send_header("Location", target)
            return self.end_headers()
        if self.path in ("/missing", "/refused") or (self.path == "/busy" and self.asked.count("/busy") == 1):
            return self.send_error({"/missing": 404, "/refused": 403, "/busy": 503}[self.path])
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"x" * (60 if self.path in ("/cut", "/slow") else 100))
        self.wfile.flush()
        if self.path == "/slow":
            time.sleep(1)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """The URL of a server on this machine."""
    handler = type("Handler", (Server,), {"asked": []})
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize("path", ["/whole", "/away", "/busy"])
def test_a_file_is_downloaded_and_a_busy_server_asked_again(server, path, monkeypatch):
    monkeypatch.setattr(urls, "_WAITS", (0.01,))
    with open_url(server + path) as file:
        assert file.read() == b"x" * 100


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/cut", "the download broke off 40 bytes before its end"), ("/slow", "timed out"),
        ("/missing", "HTTP Error 404"), ("/refused", "HTTP Error 403"),
        ("/local", "Redirection to url .* is not allowed"), ("/ftp", "unknown url type: ftp"),
    ],
)  # fmt: skip
def test_a_download_that_fails_is_an_error(server, path, line, monkeypatch):
    """A connection that is cut looks like the end of the file; a server may send one to files of this machine."""
    monkeypatch.setattr(urls, "_TIMEOUT", 0.3)
    with pytest.raises(OSError, match=line), open_url(server + path) as file:
        file.read()
