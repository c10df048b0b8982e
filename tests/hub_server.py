"""A small local server that speaks as much of the Hugging Face hub's protocol as `load_dataset` and `hf_hub_download` need.

`serve(folder)` serves `folder/datasets/OWNER/NAME/...` as datasets and `folder/OWNER/NAME/...` as models, all on the branch `main`:

    with serve(folder) as url: ...   # point HF_ENDPOINT at url before huggingface_hub is imported
"""
import hashlib, json, re
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def sha(data) -> str: return hashlib.sha1(data).hexdigest()

def etag(path) -> str:
    "A git-like 40 hex digits that change with the file; from its size and time, so that large files need not be read"
    s = path.stat()
    return sha(f"{path.name} {s.st_size} {s.st_mtime_ns}".encode())

def files(repo) -> list:
    return sorted(p for p in repo.rglob("*") if p.is_file())

def commit(repo) -> str:
    return sha("".join(f"{p.relative_to(repo)} {etag(p)}\n" for p in files(repo)).encode())

def entry(repo, path) -> dict:
    name = path.relative_to(repo).as_posix()
    if path.is_dir(): return {"type": "directory", "oid": sha(name.encode()), "size": 0, "path": name}
    return {"type": "file", "oid": etag(path), "size": path.stat().st_size, "path": name}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, folder, private, seen, *args):
        self.folder, self.private, self.seen = folder, private, seen
        super().__init__(*args)

    def log_message(self, *args): self.seen.append(f"{self.command} {self.path}")

    def do_GET(self): self.answer()
    def do_HEAD(self): self.answer()
    def do_POST(self): self.answer()

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(url.path)
        if m := API.fullmatch(path): return self.api(*m.groups(), "recursive=true" in url.query.lower(), body)
        if m := FILE.fullmatch(path): return self.file(*m.groups())
        self.error(404, None, f"nothing at {path}")

    def repo(self, kind, name, revision) -> Path | None:
        "The folder of a repository; None when an error was sent instead"
        repo = self.folder/"datasets"/name if kind.startswith("datasets") else self.folder/name
        hidden = name in self.private and not self.headers.get("Authorization")
        if hidden or not repo.is_dir(): return self.error(401, "RepoNotFound", "Repository not found")
        if revision not in ("main", commit(repo)): return self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo

    def api(self, kind, name, what, revision, path, recursive, body):
        repo = self.repo(kind, name, revision or "main")
        if repo is None: return
        if what == "tree":
            under = repo/(path or "")
            if not under.is_dir(): return self.error(404, "EntryNotFound", f"{path} does not exist on {revision}")
            return self.json([entry(repo, p) for p in sorted(under.rglob("*") if recursive else under.iterdir())])
        if what == "paths-info":
            wanted = json.loads(body)["paths"]
            return self.json([entry(repo, repo/p) for p in ([wanted] if isinstance(wanted, str) else wanted) if (repo/p).exists()])
        day, siblings = "2026-01-01T00:00:00.000Z", [{"rfilename": p.relative_to(repo).as_posix()} for p in files(repo)]
        self.json({"_id": sha(name.encode())[:24], "id": name, "sha": commit(repo), "private": name in self.private, "gated": False,
                   "disabled": False, "tags": [], "downloads": 0, "likes": 0, "createdAt": day, "lastModified": day, "siblings": siblings})

    def file(self, kind, name, revision, path):
        repo = self.repo(kind or "models", name, revision)
        if repo is None: return
        file = (repo/path).resolve()
        if not file.is_relative_to(repo.resolve()) or not file.is_file():
            return self.error(404, "EntryNotFound", f"{path} does not exist on {revision}", {"X-Repo-Commit": commit(repo)})
        size = file.stat().st_size
        start, end = 0, size - 1
        if m := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            start, end = (int(m[1]), min(int(m[2] or end), end)) if m[1] else (max(0, size - int(m[2])), end)
            if start >= size: return self.error(416, None, "range not satisfiable", {"Content-Range": f"bytes */{size}"})
        self.send_response(206 if m else 200)
        if m: self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        for k, v in {"Content-Length": end - start + 1, "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes",
                     "ETag": f'"{etag(file)}"', "X-Repo-Commit": commit(repo)}.items(): self.send_header(k, str(v))
        self.end_headers()
        if self.command == "HEAD": return
        with file.open("rb") as f:
            f.seek(start)
            left = end - start + 1
            while left and (block := f.read(min(left, 1 << 20))):
                self.wfile.write(block)
                left -= len(block)

    def json(self, value, status=200, headers={}):
        data = json.dumps(value).encode()
        self.send_response(status)
        for k, v in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items(): self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(data)

    def error(self, status, code, message, headers={}):
        self.json({"error": message}, status, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers})


@contextmanager
def serve(folder, private=(), seen=None):
    "Serve the repositories under `folder`, yielding the url; those named in `private` want a token; `seen` collects 'METHOD path'"
    seen = [] if seen is None else seen
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, Path(folder), tuple(private), seen))
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
