"The same rows on two Ray nodes as in one process; nothing lost when a node or the driver dies; one limit and one budget for all."
import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web
from scripted_server import said, serve

from llmdata_nb import cluster
from llmdata_nb.dedup import mark_duplicates, near_duplicates
from llmdata_nb.engine import hold_folder
from llmdata_nb.models import Budget
from llmdata_nb.run import run
from recipes import deadly, impatient, two_calls

STATES = ("kept", "dropped", "failed")


def rows(n): return [{"id": f"{i:06}", "n": i} if i % 50 else {"id": f"{i:06}", "failed": "load: a bad line"} for i in range(n)]
def content(outcome): return [sorted(json.dumps(row, sort_keys=True) for row in getattr(outcome, state)) for state in STATES]
def counted(lines): return sorted(tuple(line[k] for k in ("step", "calls", "replayed", "retries", "failed", "lost", "prompt_tokens")) for line in lines)
def sent(outcome): return sum(line[k] for line in outcome.ledger for k in ("calls", "replayed", "retries", "failed", "lost"))
def journal(folder): return sum(sqlite3.connect(path).execute("select (select count(*) from calls) + (select count(*) from attempts)").fetchone()[0] for path in Path(folder).rglob("*.sqlite"))
def repeats(bodies): return sum(n - 1 for n in Counter(json.dumps(body, sort_keys=True) for body in bodies).values())


def answer(body, n):
    text = body["messages"][0]["content"]
    return (400, {"error": {"message": "a content filter"}}) if text.startswith("Judge") and text.endswith("77") else f"well, {text[-6:]}"


def test_the_same_rows_as_run_and_the_same_ledger(nodes):
    with serve(answer, seconds=0.02) as (model, bodies):
        alone = run(rows(5000), two_calls, model=model, out="alone", word="ciao")
        assert len(bodies) == sent(alone)
        bodies.clear()
        many = cluster.run(rows(5000), two_calls, model=model, out="many", word="ciao")
        assert content(many) == content(alone) and all(content(many)) and len(bodies) == sent(many)
        assert [row["id"] for row in many.kept] == [row["id"] for row in alone.kept]  # the order of the input
        assert counted(many.ledger) == counted(alone.ledger) and [counted(many.states[s]) for s in STATES[:2]] == [counted(alone.states[s]) for s in STATES[:2]]
        for name in ("data/train-00000-of-00001.parquet", "dropped.parquet", "failed.parquet"): assert Path("many", name).read_bytes() == Path("alone", name).read_bytes()
        there = {p.name: p.stat().st_mtime_ns for p in Path("many.shards").glob("part-*")}
        bodies.clear()
        again = cluster.run(rows(5000), two_calls, model=model, out="many", word="ciao")  # every shard has rows that a filter refused, which are tried again
        assert content(again) == content(many) and len(bodies) == 50 == repeats(bodies) + 50 and len(there) == 5
        assert counted(again.ledger) == counted(run(rows(5000), two_calls, model=model, out="alone", word="ciao").ledger)


def test_finished_shards_are_left_alone_and_new_rows_are_added(nodes):
    with serve(lambda body, n: "well", seconds=0.01) as (model, bodies):
        first = cluster.run(rows(1500), two_calls, model=model, out="out", shared="shards", stores="$OWN/stores")
        assert len(list(nodes.own.glob("*/stores/*.sqlite"))) == 2
        assert not list(Path("shards").rglob("*.sqlite")) and {p.parent.name for p in Path("shards").rglob("part-*")} == {"out"}
        before, _ = bodies.copy(), bodies.clear()
        parts = {p.name: p.stat().st_mtime_ns for p in Path("shards").rglob("part-*")}
        more = cluster.run(rows(1510), two_calls, model=model, out="out", shared="file://" + str(Path("shards").absolute()), stores="$OWN/stores")
        after = {p.name: p.stat().st_mtime_ns for p in Path("shards").rglob("part-*")}
        assert [name for name in parts if name.startswith("part-00000")] == [name for name in parts if parts[name] == after.get(name)] and len(after) == 2
        assert len(more.kept) > len(first.kept) and len(bodies) in (17, 947)  # those of the new rows, or, where the second shard went to the other node, all of its own
        assert sum(line["calls"] + line["replayed"] for line in more.ledger) == len({json.dumps(b) for b in [*before, *bodies]})
        with pytest.raises(ValueError, match="two_calls has no argument 'wrd'"): cluster.run(rows(10), two_calls, model=model, out="out2", wrd="x")


