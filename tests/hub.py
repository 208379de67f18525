"""A Hub on loopback, for the real huggingface_hub client and the real command.

It keeps repositories as commits of content-addressed files below a folder, serves large files through a
second origin without a token as the Hub does through its CDN, takes uploads, and counts what it sends.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

from tests import warm

CHUNK = 1 << 18  # bytes
LARGE = 1 << 20  # bytes
PAGE = 1000  # entries of a tree
LICENSES = ("apache-2.0", "mit", "gemma", "other", "unknown")  # some of those that the Hub accepts
REPOSITORY = r"/(?P<repository>[^/]+(?:/[^/]+)?)"
ROUTES = {
    "hub": {
        "model": rf"/api/models{REPOSITORY}(?:/revision/(?P<revision>[^/]+))?",
        "tree": rf"/api/models{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?",
        "paths_info": rf"/api/models{REPOSITORY}/paths-info/(?P<revision>[^/]+)",
        "preupload": rf"/api/models{REPOSITORY}/preupload/(?P<revision>[^/]+)",
        "commit": rf"/api/models{REPOSITORY}/commit/(?P<revision>[^/]+)",
        "file": rf"{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<name>.+)",
        "lfs_batch": rf"{REPOSITORY}\.git/info/lfs/objects/batch",
        "lfs_verify": rf"{REPOSITORY}\.git/info/lfs/verify",
        "create": r"/api/repos/create",
        "delete": r"/api/repos/delete",
        "validate_yaml": r"/api/validate-yaml",
        "whoami": r"/api/whoami-v2",
        "harnesses": r"/api/agent-harnesses",
    },
    "cdn": {
        "blob": rf"/cdn/(?P<sha256>\w+){REPOSITORY}/-/(?P<name>.+)",
        "upload": rf"/upload/(?P<sha256>\w+){REPOSITORY}",
    },
}


class Blob(NamedTuple):
    path: Path
    size: int
    sha256: str
    oid: str  # Git's: of the content, or of the pointer that stands for a large file
    large: bool


@dataclass
class Repository:
    """Set `private` or `gated` at will; take a name out of `revisions` and that revision is gone."""

    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    hostile: list[str] = field(default_factory=list)


@dataclass
class Request:
    method: str
    path: str
    origin: str  # "hub" or "cdn"
    range: str | None
    had_authorization: bool
    route: str | None = None
    repository: str | None = None
    subject: str = ""  # "org/name", or "org/name/file" where a file's content is asked for
    stray: bool = False
    status: int = 0
    sent: int = 0  # bytes of the body


@dataclass
class Fault:
    glob: str
    method: str
    times: int | None  # None: for ever
    status: int | None  # None: the body is cut short
    headers: dict[str, str]


class Refusal(Exception):
    def __init__(self, status: int, message: str = "", code: str = "", **headers: str) -> None:
        super().__init__(message)
        told = {"X-Error-Message": message, "X-Error-Code": code, **headers}
        self.status, self.headers = status, {name: text for name, text in told.items() if text}


class Hub:
    """`token` may do all; `guest_token` is a valid one that may see no private and open no gated repository.

    `fail`, `limit` and `cut` take a glob over the `subject` of a request: "org/name*" is a repository with
    its files, "org/name/*.safetensors" its weights alone."""

    role = "write"  # of the owner's token: "read", "write" or "fineGrained"
    scoped: ClassVar[list[dict[str, Any]]] = []  # what it may do if it is fine-grained
    orgs: ClassVar[list[str]] = []  # of the owner
    token = "hf_ownersToken0123456789"
    guest_token = "hf_guestsToken0123456789"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(parents=True, exist_ok=True)
        self.repositories: dict[str, Repository] = {}
        self.moved: dict[str, str] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.servers = [Server(self, "hub"), Server(self, "cdn")]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)

    def __enter__(self) -> Hub:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def env(self, home: Path, **extra: str) -> dict[str, str]:
        """The environment of a client that knows this Hub alone, and no token unless extra has HF_TOKEN."""
        foreign = re.compile(r"HF_|HUGGING|TRANSFORMERS_|.*_proxy$", re.IGNORECASE)
        kept = {name: text for name, text in os.environ.items() if not foreign.match(name)}
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
            **extra,
        }

    def monosoup(self, *argv: object, home: Path, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run the command in a process of its own, for the client reads its environment at import."""
        return warm.run([*map(str, argv)], self.env(home, **extra))

    def add(self, name: str, files: Path | Mapping[str, bytes | Path], revision: str = "main") -> str:
        """Commit these files alone, as the new head of a branch or tag; returns the commit."""
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path for path in files.rglob("*") if path.is_file()}
        blobs = {path: self.blob(path, self.store(parts(content))) for path, content in files.items()}
        return self.commit(self.repositories.setdefault(name, Repository()), blobs, revision)

    def files(self, name: str, revision: str = "main") -> dict[str, Path]:
        """Where the content of a repository's files lies, to be read only."""
        repository = self.repositories[name]
        commit = repository.commits[repository.revisions.get(revision, revision)]
        return {path: blob.path for path, blob in commit.items()}

    def rename(self, old: str, new: str) -> None:
        self.repositories[new] = self.repositories.pop(old)
        self.moved[old] = new

    def hostile_tree(self, name: str, paths: Iterable[str]) -> None:
        """List files under these names too, whatever they are."""
        self.repositories[name].hostile.extend(paths)

    def fail(self, glob: str, status: int = 503, *, times: int | None = None, method: str = "*") -> None:
        """Answer the next requests, or all, with this status."""
        self.faults.append(Fault(glob, method, times, status, {}))

    def limit(self, glob: str, *, times: int | None = None, wait: int = 0) -> None:
        """Answer the next requests, or all, that there were too many; wait: in seconds."""
        headers = {"Retry-After": str(wait), "RateLimit": f'"api";r=0;t={wait}'}
        self.faults.append(Fault(glob, "*", times, 429, headers))

    def cut(self, glob: str, *, times: int | None = None) -> None:
        """Close the connection at the middle of the file, in the next downloads or in all."""
        self.faults.append(Fault(glob, "GET", times, None, {}))

    def clear(self) -> None:
        """Forget requests and faults."""
        self.requests.clear()
        self.faults.clear()

    def bytes_sent(self, glob: str = "*") -> int:
        return sum(request.sent for request in self.requests if fnmatchcase(request.subject, glob))

    @property
    def strays(self) -> list[Request]:
        """Requests for anything but the known repositories, or by a path that climbs."""
        return [request for request in self.requests if request.stray]

    def fault(self, request: Request, *, cuts: bool) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                meant = fnmatchcase(request.subject, fault.glob) and fnmatchcase(request.method, fault.method)
                if meant and fault.times != 0 and cuts == (fault.status is None):
                    fault.times = fault.times and fault.times - 1
                    return fault
        return None

    def store(self, content: Iterable[bytes]) -> str:
        """Keep content under its SHA-256, which is returned."""
        digest = hashlib.sha256()
        incoming = self.root / f"{uuid.uuid4().hex}.part"
        with incoming.open("wb") as file:
            for chunk in content:
                digest.update(chunk)
                file.write(chunk)
        incoming.replace(self.root / digest.hexdigest())
        return digest.hexdigest()

    def blob(self, name: str, sha256: str) -> Blob:
        path = self.root / sha256
        size = path.stat().st_size
        large = is_large(name, size)
        git = pointer(sha256, size) if large else path.read_bytes()
        return Blob(path, size, sha256, git_oid(git), large)

    def commit(self, repository: Repository, files: dict[str, Blob], revision: str) -> str:
        listing = "".join(f"{name}\0{files[name].oid}\n" for name in sorted(files))
        commit = hashlib.sha1(listing.encode()).hexdigest()
        repository.commits[commit] = files
        repository.revisions[revision] = commit
        return commit


class Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, hub: Hub, origin: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.origin, self.routes = hub, origin, ROUTES[origin]

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients hang up when they have read enough
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *words: object) -> None:
        pass

    def serve(self) -> None:
        self.hub, url = self.server.hub, urlsplit(self.path)
        self.query = parse_qs(url.query)
        # The whole body is taken before any answer, lest it be read as the next request.
        self.received = self.hub.store(self.body()) if self.command == "PUT" else b"".join(self.body())
        asked_by = "Authorization" in self.headers
        request = Request(self.command, self.path, self.server.origin, self.headers["Range"], asked_by)
        self.request_record = request
        found: dict[str, str] = {}
        for route, pattern in self.server.routes.items():
            if match := re.fullmatch(pattern, url.path):
                found = {key: unquote(text) for key, text in match.groupdict().items() if text}
                request.route, request.repository = route, found.get("repository")
                break
        request.subject = "/".join(found[key] for key in ("repository", "name") if key in found)
        climbs = bool({".", ".."} & set(re.split(r"[/\\]", unquote(url.path))))
        known = {None, *self.hub.repositories, *self.hub.moved}
        request.stray = climbs or request.route is None or request.repository not in known
        self.hub.requests.append(request)
        try:
            if fault := self.hub.fault(request, cuts=False):
                raise Refusal(fault.status or 0, "The Hub is not well", **fault.headers)
            if request.route is None or climbs:
                raise Refusal(404, "Sorry, we can't find the page you are looking for.")
            getattr(self, f"answer_{request.route}")(**found)
        except Refusal as refusal:
            self.answer({"error": str(refusal)}, refusal.status, **refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def body(self) -> Iterator[bytes]:
        if self.headers["Transfer-Encoding"] == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers["Content-Length"] or 0)
            while left and (chunk := self.rfile.read(min(left, CHUNK))):
                left -= len(chunk)
                yield chunk

    def start(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.request_record.status = status
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, text)
        self.end_headers()

    def answer(self, value: object, status: int = 200, **headers: str) -> None:
        content = json.dumps(value).encode()
        self.start(status, len(content), {"Content-Type": "application/json", **headers})
        if self.command != "HEAD":
            self.write(content)

    def write(self, content: bytes) -> None:
        self.request_record.sent += len(content)  # before they leave: a test may look as soon as they arrive
        self.wfile.write(content)

    def answer_content(self, blob: Blob, headers: Mapping[str, str]) -> None:
        """The file, or the one range of it that is asked for."""
        start, stop, status = 0, blob.size, 200
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"] or ""):
            first, last = match.groups()
            start = int(first) if first else max(0, blob.size - int(last))
            stop = min(blob.size, int(last) + 1) if first and last else blob.size
            status = 206
            if start >= stop:
                raise Refusal(416, "Range Not Satisfiable", **{"Content-Range": f"bytes */{blob.size}"})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        cut = self.command == "GET" and self.hub.fault(self.request_record, cuts=True)
        self.start(status, stop - start, headers)
        if self.command == "HEAD":
            return
        end = min(stop, blob.size // 2) if cut else stop
        with blob.path.open("rb") as file:
            file.seek(start)
            while start < end:
                self.write(chunk := file.read(min(CHUNK, end - start)))
                start += len(chunk)
        self.close_connection = bool(cut)

    def account(self) -> str | None:
        """The name behind the token; None without one."""
        if "Authorization" not in self.headers:
            return None
        accounts = {f"Bearer {self.hub.token}": "owner", f"Bearer {self.hub.guest_token}": "guest"}
        if self.headers["Authorization"] not in accounts:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return accounts[self.headers["Authorization"]]

    def demand_owner(self, message: str = "You don't have the rights to do this", code: str = "") -> None:
        account = self.account()
        if account != "owner":
            raise Refusal(403 if account else 401, message, code)

    def open(self, name: str, *, write: bool = False) -> Repository:
        if new := self.hub.moved.get(name):
            raise Refusal(307, Location=self.path.replace(name, new, 1))
        account = self.account()
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and account != "owner"):
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        if write:
            self.demand_owner()
        return repository

    def at(self, repository: Repository, revision: str) -> str:
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def answer_model(self, repository: str, revision: str = "main") -> None:
        opened = self.open(repository)
        commit = self.at(opened, revision)
        siblings = [{"rfilename": name} for name in [*opened.commits[commit], *opened.hostile]]
        states = {"private": opened.private, "gated": "manual" if opened.gated else False, "tags": []}
        self.answer({"id": repository, "sha": commit, "siblings": siblings, **states})

    def entries(self, repository: Repository, commit: str) -> dict[str, dict[str, Any]]:
        """Every file and folder, as tree and paths-info tell of it."""
        found: dict[str, dict[str, Any]] = {}
        for name, blob in sorted(repository.commits[commit].items()):
            for folder in reversed([str(parent) for parent in Path(name).parents][:-1]):
                found.setdefault(folder, {"type": "directory", "oid": commit, "size": 0, "path": folder})
            found[name] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": name}
            if blob.large:
                size = len(pointer(blob.sha256, blob.size))
                found[name]["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": size}
        for name in repository.hostile:
            found[name] = {"type": "file", "oid": "0" * 40, "size": 8, "path": name}
        return found

    def answer_tree(self, repository: str, revision: str, folder: str = "") -> None:
        opened = self.open(repository)
        entries = self.entries(opened, self.at(opened, revision))
        if folder and entries.get(folder, {}).get("type") != "directory":
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        start = f"{folder}/" if folder else ""
        everything = self.query.get("recursive") in (["true"], ["True"])
        below = [path for path in entries if path.startswith(start)]
        below = [path for path in below if everything or "/" not in path[len(start) :]]
        first = int(self.query.get("cursor", ["0"])[0])
        page, headers = [entries[path] for path in below[first : first + PAGE]], {}
        if first + PAGE < len(below):
            rest = re.sub(r"&cursor=\d+", "", self.path)
            headers["Link"] = f'<{self.hub.url}{rest}&cursor={first + PAGE}>; rel="next"'
        self.answer(page, **headers)

    def answer_paths_info(self, repository: str, revision: str) -> None:
        opened = self.open(repository)
        entries = self.entries(opened, self.at(opened, revision))
        paths = parse_qs(self.received.decode()).get("paths", [])
        self.answer([entries[path] for path in paths if path in entries])

    def answer_file(self, repository: str, revision: str, name: str) -> None:
        opened = self.open(repository)
        if opened.gated:
            self.demand_owner(f"Access to model {repository} is restricted.", "GatedRepo")
        commit = self.at(opened, revision)
        headers = {"X-Repo-Commit": commit}
        if name not in opened.commits[commit]:
            raise Refusal(404, "Entry not found", "EntryNotFound", **headers)
        blob = opened.commits[commit][name]
        headers["ETag"] = f'"{blob.oid}"'
        if not blob.large:
            return self.answer_content(blob, headers)
        headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        headers["Location"] = f"{self.hub.cdn_url}/cdn/{blob.sha256}/{quote(f'{repository}/-/{name}')}"
        return self.start(302, 0, headers)

    def answer_blob(self, sha256: str, repository: str, name: str) -> None:
        self.answer_content(self.hub.blob(name, sha256), {"ETag": f'"{sha256}"'})

    def answer_whoami(self) -> None:
        account = self.account()
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        token: dict[str, Any] = {"displayName": "t", "role": self.hub.role}
        if self.hub.role == "fineGrained":
            token["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": self.hub.scoped}
        orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in self.hub.orgs]
        auth = {"type": "access_token", "accessToken": token}
        self.answer({"type": "user", "name": account, "orgs": orgs, "auth": auth})

    def answer_harnesses(self) -> None:
        raise Refusal(404)

    def answer_validate_yaml(self) -> None:
        card = json.loads(self.received)["content"]
        metadata = yaml.load(card.split("---")[1], yaml.BaseLoader) or {}
        language, license = metadata.get("language", []), metadata.get("license", "mit")
        errors = [
            '"language" must be an ISO 639-1, 639-2 or 639-3 code (two/three letters), or a special value'
            for one in ([language] if isinstance(language, str) else language)
            if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", one)
        ]
        if license not in LICENSES:
            errors.append(f'"license" must be one of [{", ".join(LICENSES)}]')
        told = {"errors": [{"message": error} for error in errors], "warnings": []}
        self.answer(told, 400 if errors else 200)

    def answer_create(self) -> None:
        self.demand_owner()
        wanted = json.loads(self.received)
        name = f"{wanted.get('organization') or 'owner'}/{wanted['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            return self.answer({"error": "You already created this model repo", "url": url}, 409)
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        private = wanted.get("private") or wanted.get("visibility") == "private"  # of old and new clients
        self.hub.repositories[name].private = bool(private)
        return self.answer({"url": url, "name": name})

    def answer_delete(self) -> None:
        self.demand_owner()
        wanted = json.loads(self.received)
        name = f"{wanted.get('organization') or 'owner'}/{wanted['name']}"
        if self.hub.repositories.pop(name, None) is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        self.answer({})

    def answer_preupload(self, repository: str, revision: str) -> None:
        opened = self.open(repository, write=True)
        present = opened.commits[self.at(opened, revision)]
        told = []
        for file in json.loads(self.received)["files"]:
            mode = "lfs" if is_large(file["path"], file["size"]) else "regular"
            blob = present.get(file["path"])
            oid = blob and (blob.sha256 if blob.large else blob.oid)
            told.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": told})

    def answer_lfs_batch(self, repository: str) -> None:
        self.open(repository, write=True)
        objects = json.loads(self.received)["objects"]
        for wanted in objects:
            if not (self.hub.root / wanted["oid"]).exists():
                upload = f"{self.hub.cdn_url}/upload/{wanted['oid']}/{repository}"
                verify = f"{self.hub.url}/{repository}.git/info/lfs/verify"
                wanted["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        self.answer({"transfer": "basic", "objects": objects})

    def answer_upload(self, sha256: str, repository: str) -> None:
        if self.received != sha256:
            raise Refusal(400, "The content has another SHA-256")
        self.answer({}, ETag=f'"{sha256}"')

    def answer_lfs_verify(self, repository: str) -> None:
        self.open(repository, write=True)
        wanted = json.loads(self.received)
        path = self.hub.root / wanted["oid"]
        if not path.exists() or path.stat().st_size != wanted["size"]:
            raise Refusal(404, "The object was not uploaded")
        self.answer({})

    def answer_commit(self, repository: str, revision: str) -> None:
        opened = self.open(repository, write=True)
        files = dict(opened.commits[self.at(opened, revision)])
        for line in self.received.splitlines():
            operation, value = json.loads(line).values()
            path = value.get("path")
            if operation == "file":
                files[path] = self.hub.blob(path, self.hub.store([base64.b64decode(value["content"])]))
            elif operation == "lfsFile":
                files[path] = self.hub.blob(path, value["oid"])
            elif operation == "deletedFolder":
                folder = path.rstrip("/") + "/"
                files = {name: blob for name, blob in files.items() if not name.startswith(folder)}
            elif operation == "deletedFile" and files.pop(path, None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        commit = self.hub.commit(opened, files, revision)
        self.answer({"commitOid": commit, "commitUrl": f"{self.hub.url}/{repository}/commit/{commit}"})


def parts(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def is_large(name: str, size: int) -> bool:
    """Whether the Hub keeps a file out of Git; an empty one never."""
    return size > LARGE or (size > 0 and name.endswith((".safetensors", ".bin", ".pt", ".pth")))


def pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def cloned(folder: Path) -> None:
    """Make a folder a clone of a repository on the Hub, as git leaves it."""
    (folder / ".git").mkdir()
    remote = '[remote "origin"]\n\turl = https://huggingface.co/org/name\n'
    (folder / ".git" / "config").write_text(f"[core]\n\tbare = false\n{remote}")
