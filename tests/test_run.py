"Rows are never lost or doubled, calls never paid twice: under kill -9, failures, interrupts, budgets."
import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from aiohttp import web
from scripted_server import said, serve, translator_and_judge

from llmdata_nb.rowfile import write_parquet
from llmdata_nb.run import drop, estimate, run
from llmdata_nb.translate import translate_and_judge

ROOT = Path(__file__).parents[1]


def conversations(n):
    return [{"id": f"r{i:03}", "messages": [{"role": "user", "content": f"Please tell me something about the number {i}"},
                                            {"role": "assistant", "content": f"Here is what I can tell you about the number {i}"}]} for i in range(n)]


def paid(bodies): return [json.dumps(b, sort_keys=True) for b in bodies]


async def echo(row, ask):
    reply = await ask(f"Say {row['id']}", step="say")
    row["said"] = reply.text
    return row


def test_kill_9_in_mid_run(tmp_path):
    "What was answered before the kill is not asked again, and the rows are those of a run without a kill"
    rows, store, out = conversations(60), tmp_path / "store.sqlite", tmp_path / "out"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    script = ("import json, sys; from llmdata_nb.run import run; from llmdata_nb.translate import translate_and_judge\n"
              "rows = json.load(open(sys.argv[1])); run(rows, translate_and_judge, model=sys.argv[2], store=sys.argv[3], out=sys.argv[4], language='it', concurrency=8)")
    killed = threading.Event()
    async def never(request):
        while not killed.is_set(): await asyncio.sleep(0.02)
        return web.Response(status=500)
    def answer(body, n): return never if len(bodies) >= 110 and not killed.is_set() else translator_and_judge(body)
    with serve(answer, seconds=0.03) as (model, bodies):
        command = [sys.executable, "-c", script, tmp_path / "rows.json", model, store, out]
        first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while len(bodies) < 110: time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        first.wait()
        killed.set()
        assert 110 <= len(bodies) <= 118 and not list(out.rglob("*.parquet"))
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        assert len(bodies) - len(set(paid(bodies))) <= 8  # only those in flight at the kill
        assert len(set(paid(bodies))) == 240
    kept = pd.read_parquet(out / "data")
    assert list(kept["id"]) == [r["id"] for r in rows]


