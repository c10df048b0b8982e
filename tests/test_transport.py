"Addresses and connections as they are: proxies, base URLs that lack a part, keys with quotes, lists of models that are refused, slow bodies, event streams, errors with the status 200."
import asyncio
import json
import random
import shutil
import ssl
import subprocess
from contextlib import contextmanager

import pytest
from aiohttp import web
from scripted_server import in_a_thread, said, serve

from llmdata_nb import __version__, reach, transport
from llmdata_nb.doctor import examine
from llmdata_nb.models import EndpointError, endpoint, object_schema
from llmdata_nb.run import run
from llmdata_nb.templates import fetch
from llmdata_nb.transport import failed_answer, open_session, proxy_for

LIST = {"data": [{"id": "m"}]}
PAGE = "<!doctype html><html><head><title>Log in</title></head><body><h1>Welcome to the guest network</h1></body></html>"


async def say(row, ask):
    row["said"] = (await ask(f"Say {row['id']}", step="say")).text
    return row


def ids(n): return [{"id": f"r{i}"} for i in range(n)]


@pytest.fixture
def ask_rows(tmp_path, monkeypatch):
    "Runs `n` rows on a model, with a store of its own"
    monkeypatch.setattr(random, "uniform", lambda a, b: 0)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"): monkeypatch.delenv(name, raising=False)
    def rows(model, n=1, **options): return run(ids(n), say, model=model, store=tmp_path / "s.sqlite", **options)
    return rows


class Seen(list):
    "Each request as `METHOD path`, with its headers and its target in `headers` and `targets`"
    def __init__(self): self.headers, self.targets = [], []
    def count_of(self, method): return sum(line.startswith(method) for line in self)


@contextmanager
def site(answer, tls=None):
    "A server in a thread: `answer(method, path)` gives (status, JSON or text), or an async function of the request; yields its root and what it has `Seen`"
    seen = Seen()
    async def handle(request):
        await request.read()
        seen.append(f"{request.method} {request.path_qs}")
        seen.headers.append(request.headers)
        seen.targets.append(str(request.url))
        result = answer(request.method, request.path)
        if callable(result): return await result(request)
        status, data, headers = (*result, {})[:3]
        if isinstance(data, str): return web.Response(status=status, text=data, headers=headers)
        return web.json_response(data, status=status, headers=headers)
    async def start():
        runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        return runner
    with in_a_thread(start) as runner: yield f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}", seen


def endpoint_at(base, missing=(404, {"detail": "Not Found"})):
    "An endpoint below the path `base`; what is not there is answered with `missing`"
    def answer(method, path):
        if path == f"{base}/models" and method == "GET": return 200, LIST
        if path == f"{base}/chat/completions" and method == "POST": return 200, said("fine")
        return missing
    return answer


def chat_with(listing):
    "An endpoint that answers chats, and `listing` where its models are asked for"
    return lambda method, path: listing if method == "GET" else (200, said("fine"))


def doctor_says(model):
    async def all_findings(): return [finding async for finding in examine(model)]
    return asyncio.run(all_findings())


# Proxies

def test_a_host_behind_a_proxy_is_asked_through_it(ask_rows, monkeypatch):
    with site(endpoint_at("/v1")) as (proxy, seen):
        monkeypatch.setenv("HTTP_PROXY", proxy.replace("//", "//ada:p%40ss-4f9Qz81L@"))
        monkeypatch.setenv("LLMDATA_API_KEY_MODELS_INVALID_9", "k-1")
        assert len(ask_rows("http://models.invalid:9/v1#m").kept) == 1
        fetch(endpoint("http://models.invalid:9/v1#m"), "/props")
    assert set(seen.targets) == {"http://models.invalid:9/v1/models", "http://models.invalid:9/v1/chat/completions", "http://models.invalid:9/props"}
    assert {head["Authorization"] for head in seen.headers} == {"Bearer k-1"} and seen.headers[0]["Proxy-Authorization"].startswith("Basic ")


@pytest.mark.parametrize("name, value", [("HTTP_PROXY", "{proxy}"), ("http_proxy", "{proxy}"), ("ALL_PROXY", "{proxy}"), ("HTTP_PROXY", "{host}")])
def test_each_name_of_a_proxy(ask_rows, monkeypatch, name, value):
    with site(endpoint_at("/v1")) as (proxy, seen):
        monkeypatch.setenv(name, value.format(proxy=proxy, host=proxy.partition("//")[2]))
        assert len(ask_rows("http://models.invalid/v1#m").kept) == 1


