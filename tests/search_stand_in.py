"""A small stand-in for Elasticsearch: as much of its HTTP interface as argilla-server calls, over documents in memory.

    with serve() as (url, search): ...   # point ARGILLA_ELASTICSEARCH at url before argilla-server is imported

Indices are made and dropped, documents written one by one and in bulk, and searched by exact values; words are looked for as plain text. There is no
analysis, no relevance (every score is 1), no mapping that could refuse a document, no vectors, and no sorting other than by plain values. What it
does not know, a query above all, is refused with the status 400, and never taken for a match.
"""
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import unquote, urlsplit


def values(doc, path) -> list:
    "All values that a document has under a dotted path; of a list, those of all its items"
    found = [doc]
    for part in path.split("."):
        found = [v[part] for v in found if isinstance(v, dict) and v.get(part) is not None]
        found = [item for v in found for item in (v if isinstance(v, list) else [v])]
    return found

def as_list(query): return query if isinstance(query, list) else [query]

def texts(value): return [value] if isinstance(value, str) else [t for v in (value.values() if isinstance(value, dict) else value or []) for t in texts(v)]

def inside(path, item):
    "The document that has only this one item under its path"
    for part in reversed(path.split(".")): item = {part: item}
    return item

def matches(query, doc) -> bool:
    "Whether a document is found by a query of the forms that argilla-server writes"
    ((kind, body),) = query.items()
    if kind == "match_all": return True
    if kind == "bool":
        if unknown := body.keys() - {"must", "filter", "must_not", "should", "minimum_should_match"}: raise ValueError(f"bool: {unknown}")
        must, wanted = [q for part in ("must", "filter") for q in as_list(body.get(part, []))], as_list(body.get("should", []))
        enough = int(body.get("minimum_should_match", bool(wanted) and not must))
        return all(matches(q, doc) for q in must) and not any(matches(q, doc) for q in as_list(body.get("must_not", []))) and sum(matches(q, doc) for q in wanted) >= enough
    if kind == "function_score": return matches(body["query"], doc)
    if kind == "ids": return doc["id"] in body["values"]
    if kind == "exists": return bool(values(doc, body["field"]))
    if kind == "nested": return any(matches(body["query"], inside(body["path"], item)) for item in values(doc, body["path"]))
    if kind == "simple_query_string":
        found = [t.lower() for f in body["fields"] for t in texts(doc["fields"] if f == "fields.*" else values(doc, f.removesuffix(".*")))]
        return all(any(word in t for t in found) for word in body["query"].lower().split())
    ((field, wanted),) = body.items()
    if kind in ("term", "terms"): return bool({str(v) for v in as_list(wanted)} & {str(v) for v in values(doc, field)})
    if kind == "range": return any(wanted.get("gte", v) <= v <= wanted.get("lte", v) for v in values(doc, field))
    raise ValueError(f"the query {kind}")

def aggregate(aggregation, docs) -> dict:
    ((kind, body),) = aggregation.items()
    found = [v for doc in docs for v in values(doc, body["field"])]
    if kind == "value_count": return {"value": len(found)}
    if kind == "stats": return {"count": len(found), "min": min(found, default=None), "max": max(found, default=None)}
    if kind == "terms": return {"buckets": [{"key": v, "doc_count": sum(v in values(doc, body["field"]) for doc in docs)} for v in sorted(set(found))][:body["size"]]}
    raise ValueError(f"the aggregation {kind}")

def in_order(docs, sort) -> list:
    for part in reversed(as_list(sort)):
        ((field, order),) = part.items()
        if not isinstance(order, str): raise ValueError(f"the order {part}")
        docs = sorted(docs, key=lambda doc: str(next(iter(values(doc, field)), "")), reverse=order == "desc")
    return docs

def merge(doc, change):
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(doc.get(name), dict): merge(doc[name], value)
        else: doc[name] = value

def update(doc, body):
    "A part of the document, or one of the two scripts by which argilla-server changes a list of responses"
    if "doc" in body: return merge(doc, body["doc"])
    script = body["script"]
    if not isinstance(script, dict) or "params.response" not in script["source"]: raise ValueError(f"the script {script}")
    response = script["params"]["response"]
    doc["responses"] = [r for r in doc.get("responses") or [] if r["id"] != response["id"]] + [response] * ("responses.add" in script["source"])


class Search:
    "The indices and their documents, and what was asked of them"
    def __init__(self): self.indices, self.lock, self.asked = {}, Lock(), []

    def answer(self, method, parts, body):
        "The status and the answer to a request"
        self.asked.append((method, "/".join("*" if p.startswith("rg.") or "-" in p else p for p in parts)))
        match method, parts:
            case ("GET" | "HEAD"), []: return 200, {"name": "stand-in", "version": {"number": "8.7.0", "build_flavor": "default"}, "tagline": "You Know, for Search"}
            case ("PUT" | "POST"), ["_bulk"]: return 200, {"took": 1, "errors": False, "items": self.bulk([json.loads(line) for line in body.splitlines() if line])}
            case "PUT", [index]: self.indices.setdefault(index, {})
            case "PUT", [index, "_mapping"]: self.indices[index]
            case "HEAD", [index]: return (200 if index in self.indices else 404), {}
            case "DELETE", [index]: self.indices.pop(index, None)
            case "POST", [index, "_update", id]: update(self.indices[index][id], json.loads(body))
            case "POST", [index, "_search"]: return 200, self.search(index, json.loads(body))
            case _: raise ValueError(f"{method} /{'/'.join(parts)}")
        return 200, {"acknowledged": True, "result": "updated"}

    def bulk(self, lines) -> list:
        items, lines = [], iter(lines)
        for line in lines:
            ((kind, at),) = line.items()
            docs = self.indices[at["_index"]]
            if kind == "index": docs[at["_id"]] = next(lines)
            elif kind == "delete": docs.pop(at["_id"], None)
            else: raise ValueError(f"bulk {kind}")
            items.append({kind: {"_id": at["_id"], "status": 200}})
        return items

    def search(self, index, body) -> dict:
        if unknown := body.keys() - {"query", "from", "size", "sort", "aggregations", "_source", "track_total_hits"}: raise ValueError(f"search: {unknown}")
        found = {id: doc for id, doc in self.indices[index].items() if matches(body["query"], {**doc, "id": id})}
        ids, start = list(found), body.get("from") or 0
        if body.get("sort"): ids = [d["id"] for d in in_order([{**doc, "id": id} for id, doc in found.items()], body["sort"])]
        page = ids[start:start + (10 if body.get("size") is None else body["size"])]
        return {"hits": {"total": {"value": len(ids), "relation": "eq"}, "hits": [{"_index": index, "_id": i, "_score": 1.0} for i in page]},
                "aggregations": {name: aggregate(a, found.values()) for name, a in (body.get("aggregations") or {}).items()}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        try:
            with self.server.search.lock: status, answer = self.server.search.answer(self.command, [unquote(p) for p in urlsplit(self.path).path.split("/") if p], body)
        except KeyError as e: status, answer = 404, {"error": f"not found: {e}"}
        except ValueError as e: status, answer = 400, {"error": f"the stand-in does not know {e}"}
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (("X-Elastic-Product", "Elasticsearch"), ("Content-Type", "application/json"), ("Content-Length", str(len(data)))): self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = reply

    def log_message(self, *args): ...


@contextmanager
def serve():
    "The address of a running stand-in, and its `Search`"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.search, server.daemon_threads = Search(), True
    Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_address[1]}", server.search
    finally:
        server.shutdown()
        server.server_close()
