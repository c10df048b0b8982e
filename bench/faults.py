"""Faults of servers and machines against runs of `translate_and_judge`: is a row lost or wrong, is a call paid twice?

    python bench/faults.py                      # all cases with 1,000 rows: some minutes
    python bench/faults.py --quick              # all cases with few rows: a minute or two
    python bench/faults.py --only kill,shards   # these

The server is a process of its own that counts what it is asked, so the figures do not rest on our ledger. What it
answers depends on the request alone; which request meets a fault, on the request and on how often it came before.

Columns of the table:
- `calls`: the different ones that were asked. `requests`: what reached the server.
- `needed`: the calls, and one more for each request that the fault itself spoiled (an error, a reset, a hang, a refusal
  at random, a run killed while it was under way), since that must be sent again. A refusal because of too high a pace
  is not among them.
- `lost`: rows that are in no file; good ones that were dropped; those that failed though the server did not refuse them
  for good.
- `doubled`: rows that are there twice. `wrongly kept`: those that are bad, of another run, or have another text.
- `paid twice`: good answers to calls that had one already.
- `broken`: which bound is; the exit code is 1 if one is. Nothing may be lost, doubled or wrongly kept. Requests may be
  1.1 × needed, and 1.02 × where processes have the same rows. With --quick it is 1.3 × where a limit must be found
  first: eight processes send some 200 requests over it before they know of it, however long their run is. Nothing is
  paid twice but what was under way at a kill: 64 calls."""
import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

CONCURRENCY = 64
PAUSE = 10  # seconds that a server asks for where it pauses
ASKED, GIVEN = ("Please tell me something about the number", "Here is what I can tell you about the number")
ASKED_IN_ITALIAN = "Raccontami per favore qualcosa sul numero"
GIVEN_IN_ITALIAN = "Ecco quello che posso raccontarti sul numero"


# The rows, and what must become of them

def conversation(number):
    request = {"role": "user", "content": f"{ASKED} {number}"}
    response = {"role": "assistant", "content": f"{GIVEN} {number}"}
    return {"id": f"r{number}", "messages": [request, response]}


def has_bad_request(number): return number % 10 == 0
def has_bad_response(number): return number % 4 == 1
def is_good(number): return not has_bad_request(number) and not has_bad_response(number)
def right_texts(number): return [f"{ASKED_IN_ITALIAN} {number}", f"{GIVEN_IN_ITALIAN} {number}"]


# The server

FAULTS = {  # name → shares of the requests that meet it; and what else it does
    "none": {},
    "5 % 500": dict(error=0.05),
    "2 % reset, 0.5 % hang": dict(reset=0.02, hang=0.005),
    "5 % malformed verdicts": dict(malformed=0.05),
    "1 % 400": dict(refused=0.01),
    "100 requests a second, Retry-After 1": dict(per_second=100),
    "5 % 429 at random, Retry-After 1": dict(busy=0.05),
    "all together": dict(error=0.03, reset=0.01, hang=0.005, malformed=0.03, refused=0.01, busy=0.01)}


def chance(key, times, kind):
    "A number from 0 to 1 that depends on the request, how often it came before, and the kind of fault"
    digest = hashlib.sha256(f"{kind} {times} {key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def number_in(prompt): return int(re.findall(r"\b(?:number|numero) (\d+)", prompt)[-1])


def is_verdict(body):
    "Whether the request asks for a judgement: the texts to translate are the only English ones"
    return ASKED not in str(body["messages"]) and GIVEN not in str(body["messages"])


def right_answer(body):
    "What a good model answers"
    prompt = str(body["messages"])
    number = number_in(prompt)
    if not is_verdict(body):
        translated = right_texts(number)[prompt.rfind(GIVEN) > prompt.rfind(ASKED)]
        return {"translation": translated}
    rationale = {"rationale": "Ecco il perché."}
    if GIVEN_IN_ITALIAN in prompt: return rationale | {"score": 1 if has_bad_response(number) else 5}
    labels = body["response_format"]["json_schema"]["schema"]["properties"]["label"]["enum"]
    return rationale | {"label": labels[0 if has_bad_request(number) else -1]}


class Server:
    "What it does, and what it has counted"
    def __init__(self, fault, seconds):
        self.fault, self.seconds = fault, seconds
        self.came, self.answered = Counter(), Counter()  # request → how often it came, and was answered well
        self.met = Counter()                             # kind of fault → how many requests met it
        self.refused, self.malformed = set(), Counter()  # rows; (row, whether its response is judged) → how often
        self.second = self.in_second = self.last_row = 0
        self.pause_until, self.released = None, asyncio.Event()
        if "hold" not in fault: self.released.set()

    def counts(self):
        sent_again = ("pause", "busy", "error", "reset", "hang")
        spoiled = sum(self.met[kind] for kind in sent_again)
        paid_twice = sum(times - 1 for times in self.answered.values())
        unjudged = {number for (number, _), times in self.malformed.items() if times > 1}
        calls = len(self.came)
        return dict(requests=self.came.total(), calls=calls, needed=calls + spoiled, paid_twice=paid_twice,
                    hopeless=sorted(self.refused | unjudged), paused=bool(self.pause_until), last_row=self.last_row)

    def is_too_fast(self):
        "Whether this request is one too many in this second"
        now = int(time.monotonic())
        if now != self.second: self.second, self.in_second = now, 0
        self.in_second += 1
        return self.in_second > self.fault.get("per_second", float("inf"))

    def is_in_pause(self):
        "Whether the server pauses, as it does once, after so many requests"
        if self.came.total() < self.fault.get("pause_after", float("inf")): return False
        if not self.pause_until: self.pause_until = time.monotonic() + PAUSE
        return time.monotonic() < self.pause_until

    def fault_of(self, key, body):
        "The kind of fault that this request meets, or None"
        if self.is_too_fast(): return "too fast"
        if self.is_in_pause(): return "pause"
        if chance(key, 0, "refused") < self.fault.get("refused", 0): return "refused"  # always the same requests
        for kind in ("busy", "error", "reset", "hang", "malformed"):
            fits = kind != "malformed" or is_verdict(body)
            if fits and chance(key, self.came[key], kind) < self.fault.get(kind, 0): return kind


def refusal(status, message, **headers):
    from aiohttp import web
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


def completion(text):
    from aiohttp import web
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 20, "completion_tokens": 5}})


