"""Rows by the million, replay, and eight processes on one limited endpoint: run by hand against a fast OpenAI-compatible server.

    python bench/engine.py scale --model http://127.0.0.1:8901/v1#mock --rows 10000,100000,1000000
    python bench/engine.py share --model http://127.0.0.1:8901/v1#mock --processes 8 --rows 400

`scale` sends each number of rows through a recipe of one call, and then again, from the store: time, rows per second, peak memory.
`share` starts processes with one store on one endpoint and says how long each took: with a limit on the server, the sum of their
rates should be that limit, and their times about equal."""
import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llmdata_nb.run import run


async def ask_once(row, ask):
    row["answer"] = (await ask(f"Say something about {row['id']}", max_tokens=100, step="say")).text
    return row


def timed(model, rows, store, out=None, **options):
    started = time.time()
    outcome = run(({"id": f"{i:07}"} for i in rows), ask_once, model=model, store=store, out=out, source="bench", **options)
    return time.time() - started, outcome


def scale(model, n, store, out):
    for what in ("calls", "replay"):
        seconds, outcome = timed(model, range(n), store, out)
        assert len(outcome.kept) == n and outcome.kept[n - 1]["id"] == f"{n - 1:07}"
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{n:>9,} rows, {what}: {seconds:8.1f} s, {n / seconds:8,.0f} rows/s, peak {memory:.0f} MB, store {store.stat().st_size / 2**20:.0f} MB", flush=True)


def share(model, processes, n, store):
    command = [sys.executable, __file__, "one", "--model", model, "--store", store]
    started = time.time()
    runs = [subprocess.Popen([*map(str, command), "--rows", str(n), "--first", str(i * n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in range(processes)]
    for i, r in enumerate(runs):
        out, errors = r.communicate()
        print(f"process {i}: {out.strip() or errors.strip()[-300:]}")
    seconds = time.time() - started
    print(f"{processes} processes, {processes * n} calls in {seconds:.1f} s: {processes * n / seconds:.1f} calls/s")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["scale", "share", "one"])
    p.add_argument("--model", required=True)
    p.add_argument("--rows", default="10000,100000")
    p.add_argument("--processes", type=int, default=8)
    p.add_argument("--store")
    p.add_argument("--first", type=int, default=0)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if a.what == "scale":
            for n in map(int, a.rows.split(",")):  # each in a process of its own, for its own peak of memory
                if "," in a.rows: subprocess.run([sys.executable, __file__, "scale", "--model", a.model, "--rows", str(n)], check=True)
                else: scale(a.model, n, Path(folder) / "store.sqlite", Path(folder) / "out")
        elif a.what == "share": share(a.model, a.processes, int(a.rows), Path(folder) / "store.sqlite")
        else:
            seconds, outcome = timed(a.model, range(a.first, a.first + int(a.rows)), a.store, concurrency=16)
            (line,) = outcome.ledger
            print(f"{len(outcome.kept)} kept, {len(outcome.failed)} failed, {seconds:.1f} s, {line['retries']} retries; {outcome.failed[0]['reason'] if outcome.failed else ''}")
