"What was paid for stays: through other layouts, other processes, damaged, locked and full files, and kill -9."
import asyncio
import base64
import gzip
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_server import said, serve

from llmdata_nb.models import row_ledger
from llmdata_nb.run import run
from llmdata_nb.store import Store, StoreError, UnderWay, _show_life, call_key

TESTS = Path(__file__).parent
DAY = 86_400
COLUMNS = "key, step, model, text, finish_reason, prompt_tokens, cached_tokens, completion_tokens, usd, seconds, created"
LAYOUT_1 = """
create table if not exists calls (key blob primary key, step text, model text, text text, finish_reason text,
    prompt_tokens integer, cached_tokens integer, completion_tokens integer, usd real, seconds real, created real) without rowid;
create table if not exists attempts (key blob, step text, model text, kind text, message text,
    prompt_tokens integer, cached_tokens integer, completion_tokens integer, usd real, seconds real, created real);
pragma journal_mode=wal; pragma synchronous=normal; pragma user_version=1"""


def numbered(n, start=0): return [{"id": f"r{i:05}"} for i in range(start, start + n)]


async def echo(row, ask): return row | {"said": (await ask(f"Say {row['id']}", step="say")).text}


async def two_calls(row, ask): return row | {"b": (await ask(f"and after {(await ask(row['id'], step='a')).text}?", step="b")).text}


async def strict(row, ask):
    "Every fourth answer is unparseable at first"
    def parse(text):
        if text.startswith("no"): raise ValueError(text)
        return text
    return row | {"said": (await ask(f"Say {row['id']}", step="say", parse=parse)).parsed}


def words(body, n=0, size=2000):
    "An answer of `size` characters that hardly gets smaller when it is compressed"
    content = json.dumps(body, sort_keys=True)
    return base64.b64encode(random.Random(content).randbytes(size * 3 // 4)).decode()


def strictly(body, n=0): return "no " * 100 if int(body["messages"][0]["content"][-5:]) % 4 == 0 and not body["temperature"] else words(body)


def booked(ledger): return sum(line[k] for line in ledger for k in ("calls", "replayed", "retries", "failed", "lost"))


def rows_of(path, query):
    db = sqlite3.connect(path)
    try: return db.execute(query).fetchall()
    finally: db.close()


def journal(path): return rows_of(path, "select (select count(*) from calls) + (select count(*) from attempts)")[0][0]


def calls_of(path):
    "All calls of a store of either layout, by key, with their text as it was"
    return {row[0]: row[1:3] + (zlib.decompress(row[3]).decode() if isinstance(row[3], bytes) else row[3],) + row[4:] for row in rows_of(path, f"select {COLUMNS} from calls")}


def attempts_of(path): return sorted(rows_of(path, f"select {COLUMNS.replace('text, finish_reason', 'kind, message')} from attempts"), key=repr)


def as_layout_1(path):
    "Write the store at `path` again as the first version of the package would have"
    calls, attempts = calls_of(path), attempts_of(path)
    for p in path.parent.glob(path.name + "*"): p.unlink()
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(LAYOUT_1 + ";begin")
    db.executemany(f"insert into calls values ({'?,' * 10}?)", [(key, *values) for key, values in calls.items()])
    db.executemany(f"insert into attempts values ({'?,' * 10}?)", attempts)
    db.execute("commit")
    db.close()


def fill(path, n, size=1000):
    "A store with `n` calls, made without a server"
    store = Store(path)
    for i in range(n): store.put(store.sending(call_key(i)), step="s", model="m", text=words({"n": i}, size=size), usd=0.001)
    store.close()


def age(path, days):
    "Make all that the store holds `days` older"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("update calls set run = run - ?, created = created - ?", (days * DAY * 1_000_000, days * DAY))
    db.execute("update uses set run = run - ?", (days * DAY * 1_000_000,))
    db.execute("update attempts set created = created - ?", (days * DAY,))
    db.close()


def together(n, work, *args):
    "What `work(i, *args)` gives in `n` processes that begin it at the same moment; an exception as one line"
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(n), context.SimpleQueue()
    def target(i):
        barrier.wait(30)
        try: answers.put(work(i, *args))
        except BaseException as e: answers.put(f"{type(e).__name__}: {e}")
    processes = [context.Process(target=target, args=(i,)) for i in range(n)]
    for p in processes: p.start()
    try: return [answers.get() for _ in processes]
    finally:
        for p in processes: p.join(30)


def python(script, *args, **options):
    "A process of its own that runs `script`, which can import this file"
    return subprocess.Popen([sys.executable, "-c", script, *map(str, args)], env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}, text=True, **options)


@contextmanager
def within(seconds):
    "Fail, instead of waiting for ever, when the block takes longer"
    late = []
    def stop(*_): raise late.append(1) or KeyboardInterrupt
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    except BaseException as e:
        if late: raise AssertionError(f"it hangs: not done after {seconds} s") from e
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one_line(text, path, advice):
    "`text` is one line that names the file, what is wrong with it, and what to do"
    assert "\n" not in str(text).strip() and str(path) in str(text) and re.search(advice, str(text)), text


class Hasty(Store):
    "Waits a fifth of a second for the lock of another program, not a minute"
    def _open_file(self):
        db = super()._open_file()
        db.execute("pragma busy_timeout=200")
        return db


# layouts

def test_the_key_of_a_call_never_changes():
    "As the first version made it: another key, and all is paid again"
    body = {"messages": [{"role": "user", "content": "Ça va?"}], "temperature": 0.0, "max_tokens": 2048, "seed": 0}
    assert call_key("http://h/v1#m", "/chat/completions", body, None, 0).hex() == "a3a80ea864f09996f1fb52462f667bdc"


def test_a_store_of_layout_1_is_kept_and_replayed(tmp_path):
    path = tmp_path / "s.sqlite"
    with serve(strictly) as (model, bodies):
        first = run(numbered(60), strict, model=model, store=path, concurrency=8)
        sent = len(bodies)
        assert sent == 60 + 15 and len(first.kept) == 60
        as_layout_1(path)
        calls, attempts = calls_of(path), attempts_of(path)
        assert len(calls) == 60 and len(attempts) == 15 and rows_of(path, "pragma user_version") == [(1,)]
        Store(path).close()
        assert rows_of(path, "pragma user_version") == [(5,)] and calls_of(path) == calls and attempts_of(path) == attempts
        assert rows_of(path, "pragma integrity_check") == [("ok",)] and not rows_of(path, "select name from sqlite_master where name like 'old_%'")
        again = run(numbered(60), strict, model=model, store=path, concurrency=8)
        assert len(bodies) == sent and again.kept == first.kept
    assert [(l["calls"], l["replayed"], l["retries"]) for l in again.ledger] == [(0, 60, 15)] and again.ledger[0]["completion_tokens"] == 75 * 5


def test_eight_processes_migrate_one_store_once(tmp_path):
    def work(i, path):
        store = Store(path)
        try: return store.stats()["calls"], store.get(call_key(i))["text"] == words({"n": i}, size=1000)
        finally: store.close()
    fill(made := tmp_path / "s.sqlite", 500)
    as_layout_1(made)
    for n in range(8):
        path = tmp_path / f"{n}.sqlite"
        shutil.copy(made, path)
        assert together(8, work, path) == [(500, True)] * 8
        assert rows_of(path, "select count(*), min(id), max(id) from calls") == [(500, 1, 500)] and rows_of(path, "pragma user_version") == [(5,)]


def test_a_migration_that_is_killed_is_as_if_it_had_not_begun(tmp_path):
    fill(made := tmp_path / "made.sqlite", 5000, size=2000)
    as_layout_1(made)
    calls, path, killed, chance = calls_of(made), tmp_path / "s.sqlite", 0, random.Random(3)
    for n in range(4):
        for p in tmp_path.glob("s.sqlite*"): p.unlink()
        shutil.copy(made, path)
        child = multiprocessing.get_context("fork").Process(target=lambda: Store(path))
        child.start()
        while not Path(f"{path}-wal").exists() and child.is_alive(): time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.08))
        child.kill()
        child.join()
        killed += rows_of(path, "pragma user_version") == [(1,)]
        Store(path).close()
        assert calls_of(path) == calls and rows_of(path, "pragma user_version") == [(5,)]
    assert killed


