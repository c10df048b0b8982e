"Rating, comparing and calibrating, over a scripted server; and recorded judges, replayed."
import hashlib
import json
import math
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_server import judged_texts, serve

from llmdata_nb.judge import RUBRICS, Rubric, calibrate, check_number, check_orders, check_score, compare, rate, rubric
from llmdata_nb.run import run

DATA = Path(__file__).parents[2] / "shared" / "data"
shared = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside this checkout")


def prompt(body): return body["messages"][0]["content"]


def responses(body): return [text for heading, text in judged_texts(prompt(body)) if heading[-1].isdecimal()]


def ratings(*scores): return json.dumps({"ratings": [{"rationale": f"It is worth {s}.", "score": s} for s in scores]})


def worth(text): return 1 + sum(map(ord, text)) % 5


def honest(body, n=0): return ratings(*map(worth, responses(body)))


def pairs(n): return [{"id": f"p{i:03}", "answers": [f"answer {i} of a", f"answer {i * 7} of b"]} for i in range(n)]


async def compared(row, ask, **options):
    c = await compare(rubric("response"), f"Say {row['id']}", row["answers"], ask, **options)
    return row | {"preference": c.preference(), "consistent": c.position_consistent, "scores": c.scores, "status": c.status, "spread": c.spread}


def preferences(answer, rows, tmp_path, **options):
    with serve(answer) as (model, bodies): outcome = run(rows, compared, model=model, store=tmp_path / "s.sqlite", **options)
    return outcome, {r["id"]: r["preference"] for r in outcome.kept if r["status"] == "ok"}, bodies


@pytest.mark.parametrize("scores", [(5, 1), (4, 3)])
def test_a_judge_that_prefers_the_first_place_makes_no_preference(tmp_path, scores):
    outcome, found, bodies = preferences(lambda body, n: ratings(*scores), pairs(40), tmp_path)
    assert found == dict.fromkeys((r["id"] for r in pairs(40))) and len(bodies) == 80
    assert not any(r["consistent"] for r in outcome.kept)


def test_a_judge_that_leans_to_the_first_place_makes_no_wrong_preference(tmp_path):
    "One point more for the first place: the true difference decides, or it is a tie"
    def leans(body, n):
        first, second = map(worth, responses(body))
        return ratings(min(first + 1, 5), second)
    _, found, _ = preferences(leans, pairs(100), tmp_path)
    for row in pairs(100):
        a, b = map(worth, row["answers"])
        assert found[row["id"]] in {None, (0, 1) if a > b else (1, 0)} and (found[row["id"]] is None if a == b else True)
    assert sum(p is not None for p in found.values()) > 40


@pytest.mark.parametrize("fault", ["a server error", "no verdict", "one rating too few", "a score beyond the scale", "8/10"])
def test_a_judge_that_fails_one_time_in_ten_changes_no_preference(tmp_path, fault):
    "A failed answer is asked again; a pair whose judge never gives a verdict has no preference, and no pair gets another one"
    _, true, _ = preferences(honest, pairs(100), tmp_path / "a")
    said = {"a server error": (500, {"error": {"message": "down"}}), "no verdict": "Both are fine answers.", "one rating too few": ratings(5),
            "a score beyond the scale": ratings(5, 9), "8/10": '{"ratings": [{"score": "8/10"}, {"score": "4/10"}]}'}[fault]
    chance, always = random.Random(3), {"Say p007", "Say p042"}
    def fails(body, n):
        if fault != "a server error" and any(a in prompt(body) for a in always): return said
        return said if chance.random() < 0.1 else honest(body)
    outcome, found, bodies = preferences(fails, pairs(100), tmp_path / "b", concurrency=8)
    assert len(outcome.kept) == 100 and len(bodies) > 205
    unjudged = {r["id"] for r in outcome.kept if r["status"] != "ok"}
    assert {"p007", "p042"} <= unjudged or fault == "a server error"
    assert len(unjudged) < 12 and found == {k: v for k, v in true.items() if k not in unjudged}


def test_a_pair_with_one_order_unjudged_has_no_preference(tmp_path):
    "Half a comparison would be what the place says"
    def half(body, n): return honest(body) if responses(body)[0].endswith("a") else "I cannot tell."
    outcome, found, _ = preferences(half, pairs(5), tmp_path)
    assert not found and all(r["scores"] is None for r in outcome.kept)