@pytest.mark.parametrize("stores", ["shared", "$OWN/stores"])
def test_a_node_dies(nodes, stores):
    with serve(lambda body, n: "well, " + body["messages"][0]["content"][-6:], seconds=0.05) as (model, bodies):
        def kill():
            while len(bodies) < 3000: time.sleep(0.02)
            nodes.remove_node(nodes.other, allow_graceful=False)
        killer = threading.Thread(target=kill)
        killer.start()
        outcome = cluster.run(rows(4000), two_calls, model=model, out="out", shards=20, shared="shared", stores=stores if "$" in stores else None)
        killer.join()
    ids = Counter(row["id"] for state in STATES for row in getattr(outcome, state))
    assert len(ids) == 4000 and set(ids.values()) == {1} and len(outcome.failed) == 80
    assert 1 <= len(outcome.about["workers_lost"]) <= 2
    paid_twice = repeats(bodies)
    assert paid_twice <= (64 if stores == "shared" else 2 * 400)
    if stores == "shared": assert sent(outcome) == journal("shared") and 0 <= sent(outcome) - len(bodies) <= 64


DRIVER = """
import sys
from llmdata_nb import cluster
from recipes import two_calls
cluster.run([{"id": f"{i:06}"} for i in range(3000)], two_calls, model=sys.argv[1], out="out", shards=15, address=sys.argv[2])
"""


def test_the_driver_dies(nodes):
    with serve(lambda body, n: "well, " + body["messages"][0]["content"][-6:], seconds=0.05) as (model, bodies):
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, model, nodes.address], env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}, stderr=subprocess.PIPE)
        while len(list(Path("out.shards").glob("part-*"))) < 4:
            assert driver.poll() is None, driver.stderr.read().decode()
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        while time.time() < bodies[-1].time + 3: time.sleep(0.1)  # Ray ends the workers of a driver that is gone
        parts, before = {p: p.stat().st_mtime_ns for p in Path("out.shards").glob("part-*")}, len(bodies)
        outcome = cluster.run([{"id": f"{i:06}"} for i in range(3000)], two_calls, model=model, out="out", shards=15)
    assert before < len(bodies) and all(p.stat().st_mtime_ns == t for p, t in parts.items()) and 4 <= len(parts) < 15
    assert len(outcome.kept) + len(outcome.dropped) == 3000 and repeats(bodies) <= 64
    assert sent(outcome) == journal("out.shards") and 0 <= sent(outcome) - len(bodies) <= 64  # what was written down, and killed before it was sent or read


def test_a_limit_of_a_hundred_requests_a_second_holds_over_all_workers(nodes):
    with serve(lambda body, n: "well", seconds=0.05) as (model, bodies):  # what this machine does without a limit
        cluster.run([{"id": f"{i:06}"} for i in range(400)], two_calls, model=model, out="free", shards=4)
        able = len(bodies) / (bodies[-1].time - bodies[0].time)
    room, last, times = [20.0], [time.time()], []
    def limited(body, n):
        now = time.time()
        room[0], last[0] = min(20.0, room[0] + 100 * (now - last[0])), now
        if room[0] < 1: return 429, {"error": {"message": "slow down"}}, {"Retry-After": "1"}
        room[0] -= 1
        times.append(now)
        return "well"
    with serve(limited, seconds=0.05) as (model, bodies):
        outcome = cluster.run([{"id": f"{i:06}"} for i in range(1500)], two_calls, model=model, out="out", shards=4)
    ideal, took = len(times) / min(100, able), times[-1] - times[0]
    assert not outcome.failed and len(times) == 1500 + 1350
    assert len(bodies) - len(times) <= 0.08 * len(times) and took <= 1.25 * ideal, (len(bodies), took, ideal)


def test_requests_per_day_and_budget_hold_over_all_workers(nodes):
    with serve(lambda body, n: "well", seconds=0.01) as (model, bodies):
        first = cluster.run(rows(400), two_calls, model=model, out="a", shards=4, budget="100 calls")
        assert len(bodies) == 100 and all("over budget" in row["reason"] or "bad line" in row["reason"] for row in first.failed)
        bodies.clear()
        shared = Budget("50 calls")
        cluster.run(rows(400), two_calls, model=model, out="a", shards=4, budget=shared)
        assert len(bodies) == 50 == shared.spent
        bodies.clear()
        limited = cluster.run(rows(400), two_calls, model=model, out="a", shards=4, per_day=200)  # 150 were sent today, known to the store of the project
        assert len(bodies) == 50 and any("200 requests per day is used up" in row["reason"] for row in limited.failed)
        bodies.clear()
        rest = run(rows(400), two_calls, model=model, out="b", per_day=201)  # which `run` reads too
        assert len(bodies) == 1 and len(rest.failed) > 100


