"How fast an address is asked, and what happens when it refuses, fails, dies, or was never there."
import asyncio
import json
import os
import random
import re
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from email.utils import formatdate
from types import SimpleNamespace

import pytest
from aiohttp import web
from scripted_server import said, serve

from llmdata_nb import limits, models, store
from llmdata_nb.limits import Limiter
from llmdata_nb.models import Ask, CallFailed, endpoint, object_schema
from llmdata_nb.run import run
from llmdata_nb.store import Store
from llmdata_nb.waiting import asked_wait


async def echo(row, ask):
    row["said"] = (await ask(f"Say {row['id']}", step="say")).text
    return row


def ids(*ns): return [{"id": f"r{i:03}"} for i in range(*ns)]


def name(body): return body["messages"][0]["content"].split()[-1]


def port(model): return int(re.search(r":(\d+)/", model)[1])


def sql(path, *statement):
    with sqlite3.connect(path, timeout=10) as db: return db.execute(*statement).fetchall()


@contextmanager
def within(seconds):
    "Fails when what is inside takes longer; Ctrl-C ends it"
    over = []
    timer = threading.Timer(seconds, lambda: (over.append(1), os.kill(os.getpid(), signal.SIGINT)))
    timer.start()
    try: yield
    except KeyboardInterrupt:
        assert not over, f"not done within {seconds} s"
        raise
    finally: timer.cancel()


# What the server says: Retry-After

def asks_to_wait(tmp_path, status, header, seconds):
    "Row r010 is refused once, with a wait of `seconds`: whether it, and for long waits all rows, came back no earlier"
    case, refused = f"{status} {header} {seconds}", {}
    def answer(body, n):
        if name(body) != "r010" or n: return "fine"
        refused.update(at=time.time(), until=int(time.time()) + 1 + seconds if header == "date" else time.time() + seconds)
        return status, {"error": {"message": "slow down"}}, {"seconds": {"Retry-After": str(seconds)}, "ms": {"retry-after-ms": str(1000 * seconds)},
                                                             "date": {"Retry-After": formatdate(refused["until"], usegmt=True)}}[header]
    with serve(answer, seconds=0.05) as (model, bodies):
        outcome = run(ids(40), echo, model=model, store=tmp_path / f"{case}.sqlite", concurrency=4)
    assert len(outcome.kept) == 40 and len(bodies) == 41, case
    first, second = [b.time for b in bodies if name(b) == "r010"]
    assert second >= refused["until"] - 0.005, f"{case}: asked again {refused['until'] - second:.2f} s too early"
    assert second < refused["until"] + 2, f"{case}: {second - refused['until']:.2f} s too late"
    meanwhile = [b for b in bodies if refused["at"] + 0.15 < b.time < refused["until"] - 0.005]
    return case, len(meanwhile)


def test_a_wait_that_the_server_asks_for_is_kept(tmp_path):
    "In seconds, in milliseconds, as a date; more than two seconds hold for all calls, less only for the one"
    short = [(429, "seconds", 1), (503, "ms", 0.7), (429, "date", 1), (529, "seconds", 2)]
    long = [(429, "seconds", 3), (503, "ms", 2.5), (429, "date", 3), (529, "seconds", 3)]
    with ThreadPoolExecutor(8) as pool:
        for case, meanwhile in pool.map(lambda c: asks_to_wait(tmp_path, *c), short): assert meanwhile > 2, f"{case}: the others waited, too"
        for case, meanwhile in pool.map(lambda c: asks_to_wait(tmp_path, *c), long): assert not meanwhile, f"{case}: {meanwhile} requests in the pause"


def test_a_wait_that_comes_with_another_error_is_kept(tmp_path):
    "500, 502, 504 and 408 may carry Retry-After as well"
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda c: asks_to_wait(tmp_path, *c), [(500, "seconds", 3), (502, "seconds", 1), (504, "date", 2), (408, "seconds", 3)]): pass


@pytest.mark.parametrize("text", ["1e400", "99999999999999999", "nan", "", "soon", "-5", "Mon", "Thu, 01 Jan 99999 00:00:00 GMT"])
def test_a_wait_that_is_nonsense_breaks_nothing(text):
    "The reason is still that of a refusal"
    for header in ("Retry-After", "retry-after-ms"):
        limiter = Limiter("http://odd/v1", Store(":memory:"))
        seconds = asked_wait({header: text})
        assert seconds is None or seconds >= 0, f"{header}: {text} is {seconds}"
        limiter.refused(time.time(), seconds, "429 slow down")
        limiter.status()
        try: limits._pause_seconds(limiter)
        except CallFailed as e: assert "can be asked again" in str(e)


# What the server takes: requests per second, and at a time

def bucket(rate, burst, headers):
    "An answer for `serve` that lets `rate` requests per second through, and `burst` at once; and when it did, and how often not"
    level, accepted, refused = [burst, time.monotonic()], [], []
    def answer(body, n):
        now = time.monotonic()
        level[:] = min(burst, level[0] + (now - level[1]) * rate), now
        if level[0] < 1:
            refused.append(now)
            return 429, {"error": {"message": "too many requests"}}, headers
        level[0] -= 1
        accepted.append(now)
        return "fine"
    return answer, accepted, refused


def test_as_fast_as_the_server_allows(tmp_path):
    "50 requests a second: nine tenths of that and more, and hardly a request in vain"
    answer, accepted, refused = bucket(50, 10, {"Retry-After": "1"})
    with serve(answer, seconds=0.02) as (model, bodies), within(30): outcome = run(ids(600), echo, model=model, store=tmp_path / "s.sqlite", concurrency=32)
    assert len(outcome.kept) == 600
    allowed = (len(accepted) - 10) / (accepted[-1] - accepted[0]) / 50
    assert len(bodies) <= 660, f"{len(bodies)} requests for 600 rows, at {allowed:.2f} of the pace that is allowed"
    assert allowed >= 0.9, f"{allowed:.2f} of the pace that is allowed, {len(refused)} refused"


def test_the_pace_is_learned_when_all_calls_were_refused_at_once(tmp_path):
    "All of them wait a second: nothing is sent in the second after the first refusal, and that says nothing about the pace"
    answer, accepted, refused = bucket(20, 3, {"Retry-After": "1"})
    with serve(answer) as (model, bodies), within(12): outcome = run(ids(60), echo, model=model, store=tmp_path / "s.sqlite", concurrency=16)
    assert len(outcome.kept) == 60 and accepted[-1] - accepted[0] < 7, f"{accepted[-1] - accepted[0]:.1f} s for what takes 3 s"


