"Models that think, answers that were cut off, and options in a model's reference: whole runs on scripted endpoints"
import asyncio
import json
import random
import sqlite3
from pathlib import Path

import pytest
from scripted_server import said, serve, translator_and_judge
from test_dialect import like_gpt5, like_mistral
from test_run import conversations

from llmdata_nb.backinstruct import back_instruct
from llmdata_nb.doctor import examine
from llmdata_nb.judge import rate, rubric
from llmdata_nb.models import endpoint, object_schema
from llmdata_nb.rerank import on_policy
from llmdata_nb.run import run
from llmdata_nb.structured import unclosed_json
from llmdata_nb.translate import translate_and_judge

SHAPES = Path(__file__).parents[2] / "shared" / "data" / "openapi"
THOUGHT = "The user wants this in Italian. Let me weigh the words. " * 20


def found(model):
    "What doctor says of a model"
    async def all_findings(): return [text async for _, text in examine(model)]
    return "\n".join(asyncio.run(all_findings()))


def completion(text, finish_reason="stop", tokens=5, model="m", **message):
    data = said(text, finish_reason) | {"model": model}
    data["choices"][0]["message"] |= message
    data["usage"]["completion_tokens"] = tokens
    return data


def thinker(body, n=0):
    "Thinks for 900 to 1,500 tokens first, and counts them"
    if "prompt" in body: return 404, {"error": {"message": "unknown path"}}
    cap, thinks = body.get("max_tokens") or body.get("max_completion_tokens") or 10**6, random.Random(str(body["messages"])).randint(900, 1500)
    text, details = translator_and_judge(body) if "colour" not in str(body["messages"]) else '{"colour": "blue"}', {"reasoning_tokens": min(thinks, cap)}
    whole = thinks + 40 <= cap
    data = completion(text if whole else "", "stop" if whole else "length", thinks + 40 if whole else cap, "thinker", reasoning_content=THOUGHT)
    data["usage"]["completion_tokens_details"] = details
    return 200, data


def answering(refuse, name):
    "Refuses what `refuse` refuses, and else answers as `name`"
    def answer(body, n=0):
        refused = refuse(body)
        if refused: return refused
        text = '{"colour": "blue"}' if "colour" in str(body["messages"]) else translator_and_judge(body)
        return 200, completion(text, model=name)
    return answer


ENDPOINTS = {"gpt5": answering(like_gpt5, "gpt-5"), "mistral": answering(like_mistral, "mistral"), "thinker": thinker}


@pytest.mark.parametrize("name", [*ENDPOINTS, "in turn"])
def test_a_hundred_rows_are_translated_by_whatever_answers(tmp_path, name):
    turns = iter(range(10**6))
    def in_turn(body, n): return [*ENDPOINTS.values()][next(turns) % 3](body)
    with serve(ENDPOINTS.get(name, in_turn)) as (model, bodies):
        outcome = run(conversations(100), translate_and_judge, model=model, store=tmp_path / "s.sqlite", language="it", concurrency=8)
        assert len(outcome.kept) == 100, outcome.reasons()
        assert len(bodies) <= 400 + 2 * 8 * (2 if name == "in turn" else 1)
        if name == "in turn": return
        told = found(model)
    says = {"gpt5": "max_completion_tokens for max_tokens, without temperature", "mistral": "random_seed for seed", "thinker": "for a verdict; a run leaves room for 4,096 beside the answer"}
    assert says[name] in told and "works for: all recipes but magpie" in told


def test_one_address_that_serves_one_model_after_the_other(tmp_path):
    "What was learned of a model is given up when another one answers in its place"
    serving = ["mistral"]
    def answer(body, n): return ENDPOINTS[serving[0]](body)
    with serve(answer, port=18431) as (model, bodies):
        for number, serving[0] in enumerate(ENDPOINTS):
            sent = len(bodies)
            outcome = run(conversations(10 * number + 10)[10 * number:], translate_and_judge, model=model, store=tmp_path / "s.sqlite", language="it", concurrency=4)
            assert len(outcome.kept) == 10, (serving, outcome.reasons())
        last = [body for body in bodies[sent:]][-1]
    assert "temperature" in last and "max_tokens" in last, "the thinker takes what the first one refused"