def test_more_than_two_answers_and_their_reverse(tmp_path):
    rows = [{"id": "p", "answers": ["one", "two", "three", "four"]}]
    outcome, found, bodies = preferences(honest, rows, tmp_path)
    assert {tuple(responses(b)) for b in bodies} == {("one", "two", "three", "four"), ("four", "three", "two", "one")}
    (row,) = outcome.kept
    assert row["scores"] == [worth(a) for a in rows[0]["answers"]] and row["preference"][0] == max(range(4), key=row["scores"].__getitem__)


def test_one_order_depends_on_the_texts_and_not_on_who_wrote_them(tmp_path):
    rows = [row for p in pairs(40) for row in (p, {"id": p["id"] + "x", "answers": p["answers"][::-1]})]
    async def once(row, ask): return await compared(row, ask, orders=1)
    with serve(lambda body, n: ratings(5, 1)) as (model, bodies): outcome = run(rows, once, model=model, store=tmp_path / "s.sqlite")
    first = Counter(responses(b)[0][-1] for b in bodies)
    assert first["a"] > 8 and first["b"] > 8
    found = {r["id"]: r["preference"] for r in outcome.kept}
    assert all(found[p["id"] + "x"] == found[p["id"]][::-1] for p in pairs(40)) and outcome.kept[0]["consistent"] is None


def test_samples_and_jury(tmp_path):
    "Each judge is asked in each sample; the mean counts, and what was asked once is not asked again"
    said = {"judge": [4, 5, 3], "second judge": [1, 1, 1]}
    def answer(body, n): return json.dumps({"rationale": "So.", "score": said["judge" if body["model"] == "m" else "second judge"][body["seed"]]})
    async def recipe(row, ask):
        v = await rate(rubric("response"), ["Why?", "So."], ask, samples=3, roles=("judge", "second judge"))
        return row | {"score": v.score, "votes": v.votes, "spread": v.spread}
    with serve(answer, models=("m", "other")) as (model, bodies):
        models = {"judge": model, "second judge": model.replace("#m", "#other")}
        (row,) = run([{"id": "r"}], recipe, model=models | {"default": model}, store=tmp_path / "s.sqlite").kept
        assert sorted(row["votes"]) == [1, 1, 1, 3, 4, 5] and row["score"] == 2.5 and 1.6 < row["spread"] < 1.61
        assert len(bodies) == 6 and {b["temperature"] for b in bodies} == {0.7}
        run([{"id": "r"}], recipe, model=models | {"default": model}, store=tmp_path / "s.sqlite")
        assert len(bodies) == 6


@pytest.mark.parametrize("check, wrong", [(check_score, 0), (check_score, 5.5), (check_score, "4"), (check_score, True), (check_score, None), (check_score, math.nan), (check_orders, 3), (check_orders, True), (check_orders, 2.0)])
def test_what_cannot_be_is_refused_with_what_was_expected(check, wrong):
    with pytest.raises(ValueError, match=r"(min_score|orders) .*: expected 1 (to 5|or 2)"): check(wrong)


def test_what_can_be_passes():
    for score in (1, 2.5, 5): check_score(score)
    check_score(0, (0, 5))
    check_number("min_margin", 4, 0, 4)
    for orders in (1, 2): check_orders(orders)


@pytest.mark.parametrize("fault", [dict(answers=["one"]), dict(orders=3), dict(rubric=rubric("instruction")), dict(rubric=rubric("comparison"), answers=["a", "b", "c"])])
def test_what_cannot_be_compared_is_refused_before_anything_is_paid(fault):
    async def never(*args, **options): raise AssertionError("it was asked")
    given = dict(rubric=rubric("response"), answers=["a", "b"], orders=2) | fault
    coroutine = compare(given["rubric"], "Why?", given["answers"], never, orders=given["orders"])
    with pytest.raises(ValueError, match="expected"): coroutine.send(None)


@pytest.mark.parametrize("name", RUBRICS)
@pytest.mark.parametrize("code", ["en", "it", "ja", "te", "ar", "yo"])
def test_every_rubric_is_whole_in_every_language(name, code):
    found = rubric(name, code)
    assert found.text.startswith(found.task) and all(c in found.text for c in found.criteria) and "{" not in found.text
    assert list(found.answers) == [1, 2, 3, 4, 5] or found.labels
    assert '"ratings"' in found.reply_each and '"rationale"' in found.reply and found.text.endswith(found.reply)


