"A key in the environment, which servers send back in every way, is in no file, no output and no other request."
import ast
import asyncio
import json
import os
import random
import re
import sys
import threading
import traceback
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from key_search import KEY, SHAPES, leaks, leaks_in_files
from scripted_server import said, translator_and_judge

from llmdata_nb import models
from llmdata_nb.doctor import examine
from llmdata_nb.engine import drop
from llmdata_nb.export import write_card
from llmdata_nb.run import run
from llmdata_nb.translate import translate_and_judge

FIELD = Path(__file__).parents[2] / "shared" / "field" / "endpoints"
VARIABLES = ("HF_TOKEN", "OPENAI_API_KEY", "OPENROUTER_API_KEY")


@pytest.fixture
def keys(project, monkeypatch):
    "The key in every variable that is read, and none of what the environment of this test had; no waits before a retry"
    before = dict(os.environ)
    for variable in VARIABLES: monkeypatch.setenv(variable, KEY)
    monkeypatch.setenv("COLUMNS", "2000")
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)
    monkeypatch.setattr(models, "PROVIDERS", dict(models.PROVIDERS))
    yield project
    for name in set(os.environ) - set(before): del os.environ[name]
    os.environ.update(before)


def conversations(n):
    texts = [f"Please tell me something about the number {i}" for i in range(n)]
    return [{"id": f"r{i}", "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
            for i, text in enumerate(texts)]


def print_error(error): print("".join(traceback.format_exception(error)))


def use_all(rows, recipe, model, out, **options):
    "A run, its card, and all that shows what became of it, printed as a user would see it"
    try:
        outcome = run(rows, recipe, model=model, out=out, **options)
        if "language" in options: write_card(out)
    except (ValueError, RuntimeError) as error: return print_error(error)
    print(outcome, outcome._repr_html_(), outcome.reasons(), outcome.manifest())
    print(list(outcome.failed), list(outcome.kept))
    return outcome


def examined(model):
    "What the doctor finds"
    async def all_findings():
        async for good, text in examine(model): print(good, text)
    asyncio.run(all_findings())


def assert_nowhere(folder, capfd, requests=()):
    "No piece of the key in the files below `folder`, in what was printed, or in `requests`"
    shown = capfd.readouterr()
    found = leaks_in_files(folder)
    for name, text in dict(stdout=shown.out, stderr=shown.err, request=str(requests)).items():
        for line in text.splitlines():
            if leaks(line): found[f"{name}: {line[:300]}"] = leaks(line)[:2]
        if leaks(text): found.setdefault(name, leaks(text)[:2])
    assert not found, json.dumps(found, indent=1, ensure_ascii=False)


def test_the_search_finds_every_shape_of_the_key():
    for name, shape in SHAPES.items():
        for text in (shape, json.dumps({"error": shape}), repr(shape), f"<b>{shape}</b>"):
            assert leaks(f"the key {text} is wrong"), name
    assert not leaks("Incorrect API key: sk-No*****Wd6") and not leaks("sk-No/where")


@contextmanager
def served(answer, listed=lambda: web.json_response({"data": [{"id": "m"}]}), host="127.0.0.1"):
    "A server and its `model`, with the key in the environment; `answer(body)` and `listed()` give its responses"
    server = types.SimpleNamespace(requests=[], loop=asyncio.new_event_loop())
    async def handle(request):
        sent = (await request.read()).decode()
        server.requests.append((str(request.url), dict(request.headers), sent))
        return answer(json.loads(sent)) if request.method == "POST" else listed()
    async def start():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        server.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await server.runner.setup()
        await web.TCPSite(server.runner, host, 0).start()
    with running(server.loop):
        asyncio.run_coroutine_threadsafe(start(), server.loop).result(10)
        give_key(server, host, server.runner.addresses[0][1])
        try: yield server
        finally: asyncio.run_coroutine_threadsafe(server.runner.cleanup(), server.loop).result(10)


@contextmanager
def running(loop):
    "The event loop `loop` in a thread"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try: yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def give_key(server, host, port):
    server.model = f"http://{host}:{port}/v1#m"
    os.environ["LLMDATA_API_KEY_" + re.sub(r"\W", "_", f"{host}:{port}")] = KEY


def good(body):
    "A right answer to a call of the recipe; a word to the doctor"
    asks_for_more = "<message>" in str(body) or "response_format" in body
    return translator_and_judge(body) if asks_for_more else "Hello"


def error(status, message, **headers):
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


def said_as(text, **changes):
    "A completion whose first choice has these `changes`"
    answer = said(text)
    answer["choices"][0] |= changes
    return web.json_response(answer)


def raw_error(status, shape):
    "An error whose JSON has the shape to the letter, not escaped once more"
    return web.Response(status=status, text='{"error": {"message": "key ' + shape.replace("\n", "\\n") + ' is wrong"}}')


def one_line(shape): return " ".join(shape.split())


ECHOES = {  # where the server repeats the key → its response to `body`, with the key in some shape
    "error of 401": lambda body, shape: error(401, f"Incorrect API key provided: {shape}"),
    "error of 400, raw": lambda body, shape: raw_error(400, shape),
    "error of 500 as text": lambda body, shape: web.json_response({"error": f"no {shape}"}, status=500),
    "detail of 422": lambda body, shape: web.json_response({"detail": [{"loc": ["header"], "input": shape}]}, status=422),
    "page of 403": lambda body, shape: web.Response(status=403, text=f"<p>Bearer {shape}</p>", content_type="text/html"),
    "reason of 500": lambda body, shape: web.Response(status=500, reason=one_line(shape), text=f"wait {shape}"),
    "200 of unknown form": lambda body, shape: web.json_response({"authorization": f"Bearer {shape}"}),
    "200 that is a page": lambda body, shape: web.Response(text=f"<html>{shape}</html>", content_type="text/html"),
    "200 with an error": lambda body, shape: web.json_response({"error": {"message": shape, "code": shape}}),
    "finish reason": lambda body, shape: said_as(good(body), finish_reason=shape),
    "finish reason without a text": lambda body, shape: said_as(None, finish_reason=shape),
    "refusal": lambda body, shape: said_as(None, message={"content": None, "refusal": f"No, {shape}"}),
    "thinking": lambda body, shape: said_as("", finish_reason="length",
                                            message={"content": "", "reasoning_content": shape}),
    "text": lambda body, shape: said_as(good(body).replace("numero", f"numero {json.dumps(shape)[1:-1]}")),
    "text that is no answer": lambda body, shape: said_as(f"The key is {shape}."),
    "rationale": lambda body, shape: said_as(good(body).replace("Va bene", f"Va bene {json.dumps(shape)[1:-1]}")),
    "likely tokens": lambda body, shape: said_as(good(body), logprobs={"content": [
        {"token": shape, "logprob": -0.1, "top_logprobs": [{"token": shape, "logprob": -0.1}]}]}),
    "usage": lambda body, shape: web.json_response(said(good(body)) | {"usage": {"prompt_tokens": shape}})}


@pytest.mark.parametrize("place", ECHOES)
def test_a_server_that_repeats_the_key(keys, capfd, place):
    "One row for each shape of the key"
    shapes = list(SHAPES.values())
    def answer(body):
        number = re.search(r"the number (\d+)|numero (\d+)", json.dumps(body))
        shape = shapes[int(number[1] or number[2]) % len(shapes)] if number else KEY
        return ECHOES[place](body, shape)
    with served(answer) as server:
        use_all(conversations(len(shapes)), translate_and_judge, server.model, keys / "out", language="it")
        assert f"Bearer {KEY}" in str(server.requests), "the key is for this server"
    assert_nowhere(keys, capfd)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_list_of_models_that_holds_the_key(keys, capfd, shape):
    "The names stand in the message for a model that is not there"
    def listed(): return web.json_response({"data": [{"id": shape}, {"id": f"m {shape}"}]})
    with served(lambda body: error(404, f"no such model for {shape}"), listed) as server:
        use_all(conversations(1), translate_and_judge, server.model, keys / "out", language="it")
        examined(server.model)
    assert_nowhere(keys, capfd)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_list_of_models_that_is_refused_with_the_key(keys, capfd, shape):
    def listed(): return error(401, f"Bearer {shape}", **{"X-Key": one_line(shape)})
    with served(lambda body: error(401, shape), listed) as server:
        use_all(conversations(1), translate_and_judge, server.model, keys / "out", language="it")
        examined(server.model)
    assert_nowhere(keys, capfd)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_empty_account_that_is_told_with_the_key(keys, capfd, shape):
    "The run ends at once, with the server's words"
    with served(lambda body: error(429, f"insufficient_quota of {shape}")) as server:
        use_all(conversations(2), translate_and_judge, server.model, keys / "out", language="it")
    assert_nowhere(keys, capfd)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_takes_no_key_along(keys, capfd, status):
    "Neither of a call nor of the list of models; the place may hold the key, too"
    with served(lambda body: said_as(good(body)), host="127.0.0.2") as other:
        del os.environ[next(name for name in os.environ if "127_0_0_2" in name)]
        place = other.model.partition("#")[0] + f"/chat/completions?key={KEY}&other={SHAPES['URL-encoded']}"
        def redirect(*_): return web.Response(status=status, headers={"Location": place})
        with served(redirect, redirect) as server:
            use_all(conversations(1), translate_and_judge, server.model, keys / "out", language="it")
            examined(server.model)
        assert_nowhere(keys, capfd, other.requests)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_translation_that_holds_the_key_takes_none_to_the_host_of_the_judge(keys, capfd, shape):
    def answer(body): return ECHOES["text"](body, shape)
    with served(lambda body: said_as(good(body)), host="127.0.0.2") as judge, served(answer) as server:
        del os.environ[next(name for name in os.environ if "127_0_0_2" in name)]
        models = {"default": server.model, "judge": judge.model}
        use_all(conversations(2), translate_and_judge, models, keys / "out", language="it")
        assert len(judge.requests) > 1, "it was asked for verdicts"
    assert_nowhere(keys, capfd, judge.requests)


MALFORMED = {
    "header without a colon": f"HTTP/1.1 200 OK\r\nAuthorization Bearer {KEY}\r\n\r\n",
    "header with a strange name": f"HTTP/1.1 200 OK\r\n{KEY}: x\r\nContent-Length: 2\r\n\r\n{{}}",
    "status line": f"HTTP/1.1 {KEY}\r\n\r\n",
    "no HTTP": f"{KEY}\r\n\r\n",
    "length": f"HTTP/1.1 200 OK\r\nContent-Length: {KEY}\r\n\r\n",
    "encoding": f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(KEY)}\r\n\r\n{KEY}",
    "chunk": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n",
    "cut off": f'HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n{{"error": "{KEY}'}