def test_second_run_calls_nothing_and_writes_the_same_bytes(tmp_path):
    rows, options = conversations(5), dict(store=tmp_path / "store.sqlite", language="it")
    with serve(translator_and_judge) as (model, bodies):
        first = run(rows, translate_and_judge, model=model, out=tmp_path / "a", **options)
        count = len(bodies)
        second = run(rows, translate_and_judge, model=model, out=tmp_path / "b", **options)
        assert count == 20 and len(bodies) == count
    assert first.kept == second.kept and len(first.kept) == 5
    for name in ("data/train-00000-of-00001.parquet", "dropped.parquet", "failed.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sum(line["replayed"] for line in second.ledger) == 20 and sum(line["prompt_tokens"] for line in second.ledger) == 400


@pytest.mark.parametrize("verdict", ["I would rather not say.", '{"rationale": "x", "score": 9}', '{"rationale": "x", "score": null}', "", '{"rationale": "8/10'])
def test_a_failed_judgement_is_never_a_pass(tmp_path, verdict):
    "Unjudged rows fail, and the next run asks again"
    broken = [True]
    def answer(body, n):
        text = translator_and_judge(body)
        return verdict if broken[0] and '"score"' in text else text
    with serve(answer) as (model, bodies):
        options = dict(model=model, store=tmp_path / "store.sqlite", language="it")
        outcome = run(conversations(2), translate_and_judge, **options)
        assert not outcome.kept and not outcome.dropped and len(outcome.failed) == 2
        assert all(r["reason"].startswith("judge response: unjudged") and r["response_score"] is None for r in outcome.failed)
        broken[0], before = False, len(bodies)
        again = run(conversations(2), translate_and_judge, **options)
        assert len(again.kept) == 2 and len(bodies) - before == 2  # only the judgements are paid again


def test_every_row_ends_in_one_state(tmp_path):
    "500s and 429s are retried, 400s fail their row, a settled row passes through, an error of the recipe stays with its row"
    async def recipe(row, ask):
        if row["id"] == "bug": return {}["nothing"]
        if row["id"] == "none": return None
        if row["id"] == "drop": drop("too short")
        return await echo(row, ask)
    def answer(body, n):
        name = body["messages"][0]["content"].split()[-1]
        if name == "flaky" and n < 2: return 503, {"error": {"message": "busy"}}, {"Retry-After": "0"}
        if name == "limited" and n < 1: return 429, {"error": "slow down"}, {"Retry-After": "1"}
        if name == "filtered": return 400, {"error": {"message": "content filter"}}
        if name == "moved": return 307, {}, {"Location": "http://127.0.0.1:9/v1/chat/completions"}
        return "fine"
    names = ["good", "flaky", "limited", "filtered", "moved", "bug", "none", "drop"]
    rows = [{"id": n} for n in names] + [{"id": "dup", "dropped": "dedup: same request as good"}, {"id": "line 9", "failed": "load: not JSON"}]
    with serve(answer) as (model, bodies):
        outcome = run(rows, recipe, model=model, store=tmp_path / "s.sqlite")
    assert [r["id"] for r in outcome.kept] == ["good", "flaky", "limited"]
    assert {r["id"]: r["reason"] for r in outcome.dropped} == {"drop": "too short", "dup": "dedup: same request as good"}
    failed = {r["id"]: r["reason"] for r in outcome.failed}
    assert failed["filtered"] == "say: refused (400 content filter)" and failed["moved"].startswith("say: refused (307")
    assert failed["bug"] == "KeyError: 'nothing'" and "did not return this row, but 'None'" in failed["none"] and failed["line 9"] == "load: not JSON"
    assert outcome.manifest()["rows"] == {"in": 10, "kept": 3, "dropped": 2, "failed": 5}
    assert [sum(line[k] for line in outcome.ledger) for k in ("calls", "retries", "failed")] == [3, 3, 2]


def test_budget_stops_before_it_is_passed(tmp_path):
    with serve(lambda body, n: "fine") as (model, bodies):
        outcome = run([{"id": str(i)} for i in range(20)], echo, model=model, store=tmp_path / "s.sqlite", budget="7 calls", concurrency=3)
        assert len(bodies) == 7 and len(outcome.kept) == 7 and len(outcome.failed) == 13
        assert all("over budget" in r["reason"] for r in outcome.failed)
        rest = run([{"id": str(i)} for i in range(20)], echo, model=model, store=tmp_path / "s.sqlite")
        assert len(rest.kept) == 20 and len(bodies) == 20


def test_interrupt_keeps_what_was_answered(tmp_path):
    "Ctrl-C ends the run at once, leaves no thread behind, and the next run goes on"
    rows, interrupted = [{"id": str(i)} for i in range(200)], []
    with serve(lambda body, n: "fine", seconds=0.1) as (model, bodies):
        def interrupt():
            while len(bodies) < 20: time.sleep(0.01)
            interrupted.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        before = threading.active_count()
        with pytest.raises(KeyboardInterrupt): run(rows, echo, model=model, store=tmp_path / "s.sqlite", concurrency=4)
        interrupter.join()
        assert time.monotonic() - interrupted[0] < 5 and threading.active_count() < before
        done = len(bodies)
        assert 20 <= done < 150
        outcome = run(rows, echo, model=model, store=tmp_path / "s.sqlite", concurrency=50)
        assert len(outcome.kept) == 200 and len(bodies) <= 200 + 4


def test_the_store_is_checked_before_anything_is_paid(tmp_path):
    from llmdata_nb.store import StoreError
    bad = tmp_path / "bad.sqlite"
    bad.write_bytes(b"not a database" * 100)
    with serve(lambda body, n: "fine") as (model, bodies):
        with pytest.raises(StoreError, match="bad.sqlite"): run([{"id": "a"}], echo, model=model, store=bad)
        assert not bodies


@pytest.mark.parametrize("how, message", [
    (dict(model="gpt-5", language="it"), "expected embedded"), (dict(model="openai:gpt-5", language="it"), "OPENAI_API_KEY"),
    (dict(model={"judge": "embedded"}, language="it"), "default"), (dict(model="http://127.0.0.1:9/v1#m", language="it"), "cannot be reached"),
    (dict(concurrency=0, language="it"), "concurrency 0"), (dict(budget="lots", language="it"), "budget 'lots'"), (dict(langage="it"), "no argument 'langage'"),
    (dict(language="xx"), "unknown language 'xx'"), ({}, "needs 'language'"), (dict(language="it", english=1), "it takes language")])
def test_bad_arguments_are_one_line_before_any_call(tmp_path, monkeypatch, how, message):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve(translator_and_judge) as (model, bodies):
        with pytest.raises(ValueError, match=message) as e: run(conversations(1), translate_and_judge, **dict(model=model, store=tmp_path / "s.sqlite") | how)
        assert not bodies and "\n" not in str(e.value)


def test_two_models_by_role_and_keys_stay_home(tmp_path, monkeypatch):
    "The judge is another endpoint; each gets its own key, and no key is written anywhere"
    with serve(translator_and_judge) as (model, translated), serve(translator_and_judge) as (judge, judged):
        port = model.split(":")[2].split("/")[0]
        monkeypatch.setenv(f"LLMDATA_API_KEY_127_0_0_1_{port}", "sk-very-secret")
        outcome = run(conversations(2), translate_and_judge, model={"default": model, "judge": judge}, store=tmp_path / "s.sqlite", out=tmp_path / "out", language="it")
    assert len(outcome.kept) == 2 and len(translated) == len(judged) == 4
    assert {b.headers.get("Authorization") for b in translated} == {"Bearer sk-very-secret"} and {b.headers.get("Authorization") for b in judged} == {None}
    for p in tmp_path.rglob("*"):
        if p.is_file(): assert b"sk-very-secret" not in p.read_bytes(), p


@pytest.mark.parametrize("budget, usage, sent", [("2.5 usd", {"cost": 1.0}, 2), ("100 tokens", {}, 4), ("0.01 usd", {"cost": None}, 1), ("10 tokens", None, 1), ("7 calls", {}, 7)])
def test_budget_is_never_passed_however_many_are_under_way(tmp_path, budget, usage, sent):
    "The first call goes alone where its cost is not known before; one whose cost is not told is the last"
    def answer(body, n):
        data = said("fine")
        data["usage"] = {**data["usage"], **usage} if usage is not None else None
        return 200, data
    with serve(answer, seconds=0.02) as (model, bodies):
        outcome = run([{"id": str(i)} for i in range(100)], echo, model=model, store=tmp_path / "s.sqlite", budget=budget)
    assert len(bodies) == sent == len(outcome.kept) and all("over budget" in r["reason"] for r in outcome.failed)


@pytest.mark.parametrize("choice", [{"message": {"content": None}, "finish_reason": "content_filter"}, {"message": {"content": "half"}, "finish_reason": "error"}, None, {"message": []}])
def test_an_answer_without_text_is_a_failure_and_not_stored(tmp_path, choice):
    good = [False]
    def answer(body, n): return "fine" if good[0] else (200, {"choices": [choice]})
    with serve(answer) as (model, bodies):
        first = run([{"id": "a"}], echo, model=model, store=tmp_path / "s.sqlite")
        good[0] = True
        second = run([{"id": "a"}], echo, model=model, store=tmp_path / "s.sqlite")
    assert first.failed[0]["reason"].startswith("say: ") and first.ledger[0]["failed"] == 1 and second.kept[0]["said"] == "fine"


@pytest.mark.parametrize("translation", [None, {"text": "Come stai oggi, amico mio?"}, 4])
def test_a_translation_that_is_no_text_is_never_kept(tmp_path, translation):
    with serve(lambda body, n: json.dumps({"translation": translation})) as (model, bodies):
        outcome = run(conversations(1), translate_and_judge, model=model, store=tmp_path / "s.sqlite", language="it")
    assert outcome.failed[0]["reason"].startswith("translate instruction: unparseable")


def test_a_stricter_parse_pays_once(tmp_path):
    async def recipe(row, ask):
        def parse(text):
            if text != "good": raise ValueError(text)
            return text
        await ask("hello")
        row["said"] = (await ask("hello", parse=parse)).parsed
        return row
    with serve(lambda body, n: "good" if body["temperature"] else "bad") as (model, bodies):
        for _ in range(3): assert run([{"id": "a"}], recipe, model=model, store=tmp_path / "s.sqlite").kept
    assert len(bodies) <= 3


def test_any_row_can_be_written(tmp_path):
    rows = [{"id": "a", "meta": {}, "n": 2**70, "x": float("nan")}, {"id": "b", "meta": {"k": []}, "n": "text", "x": b"bytes"}]
    async def keep(row, ask): return row
    with serve(lambda body, n: "") as (model, bodies): outcome = run(rows, keep, model=model, store=tmp_path / "s.sqlite", out=tmp_path / "out")
    assert list(pd.read_parquet(tmp_path / "out" / "data")["id"]) == ["a", "b"] and len(outcome.kept) == 2


def test_a_recipe_must_be_async_and_return_its_row(tmp_path):
    def plain(row, ask): return row
    async def other(row, ask): return {"id": "x"}
    with serve(lambda body, n: "") as (model, bodies):
        with pytest.raises(ValueError, match="expected an async function"): run([{"id": "a"}], plain, model=model, store=tmp_path / "s.sqlite")
        outcome = run([{"id": "a"}, {"id": None}], other, model=model, store=tmp_path / "s.sqlite")
    assert len(outcome.failed) == 2 and "did not return this row" in outcome.failed[0]["reason"]


def test_code_that_gets_lost_is_asked_for_once_more_then_dropped(tmp_path):
    row = {"id": "a", "messages": [{"role": "user", "content": "What does `len(x)` give for a list of words?"},
                                   {"role": "assistant", "content": "The function `len(x)` gives the number of words in it."}]}
    def answer(body, n):
        prompt = body["messages"][0]["content"]
        if "<message>" not in prompt: return translator_and_judge(body)
        if "What does" not in prompt: return json.dumps({"translation": "La funzione restituisce il numero di parole che contiene."})
        code = "`len(x)`" if len(body["messages"]) > 1 else "la funzione"
        return json.dumps({"translation": f"Che cosa restituisce {code} per una lista di parole?"})
    with serve(answer) as (model, bodies):
        outcome = run([row], translate_and_judge, model=model, store=tmp_path / "s.sqlite", language="it")
    again = [b["messages"][-1]["content"] for b in bodies if len(b["messages"]) > 1]
    assert len(again) == 2 and all("lost `len(x)`" in text for text in again)
    (dropped,) = outcome.dropped
    assert dropped["reason"] == "response: lost `len(x)`" and dropped["bad_translation"].startswith("La funzione restituisce il numero")
    assert dropped["messages"][0]["content"] == "Che cosa restituisce `len(x)` per una lista di parole?" and dropped["instruction_label"] == "high"
    assert len(bodies) == 5  # the judge of the response was never paid


def test_multi_turn_translates_every_turn(tmp_path):
    turns = [("system", "You are a kind helper for people with questions about number 1"), ("user", "Tell me about the number that comes after 2"),
             ("assistant", "The number that you are looking for is the number 3"), ("user", "And which number would then come next after 4"), ("assistant", "That would then be the next number which is 5")]
    row = {"id": "a", "messages": [{"role": r, "content": c} for r, c in turns]}
    with serve(translator_and_judge) as (model, bodies):
        one = run([row], translate_and_judge, model=model, store=tmp_path / "s.sqlite", language="it")
        all_turns = run([row], translate_and_judge, model=model, store=tmp_path / "s.sqlite", language="it", multi_turn=True, fidelity=True)
    assert [m["role"] for m in one.kept[0]["messages"]] == ["system", "user", "assistant"]
    assert [m["role"] for m in all_turns.kept[0]["messages"]] == [r for r, _ in turns]
    assert all_turns.kept[0]["fidelity_score"] == 4 and len(all_turns.kept[0]["source_messages"]) == 5


def test_a_conversation_without_a_response_fails_and_says_so(tmp_path):
    rows = [{"id": "a", "messages": [{"role": "user", "content": "Hello?"}]}, {"id": "b", "messages": []}, {"id": "c", "text": "no conversation"}]
    with serve(translator_and_judge) as (model, bodies):
        outcome = run(rows, translate_and_judge, model=model, store=tmp_path / "s.sqlite", language="it")
    assert not bodies and len(outcome.failed) == 3 and "this one has user" in outcome.failed[0]["reason"]


def test_rows_stream_in_order_with_flat_memory(tmp_path):
    "Thirty thousand rows that finish in any order, from a generator, in a process that never holds many of them"
    script = """
import asyncio, random, resource, sys
import llmdata_nb.run as r
async def recipe(row, ask):
    if random.random() < 0.2: await asyncio.sleep(random.random() / 20)
    if row["n"] % 3 == 0: r.drop("third")
    row["text"] = f"{row['n']:06}" * 700
    return row
started = 0
def rows():
    global started
    for started in range(30_000): yield {"id": str(started), "n": started, "seen": None if started < 25_000 else 1.5}
def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
import pyarrow.parquet, pyarrow.json, aiohttp
before = memory()
outcome = r.run(rows(), recipe, model="http://127.0.0.1:9/v1#m", store=sys.argv[1], out=sys.argv[2])
assert [row["n"] for row in outcome.kept] == [n for n in range(30_000) if n % 3] and outcome.kept[-1]["seen"] == 1.5
assert len(outcome.dropped) == 10_000 and outcome.manifest()["rows"] == {"in": 30_000, "kept": 20_000, "dropped": 10_000, "failed": 0}
print(memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "s.sqlite", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 50, f"{done.stdout} MB more for 84 MB of rows"
    kept = pd.read_parquet(tmp_path / "out" / "data")
    assert list(kept["n"]) == [n for n in range(30_000) if n % 3] and kept["seen"].count() == sum(1 for n in range(25_000, 30_000) if n % 3)
    assert sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file()) == [".lock", "dropped.parquet", "failed.parquet", "manifest.json", "train-00000-of-00001.parquet"]


def test_one_row_that_hangs_holds_up_few(tmp_path):
    "A row that does not end keeps others from being written, but only so many are begun after it"
    import llmdata_nb.run as module
    begun = []
    async def recipe(row, ask):
        begun.append(row["id"])
        if row["id"] == "0":
            while len(begun) < module.AHEAD: await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)
            assert len(begun) <= module.AHEAD
        return row
    outcome = run(({"id": str(i)} for i in range(module.AHEAD + 500)), recipe, model="http://127.0.0.1:9/v1#m", store=tmp_path / "s.sqlite")
    assert not outcome.failed and [r["id"] for r in outcome.kept] == [str(i) for i in range(module.AHEAD + 500)]


def test_an_id_that_comes_twice(tmp_path):
    async def keep(row, ask): return row
    options = dict(model="http://127.0.0.1:9/v1#m", store=tmp_path / "s.sqlite")
    with pytest.raises(ValueError, match="'a' stands on more than one row"): run([{"id": "a"}, {"id": "a"}], keep, **options)
    outcome = run(iter([{"id": "a"}, {"id": "b"}, {"id": "a"}]), keep, **options)
    assert [r["id"] for r in outcome.kept] == ["a", "b"] and "more than one row" in outcome.failed[0]["reason"]


def test_the_ledger_counts_each_request_once_and_by_state(tmp_path):
    "Over a run with failures and one that replays it: the sum is what the server was sent, and each state has its share"
    def answer(body, n):
        name = body["messages"][0]["content"].split()[-1]
        if name.startswith("busy") and n == 0: return 500, {"error": "busy"}
        return 400 if name.startswith("bad") else 200, {"error": "no"} if name.startswith("bad") else said("fine")
    async def recipe(row, ask):
        row = await echo(row, ask)
        if row["id"].startswith("drop"): drop("not wanted")
        return row
    rows, options = [{"id": f"{kind}{i}"} for kind in ("good", "busy", "bad", "drop") for i in range(5)], dict(store=tmp_path / "s.sqlite")
    with serve(answer) as (model, bodies):
        def run_once(): return run(rows, recipe, model=model, **options)
        first = run_once()
        (line,) = first.ledger
        assert [line[k] for k in ("calls", "replayed", "retries", "failed", "lost")] == [15, 0, 5, 5, 0] and len(bodies) == 25
        (line,) = run_once().ledger
        assert [line[k] for k in ("calls", "replayed", "retries", "failed", "lost")] == [0, 15, 10, 5, 0] and len(bodies) == 30
        assert line["prompt_tokens"] == 15 * 20 and {s: sum(l["calls"] + l["failed"] for l in lines) for s, lines in first.states.items()} == {"kept": 10, "failed": 5, "dropped": 5}


def test_a_bug_in_the_recipe_loses_no_paid_answer(tmp_path):
    def parse(text): return {}["no such key"]
    async def recipe(row, ask):
        await ask("hello", parse=parse)
        return row
    with serve(lambda body, n: "fine") as (model, bodies):
        for _ in range(2):
            outcome = run([{"id": "a"}], recipe, model=model, store=tmp_path / "s.sqlite")
            assert outcome.failed[0]["reason"] == "KeyError: 'no such key'"
    assert len(bodies) == 1


def test_an_estimate_costs_nothing_twice(tmp_path):
    def answer(body, n):
        data = said("fine")
        data["usage"] |= {"cost": 0.001 * len(body["messages"][0]["content"])}
        return 200, data
    async def recipe(row, ask):
        row["said"] = (await ask(f"Say {row['text']}", step="say")).text
        return row
    rows = [{"id": str(i), "text": "word " * (i + 1) + str(i)} for i in range(200)] + [{"id": "settled", "dropped": "dedup"}]
    with serve(answer) as (model, bodies):
        told = estimate(rows, recipe, model=model, store=tmp_path / "s.sqlite")
        assert len(bodies) == 10 and told.rows == 200 and told.calls == {"mean": 200, "low": 200, "high": 200}
        outcome = run(rows, recipe, model=model, store=tmp_path / "s.sqlite")
        assert len(bodies) == 200
        usd = sum(line["usd"] for line in outcome.ledger)
        assert told.usd["low"] < usd < told.usd["high"] and abs(told.usd["mean"] / usd - 1) < 0.05 and "200 rows, judged by 10 of them" in repr(told)
        assert estimate(rows[:5], recipe, model=model, store=tmp_path / "s.sqlite", per_minute=1).minutes["mean"] >= 5
        with pytest.raises(ValueError, match="no row"): estimate(rows[-1:], recipe, model=model, store=tmp_path / "s.sqlite")


def test_rows_begin_in_their_order_also_far_ahead(monkeypatch):
    "The first row hangs: those that wait for it begin in the order of the input, whoever wakes first"
    import asyncio
    import random

    from llmdata_nb import engine
    monkeypatch.setattr(engine, "AHEAD", 3)
    begun = []
    async def recipe(row, ask):
        begun.append(row["id"])
        await asyncio.sleep(0.3 if row["id"] == "0" else random.random() / 50)
        return row
    with serve(lambda body, n: "x") as (model, bodies): run([{"id": str(i)} for i in range(40)], recipe, model=model, store=":memory:", concurrency=8)
    assert begun == [str(i) for i in range(40)]


@pytest.mark.parametrize("options, message", [(dict(until=2.5), "until 2.5: expected a whole number"), (dict(until=0), "until 0: expected a whole number"), (dict(until=3, least=5), "least 5: expected a share")])
def test_until_and_least_are_checked(options, message):
    async def recipe(row, ask): return row
    with serve(lambda body, n: "x") as (model, bodies), pytest.raises(ValueError, match=message): run([{"id": "a"}], recipe, model=model, store=":memory:", **options)


def digests(folder):
    names = ("data/train-00000-of-00001.parquet", "dropped.parquet", "failed.parquet")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names if (folder / name).exists()}


def manifest(folder): return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("step", range(1, 5))
def test_a_kill_between_the_files_is_seen(tmp_path, step):
    "The manifest names each file with its digest: new rows beside an old manifest are told apart, and the next run writes all again"
    store, out = tmp_path / "store.sqlite", tmp_path / "out"
    script = """if 1:
        import os, sys
        from pathlib import Path
        from llmdata_nb.run import drop, run
        step, replace = int(sys.argv[4]), Path.replace
        done = []
        def renamed(path, target):
            replace(path, target)
            done.append(target)
            if len(done) == step: os._exit(9)
        if step: Path.replace = renamed
        async def recipe(row, ask):
            reply = await ask(f"Say {row['id']}", step="say")
            if row["id"] == "b": drop("second")
            if row["id"] == "c": raise ValueError("third")
            return row | {"said": reply.text, "step": step}
        run([{"id": id} for id in "abcd"], recipe, model=sys.argv[1], store=sys.argv[2], out=sys.argv[3])
        """
    with serve(lambda body, n: "hello") as (model, bodies):
        def start(step): return subprocess.run([sys.executable, "-c", script, model, store, out, str(step)], stderr=subprocess.PIPE, text=True)
        first = start(0)
        assert first.returncode == 0, first.stderr
        assert len(bodies) == 4 and manifest(out)["files"] == digests(out) and len(digests(out)) == 3
        assert start(step).returncode == 9
        rows_are_new = set(pd.read_parquet(out / "data")["step"]) == {step}
        assert rows_are_new and (manifest(out)["files"] == digests(out)) == (step == 4)  # the fourth is the manifest itself
        assert start(0).returncode == 0 and len(bodies) == 4
        assert manifest(out)["files"] == digests(out) and not list(out.rglob("*.new"))


def until_asked(bodies):
    while not bodies: time.sleep(0.01)


def test_a_second_run_into_the_same_folder_ends_at_once(tmp_path):
    "It makes no call, in another process and in another thread; when the first is killed, the folder is free"
    out, go_on = tmp_path / "out", threading.Event()
    async def held(request):
        while not go_on.is_set(): await asyncio.sleep(0.02)
        return web.json_response({"choices": [{"message": {"content": "hello"}}]})
    script = """if 1:
        import sys
        from llmdata_nb.run import run
        async def recipe(row, ask): return row | {"said": (await ask(f"Say {row['id']}", step="say")).text}
        run([{"id": "a"}], recipe, model=sys.argv[1], store=sys.argv[2], out=sys.argv[3])
        """
    def options(name): return dict(store=tmp_path / name, out=out)
    with serve(lambda body, n: held) as (model, bodies):
        def start(name): return subprocess.Popen([sys.executable, "-c", script, model, tmp_path / name, out], stderr=subprocess.PIPE, text=True)
        first = start("1.sqlite")
        until_asked(bodies)
        (out / "dropped.parquet.0123abcd.new").write_text("what a run that was killed has left")
        second = start("2.sqlite")
        said_so = second.communicate()[1].splitlines()[-1]
        assert second.returncode == 1 and said_so.startswith(f"ValueError: {out}: another run is writing to this folder. Wait until"), said_so
        with pytest.raises(ValueError, match="another run is writing"): run([{"id": "a"}], echo, model=model, **options("3.sqlite"))
        assert len(bodies) == 1 and list(out.rglob("*.new"))
        first.kill()
        first.wait()
        go_on.set()
        assert len(run([{"id": "a"}], echo, model=model, **options("4.sqlite")).kept) == 1
        assert not list(out.rglob("*.new"))

        go_on.clear()
        del bodies[:]
        thread = threading.Thread(target=run, args=([{"id": "b"}], echo), kwargs=dict(model=model, **options("5.sqlite")))
        thread.start()
        until_asked(bodies)
        with pytest.raises(ValueError, match="another run is writing"): run([{"id": "c"}], echo, model=model, **options("6.sqlite"))
        go_on.set()
        thread.join()
        assert len(bodies) == 1 and list(pd.read_parquet(out / "data")["id"]) == ["b"] and manifest(out)["files"] == digests(out)


@pytest.mark.parametrize("text", ['{"source": "rows.js', "[1, 2]", "{}", "\x00" * 40, "[" * 100_000])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with serve(lambda body, n: "hello") as (model, bodies), pytest.raises(ValueError, match=r"manifest\.json .*: move that file away and run again: no call is paid twice"):
        run([{"id": "a"}], echo, model=model, store=tmp_path / "s.sqlite", out=tmp_path)
    assert not bodies


@pytest.mark.parametrize("rows", [3, 5000])  # the second one fills the disk while it runs
def test_a_full_disk_is_explained(tmp_path, rows, monkeypatch):
    "The answers are in the store: with room there, a second run makes no call. The earlier dataset stays whole meanwhile"
    import pyarrow.parquet as pq
    out, store = tmp_path / "out", tmp_path / "s.sqlite"
    async def recipe(row, ask):
        if row["n"] < 3: row["said"] = (await ask(f"Say {row['n']}", step="say")).text
        return row
    def start(): return run([{"id": str(n), "n": n} for n in range(rows)], recipe, model=model, store=store, out=out)
    class FullDisk(pq.ParquetWriter):
        def write_table(self, *_): raise OSError(28, "Error writing bytes to file")
    with serve(lambda body, n: "hello") as (model, bodies):
        run([{"id": "old", "n": 0}], recipe, model=model, store=tmp_path / "old.sqlite", out=out)
        before = digests(out)
        monkeypatch.setattr(pq, "ParquetWriter", FullDisk)
        with pytest.raises(OSError, match=r"out: the rows could not be written \(No space left on device\)\. Every answer is in the store: make room"): start()
        descriptors = Path("/proc/self/fd")
        held = [name for name in descriptors.iterdir() if str(out) in os.path.realpath(name)] if descriptors.exists() else []
        assert not sum(os.stat(name).st_size for name in held)  # the room it took is free again, though the error is still at hand
        assert digests(out) == before == manifest(out)["files"] and not list(out.rglob("*.new")) and len(bodies) == 4
        monkeypatch.undo()
        assert len(start().kept) == rows and len(bodies) == 4


def test_what_was_written_is_read_back(tmp_path, monkeypatch):
    "A column that no reader opens is named"
    from llmdata_nb import rowfile
    schema = rowfile._arrow_schema
    def too_deep(kinds):
        import pyarrow as pa
        found = schema(kinds)
        return pa.schema([pa.field("deep", pa.list_(nested(pa, 80))) if field.name == "deep" else field for field in found])
    def nested(pa, n): return pa.string() if n == 0 else pa.list_(nested(pa, n - 1))
    monkeypatch.setattr(rowfile, "_arrow_schema", too_deep)
    with pytest.raises(ValueError, match="rows.parquet: what was written cannot be read .column 'deep': .*: have the recipe return it as text"):
        rowfile.write_parquet([{"id": "a", "deep": None}], tmp_path / "rows.parquet")
    assert not (tmp_path / "rows.parquet").exists()


def nested(levels, kind):
    value = "text"
    for _ in range(levels): value = [value] if kind is list else {"in": value}
    return value


@pytest.mark.parametrize("kind", [list, dict])
@pytest.mark.parametrize("levels", [19, 20, 60, 120, 400])
def test_what_is_nested_deep_can_be_read_by_all(tmp_path, kind, levels):
    "From twenty levels on it is JSON text"
    import pyarrow.parquet as pq
    from datasets import load_dataset
    rows = [{"id": "a", "deep": nested(levels, kind), "n": 1}, {"id": "b", "deep": None, "n": 2}]
    path = tmp_path / "rows.parquet"
    write_parquet(rows, path)
    loaded = load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"), split="train")
    deep = pq.read_table(path)["deep"].to_pylist()[0]
    assert pd.read_parquet(path)["n"].tolist() == [1, 2] == loaded["n"] and loaded[0]["deep"] == deep
    assert (deep if levels == 19 else json.loads(deep)) == rows[0]["deep"]


def test_an_object_whose_names_are_ids_gives_no_column_for_each(tmp_path):
    import pyarrow.parquet as pq
    rows = [{"id": str(n), "scores": {f"of {n}": n}} for n in range(3000)]
    write_parquet(rows, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    assert str(table.schema.field("scores").type) == "string" and json.loads(table["scores"][2999].as_py()) == {"of 2999": 2999}


class Mute:
    def __str__(self): raise RuntimeError("no text")
    __repr__ = __str__


class Undecided:
    def __eq__(self, other): raise TypeError("cannot be compared")
    __hash__ = None


def itself():
    row = {"n": 1}
    row["itself"] = [row]
    return row


ODD = {
    "a row in itself": itself,
    "half a character": lambda: {"half \ud83d": 1},
    "half a character deep in it": lambda: {"deep": [{"half \ud83d": 1}]},
    "a NUL": lambda: {"a\0b": 1},
    "the same as text": lambda: {1: "x", "1": "y"},
    "the same as text, deep": lambda: {"deep": {1: "x", "1": "y"}},
    "pairs": lambda: {("a", "b"): 1},
    "pairs, deep": lambda: {"messages": [{("a", "b"): 1}]},
    "true and null": lambda: {"deep": {True: 1, None: 2}},
    "without a text": lambda: {"mute": Mute()},
    "without a text, deep": lambda: {"deep": [Mute()]},
    "deep": lambda: {"deep": nested(10_000, list)},
    "many digits": lambda: {"digits": 10**5000},
}


@pytest.mark.parametrize("of", ["recipe", "list", "generator"])
def test_one_odd_row_fails_alone(tmp_path, of):
    "It is failed, with a reason that names the column; all other rows are written, and the counts agree"
    out, names = tmp_path / "out", list(ODD)
    async def recipe(row, ask):
        row["said"] = (await ask(f"Say {row['id']}", step="say")).text
        if of == "recipe" and row["id"] in ODD: row |= ODD[row["id"]]()
        return row
    def given(id): return {"id": id} | (ODD[id]() if of != "recipe" and id in ODD else {})
    rows = [given(id) for id in ["first", *names, "last"]]
    with serve(lambda body, n: "hello") as (model, bodies):
        outcome = run(iter(rows) if of == "generator" else rows, recipe, model=model, store=tmp_path / "s.sqlite", out=out)
    failed = pd.read_parquet(out / "failed.parquet").set_index("id")["reason"]
    assert list(pd.read_parquet(out / "data")["id"]) == ["first", "last"] and list(failed.index) == names
    assert all(reason.startswith("writing: column ") and "cannot be written (" in reason for reason in failed), failed.tolist()
    assert "column 'deep' cannot be written (nested more than 500 deep, or in itself)" in failed["deep"]
    assert len(bodies) == (2 if of != "recipe" else 2 + len(ODD))  # what cannot be written is found before it is paid for
    counts = manifest(out)
    assert counts["rows"] == {"in": 2 + len(ODD), "kept": 2, "dropped": 0, "failed": len(ODD)} and sum(r["rows"] for r in counts["reasons"]) == len(ODD)
    by_state = {state: sum(line["calls"] for line in lines) for state, lines in counts["calls_by_state"].items()}
    assert by_state.get("kept") == 2 and by_state.get("failed", 0) == len(bodies) - 2 and counts["files"] == digests(out)


def test_odd_results_and_errors_fail_their_row(tmp_path):
    class Silent(Exception):
        def __str__(self): raise RuntimeError("no text")
    async def recipe(row, ask):
        if row["id"] == "a": raise Silent()
        if row["id"] == "b": return Mute()
        if row["id"] == "c": return row | {"id": Undecided()}
        if row["id"] == "d": return nested(10_000, list)
        if row["id"] == "e": drop(Mute())
        return row
    outcome = run([{"id": id} for id in "abcdef"], recipe, model="http://127.0.0.1:9/v1#m", store=tmp_path / "s.sqlite", out=tmp_path / "out")
    assert [row["id"] for row in outcome.kept] == ["f"] and len(outcome.failed) + len(outcome.dropped) == 5


def test_what_is_no_row_in_a_stream_fails_alone(tmp_path):
    async def recipe(row, ask): return row
    options = dict(model="http://127.0.0.1:9/v1#m", store=tmp_path / "s.sqlite")
    outcome = run(iter([{"id": "a"}, 7, {"id": "b"}]), recipe, **options)
    assert [row["id"] for row in outcome.kept] == ["a", "b"] and outcome.failed[0]["reason"].startswith("row 1 is int, expected a dict")
    with pytest.raises(ValueError, match="row 1 is int"): run([{"id": "a"}, 7], recipe, **options)


def test_rows_of_much_text_are_written_a_few_at_a_time(tmp_path):
    "Arrow reads 2 GB at once at most"
    import pyarrow.parquet as pq
    write_parquet([{"id": str(n), "text": f"{n:>20000000}"} for n in range(8)], tmp_path / "rows.parquet")
    file = pq.ParquetFile(tmp_path / "rows.parquet")
    assert file.num_row_groups == 2 and file.read(["id"]).num_rows == 8