def test_what_another_address_takes_says_nothing_about_this_one(tmp_path):
    "A fast address and one that allows 20 requests a second, at the same time and in the same store"
    answer, accepted, refused = bucket(20, 5, {})
    with serve(lambda body, n: "fine") as (fast, _), serve(answer) as (slow, bodies), ThreadPoolExecutor(1) as pool, within(15):
        other = pool.submit(run, ids(3000), echo, model=fast, store=tmp_path / "s.sqlite", concurrency=32)
        outcome = run(ids(60), echo, model=slow, store=tmp_path / "s.sqlite", concurrency=16)
        assert len(other.result().kept) == 3000 and len(outcome.kept) == 60
    assert len(refused) <= 70, f"{len(refused)} requests refused for 60 rows (alone they are about 45)"


def test_as_many_at_a_time_as_the_server_takes(tmp_path):
    "Eight at a time, and it does not say when to come back"
    busy, refused = [0], []
    def answer(body, n):
        if busy[0] >= 8:
            refused.append(time.time())
            return 429, {"error": {"message": "too many at a time"}}
        busy[0] += 1
        async def work(request):
            await asyncio.sleep(0.05)
            busy[0] -= 1
            return web.json_response(said("fine"))
        return work
    with serve(answer) as (model, bodies), within(30): outcome = run(ids(400), echo, model=model, store=tmp_path / "s.sqlite")
    seconds = bodies[-1].time - bodies[0].time
    assert len(outcome.kept) == 400 and len(bodies) == 400 + len(refused)
    assert len(refused) <= 110, f"{len(refused)} refused for 400 rows"
    assert seconds < 8, f"{seconds:.1f} s for what takes 2.5 s"


def test_a_short_time_of_too_much_does_not_slow_down_for_long(tmp_path):
    "Half a second of 503, then all is well: 1000 rows need no minute"
    began = []
    def answer(body, n):
        began.append(time.time())
        return (503, {"error": {"message": "overloaded"}}) if 0.3 < time.time() - began[0] < 0.8 else "fine"
    with serve(answer, seconds=0.02) as (model, bodies), within(15): outcome = run(ids(1000), echo, model=model, store=tmp_path / "s.sqlite")
    assert len(outcome.kept) == 1000


# The limiter alone

def test_a_call_that_goes_away_passes_its_turn_on():
    "A cancelled call never holds up those behind it"
    async def main():
        limiter, entered = Limiter("http://x/v1", Store(":memory:"), concurrency=1), []
        async def enter(who):
            async with limiter: entered.append(who)
        async with limiter:
            b, c = asyncio.create_task(enter("b")), asyncio.create_task(enter("c"))
            await asyncio.sleep(0.01)
        b.cancel()  # its turn has come, but it has not begun
        await asyncio.wait([c], timeout=1)
        assert c.done(), "the turn was lost with the call that was cancelled"
        assert entered == ["c"] and limiter.window.under_way == 0
    asyncio.run(main())


def test_as_many_as_before_the_cut_when_all_is_answered():
    "Many calls of one recipe that wait for their turn: the window that has grown again is used"
    async def main():
        limiter, most = Limiter("http://x/v1", Store(":memory:"), concurrency=16), []
        limiter.window.size = 2.0  # after some refusals
        async def one():
            async with limiter:
                most.append(limiter.window.under_way)
                await asyncio.sleep(0.002)
                limiter.answered()
        await asyncio.gather(*(one() for _ in range(600)))
        assert limiter.window.size > 15
        assert max(most) >= 15, f"never more than {max(most)} at a time in a window of {limiter.window.size:.0f}"
    asyncio.run(main())


