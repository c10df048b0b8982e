"""A small local server that takes uploads as the Hugging Face hub does, as far as `HfApi.upload_folder` of a dataset needs it.

    with serve(folder) as hub: ...   # point HF_ENDPOINT at hub.url before huggingface_hub is imported

What is committed lies under `folder/datasets/OWNER/NAME/`, as `hub_server.py` serves it for reading. `hub.seen` collects 'METHOD path',
`hub.commits` the paths of each commit. `hub.cut[prefix] = n` cuts the connection in the middle of the next n requests whose 'METHOD path' starts
so; `hub.deaf[prefix] = n` does what such a request wants, and cuts it before the answer.
"""
import base64
import hashlib
import json
import re
import socket
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

TOKENS = {"hf_anna": "anna"}
LFS = ("*.parquet", "*.png")


class Cut(Exception): pass


def git_hash(data): return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub, *args):
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *args): pass

    def do_GET(self): self.answer()
    def do_HEAD(self): self.answer()
    def do_POST(self): self.answer()
    def do_PUT(self): self.answer()

    def answer(self):
        self.path_only = unquote(urlsplit(self.path).path)
        self.hub.seen.append(line := f"{self.command} {self.path_only}")
        try:
            body = self.body(self.due(self.hub.cut, line))
            status, value, headers = self.reply(body)
            if self.due(self.hub.deaf, line): raise Cut
            self.send(status, value, headers)
        except Cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def due(self, table, line):
        "Whether the connection of this request is to be cut, by one of the entries of `table`"
        with self.hub.lock:
            prefix = next((p for p, n in table.items() if line.startswith(p) and n), None)
            if prefix: table[prefix] -= 1
        return prefix is not None

    def body(self, cut):
        "The body of the request; when it is to be `cut`, half of it is read and the connection dropped"
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if cut: raise Cut
            self.rfile.readline()
            return b"".join(parts)
        size = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(size // 2 if cut else size)
        if cut: raise Cut
        return data

    def reply(self, body):
        "Status, JSON value and headers of the answer"
        path, hub = self.path_only, self.hub
        if m := re.fullmatch("/lfs/([0-9a-f]{64})", path):  # signed addresses: no token
            if hashlib.sha256(body).hexdigest() != m[1]: return 400, {"error": "the content is not that of the oid"}, {}
            hub.lfs[m[1]] = body
            return 200, {}, {}
        user = TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if path == "/api/validate-yaml": return 200, {"errors": [], "warnings": []}, {}
        if not user: return 401, {"error": "Invalid username or password."}, {}
        if path == "/api/whoami-v2": return 200, {"type": "user", "name": user, "fullname": user, "email": None, "orgs": [], "auth": {"type": "access_token"}}, {}
        if path == "/lfs/verify": return (200, {}, {}) if json.loads(body)["oid"] in hub.lfs else (404, {"error": "not stored"}, {})
        if path == "/api/repos/create": return self.create(json.loads(body), user)
        m = re.fullmatch("/(?:api/)?datasets/([^/]+/[^/]+?)(?:[.]git)?(?:/(revision|tree|preupload|commit|info)/(.+))?", path)
        if not m: return 404, {"error": f"nothing at {path}"}, {}
        name, what = m[1], m[2]
        if name not in hub.private or hub.private[name] and not name.startswith(f"{user}/"):
            return 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        if what in ("preupload", "commit", "info") and not name.startswith(f"{user}/"): return 403, {"error": f"{user} may not write to {name}"}, {}
        return getattr(self, what or "revision")(name, body)

    def create(self, wanted, user):
        name = f"{wanted.get('organization') or user}/{wanted['name']}"
        if not name.startswith(f"{user}/"): return 403, {"error": f"{user} may not make {name}"}, {}
        if name in self.hub.private: return 409, {"error": "You already created this dataset repo", "url": f"{self.hub.url}/datasets/{name}"}, {}
        assert wanted["type"] == "dataset"
        self.hub.add(name, private=wanted.get("visibility") == "private" or wanted.get("private") is True)
        return 200, {"url": f"{self.hub.url}/datasets/{name}", "name": name}, {}

    def revision(self, name, body):
        files = self.hub.files(name)
        return 200, {"_id": "0" * 24, "id": name, "sha": self.hub.head(name), "private": self.hub.private[name], "gated": False, "disabled": False, "tags": [],
                     "downloads": 0, "likes": 0, "siblings": [{"rfilename": f} for f in files]}, {}

    def tree(self, name, body):
        return 200, [{"type": "file", "path": f, "size": len(data), "oid": git_hash(data)} for f, data in self.hub.files(name).items()], {}

    def preupload(self, name, body):
        there, found = self.hub.files(name), []
        for f in json.loads(body)["files"]:
            mode = "lfs" if any(fnmatch(f["path"], p) for p in self.hub.large) else "regular"
            oid = there.get(f["path"]) and (hashlib.sha256(there[f["path"]]).hexdigest() if mode == "lfs" else git_hash(there[f["path"]]))
            found.append({"path": f["path"], "uploadMode": mode, "shouldIgnore": False, **({"oid": oid} if oid else {})})
        return 200, {"files": found}, {}

    def info(self, name, body):
        "The batch call of Git LFS: where to put what is not stored yet"
        def actions(oid): return {} if oid in self.hub.lfs else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{oid}"}, "verify": {"href": f"{self.hub.url}/lfs/verify"}}}
        return 200, {"transfer": "basic", "objects": [{"oid": o["oid"], "size": o["size"], **actions(o["oid"])} for o in json.loads(body)["objects"]]}, {}

    def commit(self, name, body):
        head, *operations = [json.loads(line) for line in body.splitlines()]
        assert head["key"] == "header"
        files = dict(self.hub.files(name))
        for o in operations:
            value = o["value"]
            if o["key"] == "file": files[value["path"]] = base64.b64decode(value["content"])
            elif o["key"] == "lfsFile" and value["oid"] not in self.hub.lfs: return 400, {"error": f"{value['path']}: its content was never uploaded"}, {}
            elif o["key"] == "lfsFile": files[value["path"]] = self.hub.lfs[value["oid"]]
            elif o["key"] == "deletedFile": del files[value["path"]]
            else: return 400, {"error": f"unknown operation {o['key']}"}, {}
        self.hub.write(name, files)
        self.hub.commits.append([(o["key"], o["value"]["path"]) for o in operations])
        return 200, {"success": True, "commitOid": self.hub.head(name), "commitUrl": f"{self.hub.url}/datasets/{name}/commit/{self.hub.head(name)}", "hookOutput": ""}, {}

    def send(self, status, value, headers):
        data = json.dumps(value).encode()
        self.send_response(status)
        for k, v in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items(): self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(data)


class Hub(SimpleNamespace):
    def add(self, name, private):
        self.private[name] = private
        (self.folder/"datasets"/name).mkdir(parents=True)

    def files(self, name): return {p.relative_to(root).as_posix(): p.read_bytes() for root in [self.folder/"datasets"/name] for p in sorted(root.rglob("*")) if p.is_file()}

    def head(self, name): return hashlib.sha1(repr([(f, git_hash(d)) for f, d in self.files(name).items()]).encode()).hexdigest()

    def write(self, name, files):
        root = self.folder/"datasets"/name
        for p in [p for p in root.rglob("*") if p.is_file()]: p.unlink()
        for f, data in files.items():
            (root/f).parent.mkdir(parents=True, exist_ok=True)
            (root/f).write_bytes(data)


@contextmanager
def serve(folder, large=LFS):
    "A hub with nothing in it, whose datasets are kept under `folder`; files that match `large` go by Git LFS"
    hub = Hub(folder=Path(folder), large=large, private={}, lfs={}, seen=[], commits=[], cut={}, deaf={}, lock=Lock())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    try: yield hub
    finally:
        server.shutdown()
        server.server_close()
