"Back-instruction: the answer stays as it was written, draws are stable, requests that give the text away are dropped."
import json

import pytest
from scripted_server import serve

from llmdata_nb.backinstruct import STYLES, TASKS, back_instruct, draw, request_problem, sweep
from llmdata_nb.run import run

TEXTS = [f"Nel {1800 + i} il mulino sul fiume macinava il grano di tre villaggi.\r\n  Il mugnaio, «Berto», teneva un quaderno dei conti;   lo si legge ancora." for i in range(12)]
ENGLISH = "In those days the mill on the river ground the grain of three villages. The miller, Berto, kept a book of accounts, which can still be read."


def rows(): return [{"id": f"t{i}", "response": text, "title": f"Mulino {i}", "licence": "CC0"} for i, text in enumerate(TEXTS)]


def answer(body, score=4, asked="Come lavorava il mulino che serviva tre villaggi?"):
    "A model that translates both ways, asks one question, and judges all alike"
    prompt, wanted = body["messages"][0]["content"], body["response_format"]["json_schema"]["schema"]["properties"]
    if "score" in wanted: return json.dumps({"rationale": "Va bene.", "score": score})
    if "instruction" in wanted: return json.dumps({"instruction": asked if "Write it in Italian" in prompt else "How did the mill that served three villages work?"})
    return json.dumps({"translation": asked if "into Italian" in prompt else ENGLISH.replace("In those days", f"In {prompt.split('Nel ')[1][:4]}")})


def made(reply=answer, **options):
    with serve(lambda body, n: reply(body)) as (model, bodies): outcome = run(rows(), back_instruct, model=model, language="it", store=":memory:", **options)
    return outcome, bodies


@pytest.mark.parametrize("direct, calls", [(True, 24), (False, 37)])
def test_the_answer_is_the_text_byte_for_byte(direct, calls):
    outcome, bodies = made(direct=direct)
    assert len(outcome.kept) == 12 and len(bodies) == calls  # the one English question is translated once
    for row, text in zip(outcome.kept, TEXTS):
        assert row["messages"] == [{"role": "user", "content": "Come lavorava il mulino che serviva tre villaggi?"}, {"role": "assistant", "content": text}] and row["response"] == text
        assert row["alignment_score"] == 4 and row["licence"] == "CC0" and row["task"] in TASKS and row["style"] in STYLES and row["detected_language"] == "it"
        assert direct or row["response_en"].startswith("In 18") and row["instruction_en"].startswith("How did the mill")


def test_a_function_translates_in_place_of_a_model():
    seen = []
    def translate_with(text, source, target): return seen.append((source, target)) or (ENGLISH if target == "en" else "Come lavorava il mulino che serviva tre villaggi?")
    outcome, bodies = made(translate_with=translate_with)
    assert len(outcome.kept) == 12 and not any("Translate the message" in b["messages"][0]["content"] for b in bodies) and seen.count(("it", "en")) == seen.count(("en", "it")) == 12


def test_the_threshold_is_inclusive():
    assert len(made(lambda b: answer(b, 3), direct=True)[0].kept) == 12
    assert {r["reason"] for r in made(lambda b: answer(b, 2), direct=True)[0].dropped} == {"alignment: judged too low (2, kept from 3)"}


@pytest.mark.parametrize("asked, reason", [("Che cosa dice il testo sul mulino?", "speaks of a text (il testo)"), ("What did the miller of the three villages write down?", "wrong language"),
                                           ("Spiega che il mulino sul fiume macinava il grano di tre villaggi", "copies the answer"), ("Scrivi:", "too short")])
def test_bad_requests_have_a_reason_and_no_judge_is_paid(asked, reason):
    outcome, bodies = made(lambda b: answer(b, asked=asked), direct=True)
    assert len(bodies) == 12 and all(r["reason"].startswith(f"instruction: {reason}") for r in outcome.dropped) and len(outcome.dropped) == 12


def test_a_new_task_changes_only_the_rows_that_draw_it():
    more = TASKS | {"riddle": (3, "a riddle")}
    before, after = ([r["task"] for r in made(direct=True, tasks=tasks)[0].kept] for tasks in (TASKS, more))
    assert "riddle" in after and all(a == b or b == "riddle" for a, b in zip(before, after))
    assert before == [r["task"] for r in made(direct=True)[0].kept] != [r["task"] for r in made(direct=True, seed=1)[0].kept]
    assert [draw({"a": 1, "b": 0}, i) for i in range(50)] == ["a"] * 50


def test_examples_stand_in_the_judges_prompt_and_nothing_else_is_paid_again(tmp_path):
    example = {"instruction": "Che cos'è un mulino?", "response": "Una macchina che macina.", "score": 5}
    with serve(lambda body, n: answer(body)) as (model, bodies):
        for examples in ([], [example]): run(rows(), back_instruct, model=model, language="it", direct=True, examples=examples, store=tmp_path / "s.sqlite")
    assert len(bodies) == 12 * 2 + 12 and sum("[Istruzione] Che cos'è un mulino?" in b["messages"][0]["content"] for b in bodies) == 12


@pytest.mark.parametrize("row", [{"id": "a"}, {"id": "a", "response": "  "}, {"id": "a", "text": 3}])
def test_rows_without_a_text_fail_before_they_are_paid(row):
    with serve(lambda body, n: answer(body)) as (model, bodies): outcome = run([row], back_instruct, model=model, language="it", store=":memory:")
    assert "expected a native text" in outcome.failed[0]["reason"] and not bodies


def test_sweep_counts_kept_and_dropped():
    outcome, _ = made(lambda b: answer(b, 2), direct=True)
    assert [s["kept"] for s in sweep(outcome.dropped)] == [12, 12, 0, 0, 0]


def test_a_request_of_its_own_passes(): assert request_problem("Perché i mulini stavano sui fiumi?", TEXTS[0], "it") is None