SHAPES_OF_LOST = {
    "empty content": dict(content="", reasoning_content=THOUGHT), "no content": dict(content=None, reasoning=THOUGHT), "parts": dict(content=[{"type": "thinking", "thinking": THOUGHT}]),
    "never closed": dict(content=f"<think>{THOUGHT}"), "hidden": dict(content=None), "never closed in another dialect": dict(content=f"[THINK]{THOUGHT}"),
    "details of a router": dict(content=None, reasoning_details=[{"type": "reasoning.text", "text": THOUGHT}]), "blocks": dict(content="", thinking_blocks=[{"type": "thinking", "thinking": THOUGHT}])}


@pytest.mark.parametrize("shape", SHAPES_OF_LOST)
@pytest.mark.parametrize("counted", [True, False])
def test_an_answer_lost_to_thinking_fails_and_says_so(shape, counted):
    def answer(body, n):
        data = completion("", "length", body["max_tokens"], **SHAPES_OF_LOST[shape])
        if not counted: del data["usage"]
        return 200, data
    with serve(answer) as (model, bodies):
        outcome = run(conversations(1), translate_and_judge, model=model, store=":memory:", language="it")
    first, second = [body["max_tokens"] for body in bodies]
    assert second >= first + 4096
    assert [row["reason"] for row in outcome.failed] == [f"translate instruction: cut off (thinking used up {second} of {second} tokens: give it more room)"]


def test_an_answer_that_stands_in_the_field_for_thinking_is_none():
    with serve(lambda body, n: (200, completion(None, "stop", 90, reasoning_content='{"translation": "Ciao"}'))) as (model, _):
        outcome = run(conversations(1), translate_and_judge, model=model, store=":memory:", language="it")
    assert "thinking used up 90 of" in outcome.failed[0]["reason"]


def test_a_given_room_is_sent_and_no_other_is_learned(tmp_path):
    with serve(thinker) as (model, bodies):
        outcome = run(conversations(3), translate_and_judge, model=f"{model}?room=2000", store=tmp_path / "s.sqlite", language="it")
        assert len(outcome.kept) == 3 and {body["max_tokens"] > 2000 for body in bodies} == {True} and max(body["max_tokens"] for body in bodies) == 2700
        sent = len(bodies)
        again = run(conversations(3), translate_and_judge, model=f"{model}?room=3000", store=tmp_path / "s.sqlite", language="it")
        assert len(again.kept) == 3 and len(bodies) == sent, "the room is no part of what was asked"


def test_room_that_a_context_cannot_hold_is_made_smaller(tmp_path):
    def answer(body, n):
        if body["max_tokens"] > 3000: return 400, {"object": "error", "message": f"max_tokens is too large: {body['max_tokens']}. This model's maximum context length is 3200 tokens and your request has 200 input tokens", "code": 400}
        return thinker(body)
    with serve(answer) as (model, bodies):
        outcome = run(conversations(20), translate_and_judge, model=model, store=tmp_path / "s.sqlite", language="it", concurrency=4)
    assert len(outcome.kept) == 20, outcome.reasons()


@pytest.mark.parametrize("finish_reason", ["stop", "length", "MAX_TOKENS", "end_turn", "", None])
@pytest.mark.parametrize("usage", ["at the cap", "counted", "missing"])
def test_no_answer_that_was_cut_at_a_random_place_is_kept(finish_reason, usage):
    places = random.Random(f"{finish_reason}{usage}")
    def answer(body, n):
        text = translator_and_judge(body)
        if '"score"' in text: return text
        data = completion(text[:places.randint(0, len(text) - 1)], finish_reason, body["max_tokens"] if usage == "at the cap" else 9)
        if usage == "missing": del data["usage"]
        return 200, data
    with serve(answer) as (model, _): outcome = run(conversations(20), translate_and_judge, model=model, store=":memory:", language="it", concurrency=8)
    assert not outcome.kept and len(outcome.failed) == 20