def test_rows_that_wait_for_the_budget_may_go_and_an_unlimited_one_is_none(nodes, tmp_path):
    "The first call goes alone; it is answered when half of the rows that waited for it have given up: the others get what is left"
    (tmp_path / "gave_up").mkdir()
    def answer(body, n):
        if len(bodies) > 1: return "well"
        first = body["messages"][0]["content"][-6:]
        (tmp_path / "new").write_text(first)
        (tmp_path / "new").rename(tmp_path / "first")
        async def late(request):
            deadline = time.time() + 100
            while len(list((tmp_path / "gave_up").iterdir())) < 30 - (int(first) % 2 == 0) and time.time() < deadline: await asyncio.sleep(0.02)
            return web.json_response(said("well"))
        return late
    with serve(answer) as (model, bodies):
        outcome = cluster.run([{"id": f"{i:06}"} for i in range(60)], impatient, model=model, out="a", shards=2, budget="400 tokens", concurrency=32, folder=str(tmp_path))
        told = Counter(row["said"] for row in outcome.kept)
        assert told["well"] == len(bodies) == 16 and told["nothing"] in (29, 30) and told["no money"] == 44 - told["nothing"]  # 25 tokens a call
        whole = cluster.run([{"id": f"{i:06}"} for i in range(60)], two_calls, model=model, out="b", shards=2, budget=Budget())
        assert len(whole.kept) == 54 and not whole.failed
        with pytest.raises(ValueError, match="shards 2.5"): cluster.run([{"id": "a"}], two_calls, model=model, out="b", shards=2.5)


def test_a_recipe_that_uses_something_else_is_another_recipe(nodes):
    Path("helpers").mkdir()
    def write(word):
        Path("helpers/helping.py").write_text(f"WORD = '{word}'\ndef say(): return WORD\n")
        Path("helpers/mine.py").write_text("from helping import say\nasync def mine(row, ask):\n    row['said'] = (await ask(say() + row['id'], max_tokens=9)).text\n    return row\n")
    code = "import sys; sys.path.insert(0, 'helpers'); from mine import mine; from llmdata_nb import cluster; print(len(cluster.run([{'id': 'a'}], mine, model=sys.argv[1], out='out', address=sys.argv[2]).kept))"
    with serve(lambda body, n: body["messages"][0]["content"]) as (model, bodies):
        for word, asked in (("one", 1), ("one", 1), ("two", 2)):
            write(word)
            assert subprocess.run([sys.executable, "-B", "-c", code, model, nodes.address], capture_output=True, text=True).stdout == "1\n"
            assert len(bodies) == asked


def test_a_pause_that_one_worker_is_told_holds_for_all(nodes):
    paused = []
    def busy(body, n):
        if len(bodies) == 150: paused.append(time.time())
        if paused and time.time() < paused[0] + 1: return 429, {"error": {"message": "a break"}}, {"Retry-After": "6"}
        return "well"
    with serve(busy, seconds=0.05) as (model, bodies):
        outcome = cluster.run([{"id": f"{i:06}"} for i in range(600)], two_calls, model=model, out="out", shards=6)
    during = [b for b in bodies if paused[0] + 2 < b.time < paused[0] + 5.9]  # what was under way may still arrive
    assert not during and not outcome.failed


def test_a_shard_that_kills_its_workers_is_given_up_and_the_others_are_not(nodes):
    with serve(lambda body, n: "well", seconds=0.01) as (model, _):
        some = [{"id": f"{i:06}"} | ({"dropped": "dedup: a copy"} if i == 31 else {}) for i in range(60)]
        outcome = cluster.run(some, deadly, model=model, out="out", shards=3)
        assert [len(getattr(outcome, state)) for state in STATES] == [36, 5, 19] and "dedup: a copy" in [row["reason"] for row in outcome.dropped] and "its shard took 3 workers with it" in outcome.failed[0]["reason"]
        whole = cluster.run([{"id": f"{i:06}"} for i in range(60)], deadly, model=model, out="out", shards=3, word="other")
    assert [len(getattr(whole, state)) for state in STATES] == [54, 6, 0] and len(whole.about["workers_lost"]) == 0


