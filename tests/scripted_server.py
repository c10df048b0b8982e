"An OpenAI-compatible server whose answers are a function of ours: for what a real model cannot do on demand."
import asyncio
import json
import re
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager

from aiohttp import web


def said(text, finish_reason="stop"):
    "The body of a chat completion that says `text`"
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}],
            "usage": {"prompt_tokens": 20, "completion_tokens": 5}}


def wrote(text, prompt_tokens=1, finish_reason="stop"):
    "Status and body of a raw completion that goes on with `text`"
    return 200, {"choices": [{"text": text, "finish_reason": finish_reason}], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 5}}


@contextmanager
def in_a_thread(start):
    "The runner of a server that `start`, an async function, gives: it serves in a thread until the end of the block"
    loop, started = asyncio.new_event_loop(), Future()
    def work():
        asyncio.set_event_loop(loop)
        try: started.set_result(loop.run_until_complete(start()))
        except Exception as e: return started.set_exception(e)
        loop.run_forever()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    runner = started.result(10)
    try: yield runner
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


class Body(dict):
    "The body of a request, with its `headers`, its `path` and the `time` it came"


@contextmanager
def serve(answer, seconds=0.0, models=("m",), port=0):
    """A server on a free port (or `port`), in a thread; yields its model reference and the list of the bodies it was sent.
    `answer(body, n)`, n being how often this very body came before, gives text, or (status, data), or (status, data, headers),
    or an async function of the request that gives the response. `models` are those it lists, or the status it gives instead."""
    bodies, seen = [], {}

    async def handle(request):
        body = Body(await request.json())
        body.headers, body.path, body.time = request.headers, request.path, time.time()
        key = json.dumps(body, sort_keys=True)
        n = seen[key] = seen.get(key, -1) + 1
        bodies.append(body)
        result = answer(body, n)
        if callable(result): return await result(request)
        await asyncio.sleep(seconds)
        if isinstance(result, str): return web.json_response(said(result))
        status, data, headers = (*result, {})[:3]
        return web.json_response(data, status=status, headers=headers)

    async def listed(request):
        if isinstance(models, int): return web.json_response({"error": {"message": "no"}}, status=models)
        return web.json_response({"data": [{"id": name} for name in models]})

    async def start():
        app = web.Application()
        app.router.add_get("/v1/models", listed)
        app.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner

    with in_a_thread(start) as runner: yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1#m", bodies


def translator_and_judge(body, n=0):
    "A model that 'translates' all into one Italian sentence and judges all as good: enough for the shape of a whole run"
    prompt = body["messages"][0]["content"]
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {})
    if "score" in schema: return json.dumps({"rationale": "Va bene.", "score": 4})
    if "label" in schema: return json.dumps({"rationale": "Va bene.", "label": schema["label"]["enum"][-1]})
    _, text = re.search(r"\n<(message.*?)>\n(.*)\n</\1>$", prompt, re.S).groups()
    return json.dumps({"translation": f"Questa è la traduzione italiana del messaggio che segue, numero {text.split()[-1]}"})


def judged_texts(prompt):
    "The pairs of a heading and a text between marks in what a judge is asked"
    found = re.findall(r"^## ([^\n]+)\n\n<(.+)>\n(.*?)\n</\2>$", prompt, re.S | re.M)
    return [(heading, text) for heading, _, text in found]
