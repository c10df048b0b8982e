"What a server sends is read up to a limit, and time in which nothing could be read does not count."
import asyncio
import gzip
import json
import os
import subprocess
import sys
import time
import zlib

import pytest
from aiohttp import web
from scripted_server import said, serve

from llmdata_nb.models import Budget, CallFailed, awake_timeout
from llmdata_nb.run import run
from llmdata_nb.store import StoreError



def zeros(wbits):
    "A gigabyte of zeros, in 1 MB"
    packer = zlib.compressobj(9, wbits=wbits)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(1024)), packer.flush()])


GIGABYTE = zeros(31)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def say(row, ask):
    row["said"] = (await ask(f"Say {row['id']}", step="say")).text
    return row


def packed(data, coding="gzip"):
    async def write(request): return web.Response(body=data, headers={"Content-Encoding": coding, "Content-Type": "application/json"})
    return write


async def endless_body(request):
    response = web.StreamResponse()
    await response.prepare(request)
    while True: await response.write(b" " * 1_000_000)


async def endless_head(request):
    request.transport.write(HEAD)
    for n in range(10_000):
        request.transport.write(b"X-%d: %s\r\n" % (n, b"a" * 8_000))
        await asyncio.sleep(0)
    return web.Response()


async def endless_line(request):
    request.transport.write(HEAD + b"X: ")
    for _ in range(1_000):
        request.transport.write(b"a" * 100_000)
        await asyncio.sleep(0)
    return web.Response()


async def error(request): return web.Response(status=500, body=GIGABYTE, headers={"Content-Encoding": "gzip", "Retry-After": "0"})


BOMBS = {"gzip": packed(GIGABYTE), "gzip in gzip": packed(gzip.compress(GIGABYTE)), "deflate": packed(zeros(15), "deflate"),
         "error": error, "endless body": endless_body, "endless head": endless_head, "endless line": endless_line,
         "nested": packed(gzip.compress(b"[" * 9_000_000)), "nested objects": packed(gzip.compress(b'{"choices":' * 1_000_000)),
         "white space": packed(gzip.compress(b" " * 60_000_000)), "empty lists": packed(gzip.compress(b"[" + b"[]," * 3_000_000 + b"[]]")),
         "events": packed(gzip.compress(b'data: {"a":1}\n' * 250_000)), "marks of events": packed(gzip.compress(b"data:[]\n" * 400_000)),
         "wide letters": packed(gzip.compress(json.dumps(said("a" * 9_000_000 + "\U0001f600"), ensure_ascii=False).encode()))}