# calibration

def labelled(n=60, seed=0):
    chance = random.Random(seed)
    return [{"id": f"p{i}", "answers": [f"answer {i} of a" + " x" * chance.randint(0, 40), f"answer {i * 7} of b" + " x" * chance.randint(0, 40)],
             "human": 0, "language": "it" if i % 3 else "ja"} for i in range(n)]


async def judge(row, ask): return await compare(rubric("response"), f"Say {row['id']}", row["answers"], ask)


def test_a_judge_that_agrees_is_usable_and_one_that_guesses_is_not(tmp_path):
    rows = labelled(150)
    for row in rows: row["human"] = "tie" if worth(row["answers"][0]) == worth(row["answers"][1]) else int(worth(row["answers"][1]) > worth(row["answers"][0]))
    with serve(honest) as (model, _): good = calibrate(judge, rows, model=model, store=tmp_path / "a.sqlite")
    def guess(body, n): return ratings(*(1 + hashlib.sha256((prompt(body) + place).encode()).digest()[0] % 5 for place in "12"))
    with serve(guess) as (model, _): bad = calibrate(judge, rows, model=model, store=tmp_path / "b.sqlite")
    assert good.figures["same opinion"]["value"] == 1 and good.figures["kappa"]["value"] == 1 and good.sentence.startswith("Usable")
    assert bad.figures["kappa"]["low"] <= 0 and bad.sentence.startswith("No better than chance") and "0 is within" in bad.sentence
    assert [g["language"] for g in good.languages] == ["it", "ja"] and sum(g["n"] for g in good.languages) == 150
    assert good.figures["both orders agree"]["value"] == 1 and bad.figures["both orders agree"]["value"] < 0.7
    assert "Usable" in repr(good) and "in ja" in repr(good)


def test_length_bias_and_self_preference_show_beside_those_of_people(tmp_path):
    rows = labelled(100)
    for i, row in enumerate(rows): row |= {"human": i % 2, "models": ["me", "them"] if i % 4 < 2 else ["them", "me"]}
    def longer(body, n): return ratings(*(5 if a == max(responses(body), key=len) else 2 for a in responses(body)))
    with serve(longer) as (model, _): found = calibrate(judge, rows, model=model, own="me", store=tmp_path / "s.sqlite").figures
    assert found["longer answer preferred by the judge"]["value"] == 1 and 0.3 < found["longer answer preferred by people"]["value"] < 0.7
    assert 0.3 < found["own answer preferred by the judge"]["value"] < 0.7 and found["own answer preferred by people"]["value"] == 0.5


def test_scores_are_swept_and_an_unjudged_row_is_neither_good_nor_bad(tmp_path):
    rows = [{"id": f"r{i}", "text": f"text {i}", "human": 1 + i % 5, "language": "it"} for i in range(100)]
    async def one(row, ask): return await rate(rubric("response"), ["Why?", row["text"]], ask)
    def answer(body, n):
        i = int(judged_texts(prompt(body))[-1][1].split()[-1])
        return "I will not." if i % 10 == 0 else json.dumps({"rationale": "", "score": min(1 + i % 5 + (i % 10 == 1), 5)})
    with serve(answer) as (model, _): found = calibrate(one, rows, model=model, good=4, precision=0.9, store=tmp_path / "s.sqlite")
    assert found.kind == "score" and found.failed == {"no verdict": 10} and found.figures["rows judged"]["value"] == 0.9
    assert 0.9 < found.figures["rank correlation"]["value"] < 1 and found.figures["rank correlation"]["n"] == 90
    assert found.threshold == 4 and [s["threshold"] for s in found.sweep[""]] == [1, 2, 3, 4, 5] and found.sweep["it"] == found.sweep[""]
    assert all(s["kept"] <= 90 for s in found.sweep[""])


def test_a_judge_that_says_the_same_of_all_is_warned_of(tmp_path):
    rows = [{"id": f"r{i}", "human": 1 + i % 5} for i in range(40)]
    async def one(row, ask): return await rate(rubric("response"), ["Why?", row["id"]], ask)
    with serve(lambda body, n: '{"score": 4}') as (model, _): found = calibrate(one, rows, model=model, store=tmp_path / "s.sqlite")
    assert "40 of 40 the same verdict (4)" in found.sentence and found.figures["rank correlation"]["value"] is None


