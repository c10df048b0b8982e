"Several servers of one model: the load is shared, a dead one is left out and put back, and what was paid is replayed whatever servers there are."
import asyncio
import time
from contextlib import ExitStack

import pytest
from scripted_server import serve

from llmdata_nb.models import EndpointError, endpoint
from llmdata_nb.run import run


async def say(row, ask):
    row["said"] = (await ask(f"Say {row['id']}", max_tokens=10, step="say")).text
    return row


def rows(n, first=0): return [{"id": str(i)} for i in range(first, first + n)]
def address(model): return model.partition("#")[0]


def test_each_server_gets_what_it_can_take(project):
    with serve(lambda body, n: "well", seconds=0.02) as (quick, many), serve(lambda body, n: "well", seconds=0.1) as (slow, few):
        outcome = run(rows(400), say, model=f"{address(quick)},{slow}", concurrency=16)
        assert len(outcome.kept) == 400 == len(many) + len(few) and 2.5 < len(many) / len(few) < 8  # by the places that are free, so by speed
        (line,) = outcome.ledger
        assert line["model"] == f"{address(quick)},{slow}" and line["calls"] == 400
        run(rows(400), say, model=quick)  # the first address names the fleet in the store
        assert len(many) + len(few) == 400


def test_a_server_that_dies_loses_no_row_and_is_put_back(project):
    def port(model): return int(address(model).rpartition(":")[2].removesuffix("/v1"))
    with serve(lambda body, n: "well", seconds=0.05) as (one, _), ExitStack() as dies, ExitStack() as returns:
        other, before = dies.enter_context(serve(lambda body, n: "well", seconds=0.05))
        after = []
        def source():
            for row in rows(1600):
                if row["id"] == "300": dies.close()
                if row["id"] == "400": after.append(returns.enter_context(serve(lambda body, n: "again", seconds=0.05, port=port(other)))[1])
                yield row
        outcome = run(source(), say, model=f"{address(one)},{other}", concurrency=16)
    assert len(outcome.kept) == 1600 and len(before) > 100 and len(after[0]) > 100 and {row["said"] for row in outcome.kept} == {"well", "again"}
    (line,) = outcome.ledger
    assert line["calls"] == 1600 and line["failed"] == 0 and 1 <= line["retries"] <= 32  # the requests that met the dead one


def test_no_server_of_a_fleet_can_be_reached(project):
    with pytest.raises(EndpointError, match="cannot be reached"): run(rows(1), say, model="http://127.0.0.1:9/v1,http://127.0.0.1:10/v1#m")
    with serve(lambda body, n: (401, {"error": "no"}), models=401) as (closed, bodies):  # nor one that refuses the key
        with pytest.raises(EndpointError): run(rows(1), say, model=f"http://127.0.0.1:9/v1,{closed}")
        assert len(bodies) == 1


def test_a_pause_that_one_server_asks_for_sends_all_to_the_other(project):
    told = []
    def busy(body, n):
        told.append(time.time())
        return 429, {"error": {"message": "a break"}}, {"Retry-After": "30"}
    with serve(busy) as (one, _), serve(lambda body, n: "well", seconds=0.01) as (two, served):
        started = time.time()
        outcome = run(rows(200), say, model=f"{address(one)},{two}", concurrency=8)
    assert len(outcome.kept) == 200 == len(served) and time.time() - started < 15 and len(told) <= 8


@pytest.mark.parametrize("status, models", [(402, ("m",)), (404, ("m",)), (401, ("m",)), (404, ("other",))])
def test_what_one_server_refuses_the_other_one_is_asked(project, status, models):
    with serve(lambda body, n: (status, {"error": {"message": "no"}}), models=models) as (bad, asked), serve(lambda body, n: "well", seconds=0.01) as (good, served):
        outcome = run(rows(60), say, model=f"{address(bad)},{good}", concurrency=8)
    assert len(outcome.kept) == 60 == len(served) and len(asked) <= (0 if models == ("other",) else 60)
    assert outcome.ledger[0]["failed"] == 0


def test_a_pause_of_one_server_holds_nobody_who_is_queued_there(project):
    async def many(row, ask):
        await asyncio.gather(*(ask(f"{row['id']} {i}", max_tokens=9, step="say") for i in range(8)))
        return row
    with serve(lambda body, n: (429, {"error": {"message": "a break"}}, {"Retry-After": "20"}), seconds=0.3) as (one, _), serve(lambda body, n: "well", seconds=0.02) as (two, served):
        started = time.time()
        assert len(run(rows(32), many, model=f"{address(one)},{two}", concurrency=32).kept) == 32
    assert len(served) == 256 and time.time() - started < 12


def test_a_budget_of_requests_is_one_for_each_server(project):
    with serve(lambda body, n: "well", seconds=0.01) as (one, first), serve(lambda body, n: "well", seconds=0.01) as (two, second):
        outcome = run(rows(50), say, model=f"{address(one)},{two}", concurrency=8, per_day=20)
    assert (len(first), len(second)) == (20, 20) == (len(outcome.kept) // 2, 20) and "20 requests per day is used up" in outcome.failed[0]["reason"]


def test_keys_are_those_of_each_host(monkeypatch):
    monkeypatch.setenv("LLMDATA_API_KEY_GPU_8001", "secret")
    fleet = endpoint("http://gpu:8000/v1,http://gpu:8001/v1#m")
    assert [server.key for server in fleet.servers] == [None, "secret"] and "secret" not in repr(fleet)
    with pytest.raises(ValueError, match="no password in an address"): endpoint("http://gpu:8000/v1,http://ada:pw@gpu:8001/v1#m")