CHILD = """
import random, re, sys
from pathlib import Path
from llmdata_nb.run import run
random.uniform = lambda a, b: 0
async def say(row, ask):
    row["said"] = (await ask("Say " + row["id"], step="say")).text
    return row
outcome = run([{"id": f"r{n}"} for n in range(int(sys.argv[3]))], say, model=sys.argv[1], store=sys.argv[2])
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1000)
print("\\n".join(row["reason"] for row in outcome.failed))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its memory is read from /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_no_body_fills_the_memory(tmp_path, name):
    "Several rows at once are sent one"
    with serve(lambda body, n: BOMBS[name]) as (model, bodies):
        rows = 3 if name.startswith("endless") else 8  # a server that sends no answer counts as dead after four
        command = [sys.executable, "-c", CHILD, model, str(tmp_path / "s.sqlite"), str(rows)]
        child = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr[-2000:]
    megabytes, *reasons = child.stdout.splitlines()
    assert int(megabytes) < 500 and len(reasons) == rows and all(len(reason) < 500 for reason in reasons), (megabytes, reasons)
    if name in ("gzip", "endless body"): assert "an answer of more than 10 MB" in reasons[0] and len(bodies) == rows  # asked once, not six times


def test_a_list_of_models_has_the_same_limit(tmp_path):
    async def bomb(request): return web.Response(body=GIGABYTE, headers={"Content-Encoding": "gzip"})
    app = web.Application()
    app.router.add_get("/v1/models", bomb)
    async def check():
        from aiohttp import ClientSession
        from llmdata_nb.models import EndpointError, check_endpoint, endpoint
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with ClientSession() as session:
                with pytest.raises(EndpointError, match="/models: an answer of more than 10 MB"):
                    await check_endpoint(session, endpoint(f"http://127.0.0.1:{runner.addresses[0][1]}/v1#m"))
        finally: await runner.cleanup()
    asyncio.run(check())


def test_a_long_answer_is_kept_and_one_without_end_is_not(tmp_path):
    def answer(body, n): return "parola " * (140_000 if "long" in body["messages"][0]["content"] else 150_000)
    with serve(answer) as (model, bodies):
        outcome = run([{"id": "long"}, {"id": "endless"}], say, model=model, store=tmp_path / "s.sqlite")
    assert len(outcome.kept[0]["said"]) == 980_000
    assert outcome.failed[0]["reason"] == "say: refused (a text of 1,050,000 characters; at most 1,000,000 are kept)" and len(bodies) == 2


# Time

def held_up(row_id, seconds):
    "A recipe whose row `row_id` holds the event loop up for so many `seconds`, while the others wait for their answers"
    async def recipe(row, ask):
        if row["id"] != row_id: return await say(row, ask)
        await asyncio.sleep(0.3)  # the others have sent theirs
        time.sleep(seconds)
        return row
    return recipe


def test_an_answer_that_came_while_the_loop_was_held_up_is_not_lost(tmp_path):
    "As when another process locks the store, or the laptop sleeps: nothing is asked, and paid for, again"
    rows = [{"id": f"r{n}"} for n in range(20)]
    with serve(lambda body, n: "fine", seconds=0.8) as (model, bodies):
        outcome = run(rows, held_up("r0", 6.0), model=model, store=tmp_path / "s.sqlite", timeout=3.0, concurrency=20)
    assert len(outcome.kept) == 20 and len(bodies) == 19


def test_a_server_that_is_silent_still_ends_the_request():
    async def wait(seconds):
        with awake_timeout(seconds): await asyncio.sleep(30)
    started = time.monotonic()
    with pytest.raises(TimeoutError): asyncio.run(wait(0.2))
    assert time.monotonic() - started < 10


def test_no_time_is_counted_while_the_loop_is_held_up():
    async def block():
        with awake_timeout(1.0):
            for _ in range(3):
                time.sleep(0.9)
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
    asyncio.run(block())


def test_an_end_of_the_run_is_no_timeout():
    async def stop():
        async def block():
            with awake_timeout(60): await asyncio.sleep(30)
        task = asyncio.create_task(block())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError): await task
    asyncio.run(stop())


# The file of a budget

@pytest.mark.parametrize("kind", ["text", "folder", "another database", "no folder"])
def test_a_budget_file_that_is_none_is_one_line(tmp_path, monkeypatch, kind):
    path = tmp_path / "budget"
    if kind == "text": path.write_text("2.50 US dollars are enough for all of us, I think. " * 50)
    if kind == "folder": path.mkdir()
    if kind == "no folder": path = tmp_path / "none" / "budget"
    if kind == "another database":
        import sqlite3
        with sqlite3.connect(path) as db: db.execute("create table spending (name text)")
    monkeypatch.setenv("LLMDATA_BUDGET", str(path))
    with pytest.raises(StoreError, match="LLMDATA_BUDGET") as error: Budget("3 calls")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("column, value", [("spent", -100), ("under_way", -100), ("dearest", -100), ("spent", "much"), ("dearest", "much")])
def test_nothing_in_a_budget_file_lets_more_through(tmp_path, monkeypatch, column, value):
    import sqlite3
    monkeypatch.setenv("LLMDATA_BUDGET", str(tmp_path / "budget"))
    Budget("3 calls")
    with sqlite3.connect(tmp_path / "budget") as db: db.execute(f"update spending set process = ?, {column} = ?", (os.getpid(), value))
    with serve(lambda body, n: "fine") as (model, bodies):
        run([{"id": f"r{n}"} for n in range(9)], say, model=model, store=tmp_path / "s.sqlite", budget="3 calls")
    assert len(bodies) == 3