def test_this_machine_and_no_proxy_are_asked_directly(ask_rows, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with serve(lambda body, n: "fine") as (model, bodies): assert len(ask_rows(model, 2).kept) == 2
    for entry in (".invalid", "models.invalid", "*.invalid", "models.invalid:8000", "other, models.invalid", "*", "10.0.0.0/8"):
        monkeypatch.setenv("NO_PROXY", entry)
        assert proxy_for("http://10.2.3.4/v1" if entry[0] == "1" else "http://models.invalid:8000/v1") is None
    for entry in ("dels.invalid", "models.invalid:80", "192.168.0.0/16"):
        monkeypatch.setenv("NO_PROXY", entry)
        assert proxy_for("http://models.invalid:8000/v1")


@pytest.mark.parametrize("variable, proxy, words", [
    ("HTTP_PROXY", "http://ada:p-4f9Qz81LmX0@127.0.0.1:9", "the proxy that the environment names"), ("ALL_PROXY", "socks5h://127.0.0.1:9", "set HTTP_PROXY to one that begins with http://")])
def test_a_proxy_that_cannot_be_used_is_one_line(ask_rows, monkeypatch, variable, proxy, words):
    monkeypatch.setenv(variable, proxy)
    with pytest.raises(EndpointError, match="cannot be reached: ") as error: ask_rows("http://models.invalid/v1#m")
    assert words in str(error.value) and "4f9Qz81LmX0" not in str(error.value) and "\n" not in str(error.value)


def test_a_netrc_file_gives_no_key(ask_rows, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serve(lambda body, n: "fine") as (model, bodies): ask_rows(model)
    assert "Authorization" not in bodies[0].headers


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate")
def test_a_certificate_that_is_not_trusted(ask_rows, monkeypatch, tmp_path):
    key, own = tmp_path / "key.pem", tmp_path / "own.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", own, "-days", "2",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(own, key)
    with site(endpoint_at("/v1"), tls) as (root, seen):
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with pytest.raises(EndpointError, match="set SSL_CERT_FILE to a file") as error: ask_rows(f"{root}/v1#m")
        assert "REQUESTS_CA_BUNDLE is not read" in str(error.value) and "\n" not in str(error.value)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        with pytest.raises(EndpointError, match="where there is no file"): ask_rows(f"{root}/v1#m")
        monkeypatch.setenv("SSL_CERT_FILE", str(own))
        assert len(ask_rows(f"{root}/v1#m").kept) == 1


# Base URLs

MISSING = {"FastAPI": (404, {"detail": "Not Found"}), "LM Studio": (200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}), "nginx": (404, "<html><title>404 Not Found</title></html>"),
           "Go": (404, "404 page not found"), "nothing": (404, ""), "OpenAI": (404, {"error": {"message": "Invalid URL (POST /v1/v1/chat/completions)", "code": None}})}


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("given", ["", "/v1/v1", "/api", "/v1/chat"])
def test_a_wrong_base_url_is_named_before_anything_is_paid(ask_rows, given, missing):
    with site(endpoint_at("/v1", MISSING[missing])) as (root, seen):
        with pytest.raises(EndpointError, match="does not answer as an endpoint"): ask_rows(f"{root}{given}#m", 20)
        assert seen.count_of("POST") == 1
        findings = doctor_says(f"{root}{given}#m")
    assert f"did you mean {root}/v1#m?" in findings[0][1] and not any(good for good, _ in findings)


@pytest.mark.parametrize("base", ["/api/v1", "/openai/v1", "/v1", ""])
def test_the_base_url_is_found_where_it_is(ask_rows, base):
    with site(endpoint_at(base)) as (root, seen):
        with pytest.raises(EndpointError) as error: ask_rows(f"{root}{base or '/v1'}{'' if not base else '/v1'}#m")
        assert f"did you mean {root}{base}#m?" in str(error.value)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions/", "/openai/deployments/m/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/responses"])
def test_the_whole_path_of_a_request_is_no_base_url(path):
    base = "/openai/deployments/m" if "deployments" in path else "/v1"
    with pytest.raises(ValueError, match="expected a base URL") as error: endpoint(f"http://gpu:8000{path}#m")
    assert f"did you mean http://gpu:8000{base}#m?" in str(error.value)


def test_a_trailing_slash_is_no_fault(ask_rows):
    with site(endpoint_at("/v1")) as (root, seen): assert len(ask_rows(f"{root}/v1/#m").kept) == 1
    assert endpoint("http://gpu/models#m").url == "http://gpu/models"  # there are base URLs of that name


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_where_a_redirect_points_to_is_said(ask_rows, status):
    moved = status, "", {"Location": "https://models.example/v2/chat/completions?x=1"}
    with site(lambda method, path: moved if method == "POST" else (status, "", {"Location": "https://models.example/v2/models"})) as (root, seen):
        with pytest.raises(EndpointError, match="did you mean https://models.example/v2#m"): ask_rows(f"{root}/v1#m", 20)
    with site(lambda method, path: moved if method == "POST" else (200, LIST)) as (root, seen):
        outcome = ask_rows(f"{root}/v1#m", 100, concurrency=4)
    assert "redirects to https://models.example/v2/chat/completions" in outcome.failed[0]["reason"] and seen.count_of("POST") <= 14 and len(outcome.failed) == 100


# What options add to each request

def test_headers_and_query_go_out_with_each_request(ask_rows, monkeypatch):
    monkeypatch.setenv("MY_KEY", "k-2\n")
    with site(endpoint_at("/v1")) as (root, seen):
        monkeypatch.setenv(f"LLMDATA_API_KEY_127_0_0_1_{root.rpartition(':')[2]}", "k-1")
        assert len(ask_rows(f"{root}/v1#m?query.api-version=2024-10-21&query.x=a%20b&headers.api-key=$MY_KEY&headers.User-Agent=mine").kept) == 1
        assert seen == ["GET /v1/models?api-version=2024-10-21&x=a+b", "POST /v1/chat/completions?api-version=2024-10-21&x=a+b"]
        for head in seen.headers: assert head["api-key"] == "k-2" and "Authorization" not in head and head.getall("User-Agent") == ["mine"]
        assert len(ask_rows(f"{root}/v1#m", 2).kept) == 2
    assert seen.headers[-1]["User-Agent"] == f"llmdata_nb/{__version__}" and seen.headers[-1]["Authorization"] == "Bearer k-1"


# Keys

@pytest.mark.parametrize("held", ["k-1\n", "k-1\r\n", "  k-1", "'k-1'", '"k-1"\n', "Bearer k-1", "bearer  k-1\n", "'Bearer k-1'", "Authorization: Bearer k-1", "\ufeffk-1", "\u201ck-1\u201d"])
def test_what_a_paste_leaves_around_a_key_is_not_sent(monkeypatch, held):
    for variable, model in (("LLMDATA_API_KEY_GPU_8000", "http://gpu:8000/v1#m"), ("OPENAI_API_KEY", "openai:m"), ("HF_TOKEN", "https://x.endpoints.huggingface.cloud/v1#m")):
        monkeypatch.setenv(variable, held)
        assert endpoint(model).key == "k-1"


@pytest.mark.parametrize("held", ["k 1", "k-1\nk-2", "schl\u00fcssel-4f9Q", "'k-1", "<your key>", "k\u200b1"])
def test_what_cannot_be_a_key_is_an_error_before_anything_is_sent(monkeypatch, held):
    monkeypatch.setenv("LLMDATA_API_KEY_GPU_8000", held)
    with pytest.raises(ValueError, match="LLMDATA_API_KEY_GPU_8000: a") as error: endpoint("http://gpu:8000/v1#m")
    assert held not in str(error.value)


# A list of models that is refused

REFUSED = {"401": (401, {"error": "invalid user key"}), "403": (403, {"error": {"message": "Missing scopes: api.model.read."}}), "403 page": (403, "<html><title>Access denied</title> error code: 1010"),
           "404": (404, {"detail": "Not Found"}), "500": (500, {}), "502 page": (502, PAGE), "page": (200, PAGE), "405": (405, ""), "301": (301, "", {"Location": "/login"}), "null": (200, {"data": None}),
           "texts": (200, ["m"]), "prefixed": (200, {"data": [{"id": "models/m"}]}), "error in 200": (200, {"error": "nope"}), "429": (429, {"error": "slow down"}), "cut off": (200, '{"data": [{"id"')}


@pytest.mark.parametrize("listing", REFUSED)
def test_a_list_of_models_that_is_refused_ends_no_run(ask_rows, listing):
    with site(chat_with(REFUSED[listing])) as (root, seen):
        outcome = ask_rows(f"{root}/v1#m", 3)
    assert len(outcome.kept) == 3 and seen.count_of("POST") <= 4


def test_a_list_of_models_that_is_late_ends_no_run(ask_rows, monkeypatch):
    monkeypatch.setattr(reach, "_LIST_SECONDS", 0.3)
    async def late(request):
        await asyncio.sleep(2)
        return web.json_response(LIST)
    with site(chat_with(late)) as (root, seen): assert len(ask_rows(f"{root}/v1#m").kept) == 1


def test_a_server_that_says_nothing_at_all_is_one_line(ask_rows, monkeypatch):
    monkeypatch.setattr(reach, "_LIST_SECONDS", 0.3)
    monkeypatch.setattr("llmdata_nb.models._WORD_SECONDS", 0.3)
    async def silent(request): await asyncio.sleep(5)
    with site(lambda method, path: silent) as (root, seen):
        with pytest.raises(EndpointError, match="neither lists its models nor answers a word"): ask_rows(f"{root}/v1#m", 3)
    assert seen.count_of("POST") == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_may_not_chat_either_is_one_line_with_the_server_s_words(ask_rows, status):
    with site(lambda method, path: (status, {"error": {"message": "this key has expired"}})) as (root, seen):
        with pytest.raises(EndpointError, match=rf"refuses the key \({status}\): this key has expired"): ask_rows(f"{root}/v1#m", 20)
    assert seen.count_of("POST") == 1


def test_a_model_that_is_not_there_is_one_line_without_a_list_too(ask_rows):
    with site(lambda method, path: (404, {"error": {"message": "The model `m` does not exist."}} if method == "POST" else {})) as (root, seen):
        with pytest.raises(EndpointError, match=r"has no 'm' \(404 The model `m` does not exist.\)$"): ask_rows(f"{root}/v1#m", 20)


# Bodies

def written(*parts, content_type="application/json", pause=0.02, stall=0.0):
    "The response that is written in `parts`"
    async def write(request):
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        for part in parts:
            await response.write(part if isinstance(part, bytes) else part.encode())
            await asyncio.sleep(pause)
        await asyncio.sleep(stall)
        return response
    return write


def quick_clock(monkeypatch, factor):
    "Each second counts as so many"
    count_step = transport._AwakeClock._count_step
    def count_quickly(clock):
        clock.seconds += transport._STEP * (factor - 1)
        count_step(clock)
    monkeypatch.setattr(transport._AwakeClock, "_count_step", count_quickly)


def test_blank_lines_keep_a_slow_answer_alive(ask_rows, monkeypatch):
    quick_clock(monkeypatch, 150)
    answer = json.dumps(said("fine"))
    with serve(lambda body, n: written(*["\n"] * 25, answer, pause=0.05)) as (model, bodies): assert ask_rows(model, timeout=900).kept
    assert len(bodies) == 1


def test_a_body_that_stalls_ends_by_the_timeout(ask_rows):
    with serve(lambda body, n: written('{"choi', stall=5) if not n else "fine") as (model, bodies): assert ask_rows(model, timeout=0.4).kept
    assert len(bodies) == 2


def chunk(text=None, finish=None, **more): return "data: " + json.dumps({"id": "c", "choices": [{"delta": {"content": text} if text else {}, "finish_reason": finish}]} | more) + "\n\n"


USAGE = {"prompt_tokens": 5, "completion_tokens": 2}
STREAMS = {"plain": [chunk("Ci"), chunk("ao"), chunk(finish="stop", usage=USAGE), "data: [DONE]\n\n"],
           "comments": [": processing\n\n", ": processing\n\n", chunk("Ciao", "stop", usage=USAGE), "data: [DONE]\n\n"],
           "events": ["event: message\r\n", chunk("Ciao", "stop", usage=USAGE).replace("\n", "\r\n")],
           "comments, then JSON": [": wait\n\n: wait\n\n", json.dumps(said("Ciao"))]}


@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
@pytest.mark.parametrize("name", STREAMS)
def test_an_event_stream_that_nobody_asked_for_is_read(ask_rows, name, content_type):
    with serve(lambda body, n: written(*STREAMS[name], content_type=content_type, pause=0)) as (model, bodies): outcome = ask_rows(model)
    assert [row["said"] for row in outcome.kept] == ["Ciao"] and len(bodies) == 1
    assert outcome.ledger[0]["completion_tokens"] in (2, 5)


@pytest.mark.parametrize("stream, asked", [
    (['data: {"error": {"code": 429, "message": "slow down"}}\n\n'], 2), ([chunk("Ci"), 'data: {"error": {"code": 502, "message": "upstream"}, "choices": []}\n\n'], 2),
    (['data: {"error": {"code": 401, "message": "wrong key"}}\n\n'], 1), ([chunk("Ci"), 'data: {"choices": [{"delta": {}, "error": {"code": 400, "message": "no"}, "finish_reason": "error"}]}\n\n'], 1)])
def test_an_error_inside_a_stream_is_treated_by_its_code(ask_rows, stream, asked):
    with serve(lambda body, n: "fine" if n else written(*stream, content_type="text/event-stream", pause=0)) as (model, bodies): outcome = ask_rows(model)
    assert len(bodies) == asked and len(outcome.kept) == asked - 1


# Errors with the status 200

INSIDE = {  # an answer of status 200 → the status and the kind that it means
    "a code": ({"error": {"code": 429, "message": "later"}}, 429, "rate limit"), "a code as text": ({"error": {"code": "503", "message": "later"}}, 503, "server"),
    "a name": ({"error": {"code": "rate_limit_exceeded", "message": "later"}}, 429, "rate limit"), "a type": ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, 503, "server"),
    "a list": ([{"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}], 400, "refused"), "a text": ({"error": "Invalid API key"}, 401, "refused"),
    "a choice": ({"choices": [{"error": {"code": 502, "message": "gone"}, "message": {"content": "Ci"}, "finish_reason": "error"}]}, 502, "server"),
    "a detail": ({"detail": "Rate limit exceeded"}, 429, "rate limit"), "the top": ({"code": 500, "message": "Internal error"}, 500, "server"), "errors": ({"success": False, "errors": [{"code": 10000, "message": "Authentication error"}]}, 401, "refused"),
    "base_resp": ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}, "choices": None}, 429, "rate limit"), "statusCode": ({"statusCode": 401, "message": "Unauthorized"}, 401, "refused"),
    "beside choices": (said("Ci") | {"error": {"code": 500, "message": "died"}}, 500, "server"), "no words": ({"x": 1}, 200, "server"), "an unknown one": ({"error": "hm"}, 200, "server"),
    "no balance": ({"error": {"code": "1113", "message": "Insufficient balance"}}, 429, "out of money"), "a page": (PAGE, 200, "server")}