async def spoiled_response(server, kind, request, body):
    "What the server does to a request that meets a fault of this `kind`"
    number = number_in(str(body["messages"]))
    if kind == "refused": server.refused.add(number)
    if kind == "malformed": server.malformed[number, GIVEN_IN_ITALIAN in str(body)] += 1
    if kind == "reset": request.transport.abort()
    if kind == "hang": await asyncio.sleep(60)
    if kind in ("too fast", "busy"): return refusal(429, kind, **{"Retry-After": "1"})
    if kind == "pause": return refusal(429, kind, **{"Retry-After": str(PAUSE)})
    if kind == "refused": return refusal(400, "The text was stopped by the content filter")
    if kind == "malformed": return completion("Il testo è")
    return refusal(500, "internal error")  # after a reset or a hang nobody hears it


async def respond(server, request):
    body = await request.json()
    key = json.dumps(body, sort_keys=True)
    kind = server.fault_of(key, body)
    server.came[key] += 1
    server.met[kind] += 1
    server.last_row = max(server.last_row, number_in(str(body["messages"])))
    if kind: return await spoiled_response(server, kind, request, body)
    await server.released.wait()
    await asyncio.sleep(server.seconds)
    server.answered[key] += 1
    return completion(json.dumps(right_answer(body)))


def serve(fault, seconds):
    "Serve until the process is ended; the first line of stdout is the port"
    from aiohttp import web
    server = None

    async def post(request): return await respond(server, request)

    async def get(request):
        if request.path == "/release": server.released.set()
        listed = {"data": [{"id": "m"}]}
        return web.json_response(listed if request.path == "/v1/models" else server.counts())

    async def start():
        nonlocal server
        server = Server(fault, seconds)
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/{path:.*}", post)
        app.router.add_get("/{path:.*}", get)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(start())


# A run, as a process

def set_clock_back(model, seconds):
    "Set this process's clock back while the server pauses"
    real_time = time.time
    while not counts_of(model)["paused"]: time.sleep(0.02)
    time.sleep(PAUSE / 4)  # by now the run knows of the pause
    time.time = lambda: real_time() - seconds


def work(options):
    "One run over the rows that `options` names"
    from llmdata_nb.run import run
    from llmdata_nb.translate import translate_and_judge
    if options.clock_back:
        threading.Thread(target=set_clock_back, args=(options.model, options.clock_back), daemon=True).start()
    rows = [conversation(number) for number in range(options.first, options.first + options.rows)]
    run(rows, translate_and_judge, model=options.model, store=options.store, out=options.out, language="it",
        concurrency=options.concurrency, timeout=options.timeout)


def counts_of(model, path="/counts"):
    "What the server at `model` has counted; `/release` lets it answer what it has held"
    url = model.partition("/v1")[0] + path
    with urllib.request.urlopen(url, timeout=60) as response: return json.load(response)