def test_a_newer_layout_is_left_alone(tmp_path):
    path = tmp_path / "s.sqlite"
    fill(path, 3)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma user_version=6")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError) as e: Store(path)
    one_line(e.value, path, "newer.*Update llmdata_nb")
    assert path.read_bytes() == before


# processes

def test_eight_processes_write_one_new_store_at_once(tmp_path):
    "No call is lost, none waits for ever, and no process is told that the database is locked"
    def work(i, path):
        async def one(j):
            sent = store.sending(call_key(i, j), step=f"s{i}", model="m")
            await store.saved()
            await asyncio.sleep(0.001 * (j % 7))
            store.put(sent, step=f"s{i}", model="m", text=f"{i} {j} " * 100, usd=0.001)
            await store.saved()
        async def all(): await asyncio.gather(*(one(j) for j in range(200)))
        store = Store(path)
        try: asyncio.run(all())
        finally: store.close()
        return "done"
    path = tmp_path / "s.sqlite"
    assert together(8, work, path) == ["done"] * 8
    store = Store(path)
    assert store.stats()["calls"] == 1600 and not store.stats()["attempts"] and rows_of(path, "pragma integrity_check") == [("ok",)]
    assert all(store.get(call_key(i, j))["text"] == f"{i} {j} " * 100 for i in range(8) for j in range(200))
    store.close()


def test_eight_processes_make_one_new_store_at_once(tmp_path):
    def work(i, path):
        store = Store(path)
        store.put(store.sending(call_key(i)), text=str(i))
        store.close()
    for n in range(30):
        path = tmp_path / f"{n}.sqlite"
        assert together(8, work, path) == [None] * 8
        assert len(calls_of(path)) == 8


# several runs on the same rows

class Hook:
    "An answer that a test lets out: `arrived` when the request is there, `go` when it may be answered"
    def __init__(self, *answers):
        self.answers, self.arrived, self.go = list(answers), threading.Event(), threading.Event()

    def __call__(self, body, n):
        from aiohttp import web
        async def respond(request):
            self.arrived.set()
            answer = self.answers.pop(0)
            if answer == "hang": answer = await asyncio.to_thread(lambda: self.go.wait(60)) and words(body)
            if isinstance(answer, int): return web.json_response({"error": {"message": "not so"}}, status=answer)
            return web.json_response(said(answer))
        return respond


class Watched(Store):
    "Says when it begins to wait for another run"
    waits = threading.Event()
    async def unclaimed(self, key):
        self.waits.set()
        await super().unclaimed(key)


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr("llmdata_nb.run.Store", Watched)
    Watched.waits.clear()
    return Watched.waits


def in_background(*args, **options):
    "A run in a thread; the future of its outcome"
    pool = ThreadPoolExecutor(1)
    try: return pool.submit(run, *args, **options)
    finally: pool.shutdown(wait=False)


OWNER = "import sys; from test_store import *\nrun(numbered(1), echo, model=sys.argv[1], store=sys.argv[2])"