def test_what_is_wrong_is_said_before_anything_is_paid(nodes, monkeypatch):
    with serve(lambda body, n: "well") as (model, bodies):
        with pytest.raises(ValueError, match="machine .* cannot be reached"): cluster.run(rows(10), two_calls, model="http://127.0.0.1:9/v1#m", out="out")
        with pytest.raises(ValueError, match="machine .* set OPENAI_API_KEY"): cluster.run(rows(10), two_calls, model="openai:gpt-4.1-mini", out="out")
        with pytest.raises(ValueError, match="more than one row"): cluster.run(rows(10) * 2, two_calls, model=model, out="out")
        with pytest.raises(ValueError, match="shards -1"): cluster.run(rows(10), two_calls, model=model, out="out", shards=-1)
        for held, out, shared in (("out", "out", None), ("shared/run/out", "run/out", "shared")):  # by another run: the dataset, the parts
            with hold_folder(held), pytest.raises(ValueError, match="another run is writing to this folder"):
                cluster.run(rows(10), two_calls, model=model, out=out, shared=shared)
        monkeypatch.setattr(cluster, "__version__", "9.9")
        with pytest.raises(ValueError, match="llmdata_nb is .* here, and 9.9 where the run was begun"): cluster.run(rows(10), two_calls, model=model, out="out")
    assert not bodies and not list(Path("out").rglob("*.parquet"))


def test_rows_of_a_file_by_a_model_of_two_servers(nodes):
    Path("rows.jsonl").write_text("".join(json.dumps({"id": str(i), "messages": [{"role": "user", "content": f"q {i}"}]}) + "\n" for i in range(300)) + "no JSON\n")
    with serve(lambda body, n: "well", seconds=0.02) as (one, first), serve(lambda body, n: "well", seconds=0.02) as (two, second):
        outcome = cluster.run("rows.jsonl", two_calls, model=f"{one.partition('#')[0]},{two}", out="out", shards=3)
    assert len(outcome.kept) + len(outcome.dropped) == 300 and "line 301" in outcome.failed[0]["reason"] and outcome.about["source"] == "rows.jsonl"
    assert min(len(first), len(second)) > 0.3 * (len(first) + len(second))


def test_near_duplicates_are_those_of_one_process(nodes):
    import random
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(3000)]
    texts = [" ".join(draw.choices(words, k=30)) for _ in range(11_000)]
    for i in range(500):  # over all blocks: exact ones, near ones, copies of copies, and a crowd
        copy = draw.choice(texts).split()
        for place in draw.sample(range(len(copy)), draw.choice([0, 0, 1, 2])): copy[place] = draw.choice(words)
        texts[draw.randrange(len(texts))] = " ".join(copy)
    for i in range(300): texts[draw.randrange(len(texts))] = f"Write a poem about the {draw.choice(words)} that nobody in this whole wide world has ever seen with open eyes"
    for place in (5, 6, 10_500): texts[place] = " "
    groups = [str(i % 2) for i in range(len(texts))]
    here = near_duplicates(texts)
    assert cluster.near_duplicates(texts) == here and sum(copy is not None for copy in here) > 400
    assert cluster.near_duplicates(texts[:6000], 0.7, "datasketch", groups[:6000]) == near_duplicates(texts[:6000], 0.7, "datasketch", groups[:6000])
    for many in ([*texts[:5000], " "], [" "] * 6000, [*texts[:5000], *texts[:50], "\ud800"]):
        assert cluster.near_duplicates(many) == near_duplicates(many)
    mixed = [i % 2 or str(i % 2) for i in range(5500)]
    assert cluster.near_duplicates(texts[:2750] * 2, groups=mixed) == near_duplicates(texts[:2750] * 2, groups=mixed)
    asking = [{"id": str(i), "messages": [{"role": "user", "content": text}]} for i, text in enumerate(texts[-2000:])]
    assert mark_duplicates(asking, find=cluster.near_duplicates) == mark_duplicates(asking)
    assert cluster.near_duplicates([]) == [] and cluster.near_duplicates(["a", "b", "a"]) == [None, None, 0]
    with pytest.raises(ValueError, match="threshold must be"): cluster.near_duplicates(texts, 2)