@pytest.mark.parametrize("reply", MALFORMED.values(), ids=MALFORMED)
def test_a_reply_that_is_not_http_and_holds_the_key(keys, capfd, reply):
    async def answer(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        listing = json.dumps({"data": [{"id": "m"}]})
        models_listed = f"HTTP/1.1 200 OK\r\nContent-Length: {len(listing)}\r\n\r\n{listing}"
        writer.write((models_listed if request.startswith(b"GET") else reply).encode())
        writer.close()
    server = types.SimpleNamespace(loop=asyncio.new_event_loop())
    with running(server.loop):
        listener = asyncio.run_coroutine_threadsafe(asyncio.start_server(answer, "127.0.0.1", 0), server.loop).result(10)
        give_key(server, "127.0.0.1", listener.sockets[0].getsockname()[1])
        async def word(row, ask): return row | {"word": (await ask(row["id"])).text}
        use_all(conversations(1), word, server.model, keys / "out")
        examined(server.model)
        server.loop.call_soon_threadsafe(listener.close)
    assert_nowhere(keys, capfd)


def test_a_recipe_that_tells_the_key_itself(keys, capfd):
    "As an error, as a reason, and as a column"
    def answer(body): return said_as(f"My key is {KEY}")
    async def tell(row, ask):
        reply = await ask(row["id"])
        if row["id"] == "r1": drop(reply.text)
        if row["id"] == "r2": raise RuntimeError(reply.text)
        return row | {"told": reply.text}
    with served(answer) as server: use_all(conversations(3), tell, server.model, keys / "out")
    assert_nowhere(keys, capfd)


def test_the_executed_notebook_of_the_command(keys, capfd):
    from llmdata_nb.cli import main
    def answer(body):
        asks_for_verdict = "score" in json.dumps(body.get("response_format", {}))
        if asks_for_verdict: return error(401, f"Incorrect API key provided: {KEY}")
        return said_as(good(body).replace("numero", f"numero {KEY}"))
    (keys / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(4)))
    with served(answer) as server:
        main(["translate_and_judge", "--language", "it", "-p", "source=rows.jsonl", "-p", f"model={server.model}"])
        main(["doctor", server.model])
    notebooks = list(keys.rglob("*.ipynb"))
    assert notebooks, "the command keeps the notebook that it executed"
    assert_nowhere(keys, capfd)