@pytest.mark.parametrize("n", [2, 8])
def test_processes_with_the_same_rows_pay_once(tmp_path, n):
    "Each finds what the others paid for, in its rows and in its ledger"
    def work(i, path, model):
        outcome = run(numbered(60), two_calls, model=model, store=path, concurrency=16)
        return [row["b"] for row in outcome.kept], booked(outcome.ledger), sum(line["calls"] for line in outcome.ledger)
    with serve(words, seconds=0.02) as (model, bodies):
        results = together(n, work, tmp_path / "s.sqlite", model)
        assert len(bodies) == 120, results
    assert all(rows == results[0][0] and len(rows) == 60 and sums == 120 for rows, sums, _ in results), results
    assert sum(paid for *_, paid in results) == 120 and not attempts_of(tmp_path / "s.sqlite")


def test_two_runs_in_one_process_pay_once(tmp_path):
    "Also for a second try after an answer that cannot be read: both ledgers have all requests"
    with serve(strictly, seconds=0.02) as (model, bodies):
        options = dict(model=model, store=tmp_path / "s.sqlite", concurrency=8)
        first, second = (in_background(numbered(60), strict, **options) for _ in range(2))
        outcomes = [first.result(60), second.result(60)]
        assert len(bodies) == 60 + 15
    assert outcomes[0].kept == outcomes[1].kept and len(outcomes[0].kept) == 60
    assert [booked(outcome.ledger) for outcome in outcomes] == [75, 75]


def test_eight_processes_ask_once_for_a_word(tmp_path):
    "A model that its server does not list is asked for a word before the first call"
    def work(i, path, model): return len(run(numbered(1), echo, model=model, store=path).kept)
    with serve(words, seconds=0.05, models=("other",)) as (model, bodies):
        assert together(8, work, tmp_path / "s.sqlite", model) == [1] * 8 and len(bodies) == 2


def test_a_run_that_is_killed_leaves_its_calls_to_others(tmp_path, watched):
    path, server = tmp_path / "s.sqlite", Hook("hang", "paid again")
    with serve(server) as (model, bodies):
        owner = python(OWNER, model, path, stderr=subprocess.DEVNULL)
        assert server.arrived.wait(60)
        waiting = in_background(numbered(1), echo, model=model, store=path)
        assert watched.wait(60) and len(bodies) == 1
        owner.kill()  # it stays a zombie, which is no living process
        outcome = waiting.result(60)
        owner.wait()
        server.go.set()
    assert outcome.kept[0]["said"] == "paid again" and len(bodies) == 2
    assert [(line["calls"], line["lost"]) for line in outcome.ledger] == [(1, 1)]


def test_a_run_that_is_suspended_is_waited_for_until_it_is_silent_for_long(tmp_path, watched, monkeypatch):
    "When it goes on, its own answer is taken as well"
    monkeypatch.setattr("llmdata_nb.store._SILENCE", 0.5)
    path, server = tmp_path / "s.sqlite", Hook("hang", "of the other")
    with serve(server) as (model, bodies):
        owner = python(OWNER, model, path, stderr=subprocess.DEVNULL)
        assert server.arrived.wait(60)
        owner.send_signal(signal.SIGSTOP)
        outcome = run(numbered(1), echo, model=model, store=path)
        assert watched.is_set() and outcome.kept[0]["said"] == "of the other" and len(bodies) == 2
        server.go.set()
        owner.send_signal(signal.SIGCONT)
        assert owner.wait(60) == 0
    assert len(calls_of(path)) == 1 and not attempts_of(path) and not rows_of(path, "select * from runs")


def test_a_sign_of_life_is_one_by_the_clock_of_the_one_who_waits(tmp_path, monkeypatch):
    "And it does not matter what the other's clock says"
    clock = SimpleNamespace(monotonic=lambda: clock.now, time=time.time, time_ns=time.time_ns, now=1000.0)
    async def claims():
        one, other = Store(tmp_path / "s.sqlite"), Store(tmp_path / "s.sqlite")
        monkeypatch.setattr("llmdata_nb.store.time", clock)
        await one.claim(b"k")
        for microseconds in (30, 20, 10):  # it is set back by decades, and goes backwards
            assert other.under_way(b"k")
            clock.now += 59
            assert other.under_way(b"k")
            clock.time_ns = lambda: microseconds * 1000
            one.heart = None
            _show_life(one)  # as its timer does
            one.commit()
        with pytest.raises(UnderWay): await other.claim(b"k")
        assert other.under_way(b"k")
        clock.now += 61
        assert not other.under_way(b"k")
        await other.claim(b"k", known=len(other.attempts(b"k")))
        assert one.under_way(b"k")
        for store in (one, other): store.close()
    asyncio.run(claims())


@pytest.mark.parametrize("status, sent", [(400, 2), (503, 2)], ids=["refused", "busy at first"])
def test_a_call_that_fails_in_one_run_is_made_by_the_other(tmp_path, watched, status, sent):
    "One that is tried again by its own run is not"
    path, answers = tmp_path / "s.sqlite", [status, "Ciao"]
    held, arrived = threading.Event(), threading.Event()
    def server(body, n):
        from aiohttp import web
        async def respond(request):
            answer = answers.pop(0)
            if answer == status:
                arrived.set()
                await asyncio.to_thread(held.wait, 60)
                return web.json_response({"error": {"message": "not so"}}, status=status)
            return web.json_response(said(answer))
        return respond
    with serve(server) as (model, bodies):
        first = in_background(numbered(1), echo, model=model, store=path)
        assert arrived.wait(60)
        second = in_background(numbered(1), echo, model=model, store=path)
        assert watched.wait(60)
        held.set()
        first, second = first.result(60), second.result(60)
    assert len(bodies) == sent and second.kept[0]["said"] == "Ciao" and len(first.failed) == (status == 400)
    assert booked(second.ledger) == 2 and sum(line["lost"] for line in second.ledger) == 0