class Case:
    "A server with a fault, a folder, and the runs that are started on them"
    def __init__(self, folder, rows, fault={}, seconds=0.02):
        self.folder, self.rows, self.ran = Path(folder), rows, []  # of each run: its process, its folder and its rows
        command = [sys.executable, __file__, "serve", json.dumps(fault), str(seconds)]
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.model = f"http://127.0.0.1:{self.server.stdout.readline().strip()}/v1#m"
        self.started = time.monotonic()

    def start(self, out="out", first=0, rows=None, concurrency=CONCURRENCY, timeout=900, clock_back=0):
        rows = rows or self.rows
        options = dict(model=self.model, store=self.folder / "store.sqlite", out=self.folder / out, first=first,
                       rows=rows, concurrency=concurrency, timeout=timeout, clock_back=clock_back)
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        errors = open(self.folder / f"errors-{len(self.ran)}.txt", "w")
        process = subprocess.Popen([sys.executable, __file__, "work", *words], stderr=errors, stdout=errors)
        self.ran.append((process, self.folder / out, range(first, first + rows)))
        return process

    def wait_for(self, requests):
        "Until so many requests have come, or all runs are over"
        while counts_of(self.model)["requests"] < requests:
            if all(process.poll() is not None for process, *_ in self.ran): return
            time.sleep(0.01)

    def wait(self):
        for process, *_ in self.ran: process.wait()
        self.seconds = time.monotonic() - self.started

    def errors(self):
        "What the runs that failed said last"
        failed = [i for i, (process, *_) in enumerate(self.ran) if process.returncode not in (0, -signal.SIGKILL)]
        texts = [(self.folder / f"errors-{i}.txt").read_text().split("\n") for i in failed]
        return [[line for line in text if line.strip()][-1] for text in texts]

    def close(self):
        for process, *_ in self.ran:
            if process.poll() is None: process.kill()
        self.server.kill()


# What became of the rows, read from the files alone

STATES = {"kept": "data/*.parquet", "dropped": "dropped.parquet", "failed": "failed.parquet"}


def rows_of(out, state):
    import pyarrow.parquet as pq
    return [row for path in sorted(out.glob(STATES[state])) for row in pq.read_table(path).to_pylist()]


def is_right(row):
    number = int(row["id"][1:])
    return is_good(number) and [message["content"] for message in row["messages"]] == right_texts(number)


def is_in_place(id, number, ids, hopeless):
    "Whether the row is where it belongs"
    if id in ids["kept"]: return True  # whether rightly, is another question
    if id in ids["dropped"]: return not is_good(number)
    return id in ids["failed"] and number in hopeless


def faults_of_rows(out, numbers, hopeless):
    "How many of the rows are lost, doubled, and wrongly kept in the folder `out`"
    rows = {state: rows_of(out, state) for state in STATES}
    ids = {state: {row["id"] for row in rows[state]} for state in STATES}
    there = Counter(row["id"] for state in STATES for row in rows[state])
    expected = {f"r{number}": number for number in numbers}
    lost = [id for id, number in expected.items() if not is_in_place(id, number, ids, hopeless)]
    wrong = [row for row in rows["kept"] if row["id"] not in expected or not is_right(row)]
    return Counter({"lost": len(lost), "doubled": there.total() - len(there), "wrongly kept": len(wrong)})


def result(name, case, needed=None, most_twice=0, most_ratio=1.1):
    "The line of the table for a case whose runs are over"
    counts, rows = counts_of(case.model), Counter()
    folders = {out: numbers for _, out, numbers in case.ran}  # a run that was started again has the same folder
    for out, numbers in folders.items(): rows += faults_of_rows(out, numbers, set(counts["hopeless"]))
    needed = needed or counts["needed"]
    ratio = counts["requests"] / needed
    broken = [f"{count} {what}" for what, count in rows.items() if count]
    if ratio > most_ratio: broken.append(f"more than {most_ratio} × needed")
    if counts["paid_twice"] > most_twice: broken.append(f"more than {most_twice} paid twice")
    return {"case": name, "calls": counts["calls"], "requests": counts["requests"], "needed": needed,
            "ratio": f"{ratio:.3f}", "lost": rows["lost"], "doubled": rows["doubled"],
            "wrongly kept": rows["wrongly kept"],
            "paid twice": counts["paid_twice"], "seconds": f"{case.seconds:.1f}",
            "broken": "; ".join([*broken, *case.errors()])}


# The cases: each is given `options` and yields lines of the table

@contextlib.contextmanager
def new_case(*args, **options):
    with tempfile.TemporaryDirectory() as folder:
        case = Case(folder, *args, **options)
        try: yield case
        finally: case.close()


def one_run(name, rows, fault, most_ratio=1.1, **options):
    with new_case(rows, fault) as case:
        case.start(**options)
        case.wait()
        return result(name, case, most_ratio=most_ratio)


