"Endpoints that refuse a parameter are asked without it, or by its other name: learned once, and remembered"
import asyncio
import json
import sqlite3

import pytest
from scripted_server import serve

from llmdata_nb.dialect import dialect_text, highest_number, in_dialect, learn, refused_parameters
from llmdata_nb.doctor import examine
from llmdata_nb.models import object_schema
from llmdata_nb.run import run

SCHEMA = object_schema(colour={"type": "string"})


def openai_error(message, **more): return 400, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None} | more}


def like_gpt5(body):
    "No max_tokens, and no temperature but its own"
    if "max_tokens" in body: return openai_error("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", param="max_tokens", code="unsupported_parameter")
    if "temperature" in body: return openai_error("Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported.", param="temperature", code="unsupported_value")


def like_mistral(body):
    odd = [name for name in body if name in ("seed", "max_completion_tokens")]
    if odd: return 422, {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"} for name in odd]}}


def like_claude(body):
    if "temperature" in body: return 400, {"type": "error", "error": {"type": "invalid_request_error", "message": "`temperature` is deprecated for this model."}}


def like_google(body):
    odd = [name for name in body if name == "seed"]
    if odd: return 400, [{"error": {"code": 400, "message": 'Invalid JSON payload received. Unknown name "seed": Cannot find field.', "status": "INVALID_ARGUMENT"}}]


def takes_few_tokens(body):
    if body.get("max_tokens", 0) > 16: return openai_error(f"max_tokens is too large: {body['max_tokens']}. This model supports at most 16 completion tokens.")


def without_any_limit(body):
    for name in ("max_tokens", "max_completion_tokens"):
        if name in body: return openai_error(f"Unrecognized request argument supplied: {name}")


async def echo(row, ask):
    row["answer"] = (await ask(row["id"], max_tokens=20)).text
    return row


async def colour(row, ask):
    row["colour"] = (await ask(f"Name a colour for {row['id']}, as JSON", schema=SCHEMA, max_tokens=20)).parsed["colour"]
    return row


def picky(refuse, recipe=echo, rows=40, store=":memory:", concurrency=4):
    "A run on a server that refuses what `refuse` says: the outcome, how many requests were refused, and the names in those that were not"
    refused, taken = [], []
    def answer(body, _):
        refusal = refuse(body)
        (refused if refusal else taken).append(sorted(body))
        return refusal or '{"colour": "red"}'
    with serve(answer, port=18397) as (model, bodies):
        outcome = run([{"id": f"r{i}"} for i in range(rows)], recipe, model=model, store=store, concurrency=concurrency)
    return outcome, len(refused), taken


@pytest.mark.parametrize("refuse, sent", [
    (like_gpt5, {"max_completion_tokens", "seed"}), (like_mistral, {"max_tokens", "temperature", "random_seed"}), (like_claude, {"max_tokens", "seed"}),
    (like_google, {"max_tokens", "temperature", "random_seed"}), (takes_few_tokens, {"max_tokens", "temperature", "seed"}), (without_any_limit, {"temperature", "seed"})])
@pytest.mark.parametrize("recipe", [echo, colour])
def test_all_rows_are_kept_and_few_calls_refused(tmp_path, refuse, sent, recipe):
    outcome, refused, taken = picky(refuse, recipe, store=tmp_path / "s.sqlite")
    assert len(outcome.kept) == 40 and refused <= 2 * 4
    assert {name for names in taken for name in names} - {"model", "messages", "response_format"} == sent
    again, refused, taken = picky(refuse, recipe, rows=60, store=tmp_path / "s.sqlite")
    assert len(again.kept) == 60 and refused == 0 and len(taken) == 20, "the store knows what was paid for, and what the endpoint takes"


def test_what_is_learned_changes_no_key(tmp_path):
    "An answer that was paid for before the endpoint turned picky replays"
    outcome, _, taken = picky(lambda body: None, store=tmp_path / "s.sqlite")
    assert len(taken) == 40
    outcome, refused, taken = picky(like_gpt5, store=tmp_path / "s.sqlite")
    assert len(outcome.kept) == 40 and not refused and not taken


def test_a_thousand_rows_are_refused_at_most_twice_the_calls_under_way(tmp_path):
    outcome, refused, _ = picky(like_gpt5, rows=1000, store=tmp_path / "s.sqlite", concurrency=32)
    assert len(outcome.kept) == 1000 and refused <= 2 * 32


def test_one_failed_generation_changes_nothing_for_the_others(tmp_path):
    "It is asked for once more; all other calls keep the schema"
    failed = []
    def refuse(body):
        if failed or "r3" not in body["messages"][0]["content"]: return None
        failed.append(body)
        return 400, {"error": {"message": "Failed to generate JSON. Please adjust your prompt.", "code": "json_validate_failed", "failed_generation": "{"}}
    outcome, refused, taken = picky(refuse, colour, store=tmp_path / "s.sqlite")
    assert len(outcome.kept) == 40 and refused == 1 and all("response_format" in names for names in taken)
    with sqlite3.connect(tmp_path / "s.sqlite") as db: assert db.execute("select form from forms").fetchall() == [("json_schema",)]


def test_a_refusal_that_teaches_nothing_fails_the_row():
    outcome, refused, _ = picky(lambda body: openai_error("Your prompt was flagged"), rows=3)
    assert len(outcome.failed) == 3 and refused == 3


def test_an_alias_that_is_not_listed_is_probed_in_the_endpoints_dialect(tmp_path):
    "Its refusal of a parameter, or of a single token, is no sign that it has no such model"
    def one_token(body):
        if body.get("max_tokens", 99) < 16: return openai_error("Could not finish the message because max_tokens or model output limit was reached. Please try again with higher max_tokens.")
    for refuse in (like_gpt5, one_token):
        def answer(body, _): return refuse(body) or "fine"
        with serve(answer, models=("another",)) as (model, bodies):
            outcome = run([{"id": "r"}], echo, model=model, store=tmp_path / f"{refuse.__name__}.sqlite")
        assert len(outcome.kept) == 1


def test_doctor_says_what_was_learned():
    async def found(model): return [text async for _, text in examine(model)]
    def answer(body, _): return like_gpt5(body) or '{"colour": "red"}'
    with serve(answer) as (model, bodies): texts = asyncio.run(found(model))
    assert any("max_completion_tokens for max_tokens, without temperature" in text for text in texts)


@pytest.mark.parametrize("body, refused", [
    ({"detail": "Unsupported parameter: top_p"}, ["top_p"]), ({"message": "Unsupported parameter(s): `seed`", "code": 400}, ["seed"]),
    ({"error": {"message": "property 'seed' is unsupported", "param": "validation_error"}}, ["seed"]),
    ({"code": "Client specified an invalid argument", "error": "Argument not supported on this model: stop"}, ["stop"]),
    ({"error": {"message": "invalid temperature: only 1 is allowed for this model"}}, ["temperature"]),
    ({"error": {"message": '{"error": {"message": "Unknown parameter: \'seed\'.", "code": "invalid_request_body"}}'}}, ["seed"]),
    ({"error": {"message": "temperature and top_p cannot both be specified for this model. Please use only one."}}, ["top_p"]),
    ({"error": {"message": "This model's maximum context length is 512 tokens. However, you requested 700 (200 in the messages, 500 in max_tokens)"}}, []),
    ({"error": {"message": "Invalid schema for response_format 'answer'", "param": "response_format"}}, []),
    ({"error": {"message": "The model `m` does not exist"}}, []), ({"error": {"message": "Rate limit reached"}}, [])])
def test_what_errors_say(body, refused):
    assert refused_parameters(json.dumps(body), ["model", "messages", "temperature", "max_tokens", "seed", "top_p", "stop", "response_format"]) == refused


def test_an_error_of_any_form_breaks_nothing():
    for text in ("", "[" * 50_000, "null", "[[1]]", '{"error": null}', '{"param": 3, "message": ["seed"]}', "seed " * 50_000):
        assert isinstance(refused_parameters(text, ["seed"]), list) and highest_number(text, "max_tokens", 5) is None
        learn({}, text, {"seed": 0})


def test_a_dialect_is_spoken_and_shown():
    body = dict(model="m", max_tokens=700, temperature=0.0, seed=0)
    dialect = {"max_tokens": "max_completion_tokens", "temperature": None}
    assert in_dialect(body, dialect) == dict(model="m", max_completion_tokens=700, seed=0)
    assert dialect_text(dialect) == "max_completion_tokens for max_tokens, without temperature"
