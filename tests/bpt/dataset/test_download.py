"""Downloads against a real server that breaks off, lies and refuses."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bpt.dataset import download
from bpt.dataset.download import RemoteFile, fetch
from bpt.errors import DownloadError
from burst import OutputError

CONTENT = bytes(range(256)) * 1200  # 300 KiB
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers request k with the k-th of `script`; the last one for all that follow."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.seen = [{}], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file.tgz"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        step = server.script[min(len(server.seen), len(server.script) - 1)]
        server.seen.append(dict(self.headers))
        content, etag = step.get("content", CONTENT), step.get("etag", '"one"')
        start = 0
        asked = self.headers.get("Range")
        if asked and not step.get("ignore_range") and self.headers.get("If-Range", etag) == etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        status = step.get("status", 206 if start else 200)
        if start >= len(content):
            status = 416
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        if status >= 300:
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if not step.get("no_length"):
            self.send_header("Content-Length", str(len(content) - start))
        if etag:
            self.send_header("ETag", etag)
        if start:
            told = step.get("told_start", start)
            self.send_header("Content-Range", f"bytes {told}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if "wait" in step:
            assert step["wait"].wait(20)
        self.wfile.write(content[start : step.get("until", len(content))])


@pytest.fixture
def server():
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def get(server, folder, md5=MD5, **options):
    return fetch(RemoteFile(server.url, "file.tgz", md5), folder, pause=0, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def ranges(server):
    return [headers.get("Range") for headers in server.seen]


def test_a_file_arrives_whole_and_is_not_asked_for_again(server, tmp_path):
    steps = []
    path = get(server, tmp_path / "new", progress=lambda *step: steps.append(step))
    assert path.read_bytes() == CONTENT and names(path.parent) == ["file.tgz"]
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    get(server, path.parent)
    assert len(server.seen) == 1


def test_of_two_at_once_one_downloads_and_the_other_waits(server, tmp_path):
    waits, said = threading.Event(), []
    server.script = [{"wait": waits}]

    def say(line):
        said.append(line)
        waits.set()

    with ThreadPoolExecutor() as pool:
        both = [pool.submit(get, server, tmp_path, say=say) for _ in range(2)]
    assert [one.result().read_bytes() for one in both] == [CONTENT] * 2
    assert len(server.seen) == 1
    assert said == [f"waiting for another process that downloads {tmp_path / 'file.tgz'}"]
    assert names(tmp_path) == ["file.tgz"]


def test_a_file_that_is_there_needs_no_place_to_write_to(server, tmp_path, monkeypatch):
    (tmp_path / "file.tgz").write_bytes(CONTENT)
    for name in ("make_folder", "one_at_a_time"):
        monkeypatch.setattr(download, name, lambda *_, **__: pytest.fail("it writes"))
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.seen == []


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    server.script = [{"until": 100_000}, {"until": 250_000}, {}]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-", "bytes=250000-"]
    assert server.seen[1]["If-Range"] == '"one"'
    assert names(tmp_path) == ["file.tgz"]


def test_what_came_stays_for_the_next_call(server, tmp_path):
    server.script = [{"until": 100_000}, {"status": 404}, {}]
    with pytest.raises(DownloadError, match="404"):
        get(server, tmp_path)
    assert (tmp_path / ".file.tgz.part").read_bytes() == CONTENT[:100_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert ranges(server)[-1] == "bytes=100000-"


@pytest.mark.parametrize(
    "second", [{"ignore_range": True}, {"etag": '"two"'}, {"told_start": 5}], ids=str
)
def test_a_server_that_gives_no_rest_gives_all(server, tmp_path, second):
    server.script = [{"until": 100_000}, second, {}]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["file.tgz"]


def test_a_file_that_changed_on_the_server_is_not_mixed(server, tmp_path):
    other = CONTENT[::-1]
    server.script = [{"until": 100_000}, {"content": other, "etag": '"two"'}]
    assert get(server, tmp_path, md5=None).read_bytes() == other


def test_without_checksum_or_etag_a_rest_is_not_trusted(server, tmp_path):
    server.script = [{"until": 100_000, "etag": None}, {"etag": None}]
    assert get(server, tmp_path, md5=None).read_bytes() == CONTENT
    assert ranges(server) == [None, None]


def test_wrong_bytes_are_removed_and_told(server, tmp_path):
    server.script = [{"content": b"x" + CONTENT[1:]}]
    with pytest.raises(DownloadError, match=f"expected {MD5}; it was removed"):
        get(server, tmp_path)
    assert names(tmp_path) == []


def test_a_damaged_file_that_is_there_is_fetched_again(server, tmp_path):
    (tmp_path / "file.tgz").write_bytes(b"half")
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_part_that_lacks_nothing_is_accepted(server, tmp_path):
    server.script = [{"until": 100_000}, {"status": 404}]
    with pytest.raises(DownloadError):
        get(server, tmp_path)
    (tmp_path / ".file.tgz.part").write_bytes(CONTENT)
    server.script = [{}]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.seen) == 3


def test_a_part_longer_than_the_file_starts_anew(server, tmp_path):
    server.script = [{"until": 100_000}, {"status": 404}, {}]
    with pytest.raises(DownloadError):
        get(server, tmp_path)
    (tmp_path / ".file.tgz.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert ranges(server)[-1] is None


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(server, tmp_path):
    said = []
    server.script = [{"status": 503}, {"status": 429}, {}]
    assert get(server, tmp_path, say=said.append).read_bytes() == CONTENT
    assert "503" in said[0] and "429" in said[1]
    server.script, server.seen[:] = [{"status": 403}], []
    with pytest.raises(DownloadError, match="403"):
        get(server, tmp_path / "other")
    assert len(server.seen) == 1


def test_a_server_that_always_breaks_off_ends_in_an_error(server, tmp_path):
    server.script = [{"until": 0}]
    with pytest.raises(DownloadError, match="broke off at byte 0"):
        get(server, tmp_path)
    assert len(server.seen) == 5


def test_a_server_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9/.*refused"):
        fetch(RemoteFile("http://127.0.0.1:9/file", "file"), tmp_path, pause=0)


def test_redirections_and_unknown_lengths_are_fine(server, tmp_path):
    server.script = [{"status": 302}, {"no_length": True}]
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_full_disk_is_told_and_what_came_stays(server, tmp_path, short_files):
    with pytest.raises(OutputError, match=r"cannot write .*file\.tgz\.part: File too large"):
        get(server, tmp_path)
    assert 0 < (tmp_path / ".file.tgz.part").stat().st_size <= 70_000


def test_a_folder_that_cannot_be_made_is_told(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write into"):
        get(server, tmp_path / "file")
