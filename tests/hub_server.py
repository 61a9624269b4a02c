"""A hub on this machine that speaks as much of the real one's protocol as its client asks for.

Repositories of models, small files in the commit and large ones through LFS, downloads with ETag,
commit and Range. It can be told to break in the ways in which the real one, or the way there, does.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".pth")


@dataclass
class Repository:
    """Files by name, of one branch; each commit keeps what they were."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    head: str = ""

    def commit(self, files: dict[str, bytes]) -> str:
        whole = {**self.commits.get(self.head, {}), **files}
        digest = hashlib.sha1(f"{len(self.commits)}".encode())
        for name, data in sorted(whole.items()):
            digest.update(name.encode() + data)
        self.head = digest.hexdigest()
        self.commits[self.head] = whole
        return self.head

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main" and not self.head:
            return "0" * 40, {}
        commit = self.head if revision == "main" else revision
        return (commit, self.commits[commit]) if commit in self.commits else None

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits.get(self.head, {})


@dataclass
class Break:
    """How answers to some requests go wrong.

    `path` is a part of the paths that it is for, `method` GET, HEAD, POST or PUT; `times` says how
    often, `status` what is answered, `after` how many bytes come before the connection is cut, and
    `change` what becomes of the bytes of a file.
    """

    path: str
    method: str = "GET"
    times: int = 1_000_000
    status: int | None = None
    code: str = ""
    after: int | None = None
    change: object = None


class Hub:
    """Repositories, who may write, what went wrong, and what was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # of LFS, by SHA-256
        self.breaks: list[Break] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.token: str | None = None
        self.url = ""

    def add(self, name: str, files: dict[str, bytes], **options) -> Repository:
        self.repositories[name] = Repository(**options)
        self.repositories[name].commit(files)
        return self.repositories[name]

    def break_(self, path: str, **options) -> None:
        self.breaks.append(Break(path, **options))

    def requests(self, method: str, part: str) -> list[dict[str, str]]:
        """Headers of the requests of a method whose path has this part."""
        return [headers for how, path, headers in self.asked if how == method and part in path]


def etag_of(name: str, data: bytes) -> str:
    """SHA-256 of a large file; of a small one Git's SHA-1."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers at `hub.url` while the block runs."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer("HEAD", b"")

    def do_GET(self):
        self._answer("GET", b"")

    def do_POST(self):
        self._answer("POST", self._body())

    def do_PUT(self):
        self._answer("PUT", self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _answer(self, method: str, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((method, path, dict(self.headers)))
        broken = self._broken(method, path)
        if broken and broken.status:
            self._refuse(broken.status, broken.code)
            return
        if path == "/":
            self._send(b"")
        elif path.startswith("/api/"):
            self._api(method, path.removeprefix("/api/"), body)
        elif found := re.fullmatch(r"/(.+?/.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(method, *found.groups(), broken)
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif path.startswith("/lfs/") and method == "PUT":
            self.hub.stored[path.removeprefix("/lfs/")] = body
            self._send(b"")
        else:
            self._refuse(404)

    def _broken(self, method: str, path: str) -> Break | None:
        for one in self.hub.breaks:
            if one.method == method and one.path in path and one.times > 0:
                one.times -= 1
                return one
        return None

    @property
    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _repository(self, name: str) -> Repository | None:
        """One that the client may read; None after it was refused."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self._may_write):
            self._refuse(401 if not self.headers.get("Authorization") else 404, "RepoNotFound")
        elif found.gated and not self._may_write:
            self._refuse(403, "GatedRepo")
        else:
            return found
        return None

    def _api(self, method: str, path: str, body: bytes) -> None:
        if path == "validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"models/(.+?/[^/]+)/preupload/(.+)", path):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            if self._writable(found[1]):
                self._json({"files": files})
        elif found := re.fullmatch(r"models/(.+?/[^/]+)/commit/(.+)", path):
            self._commit(found[1], body)
        elif found := re.fullmatch(r"models/(.+?/[^/]+)/tree/([^/]+)", path):
            self._tree(*found.groups())
        elif found := re.fullmatch(r"models/(.+?/[^/]+?)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        else:
            self._refuse(404)

    def _writable(self, name: str) -> bool:
        if not self.headers.get("Authorization"):
            self._refuse(401)
        elif not self._may_write:
            self._refuse(403)
        elif name not in self.hub.repositories:
            self._refuse(404, "RepoNotFound")
        else:
            return True
        return False

    def _create(self, asked: dict) -> None:
        if not self._may_write:
            self._refuse(403 if self.headers.get("Authorization") else 401)
            return
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            self._json({"url": f"{self.hub.url}/{name}", "error": "you have it"}, status=409)
            return
        # Its client asked for `private` up to some version, and for `visibility` then.
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=bool(private))
        self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _batch(self, asked: dict) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            for one in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        if not self._writable(name):
            return
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        commit = self.hub.repositories[name].commit(files)
        page = f"{self.hub.url}/{name}/commit/{commit}"
        self._json({"commitUrl": page, "commitOid": commit, "success": True})

    def _tree(self, name: str, revision: str) -> None:
        if (repository := self._repository(name)) is None:
            return
        if (found := repository.at(revision)) is None:
            self._refuse(404, "RevisionNotFound")
            return
        self._json(
            [
                {"type": "file", "path": one, "size": len(data), "oid": etag_of(one, data)}
                for one, data in found[1].items()
            ]
        )

    def _info(self, name: str, revision: str) -> None:
        if (repository := self._repository(name)) is None:
            return
        if (found := repository.at(revision)) is None:
            self._refuse(404, "RevisionNotFound")
            return
        siblings = [{"rfilename": one} for one in found[1]]
        common = {"private": repository.private, "downloads": 0, "likes": 0, "tags": []}
        self._json({"_id": "1", "id": name, "sha": found[0], "siblings": siblings, **common})

    def _resolve(
        self, method: str, name: str, revision: str, filename: str, broken: Break | None
    ) -> None:
        if (repository := self._repository(name)) is None:
            return
        found = repository.at(revision)
        if found is None:
            self._refuse(404, "RevisionNotFound")
            return
        commit, files = found
        if filename not in files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        data = files[filename]
        headers = {"ETag": f'"{etag_of(filename, data)}"', "X-Repo-Commit": commit}
        if broken and broken.change and method == "GET":
            data = broken.change(data)
        status, total = 200, len(data)
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            data, status = data[start:], 206
        self._send(data, status, headers, after=broken.after if broken else None)

    def _json(self, content: object, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str = "", headers: dict[str, str] | None = None) -> None:
        self._send(b"", status, {**(headers or {}), **({"X-Error-Code": code} if code else {})})

    def _send(
        self,
        data: bytes,
        status: int = 200,
        headers: dict[str, str] | None = None,
        after: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:after])
        if after is not None and after < len(data):
            self.close_connection = True