def test_json_that_is_only_written_badly_is_whole():
    whole = '{"translation": "Disse \\"ciao\\" e se ne andò {subito}"}'
    badly = [whole, f"```json\n{whole}\n```", f"Here: {whole} Done.", '{"translation": "Disse "ciao" e basta"}', '{"score": 4,}', "{'score': 4}", '{"a": 1} {"b": 2}', "no JSON { at all", ""]
    assert [text for text in badly if unclosed_json(text)] == []
    cut = [whole[:n] for n in range(2, len(whole))] + [f'{{"score": 2}} No: {whole[:20]}', "```json\n" + whole[:-1] + "\n```"]
    assert [text for text in cut if not unclosed_json(text)] == []


def test_marks_of_thinking_in_a_whole_answer_teach_no_room(tmp_path):
    async def quote(row, ask): return row | {"said": (await ask(row["id"], max_tokens=50)).text}
    with serve(lambda body, n: '{"mark": "<think> opens it"}') as (model, bodies):
        assert len(run([{"id": f"r{i}"} for i in range(3)], quote, model=model, store=tmp_path / "s.sqlite", concurrency=1).kept) == 3
    assert [body["max_tokens"] for body in bodies] == [50] * 3


def test_spaces_behind_a_whole_answer_do_no_harm_and_without_one_the_form_is_left_out():
    def spaces(body, n):
        text = translator_and_judge(body)
        if "translation" not in text: return text
        return 200, completion(text + " \n" * 200, "length", body["max_tokens"])
    with serve(spaces) as (model, bodies): assert len(run(conversations(2), translate_and_judge, model=model, store=":memory:", language="it").kept) == 2 and len(bodies) == 8
    def only_spaces(body, n):
        held = "response_format" in body and "translation" in str(body["response_format"])
        text = translator_and_judge(body | {"response_format": {}}) if "translation" in str(body["messages"][0]) else translator_and_judge(body)
        return (200, completion('{"translation": "' + "\n" * 300, "length", body["max_tokens"])) if held else text
    with serve(only_spaces) as (model, bodies): outcome = run(conversations(2), translate_and_judge, model=model, store=":memory:", language="it")
    assert len(outcome.kept) == 2, outcome.reasons()


@pytest.mark.parametrize("stored", ["finish_reason = 'length'", "finish_reason = 'MAX_TOKENS'", "text = substr(text, 1, length(text) - 9)"])
def test_a_stored_answer_that_was_cut_is_replayed_and_asked_again_only_with_more_room(tmp_path, stored):
    path = tmp_path / "s.sqlite"
    with serve(lambda body, n: translator_and_judge(body)) as (model, bodies):
        options = dict(store=path, language="it")
        run(conversations(4), translate_and_judge, model=model, **options)
        db = sqlite3.connect(path)
        db.execute(f"update calls set {stored} where step = 'translate response'")  # as version 0.1 stored it
        db.commit()
        db.close()
        sent = len(bodies)
        cut = run(conversations(4), translate_and_judge, model=model, **options)
        assert len(bodies) == sent and "truncated" in cut.dropped[0]["reason"] and len(cut.dropped) == 4
        again = run(conversations(4), translate_and_judge, model=f"{model}?room=1000", **options)
        assert len(again.kept) == 4 and len(bodies) == sent + 4


def test_a_thousand_rows_where_two_parameters_are_refused(tmp_path):
    refused = []
    def answer(body, n):
        refusal = like_gpt5(body)
        refused.extend([body] if refusal else [])
        return refusal or "Ciao"
    async def echo(row, ask): return row | {"answer": (await ask(row["id"], max_tokens=20)).text}
    rows = [{"id": f"r{i}"} for i in range(1000)]
    with serve(answer, port=18432) as (model, _):
        for part in (rows[:500], rows):
            outcome = run(part, echo, model=model, store=tmp_path / "s.sqlite", concurrency=16)
            assert len(outcome.kept) == len(part)
    assert len(refused) <= 2 * 16


