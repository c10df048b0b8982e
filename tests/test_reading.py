"Reading an answer takes no time from the other calls, however damaged it is."
import asyncio
import json
import time

import pytest
from scripted_server import serve

from llmdata_nb.models import Ask, Call, Reply, _read_value, _replay_stored, endpoint, json_objects, object_schema, read_json
from llmdata_nb.run import run
from llmdata_nb.store import Store

SCHEMA = object_schema(translation={"type": "string"})
STUCK = {"brace": "{" * 8_000, "braces and brackets": "{[" * 4_000, "brace and quote": '{"' * 6_000, "single quotes": "{'" * 6_000,
         "number and quote": '{"a' + '1"' * 10_000, "parenthesis": "{" + "(" * 20_000, "comment": "{a" + '/*"' * 10_000,
         "objects that go on": '{"a": [' * 30_000, "objects in a list": '{"a":' * 50_000, "many braces": "{" * 300_000, "small objects": '{"a":1}' * 100_000}


def read(text):
    try: return read_json(text, ["translation"])
    except ValueError as e: return str(e)


@pytest.mark.parametrize("name", STUCK)
def test_a_text_that_cannot_be_repaired_ends_as_unreadable(name):
    "It took up to minutes; now a few seconds, on a slow machine"
    started = time.process_time()
    assert isinstance(read(STUCK[name]), str)
    assert time.process_time() - started < 20


def longest_pause(reading):
    "The longest time for which nothing else went on, in processor seconds of this thread, while `reading` was awaited"
    async def go_on(pauses):
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            pauses.append(time.thread_time() - before)
    async def both():
        pauses = []
        other = asyncio.create_task(go_on(pauses))
        await asyncio.sleep(0)
        await reading()
        other.cancel()
        return max(pauses)
    return asyncio.run(both())


CALL = Call(endpoint("http://gpu/v1#m"), "/chat/completions", dict(messages=[], temperature=0.0, seed=0), SCHEMA)


@pytest.mark.parametrize("text", [STUCK["brace"][:4_000], STUCK["brace and quote"], STUCK["number and quote"], STUCK["parenthesis"], "Sure! " + "{" * 400,
                                  '{"translation": "' + "Disse \"ciao\", e basta. " * 400])
def test_the_other_calls_go_on_meanwhile(text, tmp_path):
    "While a new answer is read, and one that is stored"
    async def new():
        _, bug = await _read_value(CALL, Reply(text))
        assert not bug
    async def stored():
        store = Store(tmp_path / "s.sqlite")
        store.put(store.sending(CALL.key()), text=text)
        await _replay_stored(Ask({"default": CALL.endpoint}, store), CALL, CALL.key())
        store.close()
    assert longest_pause(new) < 0.05 and longest_pause(stored) < 0.05


def damaged(text):
    "The JSON of `text`, damaged in ways that models damage it"
    whole = json.dumps({"translation": text}, ensure_ascii=False)
    return {"the end is missing": whole[:-2], "a comma too many": whole[:-1] + ",}", "quotes not escaped": whole.replace('\\"', '"'),
            "line breaks not escaped": whole.replace("\\n", "\n")[:-1], "behind a word": "Sure:\n```json\n" + whole[:-1] + "\n```"}


@pytest.mark.parametrize("text", ["Una frase con «virgolette» e altro. " * 1_100, 'Disse "ciao" e basta.\n' * 1_800], ids=["plain", "quotes"])
def test_a_long_answer_is_repaired_as_before(text):
    "40,000 characters are what 8,192 tokens can hold"
    from json_repair import loads
    for name, answer in damaged(text).items():
        assert read(answer) == loads(answer[answer.find("{"):]), name


def test_the_objects_of_an_answer():
    assert json_objects('{ "a": 1}{\n}{"b": {"a": 2}} { x } {"c') == [{"a": 1}, {}, {"b": {"a": 2}}]
    assert json_objects("".join(f'{{"a": {n}}}\n' for n in range(1_000)))[-1] == {"a": 999}
    assert json_objects("\\frac{1}{2} " * 20_000 + '{"a": 1}') == [{"a": 1}]


def test_a_run_goes_on_while_one_answer_is_read(tmp_path):
    "The row whose model got stuck fails, the others are kept"
    def answer(body, n): return STUCK["number and quote"] if "r0" in body["messages"][0]["content"] else '{"translation": "Ciao"}'
    async def recipe(row, ask):
        reply = await ask(f"Translate {row['id']}", schema=SCHEMA, step="translate")
        return row | reply.parsed
    with serve(answer) as (model, bodies):
        outcome = run([{"id": f"r{n}"} for n in range(20)], recipe, model=model, store=tmp_path / "s.sqlite")
    assert len(outcome.kept) == 19 and "its JSON is not closed" in outcome.failed[0]["reason"]