def ratio_with_limit(options): return 1.3 if options.quick else 1.1


def kills(options):
    "kill -9 at random moments of a run, which is then started again"
    calls = one_run("", options.rows, {})["needed"]
    for moment in sorted(random.Random(options.seed).sample(range(calls), options.kills)):
        with new_case(options.rows) as case:
            first = case.start()
            case.wait_for(moment)
            first.kill()
            first.wait()
            case.start()
            case.wait()
            counts = counts_of(case.model)
            needed = counts["needed"] + min(counts["paid_twice"], CONCURRENCY)
            yield result(f"kill -9 after {moment:,} requests", case, needed, most_twice=CONCURRENCY)


def fault_classes(options):
    "Faults of a server, one at a time and together"
    for name, fault in FAULTS.items():
        most_ratio = ratio_with_limit(options) if "per_second" in fault else 1.1
        yield one_run(f"fault: {name}", options.rows, fault, most_ratio, timeout=5 if "hang" in fault else 900)


def clock(options):
    "The clock goes back by an hour while the server has asked for a pause"
    fault = dict(pause_after=options.rows)
    yield one_run("fault: clock back 1 h in a pause", options.rows, fault, clock_back=3600)


def locked(options):
    "Another process holds the store for longer than requests may take"
    with new_case(options.rows) as case:
        case.start(timeout=options.locked / 3)
        case.wait_for(options.rows)
        holder = sqlite3.connect(case.folder / "store.sqlite", timeout=60, isolation_level=None)
        holder.execute("begin immediate")
        time.sleep(options.locked)
        holder.execute("rollback")
        holder.close()
        case.wait()
        yield result(f"fault: store locked {options.locked} s", case)


def same_rows(options):
    "Several processes with one store and the same rows"
    with new_case(options.rows // 5, seconds=0.5) as case:
        for i in range(8): case.start(f"out-{i}")
        case.wait()
        yield result("eight processes, the same rows", case, most_ratio=1.02)
    for apart in (0, 1):
        with new_case(options.rows // 10, seconds=0.5) as case:
            case.start("out-0")
            time.sleep(apart)
            case.start("out-1")
            case.wait()
            yield result(f"two processes, the same rows, {apart} s apart", case, most_ratio=1.02)


def shards(options):
    "Eight processes with one store, rows of their own, and one endpoint with a limit"
    with new_case(options.rows // 8, dict(per_second=100)) as case:
        for i in range(8): case.start(f"out-{i}", first=i * case.rows, concurrency=16)
        case.wait()
        yield result("eight shards, 100 requests a second", case, most_ratio=ratio_with_limit(options))


def one_folder(options):
    "A second run into the folder of the first: it must end before it asks anything"
    rows = options.rows // 5
    needed = one_run("", rows, {})["needed"]
    with new_case(rows, dict(hold=True)) as case:
        case.start()
        case.wait_for(1)
        second = case.start(first=rows)
        while second.poll() is None and counts_of(case.model)["last_row"] < rows: time.sleep(0.05)
        counts_of(case.model, "/release")
        case.wait()
        case.ran.pop()
        line = result("two runs into one folder", case, needed=needed)
        if second.returncode == 0: line["broken"] += "; the second run was not refused"
        yield line


CASES = dict(kill=kills, fault=fault_classes, clock=clock, locked=locked,
             same=same_rows, shards=shards, folder=one_folder)
COLUMNS = ("case", "calls", "requests", "needed", "ratio", "lost", "doubled", "wrongly kept", "paid twice",
           "seconds", "broken")


def main(options):
    print(f"| {' | '.join(COLUMNS)} |\n|--|{'--:|' * 9}--|", flush=True)
    wanted = [case for name, case in CASES.items() if not options.only or name in options.only.split(",")]
    lines = []
    for case in wanted:
        for line in case(options):
            lines.append(line)
            print(f"| {' | '.join(str(value) for value in line.values())} |", flush=True)
    sys.exit(any(line["broken"] for line in lines))


def read_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="of a run; runs side by side have fewer")
    parser.add_argument("--only", help=f"cases, with commas between them: {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="few rows, three kills, a short lock")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--locked", type=int, default=30, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.quick: options.rows, options.kills, options.locked = 100, 3, 6
    return options


def read_work():
    "The options of a run, which this script starts itself"
    parser = argparse.ArgumentParser()
    for name in ("model", "store", "out"): parser.add_argument(f"--{name}")
    for name in ("first", "rows", "concurrency", "clock-back"): parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--timeout", type=float)
    return parser.parse_args(sys.argv[2:])


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]: serve(json.loads(sys.argv[2]), float(sys.argv[3]))
    elif sys.argv[1:2] == ["work"]: work(read_work())
    else: main(read_options())