def test_rows_without_an_opinion_are_refused_before_anything_is_paid():
    async def never(row, ask): raise AssertionError
    with pytest.raises(ValueError, match="row p3: expected a person's opinion in the column human"):
        calibrate(never, [{"id": "p1", "human": 0}, {"id": "p3", "human": None}], model="http://127.0.0.1:9/v1#m")


@shared
@pytest.mark.parametrize("who", ["GPT-4", "ChatGPT", "ChatGPT-0301", "LLaMA2", "PaLM2", "Falcon"])
def test_recorded_judges_agree_with_people_as_published(tmp_path, who):
    "LLMBar Natural: what the judge wrote comes from a server; our reading of it gives the accuracy that the authors' reading gives"
    records = [json.loads(line) for line in (DATA / "judge_raw_llmbar" / "llmbar_natural_raw.jsonl").open()]
    records = {r["id"]: r for r in records if r["judge"] == who}
    choose = replace(rubric("comparison"), labels={"1": ["Output (a)"], "2": ["Output (b)"]})
    async def one(row, ask): return await rate(choose, ["Which is better?", row["id"]], ask)
    rows = [{"id": key, "human": str(3 - r["human_label"] if r["swap"] else r["human_label"])} for key, r in records.items()]
    with serve(lambda body, n: records[judged_texts(prompt(body))[-1][1]]["raw"]) as (model, _):
        found = calibrate(one, rows, model=model, store=tmp_path / "s.sqlite")
    theirs = [str(r["authors_parsed_winner"]) == str(r["human_label"]) for r in records.values() if str(r["authors_parsed_winner"]) in ("1", "2")]
    same = found.figures["same opinion"]
    assert same["n"] >= 0.95 * len(theirs) and abs(same["value"] - sum(theirs) / len(theirs)) < 0.015