# The behaviours of real servers are scripts in a folder beside the project. Each is run with a server that adds the key.

def scripted_blocks(path):
    "(name, code) of each behaviour in the script at `path`: the block, after all definitions that stand before it"
    before = []
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, (ast.If, ast.For, ast.With)):
            name = re.search(r"want\('(\w+)'\)", ast.unparse(statement))
            yield f"{path.stem}-{name[1] if name else statement.lineno}", ast.unparse(ast.Module([*before, statement], []))
        elif not isinstance(statement, ast.Expr): before.append(statement)


def field_cases():
    scripts = sorted(FIELD.glob("[a-z]_*.py"))
    blocks = [block for path in scripts for block in scripted_blocks(path)]
    return [pytest.param(code, id=name) for name, code in blocks]


def echoed(value, shape):
    "`value`, a decoded answer, with the key in all places that tell something"
    if isinstance(value, dict):
        return {name: echoed_in(name, each, shape) for name, each in value.items()} | {"key": shape}
    if isinstance(value, list): return [echoed(each, shape) for each in value]
    return value


TELLING = ("message", "error", "detail", "reasoning", "reasoning_content", "refusal", "msg")


def echoed_in(name, value, shape):
    if name == "content" and isinstance(value, str):
        return re.sub("giardino|chiaro", lambda word: f"{word[0]} {json.dumps(shape)[1:-1]}", value)
    if isinstance(value, str) and name in TELLING:
        return f"{value} {shape}"
    return echoed(value, shape)