@pytest.mark.parametrize("name", INSIDE)
def test_an_error_in_a_200_is_treated_by_its_code(ask_rows, name):
    answer, status, kind = INSIDE[name]
    data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
    failed = failed_answer(200, {}, data, None)
    assert (failed.status, failed.kind) == (status, kind)
    with site(lambda method, path: (200, LIST) if method == "GET" else (200, answer) if seen.count_of("POST") == 1 else (200, said("fine"))) as (root, seen): outcome = ask_rows(f"{root}/v1#m")
    again = kind not in ("refused", "out of money")
    assert len(outcome.kept) == again and seen.count_of("POST") == 1 + again


@pytest.mark.parametrize("body, words", [
    ('{"object": "error", "message": "maximum context length is 512 tokens", "type": "BadRequestError", "param": null, "code": 400}', "maximum context length is 512 tokens"),
    ('{"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 11}]}', "Extra inputs are not permitted (body.seed)"),
    ('{"detail": "Not Found"}', "Not Found"), ("the prompt is too long", "the prompt is too long"), ('{"message": "no Route matched"}', "no Route matched"), ('"no"', "no"), ("", ""),
    ('{"statusCode": 400, "error": "Bad Request", "message": ["a", "b"]}', "Bad Request"), ('{"errors": ["too long"]}', "too long"), (PAGE, "a web page: Log in Welcome to the guest network")])