def test_a_call_that_a_row_gives_up_is_left_to_other_runs(tmp_path, watched):
    "Though its own run goes on"
    path, server, done = tmp_path / "s.sqlite", Hook("hang", "Ciao"), threading.Event()
    async def gives_up(row, ask):
        task = asyncio.ensure_future(ask(f"Say {row['id']}", step="say"))
        await asyncio.to_thread(watched.wait, 60)
        task.cancel()
        await asyncio.to_thread(done.wait, 60)
        return row
    with serve(server) as (model, bodies):
        first = in_background(numbered(1), gives_up, model=model, store=path)
        assert server.arrived.wait(60)
        second = run(numbered(1), echo, model=model, store=path)
        done.set()
        server.go.set()
        assert second.kept[0]["said"] == "Ciao" and len(bodies) == 2 and len(first.result(60).kept) == 1


def test_a_stored_answer_that_can_no_longer_be_read_is_paid_for_once(tmp_path):
    "By one of two runs with the same stricter `parse`"
    path = tmp_path / "s.sqlite"
    async def stricter(row, ask):
        def parse(text):
            if text == "old": raise ValueError(text)
            return text
        return row | {"said": (await ask(f"Say {row['id']}", step="say", parse=parse)).parsed}
    with serve(lambda body, n: "old" if n == 0 else "new", seconds=0.05) as (model, bodies):
        run(numbered(8), echo, model=model, store=path)
        runs = [in_background(numbered(8), stricter, model=model, store=path) for _ in range(2)]
        assert all([row["said"] for row in outcome.result(60).kept] == ["new"] * 8 for outcome in runs) and len(bodies) == 16


def test_what_another_run_has_under_way_is_not_lost(tmp_path):
    "Until that run has ended, in whatever way"
    one, other = Store(tmp_path / "s.sqlite"), Store(tmp_path / "s.sqlite")
    one.sending(b"k")
    one.commit()
    assert other.attempts() == [b"k"] and other.attempts(b"k") == [] and other.stats()["attempts"] == {"under way": 1}
    one.close()
    assert [attempt["kind"] for attempt in other.attempts(b"k")] == ["lost"] and other.stats()["attempts"] == {"lost": 1}
    other.close()


FROM_5_TO_4 = ["alter table calls drop column thinking_tokens", "alter table calls drop column reasoning",
               "alter table attempts drop column thinking_tokens"]
FROM_4_TO_3 = ["alter table attempts drop column run", "alter table attempts drop column under_way", "drop table runs", "drop table dialects"]


@pytest.mark.parametrize("layout, changes", [(4, FROM_5_TO_4), (3, FROM_5_TO_4 + FROM_4_TO_3)])
def test_a_store_of_an_older_layout_is_kept_and_replayed(tmp_path, layout, changes):
    path = tmp_path / "s.sqlite"
    with serve(strictly) as (model, bodies):
        first = run(numbered(40), strict, model=model, store=path, concurrency=8)
        db = sqlite3.connect(path, isolation_level=None)
        for change in (*changes, f"pragma user_version={layout}"): db.execute(change)
        db.close()
        calls, attempts, sent = calls_of(path), attempts_of(path), len(bodies)
        again = run(numbered(40), strict, model=model, store=path, concurrency=8)
        assert len(bodies) == sent and again.kept == first.kept
    assert rows_of(path, "pragma user_version") == [(5,)] and calls_of(path) == calls and attempts_of(path) == attempts
    assert [(line["calls"], line["replayed"], line["retries"]) for line in again.ledger] == [(0, 40, 10)]


# faults of the file

def damage(path, start, end):
    with open(path, "r+b") as f:
        for page in range(start, end):
            f.seek(page * 4096)
            f.write(random.Random(page).randbytes(4096))


@pytest.mark.parametrize("size, part", [(1000, (1/3, 2/3)), (9000, (0.3, 0.7)), (1000, (0, 1))], ids=["rows", "long texts", "all but the first page"])
def test_a_damaged_file_ends_the_run_and_pays_nothing(tmp_path, size, part):
    path = tmp_path / "s.sqlite"
    with serve(lambda body, n: words(body, size=size)) as (model, bodies):
        whole = run(numbered(300), echo, model=model, store=path, concurrency=16)
        good, pages = path.read_bytes(), path.stat().st_size // 4096
        damage(path, max(int(pages * part[0]), 1), int(pages * part[1]))
        with pytest.raises(StoreError) as e: run(numbered(300), echo, model=model, store=path, concurrency=16)
        assert len(bodies) == 300  # none is paid again
        one_line(e.value, path, "damaged: move it away|Move the file away")
        for p in tmp_path.glob("s.sqlite-*"): p.unlink()
        path.write_bytes(good)
        assert run(numbered(300), echo, model=model, store=path, concurrency=16).kept == whole.kept and len(bodies) == 300