@pytest.mark.parametrize("given", [True, False])
def test_expected_scores_come_from_log_probabilities_and_are_stored(tmp_path, given):
    "Where the endpoint does not give them, the score that was said counts"
    def answer(body, n):
        assert body["logprobs"] is True and body["top_logprobs"] == 20
        said = {"choices": [{"message": {"role": "assistant", "content": '{"score": 4}'}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}
        tokens = [('{"score', {}), ('": ', {}), ("4", {"4": -0.5, "5": -1.2, "2": -3.0, "?": -2.0}), ("}", {})]
        if given: said["choices"][0]["logprobs"] = {"content": [{"token": t, "logprob": 0, "top_logprobs": [{"token": o, "logprob": l} for o, l in options.items()]} for t, options in tokens]}
        return 200, said
    async def recipe(row, ask): return row | {"score": (await rate(rubric("response"), ["Why?", "So."], ask, expected=True)).score}
    weights = {4: math.exp(-0.5), 5: math.exp(-1.2), 2: math.exp(-3.0)}
    with serve(answer) as (model, bodies):
        for _ in range(2):
            (row,) = run([{"id": "r"}], recipe, model=model, store=tmp_path / "s.sqlite").kept
            assert row["score"] == (pytest.approx(sum(s * w for s, w in weights.items()) / sum(weights.values()), abs=0.005) if given else 4)
    assert len(bodies) == 1


def with_logprobs(text):
    "A body that says `text`, each character a token; digits are 4, or next to it 5"
    data = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}
    tokens = [{"token": c, "logprob": 0, "top_logprobs": [{"token": c, "logprob": -0.1}, {"token": "3" if c.isdigit() else "x", "logprob": -2.4}]} for c in text]
    data["choices"][0]["logprobs"] = {"content": tokens}
    return 200, data


@pytest.mark.parametrize("text, scores", [
    (ratings(5, 1), [4.82, 1.18]), ('{"ratings": [{"id": 2, "score": 1}, {"id": 1, "score": 5}]}', [5, 1]), ('{"response_2": {"score": 1}, "response_1": {"score": 5}}', [5, 1])])
def test_expected_scores_are_not_put_to_another_answer(tmp_path, text, scores):
    "Ratings that name their answer are read in that order; the log-probabilities come in another, and are left out"
    row = {"id": "p", "answers": ["a", "b"]}
    async def once(row, ask): return await compared(row, ask, orders=1, expected=True)
    with serve(lambda body, n: with_logprobs(text)) as (model, _): (found,) = run([row], once, model=model, store=tmp_path / "s.sqlite").kept
    assert sorted(found["scores"]) == pytest.approx(sorted(scores), abs=0.03)
    with serve(lambda body, n: text) as (model, _): (said,) = run([row], once, model=model, store=tmp_path / "t.sqlite").kept
    assert found["preference"] == said["preference"]


def test_an_endpoint_that_refuses_log_probabilities_is_asked_without(tmp_path):
    def answer(body, n): return (400, {"error": {"message": "logprobs is not supported by this model"}}) if "logprobs" in body else honest(body)
    async def expecting(row, ask): return await compared(row, ask, expected=True)
    with serve(answer) as (model, bodies): outcome = run(pairs(30), expecting, model=model, store=tmp_path / "s.sqlite", concurrency=2)
    assert len(outcome.kept) == 30 and len(bodies) < 60 + 10


def test_a_juror_that_refuses_is_outvoted(tmp_path):
    def answer(body, n): return (400, {"error": {"message": "content filter"}}) if body["model"] == "third" else honest(body)
    async def jury(row, ask): return await compared(row, ask, roles=("judge", "second", "third"))
    with serve(answer, models=("m", "second", "third")) as (model, _):
        models = {"default": model} | {name: model.replace("#m", f"#{name}") for name in ("second", "third")}
        outcome = run(pairs(5), jury, model=models, store=tmp_path / "s.sqlite")
    assert all(r["status"] == "ok" for r in outcome.kept) and len(outcome.kept) == 5


@pytest.mark.parametrize("human, message", [("0", "row p1: expected the index of an answer, 0 to 1"), (2, "found 2"), ("Tie", "found 'Tie'"), (True, "expected a person's opinion"), (float("nan"), "expected a person's opinion")])
def test_opinions_of_another_kind_are_refused_after_one_row(tmp_path, human, message):
    rows = [row | {"id": f"p{i}", "human": human if i == 1 else 0} for i, row in enumerate(pairs(20))]
    with serve(honest) as (model, bodies), pytest.raises(ValueError, match=re.escape(message)): calibrate(judge, rows, model=model, store=tmp_path / "s.sqlite")
    assert len(bodies) <= 2


def test_rows_without_ids_and_a_judge_that_never_judges(tmp_path):
    rows = [{"human": i % 2, "answers": p["answers"]} for i, p in enumerate(pairs(20))]
    async def one(row, ask): return await compare(rubric("response"), "Why?", row["answers"], ask)
    with serve(honest) as (model, _): assert len(calibrate(one, rows, model=model, store=tmp_path / "s.sqlite").rows) == 20
    with serve(lambda body, n: "No.") as (model, _), pytest.raises(ValueError, match="no row was judged: .*no verdict"): calibrate(one, rows, model=model, store=tmp_path / "t.sqlite")


def test_a_judge_that_says_the_contrary_is_worse_than_chance(tmp_path):
    rows = labelled(100)
    for row in rows: row["human"] = "tie" if worth(row["answers"][0]) == worth(row["answers"][1]) else int(worth(row["answers"][1]) < worth(row["answers"][0]))
    with serve(honest) as (model, _): found = calibrate(judge, rows, model=model, store=tmp_path / "s.sqlite")
    assert found.sentence.startswith("Worse than chance")


def test_a_label_judge_whose_first_row_is_unjudged(tmp_path):
    rows = [{"id": f"r{i}", "human": "high" if i % 2 else "low"} for i in range(20)]
    async def one(row, ask): return await rate(rubric("instruction"), [row["id"]], ask)
    def answer(body, n):
        i = int(judged_texts(prompt(body))[-1][1].split("r")[-1])
        return json.dumps({"label": "high" if i % 2 else "low"}) if i else "Hm."
    with serve(answer) as (model, _): found = calibrate(one, rows, model=model, store=tmp_path / "s.sqlite")
    assert found.kind == "label" and found.figures["kappa"]["value"] == 1 and found.failed == {"no verdict": 1}
    with serve(answer) as (model, _), pytest.raises(ValueError, match="expected the judge's labels \\(high, low\\), found good"):
        calibrate(one, [row | {"human": "good"} for row in rows], model=model, store=tmp_path / "t.sqlite")