def test_what_a_server_says_is_shown_in_its_words(body, words):
    assert failed_answer(400, {}, body.encode(), None).message == f"400 {words}"


def test_a_status_beside_200_can_bring_an_answer(ask_rows):
    with site(lambda method, path: (200, LIST) if method == "GET" else (201, said("fine"))) as (root, seen): assert ask_rows(f"{root}/v1#m").kept


# Refused again and again

def test_a_page_for_people_is_not_asked_for_ever(ask_rows):
    with site(lambda method, path: (200, LIST) if method == "GET" else (200, PAGE)) as (root, seen): outcome = ask_rows(f"{root}/v1#m", 60, concurrency=2)
    assert len(outcome.failed) == 60 and seen.count_of("POST") <= 6 * 5
    assert all("200 without an answer in it: a web page: Log in Welcome" in row["reason"] for row in outcome.failed)


REFUSALS = {"401": (401, {"error": "Incorrect API key provided"}, 3), "403 of a key": (403, {"error": {"message": "This API key was revoked"}}, 3), "403 without words": (403, "", 10),
            "403 page": (403, "<html><title>Attention Required!</title>", 10), "401 in 200": (200, {"error": {"code": 401, "message": "expired"}}, 3), "no path": (404, {"detail": "Not Found"}, 3), "no such method": (405, {"detail": "Method Not Allowed"}, 3),
            "no model": (404, {"error": {"message": "The model `m` does not exist"}}, 10)}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused_in_mid_run_is_asked_only_a_few_times_more(ask_rows, name):
    status, data, enough = REFUSALS[name]
    with site(lambda method, path: (200, LIST) if method == "GET" else (200, said("fine")) if seen.count_of("POST") <= 20 else (status, data)) as (root, seen):
        outcome = ask_rows(f"{root}/v1#m", 200, concurrency=4)
    assert len(outcome.kept) == 20 and len(outcome.failed) == 180 and seen.count_of("POST") <= 20 + enough + 3
    assert "nothing more is sent in this run" in outcome.failed[-1]["reason"]