def test_a_text_that_was_damaged_on_the_disk_is_a_fault_of_the_store(tmp_path):
    "SQLite does not see it when the middle of a long text is overwritten"
    path = tmp_path / "s.sqlite"
    with serve(lambda body, n: words(body, size=40_000)) as (model, bodies):
        run(numbered(3), echo, model=model, store=path)
        good = path.read_bytes()
        with open(path, "r+b") as f:
            for page in range(path.stat().st_size // 4096):
                f.seek(page * 4096 + 100)
                if len(set(good[page * 4096 + 100:page * 4096 + 4000])) > 250: f.write(bytes(200))  # within compressed text
        with pytest.raises(StoreError) as e: run(numbered(3), echo, model=model, store=path)
        one_line(e.value, path, "ove the file away|move it away")
        assert len(bodies) == 3


@pytest.mark.parametrize("use", [lambda s, p: s.stats(), lambda s, p: s.export(p), lambda s, p: s.unused(time.time()), lambda s, p: s.vacuum(time.time()), lambda s, p: s.attempts()],
                         ids=["stats", "export", "unused", "vacuum", "attempts"])
def test_all_that_reads_a_damaged_file_says_so_in_one_line(tmp_path, use):
    fill(path := tmp_path / "s.sqlite", 300)
    store = Store(path)
    for i in range(3000): store.fail((call_key(-i), 1.0), kind="refused", message=words({}, size=300))
    store.close()
    damage(path, 20, path.stat().st_size // 4096)
    store = Store(path)
    try:
        with pytest.raises(StoreError) as e: use(store, tmp_path / "e.jsonl")
        one_line(e.value, path, "damaged: move it away|Move the file away")
    finally: store.db.close()


@pytest.mark.parametrize("folder", [0o755, 0o777], ids=["folder too", "file only"])
def test_a_file_that_may_not_be_written(folder):
    place = Path(tempfile.mkdtemp())  # nobody may go through pytest's own folder
    path = place / "s.sqlite"
    try:
        with serve(words) as (model, bodies):
            run(numbered(20), echo, model=model, store=path)
            path.chmod(0o444)
            place.chmod(folder if os.geteuid() == 0 or folder == 0o777 else 0o555)
            script = ("import os, sys; from test_store import *\nif os.geteuid() == 0: os.setuid(65534)\n"
                      "try: run(numbered(20), echo, model=sys.argv[1], store=sys.argv[2])\nexcept StoreError as e: print(e)")
            told = python(script, model, path, stdout=subprocess.PIPE).communicate(timeout=60)[0]
            one_line(told, path, "Check its permissions")
            place.chmod(0o755)
            path.chmod(0o644)
            assert len(run(numbered(20), echo, model=model, store=path).kept) == len(bodies) == 20
    finally:
        place.chmod(0o755)
        shutil.rmtree(place)


LIMITS = pytest.mark.parametrize("options", [{}, {"per_day": 100_000}], ids=["no limits", "per_day"])


@LIMITS
def test_a_file_that_another_program_locks(tmp_path, monkeypatch, options):
    "The run ends soon; what was answered at that moment is all that may be paid twice"
    monkeypatch.setattr("llmdata_nb.run.Store", Hasty)
    path, other = tmp_path / "s.sqlite", []
    def answer(body, n):
        if len(bodies) == 100:
            other.append(sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False))
            other[0].execute("begin exclusive")
        return words(body)
    with serve(answer, seconds=0.01) as (model, bodies):
        started = time.monotonic()
        with within(20), pytest.raises(StoreError) as e: run(numbered(2000), echo, model=model, store=path, concurrency=8, **options)
        assert time.monotonic() - started < 6 and len(bodies) <= 108
        one_line(e.value, path, "locked.*Another program holds it")
        with pytest.raises(StoreError) as e: Hasty(path)
        one_line(e.value, path, "locked.*Another program holds it")
        other[0].execute("rollback")
        other[0].close()
        assert len(run(numbered(200), echo, model=model, store=path, concurrency=8, **options).kept) == 200 and len(bodies) <= 208


@LIMITS
def test_a_full_disk_ends_the_run(tmp_path, options):
    "Soon, in one line, without a warning; and what was written is there when there is room again"
    path = tmp_path / "s.sqlite"
    script = ("import json, sys; from test_store import *\n"
              "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000,) * 2)\n"
              "try: print(run(numbered(10_000), echo, model=sys.argv[1], store=sys.argv[2], concurrency=8, **json.loads(sys.argv[3])))\nexcept StoreError as e: print(e)")
    with serve(lambda body, n: words(body, size=8000), seconds=0.005) as (model, bodies):
        child = python(script, model, path, json.dumps(options), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try: told, warned = child.communicate(timeout=20)
        except subprocess.TimeoutExpired: raise AssertionError(f"the run goes on: {len(bodies)} requests") from child.kill()
        one_line(told, path, "Check the disk, its space|Free some space")
        assert "Traceback" not in warned and "never retrieved" not in warned, warned
        stored = len(calls_of(path))
        assert stored > 20 and len(bodies) - stored <= 8 and len(bodies) < 500
        sent, n = len(bodies), int(max(b["messages"][0]["content"][-5:] for b in bodies)) + 1
        outcome = run(numbered(n), echo, model=model, store=path, concurrency=8, **options)
        assert len(outcome.kept) == n and len(bodies) == sent + n - stored and booked(outcome.ledger) >= len(bodies)


class Small(Store):
    "A disk with room for `most` pages: SQLite says that it is full"
    most = 60
    def _open_file(self):
        db = super()._open_file()
        db.execute(f"pragma max_page_count={self.most}")
        return db


def test_a_full_disk_in_the_middle_of_a_commit(tmp_path):
    path, saved = tmp_path / "s.sqlite", 0
    store = Small(path)
    with pytest.raises(StoreError) as e:
        for i in range(1000):
            store.put(store.sending(call_key(i)), text=words({"n": i}))
            store.commit()
            saved = i + 1
    one_line(e.value, path, "full.*Free some space")
    with pytest.raises(StoreError): store.close()
    store = Store(path)
    assert saved > 20 and store.stats()["calls"] == saved and all(store.get(call_key(i))["text"] == words({"n": i}) for i in range(saved))
    store.close()


@pytest.mark.parametrize("fault", ["full", "limit"])
def test_a_full_disk_in_a_migration_leaves_the_old_layout(tmp_path, monkeypatch, fault):
    "And says that it is full: who is told to move the file away loses what was paid for"
    path = tmp_path / "s.sqlite"
    fill(path, 300)
    as_layout_1(path)
    calls = calls_of(path)
    monkeypatch.setattr(Small, "most", path.stat().st_size // 4096 + 20)
    def work(i):
        if fault == "full": Small(path)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        Store(path)
    (told,) = together(1, work)
    assert rows_of(path, "pragma user_version") == [(1,)] and calls_of(path) == calls
    Store(path).close()
    assert calls_of(path) == calls
    one_line(told, path, "full.*Free some space|I/O.*Check the disk, its space")


class Steady(Hasty):
    "Tries for a fifth of a second at a time, and for as long as it takes"
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.patience = 60.0


def test_answers_that_come_while_another_program_holds_the_file_are_kept(tmp_path, monkeypatch):
    "However long it is held: all that were under way arrive, and are written when it is free"
    monkeypatch.setattr("llmdata_nb.run.Store", Steady)
    path, other, answered = tmp_path / "s.sqlite", [], threading.Event()
    def answer(body, n):
        if len(bodies) == 20:
            other.append(sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False))
            other[0].execute("begin immediate")
            answered.set()
        return words(body)
    with serve(answer, seconds=0.01) as (model, bodies):
        running = in_background(numbered(60), echo, model=model, store=path, concurrency=8)
        assert answered.wait(60)
        time.sleep(1)  # longer than one try takes; how much longer does not matter
        assert not running.done() and len(bodies) <= 28
        other[0].execute("rollback")
        other[0].close()
        assert len(running.result(60).kept) == 60 and len(bodies) == 60 and len(calls_of(path)) == 60


def test_answers_that_cannot_be_written_are_counted(tmp_path):
    path = tmp_path / "s.sqlite"
    store = Hasty(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    for i in range(3): store.put(store.sending(call_key(i)), text="paid for")
    with pytest.raises(StoreError) as e: store.close()
    one_line(e.value, path, "locked.*Another program holds it.*3 answers were not written")
    other.close()


def bomb(size):
    "What unpacks to `size` bytes"
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(b"a" * 1_000_000) for _ in range(size // 1_000_000)) + packer.flush()


@pytest.mark.parametrize("column, size", [("text", 300_000_000), ("text", 17_000_000), ("logprobs", 300_000_000)])
def test_a_text_without_end_in_a_store_of_another_person(tmp_path, column, size):
    "It is refused before it fills the memory; what stands beside it can be read"
    path = tmp_path / "s.sqlite"
    fill(path, 50)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"update calls set {column} = ? where id > 1", (bomb(size),))
    db.close()
    store = Store(path)
    assert len(store.get(call_key(0))["text"]) == 1000
    tracemalloc.start()
    with pytest.raises(StoreError) as e: store.get(call_key(1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one_line(e.value, path, "a text of more than 16,000,000|a text of more than 64,000,000")
    assert peak < 200_000_000
    store.close()


def test_a_place_that_cannot_be_a_store_says_why(tmp_path):
    with pytest.raises(StoreError) as e: Store(tmp_path)
    one_line(e.value, tmp_path, "It is a folder: give the path of a file, such as .*store.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as e: Store(tmp_path / "file" / "s.sqlite")
    one_line(e.value, tmp_path, "A file lies where its folder should be")


def test_a_file_that_may_not_be_opened():
    "The permissions are named, and nobody is told to move the file away"
    place = Path(tempfile.mkdtemp())
    path = place / "s.sqlite"
    try:
        fill(path, 3)
        path.chmod(0o000)
        place.chmod(0o555)
        script = "import os, sys; from test_store import *\nif os.geteuid() == 0: os.setuid(65534)\ntry: Store(sys.argv[1])\nexcept StoreError as e: print(e)"
        told = python(script, path, stdout=subprocess.PIPE).communicate(timeout=60)[0]
        one_line(told, path, r"Check its permissions.*s.sqlite \(-{10}\) cannot be written, .*\(dr-xr-xr-x\) cannot be written")
        assert "ove the file away" not in told
    finally:
        place.chmod(0o755)
        shutil.rmtree(place)


# orders of events

def test_kill_9_at_random_moments(tmp_path):
    "At most the calls in flight are paid again; the last ledger has every request that was ever written down, and all that were sent were"
    path, out, rows, chance, killed, unsent = tmp_path / "s.sqlite", tmp_path / "out", numbered(300), random.Random(20), 0, 0
    script = "import sys; from test_store import *\nrun(numbered(300), two_calls, model=sys.argv[1], store=sys.argv[2], out=sys.argv[3], concurrency=8)"
    with serve(lambda body, n: words(body, size=300), seconds=0.02) as (model, bodies):
        while killed < 3:
            child, before = python(script, model, path, out, stderr=subprocess.DEVNULL), len(bodies)
            while len(bodies) == before and child.poll() is None: time.sleep(0.002)
            time.sleep(chance.uniform(0.02, 0.5))
            child.kill()
            assert child.wait() == -signal.SIGKILL and not [path for path in out.rglob("*") if path.name != ".lock"]
            killed += 1
            time.sleep(0.2)
            unsent = journal(path) - len(bodies)  # written down, and killed before they were sent
            assert 0 <= unsent <= 8 * killed
        assert python(script, model, path, out, stderr=subprocess.DEVNULL).wait(60) == 0
        asked = [json.dumps(b, sort_keys=True) for b in bodies]
        assert len(set(asked)) == 600 and len(asked) - 600 <= 8 * killed
    ledger = json.loads((out / "manifest.json").read_text())["calls"]
    assert booked(ledger) == len(bodies) + unsent == journal(path) and sum(l["calls"] + l["replayed"] for l in ledger) == 600
    kept = pd.read_parquet(out / "data")
    assert list(kept["id"]) == [r["id"] for r in rows] and kept["b"].nunique() == 300


def test_interrupts_at_random_moments(tmp_path):
    "Ctrl-C ends the thread of the run before the store is closed: nothing is sent afterwards, the process does not crash, what was answered is stored"
    path = tmp_path / "s.sqlite"
    script = ("import sys, threading; from test_store import *\nchance = random.Random(4)\nfor n in range(10):\n"
              "    threading.Timer(chance.uniform(0.2, 0.5), lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
              "    try: run(numbered(3000, start=3000 * n), echo, model=sys.argv[1], store=sys.argv[2], concurrency=32)\n"
              "    except BaseException as e:\n        time.sleep(0.2)\n        print(type(e).__name__, str(e), len(sys._current_frames()))")
    with serve(lambda body, n: words(body, size=300), seconds=0.02) as (model, bodies):
        child = python(script, model, path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        told, warned = child.communicate(timeout=60)
        assert child.returncode == 0, f"signal {-child.returncode}: {told}"
        assert told.splitlines() == ["KeyboardInterrupt  1"] * 10 and "Traceback" not in warned, told + warned
        assert len(bodies) > 500 and journal(path) >= len(bodies) and len(bodies) - len(calls_of(path)) <= 32 * 10
        assert rows_of(path, "pragma integrity_check") == [("ok",)]


def test_rows_that_ask_the_same_pay_once(tmp_path):
    async def same(row, ask): return row | {"said": (await ask("the same for all")).text}
    with serve(words, seconds=0.05) as (model, bodies):
        first = run(numbered(50), same, model=model, store=tmp_path / "s.sqlite")
        again = run(numbered(50), same, model=model, store=tmp_path / "s.sqlite")
    assert len(bodies) == 1 and first.kept == again.kept and booked(first.ledger) == booked(again.ledger) == 1


def test_a_call_that_is_given_up_between_answer_and_commit_is_not_lost(tmp_path):
    "What was booked is stored, though nobody waits for it any more"
    async def hasty(row, ask):
        task = asyncio.ensure_future(ask(f"Say {row['id']}", step="say"))
        while not row_ledger.get().lines and not task.done(): await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return row
    path = tmp_path / "s.sqlite"
    with serve(words, seconds=0.02) as (model, bodies):
        run(numbered(60), hasty, model=model, store=path, concurrency=10)
        assert len(calls_of(path)) == len(bodies) == 60 and not attempts_of(path)
        assert len(run(numbered(60), echo, model=model, store=path).kept) == 60 and len(bodies) == 60


def test_a_mistake_of_the_recipe_in_parse_does_not_lose_the_answer(tmp_path):
    "The row fails; the request is in the ledger; with the mistake put right nothing is paid again"
    broken = [True]
    async def recipe(row, ask): return row | {"x": (await ask("hello", parse=lambda text: json.loads(text)["y" if broken[0] else "x"])).parsed}
    with serve(lambda body, n: '{"x": 1}') as (model, bodies):
        first = run(numbered(1), recipe, model=model, store=tmp_path / "s.sqlite")
        assert first.failed[0]["reason"] == "KeyError: 'y'" and booked(first.ledger) == 1
        again = run(numbered(1), recipe, model=model, store=tmp_path / "s.sqlite")
        broken[0] = False
        last = run(numbered(1), recipe, model=model, store=tmp_path / "s.sqlite")
    assert len(again.failed) == 1 and last.kept[0]["x"] == 1 and len(bodies) == 1


def test_a_property_that_need_not_be_there_is_no_failure(tmp_path):
    schema = {"type": "object", "properties": {"x": {"type": "string"}, "note": {"type": "string"}}, "required": ["x"], "additionalProperties": False}
    async def recipe(row, ask): return row | (await ask("hello", schema=schema)).parsed
    with serve(lambda body, n: '{"x": "1"}') as (model, bodies):
        for _ in range(2): outcome = run(numbered(1), recipe, model=model, store=tmp_path / "s.sqlite")
    assert outcome.kept and len(bodies) == 1, outcome.failed


ODD = [{"choices": [{"message": {"content": "fine"}, "finish_reason": ["stop"]}], "usage": {}},
       {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 2**70, "completion_tokens": 1}},
       {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": float("inf"), "completion_tokens": 1}},
       {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "cost": {"usd": 1}}},
       {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop \ud83d"}], "usage": {}},
       {"error": {"message": "this was cut within a character \ud83d"}}]


@pytest.mark.parametrize("odd", ODD, ids=["list", "2**70 tokens", "inf tokens", "cost of its own form", "half a character", "error cut in a character"])
def test_an_odd_answer_hurts_its_own_row_at_most(tmp_path, odd):
    "The run ends, all other answers are stored, and the file is not held"
    path = tmp_path / "s.sqlite"
    def answer(body, n): return (400 if "error" in odd else 200, odd) if body["messages"][0]["content"].endswith("r00005") else words(body)
    with serve(answer, seconds=0.02) as (model, bodies):
        with within(4): outcome = run(numbered(20), echo, model=model, store=path, concurrency=4)
        assert len(outcome.kept) + len(outcome.failed) == 20 and [r["id"] for r in outcome.failed] in ([], ["r00005"]) and len(bodies) == 20
        assert len(calls_of(path)) >= 19 and booked(outcome.ledger) == 20 == journal(path)
        Hasty(path).close()


def test_a_value_that_cannot_be_written_does_not_take_the_others_along(tmp_path):
    "Whatever `put` is given, `saved` comes back, and the file is free afterwards"
    path = tmp_path / "s.sqlite"
    store = Store(path)
    async def one(key, **columns):
        store.put(store.sending(key), **columns)
        await asyncio.wait_for(store.saved(), 2)
    async def all(): return await asyncio.gather(one(b"a" * 16, text="a"), one(b"b" * 16, text="b", prompt_tokens=2**70), one(b"c" * 16, text="c"), return_exceptions=True)
    errors = asyncio.run(all())
    assert not any(isinstance(e, TimeoutError) for e in errors), "saved() never comes back"
    assert not store.db.in_transaction
    store.close()
    assert {b"a" * 16, b"c" * 16} <= set(calls_of(path))


# what is in it

def test_export_has_every_call(tmp_path):
    texts = ["", "short", "line\nline\r\n\u2028\u0085end", "a\x00b", "ж" * 500, "漢字 🙂 العربية" * 50, words({}, size=5000), None]
    store = Store(tmp_path / "s.sqlite")
    for i, text in enumerate(texts): store.put(store.sending(call_key(i)), step="s", model="m", text=text, finish_reason="stop", prompt_tokens=i, completion_tokens=1, usd=0.5, seconds=2.0)
    store.fail(store.sending(b"k"), kind="refused")
    store.commit()
    assert store.export(tmp_path / "e.jsonl") == store.export(tmp_path / "e.jsonl.gz") == len(texts)
    data = (tmp_path / "e.jsonl").read_bytes()
    assert gzip.decompress((tmp_path / "e.jsonl.gz").read_bytes()) == data
    lines = [json.loads(line) for line in data.split(b"\n")[:-1]]
    assert [l["text"] for l in lines] == texts and [l["key"] for l in lines] == [call_key(i).hex() for i in range(len(texts))]
    assert [l["prompt_tokens"] for l in lines] == list(range(len(texts))) and all((l["step"], l["model"], l["finish_reason"], l["usd"], l["seconds"]) == ("s", "m", "stop", 0.5, 2.0) for l in lines)
    assert all(abs(l["created"] - time.time()) < 60 for l in lines)
    store.close()


def test_stats_add_up(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    assert store.stats()["calls"] == 0 and store.stats()["by_step"] == [] and store.stats()["attempts"] == {}
    for i in range(30): store.put(store.sending(call_key(i)), step="ab"[i % 2], model="m", text="x" * 10, prompt_tokens=i, completion_tokens=2, usd=0.25)
    for kind in ("refused", "refused", "server"): store.fail(store.sending(b"k"), kind=kind)
    store.sending(b"lost")
    store.commit()
    assert store.stats()["attempts"] == {"refused": 2, "server": 1, "under way": 1}
    store.close()
    store = Store(tmp_path / "s.sqlite")
    told = store.stats()
    assert (told["calls"], told["prompt_tokens"], told["completion_tokens"], told["usd"], told["bytes"]) == (30, 435, 60, 7.5, 300)
    assert told["attempts"] == {"refused": 2, "server": 1, "lost": 1}
    assert [(s["step"], s["model"], s["calls"]) for s in told["by_step"]] == [("a", "m", 15), ("b", "m", 15)]
    assert sum(s["prompt_tokens"] for s in told["by_step"]) == 435
    store.close()


def test_bytes_are_bytes(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    store.put(store.sending(b"k"), text="ж" * 50)
    store.commit()
    assert store.stats()["bytes"] == 100
    store.close()


def test_vacuum_takes_what_no_run_has_used_since(tmp_path):
    path, month = tmp_path / "s.sqlite", time.time() - 30 * DAY
    with serve(lambda body, n: words(body, size=4000)) as (model, bodies):
        run(numbered(200), echo, model=model, store=path)
        age(path, 40)
        run(numbered(10, start=1000), echo, model=model, store=path)
        run(numbered(50), echo, model=model, store=path)  # uses 50 of the old 200
        store, before, sent = Store(path), path.stat().st_size, len(bodies)
        assert sent == 210 and not store.unused(time.time() - 50 * DAY)
        assert [(u["step"], u["calls"], u["completion_tokens"]) for u in store.unused(month)] == [("say", 150, 750)]
        assert store.vacuum(month) == 150 and not store.unused(month) and store.vacuum(month) == 0 and store.stats()["calls"] == 60
        store.close()
        assert path.stat().st_size < before / 2 and rows_of(path, "pragma integrity_check") == [("ok",)]
        for rows in (numbered(50), numbered(10, start=1000)): assert len(run(rows, echo, model=model, store=path).kept) == len(rows)
        assert len(bodies) == sent
        run(numbered(200), echo, model=model, store=path)
        assert len(bodies) == sent + 150


def test_vacuum_keeps_what_a_replay_needs(tmp_path):
    "An unparseable answer is why the second one was asked for: without it, the first is paid again"
    path = tmp_path / "s.sqlite"
    with serve(strictly) as (model, bodies):
        run(numbered(8), strict, model=model, store=path)
        age(path, 40)
        assert len(run(numbered(8), strict, model=model, store=path).kept) == 8 and len(bodies) == 10
        store = Store(path)
        assert store.vacuum(time.time() - 30 * DAY) == 0
        store.close()
        run(numbered(8), strict, model=model, store=path)
    assert len(bodies) == 10


def test_a_call_that_was_used_an_hour_ago_is_not_unused(tmp_path):
    path = tmp_path / "s.sqlite"
    with serve(words) as (model, bodies): run(numbered(5), echo, model=model, store=path)
    age(path, 0.5)
    with serve(words) as (other, none): run(numbered(5), echo, model=model, store=path)
    store = Store(path)
    assert not none and not store.unused(time.time() - 3600)
    store.close()


@settings(max_examples=400, deadline=None)
@given(st.text() | st.builds(lambda text, n: text * n, st.text(min_size=1), st.integers(1, 500)) | st.text(min_size=150, max_size=400))
def test_any_text_comes_back(text):
    store = Store(":memory:") if not hasattr(test_any_text_comes_back, "store") else test_any_text_comes_back.store
    test_any_text_comes_back.store = store
    key = call_key(text)
    store.put(store.sending(key), text=text, finish_reason=text[:20], step="s")
    store.commit()
    found = store.get(key)
    assert found["text"] == text and found["finish_reason"] == text[:20] and store.get(call_key("other", text)) is None
