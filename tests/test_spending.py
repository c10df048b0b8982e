"What a call costs: known, unknown and never 0; a budget that is kept whatever form the usage has; an estimate that says what failed"
import pytest
from scripted_server import said, serve
from test_limits import echo, ids

from llmdata_nb import models
from llmdata_nb.models import Endpoint, price
from llmdata_nb.options import Options
from llmdata_nb.run import estimate, run

TOKENS = {"prompt_tokens": 1000, "cached_tokens": 400, "completion_tokens": 100, "thinking_tokens": 50}


def at(url, model, **options): return Endpoint("x", url, model, **options)


@pytest.mark.parametrize("where", [
    at("https://api.openai.com/v1", "gpt-4.1-mini"), at("https://api.mistral.ai/v1", "mistral-small-latest"), at("https://api.anthropic.com/v1", "claude-sonnet-4-5"),
    at("https://generativelanguage.googleapis.com/v1beta/openai", "gemini-2.5-flash"), at("https://api.deepseek.com/v1", "deepseek-chat"), at("https://api.groq.com/openai/v1", "llama-3.3-70b-versatile"),
    at("https://generativelanguage.googleapis.com/v1beta/openai", "models/gemini-2.5-flash"), at("https://eu.api.openai.com/v1", "gpt-4.1-mini"), at("https://api.x.ai/v1", "grok-3"), at("http://127.0.0.1:9/v1", "gpt-4.1-mini", provider="openai"), at("http://127.0.0.1:9/v1", "openai/gpt-4.1-mini", provider="openrouter")])
def test_prices_by_provider_and_by_address(where):
    known = price(where, TOKENS)
    assert 0 < known < 0.1 and price(where, TOKENS | {"completion_tokens": 1100}) > known
    for missing in ("prompt_tokens", "completion_tokens"): assert price(where, TOKENS | {missing: None}) is None


def test_prices_by_hand_and_unknown_ones():
    by_hand = Options(price={"prompt": 1.0, "completion": 10.0, "cached": 0.1})
    assert price(at("http://gpu:8000/v1", "m", options=by_hand), TOKENS) == pytest.approx((600 + 40 + 1000) / 1e6)
    assert price(at("http://gpu:8000/v1", "m", options=by_hand), TOKENS | {"prompt_tokens": None}) is None
    for elsewhere in ("http://gpu:8000/v1", "https://gateway.example/api.openai.com", "https://my-api.openai.com.example.org/v1"): assert price(at(elsewhere, "gpt-4.1-mini"), TOKENS) is None
    assert price(at("https://api.openai.com/v1", "no-such-model"), TOKENS) is None
    assert price(at("https://openrouter.ai/api/v1", "m:free", provider="openrouter"), TOKENS) == 0.0


USAGE = {  # form of the usage → tokens of a call
    "plain": ({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}, 150),
    "thinking outside": ({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 950}, 950),
    "thinking inside": ({"prompt_tokens": 100, "completion_tokens": 850, "total_tokens": 950, "completion_tokens_details": {"reasoning_tokens": 800}}, 950),
    "of Anthropic": ({"input_tokens": 60, "cache_read_input_tokens": 40, "output_tokens": 50}, 150),
    "texts": ({"prompt_tokens": "100", "completion_tokens": "50"}, 150),
    "of Gemini": ({"promptTokenCount": 100, "candidatesTokenCount": 50, "thoughtsTokenCount": 800, "totalTokenCount": 950}, 950)}
MISSING = {"none": None, "empty": {}, "list": [], "nan": {"prompt_tokens": float("nan"), "completion_tokens": 50}, "nulls": {"prompt_tokens": None, "completion_tokens": None}, "half": {"prompt_tokens": 100}}


def answering(usage): return lambda body, n: (200, said("Va bene.") | {"usage": usage})


@pytest.mark.parametrize("form", USAGE)
def test_a_budget_in_tokens_is_never_passed_by_more_than_the_calls_in_flight(form):
    usage, tokens = USAGE[form]
    with serve(answering(usage)) as (model, bodies):
        outcome = run(ids(60), echo, model=model, store=":memory:", budget=f"{10 * tokens} tokens", concurrency=4)
    assert len(bodies) <= 10 and len(outcome.kept) == len(bodies) and "over budget" in outcome.failed[0]["reason"]
    assert sum(line["prompt_tokens"] + line["completion_tokens"] for line in outcome.ledger) == len(bodies) * tokens


@pytest.mark.parametrize("form", MISSING)
@pytest.mark.parametrize("budget", ["10000 tokens", "1 usd"])
def test_what_is_not_reported_is_unknown_and_a_budget_refuses_after_one_call(form, budget, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with serve(answering(MISSING[form])) as (model, bodies):
        monkeypatch.setitem(models.PROVIDERS, "openai", (model.partition("#")[0], "OPENAI_API_KEY"))
        outcome = run(ids(20), echo, model="openai:gpt-4.1-mini", store=":memory:", budget=budget)
        assert len(bodies) == 1 and "give it in calls" in outcome.failed[0]["reason"]
    (line,) = outcome.ledger
    assert line["usd"] is None and None in (line["prompt_tokens"], line["completion_tokens"])
    assert "tokens unknown · price unknown" in capsys.readouterr().err and "$0.00" not in repr(outcome)


def test_an_estimate_says_first_what_failed():
    def sometimes(body, n): return (400, {"error": {"message": "this text is not allowed"}}) if "Say r001" in str(body) or "Say r003" in str(body) else "Va bene."
    with serve(sometimes) as (model, _): some = repr(estimate(ids(100), echo, model=model, store=":memory:", sample=100))
    assert "100 rows, judged by 100 of them, of which 2 failed:\n  2 failed: say: refused (400 this text is not allowed)\n" in some and "calls" in some
    with serve(lambda body, n: (400, {"error": {"message": "no such thing"}})) as (model, _): none = repr(estimate(ids(100), echo, model=model, store=":memory:"))
    assert none.startswith("100 rows, judged by 10 of them, of which 10 failed: what the others would take cannot be told\n  10 failed: say: refused (400 no such thing)") and "$0.00" not in none and " tokens" not in none
    with serve(answering(None)) as (model, _): unknown = repr(estimate(ids(100), echo, model=model, store=":memory:"))
    assert "tokens unknown" in unknown and "price unknown" in unknown
    thinks = {"prompt_tokens": 10, "completion_tokens": 60, "completion_tokens_details": {"reasoning_tokens": 50}}
    with serve(answering(thinks)) as (model, _): assert "7,000 (7,000 to 7,000) tokens, 5,000 (5,000 to 5,000) of them thinking" in repr(estimate(ids(100), echo, model=model, store=":memory:"))


def test_thinking_is_a_column_where_there_is_any():
    thinks = {"prompt_tokens": 10, "completion_tokens": 60, "completion_tokens_details": {"reasoning_tokens": 50}}
    with serve(answering(thinks)) as (model, _): assert "thinking" in repr(run(ids(2), echo, model=model, store=":memory:"))
    with serve(answering(USAGE["plain"][0])) as (model, _): assert "thinking" not in repr(run(ids(2), echo, model=model, store=":memory:"))