def test_reasoning_is_kept_with_the_reply_and_in_the_store(tmp_path):
    async def think(row, ask):
        reply = await ask(row["id"])
        return row | {"thought": reply.reasoning, "text": reply.text, "thinking": reply.usage["thinking_tokens"]}
    data = completion("Ciao", tokens=40, reasoning_content="Let me see.")
    data["usage"]["completion_tokens_details"] = {"reasoning_tokens": 38}
    with serve(lambda body, n: (200, data)) as (model, bodies):
        for _ in range(2):
            outcome = run([{"id": "a"}], think, model=model, store=tmp_path / "s.sqlite")
            row = outcome.kept[0]
            assert (row["thought"], row["text"], row["thinking"]) == ("Let me see.", "Ciao", 38) and outcome.ledger[0]["thinking_tokens"] == 38
    assert len(bodies) == 1


# options


def test_options_of_a_model_are_sent_and_stand_in_the_key(tmp_path):
    async def echo(row, ask): return row | {"answer": (await ask(row["id"], max_tokens=20)).text}
    with serve(lambda body, n: "Ciao") as (model, bodies):
        for options in ("?reasoning_effort=low&chat_template_kwargs.enable_thinking=false&without=seed", "?reasoning_effort=low&chat_template_kwargs.enable_thinking=false", "?reasoning_effort=high"):
            outcome = run([{"id": "a"}], echo, model=model + options, store=tmp_path / "s.sqlite")
            assert outcome.about["models"]["default"] == model + options
    assert len(bodies) == 2 and bodies[0]["chat_template_kwargs"] == {"enable_thinking": False} and "seed" not in bodies[0]
    assert [body["reasoning_effort"] for body in bodies] == ["low", "high"]


def test_a_refused_option_is_left_out_and_said(tmp_path):
    def answer(body, n):
        if "reasoning_effort" in body: return 400, {"error": {"message": "Unrecognized request argument supplied: reasoning_effort"}}
        return ENDPOINTS["gpt5"](body) if "colour" in str(body) else "Ciao"
    async def echo(row, ask): return row | {"answer": (await ask(row["id"], max_tokens=20)).text}
    with serve(answer) as (model, bodies):
        outcome = run([{"id": f"r{i}"} for i in range(20)], echo, model=f"{model}?reasoning_effort=low", store=tmp_path / "s.sqlite", concurrency=2)
        assert len(outcome.kept) == 20 and "without reasoning_effort" in found(f"{model}?reasoning_effort=low")


def test_a_model_of_a_toml_file(tmp_path, monkeypatch):
    monkeypatch.setenv("GATEWAY_KEY", "zq-81Hf02LmQx77")
    file = tmp_path / "models.toml"
    async def echo(row, ask): return row | {"answer": (await ask(row["id"], max_tokens=20)).text}
    with serve(lambda body, n: "Ciao") as (model, bodies):
        file.write_text(f'[fast]\nmodel = "{model}"\nroom = 50\nheaders = {{x-key = "$GATEWAY_KEY"}}\nparameters = {{top_p = 0.9}}\nprice = {{prompt = 1, completion = 2}}\n')
        outcome = run([{"id": "a"}], echo, model=f"{file}#fast", store=tmp_path / "s.sqlite", out=tmp_path / "out")
    assert bodies[0]["top_p"] == 0.9 and bodies[0]["max_tokens"] == 70 and len(outcome.kept) == 1
    assert outcome.about["models"]["default"] == f"{model}?top_p=0.9"
    assert "zq-81Hf" not in "".join(path.read_text(errors="replace") for path in (tmp_path / "out").rglob("*.*"))


@pytest.mark.parametrize("reference, says", [
    ("http://gpu:8000/v1#m?rooom=3", "did you mean 'room'? Ours are room, context, price, without, headers, query"), ("http://gpu:8000/v1#m?room=-1", "expected a whole number from 0"),
    ("http://gpu:8000/v1#m?low", "expected name=value"), ("http://gpu:8000/v1#m?price.prompt=1", "US dollars per million tokens"), ("http://gpu:8000/v1#m?headers.api-key=abc", "expected $VARIABLE"),
    ("nowhere.toml#fast", "there is no file nowhere.toml")])