def test_a_pause_holds_for_calls_that_wait_for_their_sending_time():
    async def main():
        limiter = Limiter("http://x/v1", Store(":memory:"))
        with limiter.shared(): limiter.rate, limiter.since, limiter.next = 2.0, time.time(), time.time()
        limiter.look(time.time())
        sent = []
        async def one():
            async with limiter: sent.append(time.time())
        tasks = [asyncio.create_task(one()) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert len(sent) == 1
        limiter.refused(sent[0], 3.0, "429 slow down")
        until = time.time() + 3.0
        await asyncio.gather(*tasks)
        early = [f"{until - t:.1f} s" for t in sent[1:] if t < until - 0.01]
        assert not early, f"sent {early} before the end of the pause"
    asyncio.run(main())


@pytest.mark.parametrize("seconds", [100, 36_000])
def test_after_a_long_pause_it_goes_on_as_fast_as_before(tmp_path, seconds):
    "The first request of all was refused for a time (others had used the quota). When that is over there is no reason to be slow"
    good = [False]
    def answer(body, n): return "fine" if good[0] else (429, {"error": {"message": "quota"}}, {"Retry-After": str(seconds)})
    with serve(answer) as (model, bodies):
        store = tmp_path / "s.sqlite"
        timer = threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        try: run(ids(1), echo, model=model, store=store, wait=True)
        except KeyboardInterrupt: pass
        assert len(bodies) == 1
        sql(store, "update limits set since = since - ?, until = until - ?", (seconds, seconds))
        good[0] = True
        with within(6): outcome = run(ids(20), echo, model=model, store=store)
    assert len(outcome.kept) == 20


# What is asked again, and what is not

async def reset(request):
    response = web.StreamResponse(headers={"Content-Length": "500"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    request.transport.abort()
    return response


async def hang_up(request):
    request.transport.close()
    return web.Response()


async def half(request):
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(json.dumps(said("fine")).encode()[:40])
    await response.write_eof()
    return response


async def stall(request):
    response = web.StreamResponse(headers={"Content-Length": "500"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    await asyncio.sleep(3)
    return response


async def late(request):
    await asyncio.sleep(3)
    return web.json_response(said("too late"))


async def not_json(request): return web.Response(text="<html>Welcome to the hotel's wireless network</html>", content_type="text/html")


async def not_utf8(request): return web.Response(body=b'{"choices": [{"message": {"content": "caf\xe9"}}]}', content_type="application/json")


def error(status): return status, {"error": {"message": f"this is {status}"}}


AGAIN = {"408": error(408), "500": error(500), "502": error(502), "504": error(504), "reset": reset, "hang_up": hang_up, "half": half, "stall": stall, "late": late,
         "not_json": not_json, "not_utf8": not_utf8, "no_choices": (200, {"error": {"code": 502, "message": "provider is down"}})}
BUSY = {"429": error(429), "503": error(503), "529": error(529)}
REASONS = {"408": r"timeout \(408 this is 408\)", "500": r"server \(500 this is 500\)", "502": r"server \(502 this is 502\)", "504": r"server \(504 this is 504\)",
           "late": r"timeout \(URL did not answer in time\)", "stall": r"timeout \(URL did not answer in time\)", "no_choices": "provider is down"}


def test_what_can_succeed_later_is_asked_again(tmp_path):
    "Errors of the server, resets, half answers, timeouts: once each, and every row is kept"
    kinds = AGAIN | BUSY
    rows = [row for kind in kinds for row in ({"id": kind}, *({"id": f"{kind}-{i}"} for i in range(4)))]
    def answer(body, n): return kinds[name(body)] if name(body) in kinds and not n else "fine"
    with serve(answer) as (model, bodies), within(20): outcome = run(rows, echo, model=model, store=tmp_path / "s.sqlite", timeout=1, concurrency=6)
    assert [r["id"] for r in outcome.kept] == [r["id"] for r in rows] and {r["said"] for r in outcome.kept} == {"fine"}
    asked = [name(b) for b in bodies]
    assert {kind: asked.count(kind) for kind in kinds} == dict.fromkeys(kinds, 2) and len(asked) == len(rows) + len(kinds)
    assert outcome.ledger[0]["calls"] == len(rows) and outcome.ledger[0]["retries"] == len(kinds)


def test_what_never_succeeds_fails_with_a_reason_and_is_asked_again_by_the_next_run(tmp_path, monkeypatch):
    "Six requests, then the row has failed; nothing of that is taken for an answer later"
    monkeypatch.setattr(random, "uniform", lambda a, b: 0.01)
    broken, store = [True], tmp_path / "s.sqlite"
    kinds = {k: v for k, v in AGAIN.items() if k not in ("late", "stall")} | {"stall": stall}
    rows = [row for kind in kinds for row in ({"id": kind}, *({"id": f"{kind}-{i}"} for i in range(5)))]
    def answer(body, n): return kinds[name(body)] if name(body) in kinds and broken[0] else "fine"
    def slowly(body, n):  # the good rows are answered all the while: the address is not dead
        result = answer(body, n)
        async def later(request):
            await asyncio.sleep(0.05)
            return web.json_response(said(result))
        return later if result == "fine" else result
    with serve(slowly) as (model, bodies), within(25):
        first = run(rows, echo, model=model, store=store, timeout=0.5, concurrency=8)
        failed = {r["id"]: r["reason"] for r in first.failed}
        assert set(failed) == set(kinds) and len(first.kept) == 5 * len(kinds)
        asked = [name(b) for b in bodies]
        assert {kind: asked.count(kind) for kind in kinds} == dict.fromkeys(kinds, 6)
        for kind, reason in failed.items():
            url = model.partition("#")[0]
            assert re.match(r"say: (server|timeout) \(", reason) and "\n" not in reason and len(reason) < 400, f"{kind}: {reason}"
            assert re.search(REASONS.get(kind, "URL: .+|200 without an answer in it").replace("URL", url), reason), f"{kind}: {reason}"
        broken[0], before = False, len(bodies)
        second = run(rows, echo, model=model, store=store, timeout=0.5, concurrency=8)
        assert len(second.kept) == len(rows) and sorted(name(b) for b in bodies[before:]) == sorted(kinds)


def test_what_will_not_change_is_not_asked_again(tmp_path, monkeypatch):
    "400, 401, 403, 404, 422 and redirects: one request in a run, and the key goes nowhere else, nor into a file"
    good = [False]
    codes = (400, 401, 403, 404, 422, 301, 302, 307, 308)
    def answer(body, n):
        code = int(name(body)) if name(body).isdigit() and not good[0] else 0
        if code: return *error(code), ({"Location": f"{away.partition('#')[0]}/chat/completions"} if 300 < code < 310 else {})
        return "fine"
    rows = ids(10) + [{"id": str(code)} for code in codes]
    with serve(lambda body, n: "caught") as (away, caught), serve(answer) as (model, bodies):
        monkeypatch.setenv(f"LLMDATA_API_KEY_127_0_0_1_{port(model)}", "sk-very-secret")
        first = run(rows, echo, model=model, store=tmp_path / "s.sqlite", out=tmp_path / "out", concurrency=2)
        assert len(bodies) == len(rows) and len(first.kept) == 10
        assert {r["id"]: r["reason"] for r in first.failed} == {str(c): f"say: refused ({c} this is {c})" for c in codes}
        good[0] = True
        second = run(rows, echo, model=model, store=tmp_path / "s.sqlite", concurrency=2)
        assert len(second.kept) == len(rows) and len(bodies) == len(rows) + len(codes)
    assert not caught and {b.headers["Authorization"] for b in bodies} == {"Bearer sk-very-secret"}
    for p in tmp_path.rglob("*"): assert not p.is_file() or b"sk-very-secret" not in p.read_bytes(), p


@pytest.mark.parametrize("refusal", [(402, "Insufficient credits"), (429, "You exceeded your current quota, check your plan and billing")])
def test_an_account_without_money_is_asked_only_by_those_under_way(tmp_path, refusal):
    "Ten thousand rows do not ask an account that is empty one by one; with new money they are asked"
    status, message = refusal
    empty = [True]
    def answer(body, n): return (status, {"error": {"message": message}}) if empty[0] and int(name(body)[1:]) >= 20 else "fine"
    with serve(answer) as (model, bodies), within(20):
        first = run(ids(300), echo, model=model, store=tmp_path / "s.sqlite", concurrency=4)
        assert len(first.kept) == 20 and len(first.failed) == 280 and all(message in r["reason"] for r in first.failed)
        assert len(bodies) <= 20 + 4
        empty[0] = False
        assert len(run(ids(300), echo, model=model, store=tmp_path / "s.sqlite", concurrency=4).kept) == 300


def test_a_key_that_the_server_repeats_is_written_nowhere(tmp_path, monkeypatch):
    "Some say which key was wrong"
    def answer(body, n): return 401, {"error": {"message": f"Incorrect API key provided: {body.headers['Authorization'].split()[1]}."}}
    with serve(answer) as (model, bodies):
        monkeypatch.setenv(f"LLMDATA_API_KEY_127_0_0_1_{port(model)}", "sk-very-secret")
        outcome = run(ids(2), echo, model=model, store=tmp_path / "s.sqlite", out=tmp_path / "out")
    assert len(outcome.failed) == 2 and "Incorrect API key" in outcome.failed[0]["reason"]
    assert "sk-very-secret" not in str(outcome.failed)
    for p in tmp_path.rglob("*"): assert not p.is_file() or b"sk-very-secret" not in p.read_bytes(), p


# A server that dies

@contextmanager
def outage(answer, n, gone, **options):
    "As `serve`, but the server dies after `n` requests, for the seconds `gone`; `seen` has what the line of progress said meanwhile"
    with ExitStack() as first, ExitStack() as second:
        model, bodies = first.enter_context(serve(answer, **options))
        state = SimpleNamespace(model=model, bodies=bodies, later=[], seen=set(), died=0.0, back=0.0)
        def die():
            while len(bodies) < n: time.sleep(0.01)
            first.close()
            state.died = time.time()
            while time.time() < state.died + gone:
                time.sleep(0.1)
                try: state.seen.add(open(os.environ["LLMDATA_PROGRESS"], encoding="utf-8").read())
                except (OSError, KeyError): pass
            state.back, (_, state.later) = time.time(), second.enter_context(serve(answer, port=port(model), **options))
        thread = threading.Thread(target=die, daemon=True)
        thread.start()
        yield state
        thread.join(10)


@pytest.mark.parametrize("limited", [{}, {"per_minute": 100_000}], ids=["alone", "with a budget"])
def test_a_server_that_dies_and_comes_back(tmp_path, monkeypatch, limited):
    "The run waits, says so, and goes on soon after; meanwhile it hardly knocks"
    monkeypatch.setenv("LLMDATA_PROGRESS", str(tmp_path / "progress"))
    with outage(lambda body, n: "fine", 100, 4, seconds=0.3) as server, within(20):
        outcome = run(ids(400), echo, model=server.model, store=tmp_path / "s.sqlite", concurrency=24, **limited)
    assert len(outcome.kept) == 400
    assert any("does not answer since" in text and "tried again in" in text for text in server.seen), server.seen
    assert outcome.ledger[0]["retries"] <= 24 + 10, "those under way when it died, and few more"
    assert server.later[0].time - server.back < 5, f"it was back for {server.later[0].time - server.back:.1f} s before it was asked"
    assert len(server.bodies) + len(server.later) <= 400 + 24


@pytest.mark.parametrize("ending", ["closed", 503])
def test_a_server_that_never_comes_back(tmp_path, monkeypatch, ending):
    "When the patience is over the rest of the rows fail, with the reason; the next run makes them"
    monkeypatch.setattr(limits, "PATIENCE", 3.0)
    broken, rows, store = [0], ids(200), tmp_path / "s.sqlite"
    def answer(body, n):
        broken[0] += 1
        return error(ending) if ending != "closed" and 60 <= broken[0] < 10_000 else "fine"
    with ExitStack() as stack:
        server = stack.enter_context(outage(answer, 60, 6, seconds=0.2)) if ending == "closed" else None
        model, bodies = (server.model, server.bodies) if server else stack.enter_context(serve(answer, seconds=0.02))
        with within(12): first = run(rows, echo, model=model, store=store, concurrency=16)
        reasons = {r["reason"] for r in first.failed}
        assert 40 <= len(first.kept) <= 100 and len(first.failed) == 200 - len(first.kept)
        assert sum(bool(re.search(r"has not answered for \d+ s; run again when it does", r["reason"])) for r in first.failed) >= len(first.failed) - 16, reasons
        assert all(re.match(r"say: (server|rate limit) \(", r) for r in reasons), reasons
        assert len(bodies) <= 60 + 16 + 30, "hardly knocks at a dead door"
    broken[0] = 10_000
    with serve(answer, port=port(model)) as (_, later):
        with within(12): second = run(rows, echo, model=model, store=store, concurrency=16)
        assert len(second.kept) == 200 and len(later) == len(first.failed)


@pytest.mark.parametrize("bad", [lambda i: i % 20 == 0, lambda i: i >= 190 and i % 2], ids=["here and there", "at the end"])
def test_a_few_bad_rows_are_not_a_dead_server(tmp_path, monkeypatch, bad):
    "Rows that the server always breaks down on fail alone, even when none are left but them"
    monkeypatch.setattr(random, "uniform", lambda a, b: 0.05)
    with serve(lambda body, n: error(500) if bad(int(name(body)[1:])) else "fine", seconds=0.005) as (model, bodies), within(8):
        outcome = run(ids(200), echo, model=model, store=tmp_path / "s.sqlite", concurrency=16)
    failed = sum(map(bool, map(bad, range(200))))
    assert len(outcome.kept) == 200 - failed and {r["reason"] for r in outcome.failed} == {"say: server (500 this is 500)"} and len(bodies) == 200 + 5 * failed


# Budgets of requests

def test_requests_per_day(tmp_path, monkeypatch):
    "Twenty are sent, the others fail and say when to go on; a run that waits goes on then"
    shift, rows, store = [0.0], ids(30), tmp_path / "s.sqlite"
    monkeypatch.setattr(limits, "time", SimpleNamespace(time=lambda: time.time() + shift[0], strftime=time.strftime, localtime=time.localtime))
    with serve(lambda body, n: "fine") as (model, bodies):
        options = dict(model=model, store=store, per_day=20)
        with within(10): first = run(rows, echo, **options)
        assert len(bodies) == 20 == len(first.kept) and len(first.failed) == 10
        for row in first.failed: assert re.search(r"can be asked again at \d{4}-\d\d-\d\d \d\d:\d\d \(in (24 h 00|23 h 59) min\): the budget of 20 requests per day is used up", row["reason"]), row["reason"]
        with within(10): again = run(rows, echo, **options)
        assert len(bodies) == 20 and len(again.failed) == 10
        def tomorrow():
            time.sleep(1.5)
            shift.append(len(bodies))
            shift[0] = 86_410.0
        thread = threading.Thread(target=tomorrow)
        thread.start()
        with within(10): last = run(rows, echo, wait=True, **options)
        thread.join()
        assert shift[1] == 20 and len(last.kept) == 30 and len(bodies) == 30


def test_requests_per_minute(tmp_path, monkeypatch):
    "Ten in any minute; the run waits for the next minute by itself, and says so"
    monkeypatch.setenv("LLMDATA_PROGRESS", str(tmp_path / "progress"))
    started, shift, sent = time.time(), [0.0], []
    def clock(): return time.time() + shift[0]
    monkeypatch.setattr(limits, "time", SimpleNamespace(time=clock, strftime=time.strftime, localtime=time.localtime))
    def answer(body, n):
        sent.append(clock())
        return "fine"
    stop, said_so = threading.Event(), []
    def hurry():
        while not stop.wait(0.1):
            shift[0] += 3.0  # thirty times as fast
            if (tmp_path / "progress").exists(): said_so.append((tmp_path / "progress").read_text())
    thread = threading.Thread(target=hurry)
    with serve(answer) as (model, bodies):
        thread.start()
        try:
            with within(20): outcome = run(ids(20), echo, model=model, store=tmp_path / "s.sqlite", per_minute=10)
        finally:
            stop.set()
            thread.join()
    assert len(outcome.kept) == 20 == len(bodies)
    assert all(later - first >= 60 - 3.5 for first, later in zip(sent, sent[10:])), [f"{t - sent[0]:.0f}" for t in sent]
    assert any("waiting until" in text and "10 requests per minute" in text for text in said_so)


def test_two_runs_share_the_requests_of_a_day(tmp_path):
    with serve(lambda body, n: "fine", seconds=0.02) as (model, bodies), ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda rows: run(rows, echo, model=model, store=tmp_path / "s.sqlite", per_day=20, concurrency=8), [ids(30), ids(30, 60)]))
    assert len(bodies) == 20 == sum(len(o.kept) for o in outcomes) and sum(len(o.failed) for o in outcomes) == 40
    assert len(sql(tmp_path / "s.sqlite", "select 1 from calls")) == 20


def refused_before(store, model, seconds, rate=100.0):
    "The address has a pace, from a refusal some `seconds` ago"
    Store(store).close()
    sql(store, "insert into limits values (?, ?, 1, ?, ?, null, '')", (model.partition("#")[0], rate, time.time() - seconds, time.time() - seconds))


def test_only_requests_that_are_sent_are_counted(tmp_path):
    "An address with a pace gives out sending times ahead: those that were not used are given back"
    store = tmp_path / "s.sqlite"
    with serve(lambda body, n: "fine", seconds=1.2) as (model, bodies):
        refused_before(store, model, 60)
        assert len(run(ids(5), echo, model=model, store=store).kept) == 5
        with within(10): rest = run(ids(25), echo, model=model, store=store, per_day=25)
        assert len(rest.kept) == 25 == len(bodies), rest.failed[0]["reason"]
        assert sql(store, "select sum(sent) from requests") == [(25,)]


@pytest.mark.parametrize("seconds", [60, 86_400])
def test_one_run_does_not_take_the_requests_of_another(tmp_path, seconds):
    "Twenty a day for two runs of ten rows each are enough for both"
    store = tmp_path / "s.sqlite"
    with serve(lambda body, n: "fine", seconds=0.5) as (model, bodies), ThreadPoolExecutor(2) as pool:
        refused_before(store, model, seconds)
        outcomes = list(pool.map(lambda rows: run(rows, echo, model=model, store=store, per_day=20, concurrency=4), [ids(10), ids(10, 20)]))
    assert [len(o.kept) for o in outcomes] == [10, 10], [r["reason"] for o in outcomes for r in o.failed]


def test_calls_that_were_not_sent_use_up_no_budget(tmp_path):
    with serve(lambda body, n: "fine") as (model, bodies):
        outcome = run(ids(40), echo, model=model, store=tmp_path / "s.sqlite", per_day=10, budget="25 calls")
    assert len(bodies) == 10 and {"requests per day" in r["reason"] for r in outcome.failed} == {True}, {r["reason"] for r in outcome.failed}


def test_a_pause_of_ten_hours(tmp_path, monkeypatch):
    "Without `wait` the run ends at once and says at what time to go on; with it, it waits, and says so from the start"
    monkeypatch.setenv("LLMDATA_PROGRESS", str(tmp_path / "progress"))
    with serve(lambda body, n: (429, {"error": {"message": "daily quota"}}, {"Retry-After": "36000"})) as (model, bodies):
        options = dict(model=model, store=tmp_path / "s.sqlite", concurrency=4)
        with within(5): first = run(ids(50), echo, **options)
        assert len(bodies) <= 4 and len(first.failed) == 50
        times = {time.strftime("%H:%M", time.localtime(time.time() + 36_000 - s)) for s in (0, 5)}
        for row in first.failed:
            assert (m := re.search(r"can be asked again at (\d\d:\d\d) \(in (10 h 00|9 h 59) min\): 429 daily quota; run again then", row["reason"])), row["reason"]
            assert m[1] in times
        before, (said_so, ended) = len(bodies), ([], [])
        (tmp_path / "progress").unlink()
        def cancel():
            time.sleep(2)
            if (tmp_path / "progress").exists(): said_so.append((tmp_path / "progress").read_text())
            ended.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=cancel).start()
        with pytest.raises(KeyboardInterrupt): run(ids(50), echo, wait=True, **options)
        assert time.monotonic() - ended[0] < 2 and len(bodies) == before
        assert said_so and "waiting until" in said_so[0], "nothing is said while the run waits"


# Structured output

@pytest.mark.parametrize("takes", ["json_schema", "json_object", None])
def test_the_form_of_structured_output_is_found_once(tmp_path, takes):
    "Fifty rows at once: each form that is refused is asked for once, ever; and nobody waits for anybody after that"
    async def recipe(row, ask):
        row["color"] = (await ask(f"Say {row['id']}", schema=object_schema(color={"type": "string"}))).parsed["color"]
        return row
    forms = ["json_schema", "json_object", None]
    def answer(body, n):
        form = body.get("response_format", {}).get("type")
        if forms.index(form) < forms.index(takes): return 400, {"error": {"message": f"response_format {form} is not supported"}}
        return json.dumps({"color": "red"})
    def form(body): return body.get("response_format", {}).get("type")
    with serve(answer, seconds=0.1) as (model, bodies):
        options, started = dict(model=model, store=tmp_path / "s.sqlite", concurrency=50), time.monotonic()
        assert len(run(ids(50), recipe, **options).kept) == 50
        seconds = time.monotonic() - started
        assert {f: sum(form(b) == f for b in bodies) for f in forms} == {f: 50 if f == takes else int(forms.index(f) < forms.index(takes)) for f in forms}
        before = len(bodies)
        assert len(run(ids(50, 100), recipe, **options).kept) == 50
        assert [form(b) for b in bodies[before:]] == [takes] * 50
    assert seconds < 3, f"{seconds:.1f} s for 50 calls of 0.1 s at a time: one after the other"


# Is anyone there?

def none_such(body, n): return 404, {"error": {"message": f"The model `{body['model']}` does not exist", "type": "NotFoundError"}}


def none_such_pretty(body, n):
    async def page(request): return web.Response(status=404, text=json.dumps([{"error": {"code": 404, "message": "model not found"}}], indent=2), content_type="application/json")
    return page


@pytest.mark.parametrize("answer", [none_such, none_such_pretty])
def test_a_wrong_name_is_one_line_with_a_near_one(tmp_path, answer):
    begun = []
    async def recipe(row, ask):
        begun.append(row["id"])
        return await echo(row, ask)
    with serve(answer, models=["mistral-7b", "llama-3.1-8b-instruct", "qwen2.5"]) as (model, bodies):
        with pytest.raises(ValueError, match="did you mean 'llama-3.1-8b-instruct'") as e: run(ids(20), recipe, model=model.replace("#m", "#lama-3.1-8b"), store=tmp_path / "s.sqlite", concurrency=4)
    assert "\n" not in str(e.value) and "mistral-7b" in str(e.value) and "'lama-3.1-8b'" in str(e.value)
    assert [b["max_tokens"] for b in bodies] == [1] and len(begun) <= 4 and not sql(tmp_path / "s.sqlite", "select * from calls union all select * from calls")


@pytest.mark.parametrize("models", [["other"], ["models/m"], [], 404, 500])
def test_a_server_that_does_not_list_the_model_may_have_it(tmp_path, models):
    with serve(lambda body, n: "fine", models=models) as (model, bodies):
        assert len(run(ids(3), echo, model=model, store=tmp_path / "s.sqlite", per_day=4).kept) == 3
        assert len(bodies) == 3 + (models in (["other"], 404, 500)), "where the list says nothing, one word is asked for"


def test_the_word_it_is_asked_for_counts_as_a_request(tmp_path):
    "Of a server that does not list the model; per_day is what was agreed with the provider"
    with serve(lambda body, n: "fine", models=["other"]) as (model, bodies):
        run(ids(10), echo, model=model, store=tmp_path / "s.sqlite", per_day=5)
    assert len(bodies) == 5


def test_what_is_in_the_store_needs_no_server(tmp_path):
    with serve(lambda body, n: "fine") as (model, bodies): first = run(ids(5), echo, model=model, store=tmp_path / "s.sqlite")
    second = run(ids(5), echo, model=model, store=tmp_path / "s.sqlite")
    assert first.kept == second.kept and sum(line["replayed"] for line in second.ledger) == 5
    with pytest.raises(ValueError, match="cannot be reached") as e: run(ids(6), echo, model=model, store=tmp_path / "s.sqlite")
    assert "\n" not in str(e.value) and len(first.kept) == 5


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_is_one_line(tmp_path, monkeypatch, status):
    with serve(lambda body, n: error(status), models=status) as (model, bodies):
        monkeypatch.setenv(f"LLMDATA_API_KEY_127_0_0_1_{port(model)}", "sk-very-secret")
        with pytest.raises(ValueError, match=rf"refuses the key \({status}\)") as e: run(ids(20), echo, model=model, store=tmp_path / "s.sqlite")
    assert len(bodies) == 1 and "\n" not in str(e.value) and "secret" not in str(e.value)


# Ctrl-C

@pytest.mark.parametrize("where", ["pause", "backoff", "breaker", "sending time"])
def test_ctrl_c_while_calls_wait(tmp_path, monkeypatch, where):
    "It ends within two seconds, leaves no thread behind, and the next run goes on"
    store, good, refused = tmp_path / "s.sqlite", [False], []
    def answer(body, n):
        if good[0] or where == "sending time": return "fine"
        refused.append(time.time())
        return (429, {"error": "slow down"}, {"Retry-After": "3"}) if where == "pause" else error(502 if where == "breaker" else 500)
    monkeypatch.setattr(random, "uniform", lambda a, b: 30 if where == "backoff" else 0.01)
    with serve(answer) as (model, bodies):
        if where == "sending time":
            Store(store).close()
            sql(store, "insert into limits values (?, 0.02, 1, ?, ?, null, '')", (model.partition("#")[0], time.time(), time.time()))
        rows, ended = ids(2 if where == "backoff" else 12), []
        def cancel():
            while len(bodies) < {"breaker": 8, "backoff": 2}.get(where, 1): time.sleep(0.01)
            time.sleep(0.7)
            ended.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
        before, thread = set(threading.enumerate()), threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(KeyboardInterrupt): run(rows, echo, model=model, store=store, concurrency=12)
        assert time.monotonic() - ended[0] < 2
        thread.join()
        assert not [t for t in set(threading.enumerate()) - before if t.is_alive()]
        good[0], count = True, len(bodies)
        if where == "sending time": sql(store, "delete from limits")
        with within(20): outcome = run(rows, echo, model=model, store=store, concurrency=12)
        assert len(outcome.kept) == len(rows) and len(bodies) == count + len(rows) - (where == "sending time")
        if where == "pause": assert bodies[count].time >= refused[0] + 3 - 0.01, "the pause stands in the store"


# In virtual time: an event loop that never sleeps, and clocks that go with it

class VirtualLoop(asyncio.SelectorEventLoop):
    "Its time is what was waited for; `wrong` is by how much the computer's clock is wrong"
    def __init__(self):
        self.now, self.wrong = 0.0, 0.0
        super().__init__()
        select = self._selector.select
        def jump(timeout):
            assert timeout is not None, "all wait for ever"
            self.now += max(timeout, 0)
            return select(0)
        self._selector.select = jump

    def time(self): return self.now


@pytest.fixture
def virtual(monkeypatch):
    "The loop; the clocks of the modules are its own"
    loop = VirtualLoop()
    def shown(): return 1.8e9 + loop.now + loop.wrong
    clocks = SimpleNamespace(time=shown, monotonic=lambda: 1000 + loop.now, time_ns=lambda: int(shown() * 1e9), strftime=time.strftime, localtime=time.localtime)
    with monkeypatch.context() as patch:
        for module in (limits, models, store): patch.setattr(module, "time", clocks, raising=False)
        patch.setattr(limits, "monotonic", clocks.monotonic, raising=False)
        patch.setattr(random, "uniform", random.Random(3).uniform)
        if hasattr(limits, "clock"): limits.clock.__init__()
        yield loop
    if hasattr(limits, "clock"): limits.clock.__init__()
    loop.close()


class VirtualServer:
    "Answers after `seconds` what the function `takes` lets through, and refuses the rest, with `wait` as Retry-After"
    def __init__(self, loop, seconds, takes, wait=None, status=429):
        self.loop, self.seconds, self.takes, self.wait, self.status = loop, seconds, takes, wait, status
        self.sent, self.refused, self.last, self.under_way = [], [], 0.0, 0

    async def post(self, session, server, path, body, seen=None):
        self.loop.now += 0.001  # what a call costs the client
        await asyncio.sleep(0.0005)
        row = name(body)
        self.sent.append(self.loop.now)
        if not self.takes(self):
            self.refused.append(row)
            raise CallFailed("rate limit", f"{self.status} slow down", status=self.status, seconds=self.wait)
        self.under_way += 1
        await asyncio.sleep(self.seconds)
        self.under_way -= 1
        self.last = self.loop.now
        return said("fine")

    def ideal(self, rows, calls, concurrency):
        "Seconds that it takes at the best: places times work, or the row that was refused most often"
        work = rows * calls * max(self.seconds + 0.0015, 0.001 * concurrency) / concurrency
        often = max(map(self.refused.count, set(self.refused)), default=0)
        return work + often * (self.wait or 1)


async def ask_all(rows, calls, file, concurrency=64, **options):
    "What failed of so many rows, each of so many calls one after the other"
    ask, rest, failed = Ask({"default": endpoint("http://virtual:1/v1#m")}, Store(file), concurrency=concurrency, **options), iter(rows), []
    ask.checked = True
    async def work():
        for i in rest:
            try:
                for call in range(calls): await ask(f"{call} of {i}")
            except CallFailed as e: failed.append(str(e))
    await asyncio.gather(*(work() for _ in range(concurrency)))
    for limiter in ask.limiters.values(): limiter.close()
    ask.store.close()
    return failed


def by_chance(share):
    chance = random.Random(5)
    return lambda server: chance.random() >= share


def token_bucket(rate, burst):
    level = [burst, 0.0]
    def takes(server):
        now = server.loop.now
        level[:] = min(burst, level[0] + (now - level[1]) * rate(now)), now
        if level[0] < 1: return False
        level[0] -= 1
        return True
    return takes


@pytest.mark.parametrize("share, wait, seconds", [(0.05, 1, 0.02), (0.01, 1, 0.02), (0.05, None, 0.02), (0.05, 5, 0.02), (0.01, 5, 0.02), (0.1, 1, 0.02),
                                                  (0.05, 1, 0.2), (0.01, 1, 0.2), (0.05, 1, 6), (0.05, 5, 6)])
@pytest.mark.parametrize("status", [429, 503])
def test_refusals_by_chance_slow_nothing_down(virtual, monkeypatch, share, wait, seconds, status):
    "One request in twenty is refused, whatever the pace: not more than twice the time that the refused ones must wait"
    server = VirtualServer(virtual, seconds, by_chance(share), wait, status)
    monkeypatch.setattr(models, "post", server.post)
    rows = 250 if seconds > 1 else 1000
    failed = virtual.run_until_complete(ask_all(range(rows), 4, ":memory:"))
    ideal = server.ideal(rows, 4, 64)
    assert not failed and len(server.sent) == 4 * rows + len(server.refused)
    assert server.last <= 2 * ideal, f"{server.last:.1f} s instead of {ideal:.1f} s, {len(server.refused)} refused"


@pytest.mark.parametrize("rate, burst, wait, rows, most_seconds, most_refused", [
    (lambda now: 100, 20, 1, 900, 39, 130), (lambda now: 100, 1, 1, 900, 44, 180), (lambda now: 100, 20, 5, 900, 56, 130),
    (lambda now: 100 if now < 15 else 40, 20, 1, 900, 74, 190), (lambda now: 2, 2, 1, 36, 80, 90)], ids=["100", "no burst", "a long wait", "drops", "2"])
def test_a_real_limit_is_learned(virtual, monkeypatch, rate, burst, wait, rows, most_seconds, most_refused):
    "So many requests a second: hardly slower than that, and few in vain, also when it drops in the middle"
    server = VirtualServer(virtual, 0.02, token_bucket(rate, burst), wait)
    monkeypatch.setattr(models, "post", server.post)
    assert not virtual.run_until_complete(ask_all(range(rows), 4, ":memory:"))
    assert server.last <= most_seconds, f"{server.last:.1f} s"
    assert len(server.refused) <= most_refused, f"{len(server.refused)} refused"


def test_processes_that_share_a_limit(virtual, monkeypatch, tmp_path):
    "Four of them, one store: together as fast as one"
    server = VirtualServer(virtual, 0.02, token_bucket(lambda now: 100, 20), 1)
    monkeypatch.setattr(models, "post", server.post)
    async def four(): return await asyncio.gather(*(ask_all(range(i * 100, i * 100 + 100), 4, tmp_path / "s.sqlite", concurrency=16) for i in range(4)))
    assert not any(virtual.run_until_complete(four()))
    assert server.last <= 20, f"{server.last:.1f} s for what takes 16"
    assert len(server.refused) <= 140


def test_a_limit_of_requests_at_a_time_is_learned(virtual, monkeypatch):
    server = VirtualServer(virtual, 0.05, lambda server: server.under_way < 8)
    monkeypatch.setattr(models, "post", server.post)
    assert not virtual.run_until_complete(ask_all(range(400), 1, ":memory:"))
    assert server.last < 4 and len(server.refused) <= 110


# A clock that is wrong, or set in the middle of a run

HOUR = 3600.0
JUMPS = [-HOUR, HOUR, -3 * 24 * HOUR, 3 * 24 * HOUR, -20.0]


def set_clock(loop, at, by):
    async def later():
        await asyncio.sleep(at)
        loop.wrong += by
    return later()


@pytest.mark.parametrize("by", JUMPS)
@pytest.mark.parametrize("at", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("case", ["pause", "pace", "dead", "budget"])
def test_a_clock_that_is_set_in_mid_run_stops_nothing(virtual, monkeypatch, case, by, at):
    "During a pause, a pace, the wait for a dead server, a used budget: all rows are kept, as soon as without it, or a minute later"
    busy = {"pause": lambda server: server.loop.now >= 4, "dead": lambda server: server.loop.now >= 4, "pace": token_bucket(lambda now: 50, 10), "budget": lambda server: True}
    server = VirtualServer(virtual, 0.1, busy[case], 3 if case == "pause" else 1, 502 if case == "dead" else 429)
    monkeypatch.setattr(models, "post", server.post)
    options = dict(per_minute=100) if case == "budget" else {}
    async def both(): return (await asyncio.gather(ask_all(range(300), 1, ":memory:", **options), set_clock(virtual, at, by)))[0]
    assert not virtual.run_until_complete(both())
    assert server.last <= {"pause": 12, "pace": 20, "dead": 80, "budget": 200}[case], f"{server.last:.0f} s"
    if case == "budget":
        worst = max(sum(0 <= later - first < 60 for later in server.sent) for first in server.sent)
        assert worst <= (200 if by > 0 else 100), f"{worst} in a minute"


@pytest.mark.parametrize("by", JUMPS)
@pytest.mark.parametrize("case", ["pause", "pace", "budget"])
def test_what_a_wrong_clock_wrote_stops_no_later_run(virtual, monkeypatch, tmp_path, case, by):
    "The first run is stopped in a pause, at a pace, with a used budget; the next one finds the clock set right"
    takes = {"pause": lambda server: server.loop.now >= 4, "pace": token_bucket(lambda now: 50, 10), "budget": lambda server: True}[case]
    server, file = VirtualServer(virtual, 0.1, takes, 3), tmp_path / "s.sqlite"
    monkeypatch.setattr(models, "post", server.post)
    options = dict(per_minute=100) if case == "budget" else {}
    async def stopped():
        with pytest.raises(asyncio.TimeoutError): await asyncio.wait_for(ask_all(range(300), 1, file, **options), 1.5)
    virtual.run_until_complete(stopped())
    virtual.wrong += by
    limits.clock.__init__()  # as in a new process
    before = virtual.now
    assert not virtual.run_until_complete(ask_all(range(300), 1, file, **options))
    assert server.last - before <= (200 if case == "budget" else 30), f"{server.last - before:.0f} s"


def test_two_processes_agree_when_the_clock_was_set_between_their_starts(virtual, monkeypatch, tmp_path):
    server, file = VirtualServer(virtual, 0.1, token_bucket(lambda now: 50, 10), 1), tmp_path / "s.sqlite"
    monkeypatch.setattr(models, "post", server.post)
    async def both():
        first = asyncio.create_task(ask_all(range(300), 1, file))
        await set_clock(virtual, 3.0, -HOUR)
        return await first, await ask_all(range(300, 600), 1, file)
    assert not any(virtual.run_until_complete(both()))
    assert server.last <= 20 and len(server.refused) <= 130


@pytest.mark.parametrize("ahead", [-HOUR, HOUR])
def test_a_date_to_wait_for_is_measured_by_the_servers_clock(ahead):
    "Its `Date` says what it shows: ours may be wrong"
    theirs = time.time() + ahead
    headers = {"Retry-After": formatdate(theirs + 30, usegmt=True), "Date": formatdate(theirs, usegmt=True)}
    assert asked_wait(headers) == 30
    assert asked_wait(headers | {"Date": "nonsense"}) is None or asked_wait(headers | {"Date": "nonsense"}) >= 0


@pytest.mark.parametrize("tells", [True, False])
def test_tokens_per_minute_are_kept_where_the_server_tells_them(tmp_path, tells):
    "A bucket of 1,000 tokens that fills at 1,000 a second; a call takes 100"
    bucket = {"left": 1000.0, "at": time.monotonic(), "refused": 0}
    def answer(body, n):
        now = time.monotonic()
        bucket["left"], bucket["at"] = min(bucket["left"] + 1000 * (now - bucket["at"]), 1000), now
        taken = bucket["left"] >= 100
        bucket["left" if taken else "refused"] += -100 if taken else 1
        reset = (1000 - bucket["left"]) / 1000
        headers = {"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": str(int(bucket["left"])), "x-ratelimit-reset-tokens": f"{reset * 1000:.0f}ms"} if tells else {}
        if not taken: return 429, {"error": {"message": "Rate limit reached on tokens per min (TPM)"}}, headers
        return 200, said("fine") | {"usage": {"prompt_tokens": 80, "completion_tokens": 20}}, headers
    with serve(answer) as (model, bodies): outcome = run(ids(40), echo, model=model, store=tmp_path / "s.sqlite", concurrency=4)
    assert len(outcome.kept) == 40
    if tells: assert bucket["refused"] <= 4, "the calls in flight, at most"
    else: assert bucket["refused"] > 4, "or else this test could not fail"


@pytest.mark.parametrize("at_once", [True, False])
def test_a_lost_answer_keeps_nobody_waiting_for_longer_than_the_minute_of_tokens(at_once):
    "6,000 tokens a minute, back at its end or little by little; a call takes 100, and the 64 after the first one are lost"
    tokens = limits.TokenPace()
    tokens.told((6000, 5900, 59.0 if at_once else 1.0), 0.0)
    tokens.took(100)
    tokens.left -= 64 * tokens.each
    waits = tokens.seconds_left(0.0)
    assert waits == pytest.approx(64 if at_once else 6) and tokens.seconds_left(waits + 0.01) == 0