def with_key(response, n):
    "The response of a script, with the key in its body and its headers"
    if not isinstance(response, web.Response): return response
    shape = list(SHAPES.values())[n % len(SHAPES)]
    response.headers["X-Request-Key"] = one_line(shape)
    if not isinstance(response.body, bytes) or "Content-Encoding" in response.headers: return response
    text = response.body.decode(errors="replace")
    try: response.text = json.dumps(echoed(json.loads(text), shape))
    except ValueError:
        if text.startswith("<"): response.text = f"{text}<!-- {shape} -->"
    return response


def echoing(handler):
    "A handler of the scripts whose responses hold the key as well"
    async def handle(*args):
        response = handler(*args)
        if asyncio.iscoroutine(response): response = await response
        return with_key(response, args[-1] if isinstance(args[-1], int) else 0)
    return handle


def short_sleep(seconds): return asyncio.sleep(min(seconds, 0.3))


def scripted_harness(folder):
    "The scripts' own harness, with servers that repeat the key, few rows, no long waits, and everything below `folder`"
    module = types.ModuleType("harness")
    module.__file__ = str(folder / "harness.py")
    exec(compile((FIELD / "harness.py").read_text(), "harness.py", "exec"), module.__dict__)
    plain_serve = module.serve

    @contextmanager
    def serve(handler, models=("m",), models_handler=None, **options):
        listed = echoing(models_handler) if models_handler else None
        with plain_serve(echoing(handler), (*models, f"proxy of {KEY}"), models_handler=listed, **options) as server:
            os.environ["LLMDATA_API_KEY_" + re.sub(r"\W", "_", server.root.partition("//")[2])] = KEY
            yield server

    def product(name, server, ref=None, n=3, recipe=None, show=True, **options):
        rows, out = module.rows(min(n, 3)), folder / re.sub(r"\W+", "_", name)
        if not recipe: options["language"] = "it"
        outcome = use_all(rows, recipe or translate_and_judge, ref or server.ref, out, **options)
        none = types.SimpleNamespace(kept=[], dropped=[], failed=[{"reason": ""}])
        return dict(outcome=outcome or none, ledger={}, usd=[], posts=0)

    vars(module).update(serve=serve, product=product, doctor=examined, save=print, HERE=folder)
    module.asyncio = types.SimpleNamespace(**vars(asyncio) | {"sleep": short_sleep})
    return module


CHANGES = {  # in the scripts: what has another name by now, a key of their own, long waits, and a header that they print
    "_PROVIDERS": "PROVIDERS", "models import _key_name": "address import _key_name",
    "os.environ['OPENAI_API_KEY'] = 'k'": "pass",
    "else 75": "else 0.5", "now + 4": "now + 1", "s.headers[-1], ": ""}


@pytest.mark.skipif(not FIELD.is_dir(), reason="the scripts of real servers are not beside the project")
@pytest.mark.parametrize("code", field_cases())
def test_the_behaviours_of_real_servers(keys, capfd, monkeypatch, code):
    (keys / "out").mkdir()
    monkeypatch.setitem(sys.modules, "harness", scripted_harness(keys))
    monkeypatch.setattr(sys, "argv", ["behaviour"])
    for old, new in CHANGES.items(): code = code.replace(old, new)
    exec(compile(code, "behaviour", "exec"), {"__name__": "behaviour"})
    assert_nowhere(keys, capfd)