@pytest.mark.parametrize("status, data", [(403, {"error": {"message": "Your input was flagged by moderation"}}), (403, {"error": {"code": "content_policy_violation", "message": "blocked by content policy"}}),
                                          (400, {"error": {"message": "the prompt is too long"}}), (422, {"detail": "no"})])
def test_what_is_refused_for_its_content_stops_no_other(ask_rows, status, data):
    with site(lambda method, path: (200, LIST) if method == "GET" else (status, data)) as (root, seen): outcome = ask_rows(f"{root}/v1#m", 40, concurrency=4)
    assert len(outcome.failed) == 40 == seen.count_of("POST")


def test_answers_in_between_keep_a_run_going(ask_rows):
    with site(lambda method, path: (200, LIST) if method == "GET" else (200, said("fine")) if seen.count_of("POST") % 3 == 0 else (401, {"error": "key"})) as (root, seen):
        outcome = ask_rows(f"{root}/v1#m", 60, concurrency=1)
    assert len(outcome.kept) == 20 and seen.count_of("POST") == 60


def test_a_server_whose_key_is_refused_leaves_the_calls_to_the_other(ask_rows):
    with site(lambda method, path: (200, LIST) if method == "GET" else (401, {"error": "key"})) as (closed, refused), serve(lambda body, n: "fine", seconds=0.01) as (model, bodies):
        outcome = ask_rows(f"{closed}/v1,{model}", 60, concurrency=4)
    assert len(outcome.kept) == 60 and refused.count_of("POST") <= 8


# Connections

def test_a_connection_is_not_kept_as_long_as_servers_keep_theirs():
    async def kept():
        async with open_session() as session: return session.connector._keepalive_timeout
    assert asyncio.run(kept()) < 5


@pytest.mark.parametrize("words", ["The model is currently overloaded with other requests. You can retry your request", "Temporarily unavailable"])
def test_a_400_that_means_busy_is_asked_again(words):
    with serve(lambda body, n: (400, {"error": {"message": words}}) if n < 1 else "Ciao") as (model, _): assert len(run(ids(1), say, model=model, store=":memory:").kept) == 1


@pytest.mark.parametrize("status, words", [(404, "No endpoints found that can handle the requested parameters."), (400, "Constrained decoding is disabled for this deployment"), (501, "json_schema is not implemented")])
def test_a_refused_form_leads_to_the_next_one(status, words):
    async def colour(row, ask): return row | (await ask("A colour, as JSON", schema=object_schema(colour={"type": "string"}))).parsed
    def answer(body, n): return (status, {"error": {"message": words}}) if "json_schema" in str(body) else '{"colour": "red"}'
    with serve(answer) as (model, bodies): assert len(run(ids(1), colour, model=model, store=":memory:").kept) == 1 and len(bodies) == 2