def test_wrong_options_are_refused_before_anything_is_sent(reference, says):
    with pytest.raises(ValueError) as error: endpoint(reference)
    assert says in str(error.value)
    with pytest.raises(ValueError): run(conversations(1), translate_and_judge, model=reference, store=":memory:", language="it")


def test_options_of_each_role(tmp_path):
    with serve(lambda body, n: translator_and_judge(body)) as (model, bodies):
        models = {"default": f"{model}?top_p=0.8", "judge": f"{model}?reasoning_effort=low"}
        outcome = run(conversations(1), translate_and_judge, model=models, store=tmp_path / "s.sqlite", language="it")
    assert len(outcome.kept) == 1 and [("top_p" in body, "reasoning_effort" in body) for body in sorted(bodies, key=lambda body: "top_p" not in body)] == [(True, False)] * 2 + [(False, True)] * 2


# the published form of requests


def every_request(state):
    "All that recipes send in a state of what was learned, without doctor's own"
    async def asks(row, ask):
        await ask("Ciao?")
        await ask("Ciao?", logprobs=5, step="logprobs", schema=object_schema(n={"type": "integer"}))
        await rate(rubric("response", "it"), ["Perché?", "Perché sì."], ask, expected=True)
        return row
    def answer(body, n):
        fields = str(body.get("response_format", ""))
        known = any(name in fields for name in ("translation", "score", "label"))
        return state(body) or (translator_and_judge(body) if known else '{"n": 3, "instruction": "Come macinava il mulino sul fiume?"}')
    with serve(answer) as (model, bodies):
        texts = [{"id": "t", "text": "Il mulino sta sul fiume e macina il grano di tutta la valle da tre secoli. " * 5}]
        pairs = [{"id": "p", "messages": [{"role": "user", "content": "Perché il cielo è blu?"}]}]
        asked = run([{"id": "a"}], asks, model=f"{model}?top_p=0.9", store=":memory:")
        assert len(asked.kept) == 1, asked.failed
        run(conversations(2), translate_and_judge, model=model, store=":memory:", language="it")
        run(texts, back_instruct, model=model, store=":memory:", language="it", direct=True)
        run(pairs, on_policy, model=model, store=":memory:", language="it")
    return [dict(body) for body in bodies if body.path.endswith("/chat/completions")]


def strict_mistral(body):
    "Takes nothing that Mistral does not name"
    odd = [name for name in body if name in ("seed", "max_completion_tokens", "logprobs", "top_logprobs")]
    if odd: return 422, {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": 0} for name in odd]}, "type": "invalid_request_error"}


def schema_errors(file, name, bodies):
    "What the published schema of a provider says against the requests"
    from jsonschema import Draft202012Validator
    shapes = json.loads((SHAPES / file).read_text(encoding="utf-8"))
    validator = Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": shapes["components"]})
    return [error.message for body in bodies for error in validator.iter_errors(body)]


@pytest.mark.skipif(not SHAPES.is_dir(), reason="the published schemas are not beside the project")
@pytest.mark.parametrize("state, file, name", [
    (lambda body: None, "openai.json", "CreateChatCompletionRequest"), (like_gpt5, "openai.json", "CreateChatCompletionRequest"), (strict_mistral, "mistral.json", "ChatCompletionRequest")])
def test_every_request_has_the_published_form(state, file, name):
    bodies = every_request(state)
    taken = [body for body in bodies if not state(body)]
    assert len(taken) > 10 and schema_errors(file, name, taken) == []


def test_a_given_context_makes_the_room_smaller_and_leaves_the_answer_its_own():
    with serve(lambda body, n: "Ciao") as (model, bodies):
        async def echo(row, ask): return row | {"answer": (await ask("x" * 3000, max_tokens=500)).text}
        run([{"id": "a"}], echo, model=f"{model}?room=4000&context=2000", store=":memory:")
        run([{"id": "a"}], echo, model=f"{model}?room=4000&context=1000", store=":memory:")
    assert [body["max_tokens"] for body in bodies] == [1000, 500]
