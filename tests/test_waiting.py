"How long a server asks to wait, and whether waiting would help, in the words and headers of today's providers"
import json
import time
from email.utils import formatdate
from itertools import count

import pytest
from scripted_server import serve

from llmdata_nb.run import run
from llmdata_nb.waiting import account_empty, asked_wait, duration_seconds, token_limit

QUOTA = "You exceeded your current quota, please check your plan and billing details."
NOW = 1_780_000_000
GOOGLE = [{"error": {"code": 429, "message": f"{QUOTA} Please retry in 12.5s.", "status": "RESOURCE_EXHAUSTED", "details": [
    {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "RequestsPerMinute"}]},
    {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "12s"}]}}]
WAITS = {
    "seconds": ({"Retry-After": "7"}, "", 7), "part of a second": ({"Retry-After": "0.5"}, "", 0.5), "milliseconds": ({"retry-after-ms": "250"}, "", 0.25),
    "a date": ({"Retry-After": formatdate(NOW + 30, usegmt=True)}, "", 30), "a duration": ({"Retry-After": "1m30s"}, "", 90),
    "an epoch": ({"Retry-After": str(NOW + 30)}, "", 30),
    "the limit with nothing left": ({"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "2h", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, "", 360),
    "both limits used up": ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12ms", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "3s"}, "", 3),
    "an epoch in seconds": ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(NOW + 42)}, "", 42),
    "an epoch in milliseconds": ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": f"{NOW + 42}000"}, "", 42),
    "a moment of ISO 8601": ({"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "2026-05-28T20:27:20Z"}, "", 40),
    "a limit that is not used up": ({"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "2h"}, "", None),
    "Google's": ({}, json.dumps(GOOGLE), 12), "headers in the body": ({}, json.dumps({"error": {"message": "Rate limit exceeded: free-models-per-day", "code": 429,
        "metadata": {"headers": {"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": f"{NOW + 7200}000"}}}}), 7200),
    "a field": ({}, '{"error": "busy", "retry_after": 20}', 20), "a model that loads": ({}, '{"error": "loading", "estimated_time": 1.5}', 1.5),
    "a sentence": ({}, '{"error": {"message": "Limit 15000, Used 11972, Requested 4351. Please try again in 5.289s. Need more tokens?"}}', 5.289),
    "hours in a sentence": ({}, "Rate limit reached on tokens per day (TPD): Limit 100000. Please try again in 1h26m24s.", 5184),
    "words": ({}, "Too many requests, retry after 20 seconds", 20), "minutes": ({}, "Please wait 2 minutes before you try again", 120),
    "nothing": ({}, "Too many requests", None), "other numbers": ({}, "Limit 60 requests in 1 minute for model-7b", None),
    "the header goes before the body": ({"Retry-After": "3"}, "try again in 50s", 3)}


@pytest.mark.parametrize("name", WAITS)
def test_the_wait_is_read(name):
    headers, body, seconds = WAITS[name]
    found = asked_wait(headers | {"Date": formatdate(NOW, usegmt=True)}, body)
    assert found == (pytest.approx(seconds) if seconds is not None else None)


def test_durations():
    assert duration_seconds("2m59.56s") == pytest.approx(179.56) and duration_seconds("1 h 5 min") == 3900 and duration_seconds("in a while") is None


@pytest.mark.parametrize("status, body, empty", [
    (402, "Insufficient Balance", True), (429, QUOTA, True), (429, '{"error": {"code": "insufficient_quota"}}', True),
    (400, "Your credit balance is too low to access the API. Please go to Plans & Billing.", True), (403, "You have run out of credits", True),
    (402, "requires more credits, or fewer max_tokens. You requested 4096 tokens, but can only afford 400", False),
    (429, json.dumps(GOOGLE), False), (429, f"{QUOTA} Quota exceeded for GenerateContentInputTokensPerModelPerMinute", False),
    (429, "Rate limit reached for requests per day (RPD)", False), (400, "Unsupported parameter: 'seed'", False), (500, QUOTA, False), (401, "Wrong key", False)])
def test_an_empty_account_is_told_from_a_limit(status, body, empty):
    assert account_empty(status, body, asked_wait({}, body)) is empty


def test_tokens_a_minute():
    told = {"X-RateLimit-Limit-Tokens": "160000", "X-RateLimit-Remaining-Tokens": "1500", "X-RateLimit-Reset-Tokens": "59s"}
    assert token_limit(told) == (160_000, 1_500, 59.0) and token_limit({"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "-1"}) is None


async def echo(row, ask):
    row["answer"] = (await ask(row["id"], max_tokens=20)).text
    return row


def outcome_with(tmp_path, first, n=6, times=1):
    "Rows of a run whose first requests are answered with `first`: the outcome, and the requests"
    numbers = count()
    def answer(body, _): return first if next(numbers) < times else "fine"
    with serve(answer) as (model, bodies):
        return run([{"id": f"r{i}"} for i in range(n)], echo, model=model, store=tmp_path / "s.sqlite", concurrency=4), bodies


@pytest.mark.parametrize("body", [
    [{"error": {"code": 429, "message": f"{QUOTA} Please retry in 1.0s.", "status": "RESOURCE_EXHAUSTED"}}],
    {"error": {"message": "Rate limit reached on tokens per minute (TPM). Please try again in 0.5s."}},
    {"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": "temporarily rate-limited upstream, retry shortly"}}}])
def test_an_ordinary_limit_is_waited_for(tmp_path, body):
    outcome, bodies = outcome_with(tmp_path, (429, body))
    assert len(outcome.kept) == 6 and len(bodies) == 7


def test_a_wait_that_only_the_text_tells_is_kept(tmp_path):
    sent = []
    def answer(body, _):
        sent.append(time.monotonic())
        return (429, {"error": {"message": "Slow down. Please try again in 1.5s."}}) if len(sent) == 1 else "fine"
    with serve(answer) as (model, bodies):
        outcome = run([{"id": "r"}], echo, model=model, store=tmp_path / "s.sqlite")
    assert len(outcome.kept) == 1 and len(sent) == 2 and sent[1] - sent[0] >= 1.4


def test_a_limit_of_the_day_ends_the_run_at_once_and_says_until_when(tmp_path):
    outcome, bodies = outcome_with(tmp_path, (429, {"error": {"message": "Limit of requests per day reached. Please try again in 5h0m0s."}}), n=50, times=1000)
    assert len(bodies) <= 2 * 4 and len(outcome.failed) == 50
    assert "can be asked again at" in outcome.failed[-1]["reason"] and "(in 5 h" in outcome.failed[-1]["reason"]


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "30"}])
def test_a_limit_of_the_day_without_its_time_is_not_asked_every_minute(tmp_path, headers):
    refusal = (429, {"error": {"message": "You have used your daily quota of 1,000 requests."}}, headers)
    outcome, bodies = outcome_with(tmp_path, refusal, n=50, times=1000)
    assert len(bodies) <= 2 * 4 and len(outcome.failed) == 50 and "can be asked again at" in outcome.failed[-1]["reason"]


def test_an_error_inside_of_a_200_is_treated_by_its_code(tmp_path):
    outcome, bodies = outcome_with(tmp_path, (200, {"error": {"message": "Insufficient credits. Add more", "code": 402}}), n=50, times=1000)
    assert len(bodies) <= 4 and "out of money (402 Insufficient credits" in outcome.failed[0]["reason"]


def test_an_account_that_cannot_afford_a_long_call_makes_the_short_ones(tmp_path):
    refusal = (402, {"error": {"message": "requires more credits, or fewer max_tokens: you can only afford 400", "code": 402}})
    outcome, bodies = outcome_with(tmp_path, refusal)
    assert len(outcome.kept) == 5 and len(outcome.failed) == 1 and "refused (402" in outcome.failed[0]["reason"]
