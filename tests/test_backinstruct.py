"Back-instruction: the answer stays as it was written, draws are stable, requests that give the text away are dropped."
import json

import pytest
from datasets import load_dataset
from scripted_server import judged_texts, serve

from llmdata_nb.backinstruct import STYLES, TASKS, back_instruct, best_and_worst, compare_tasks, draw, only, request_problem, requested, sweep
from llmdata_nb.cli import main
from llmdata_nb.passages import SHOWN
from llmdata_nb.rows import load_rows
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


def test_checks_left_out_by_name():
    asked = "What did the miller of the three villages write down?"
    outcome, _ = made(lambda b: answer(b, asked=asked), direct=True, skip_checks=("wrong_language", "doubtful_language", "switches_language"))
    assert len(outcome.kept) == 12
    outcome, bodies = made(direct=True, skip_checks=("wrong",))
    assert "no check is named 'wrong'" in outcome.failed[0]["reason"] and not bodies


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
    assert len(bodies) == 12 * 2 + 12 and sum("\nChe cos'è un mulino?\n</example-" in b["messages"][0]["content"] for b in bodies) == 12


@pytest.mark.parametrize("row", [{"id": "a"}, {"id": "a", "response": "  "}, {"id": "a", "text": 3}])
def test_rows_without_a_text_fail_before_they_are_paid(row):
    with serve(lambda body, n: answer(body)) as (model, bodies): outcome = run([row], back_instruct, model=model, language="it", store=":memory:")
    assert "expected a native text" in outcome.failed[0]["reason"] and not bodies


def test_sweep_counts_kept_and_dropped():
    outcome, _ = made(lambda b: answer(b, 2), direct=True)
    assert [s["kept"] for s in sweep(outcome.dropped)] == [12, 12, 0, 0, 0]


def test_a_request_of_its_own_passes(): assert request_problem("Perché i mulini stavano sui fiumi?", TEXTS[0], "it") is None


DOCUMENT = "La bottega\n\n" + load_rows("demo_texts")[2]["text"] + "\n\nPagina 3"


def choosing(*answers):
    "A run on one document, whose passage is chosen by `answers`, one after the other"
    given = iter(answers)
    with serve(lambda body, n: next(given) if "<document>" in body["messages"][0]["content"] else answer(body)) as (model, bodies):
        outcome = run([{"id": "d", "text": DOCUMENT, "title": "Bottega"}], back_instruct, model=model, language="it", direct=True, choose=True, store=":memory:")
    return outcome, bodies


@pytest.mark.parametrize("answers", [['{"first": 3, "last": 5}'], ['{"first": "3", "last": "5"}'], ['{"first": 3, "last": 99}', '{"first": 3, "last": 5}'], ["sentences 3 to 5", '```json\n{"first": 3, "last": 5}\n```']])
def test_a_chosen_passage_is_a_slice_of_its_document(answers):
    outcome, bodies = choosing(*answers)
    (row,) = outcome.kept
    assert row["response"] == DOCUMENT[row["start"]:row["end"]] == row["messages"][1]["content"] and row["response"].startswith("Sul banco") and row["response"].endswith("alzare gli occhi.")
    assert row["title"] == "Bottega" and "[1] La bottega" in bodies[0]["messages"][0]["content"] and len(bodies) == len(answers) + 2


@pytest.mark.parametrize("answers, state, reason", [(['{"first": 0, "last": 0}'], "dropped", "passage: the model found none"), (['{"first": 2, "last": 2}'], "dropped", "passage: too short"), (['{"first": 2, "last": 3}'], "dropped", "passage: too few sentences"),
                                                    (['{"first": 5, "last": 3}', '{"first": -1, "last": 3}'], "failed", "unparseable")])
def test_a_bad_choice_has_a_reason_and_nothing_more_is_paid(answers, state, reason):
    outcome, bodies = choosing(*answers)
    assert reason in getattr(outcome, state)[0]["reason"] and len(bodies) == len(answers)


def test_of_a_long_document_the_beginning_is_shown():
    with serve(lambda body, n: '{"first": 0, "last": 0}') as (model, bodies): run([{"id": "d", "text": DOCUMENT * 500}], back_instruct, model=model, language="it", choose=True, store=":memory:")
    assert len(bodies[0]["messages"][0]["content"]) < 1.5 * SHOWN


def test_a_second_round_asks_only_the_judge(tmp_path):
    "What was found best and worst stands in the judge's prompt, but never beside itself"
    def judged(body): return answer(body, score=5 if "1800" in str(body) else 1 if "1803" in str(body) else 3)
    with serve(lambda body, n: judged(body)) as (model, bodies):
        options = dict(model=model, language="it", store=tmp_path / "s.sqlite")
        first = run(rows(), back_instruct, min_score=2, **options)
        paid, examples = len(bodies), best_and_worst([*first.kept, *first.dropped], best=1)
        assert [e["score"] for e in examples] == [5, 1] and examples[0]["response"].startswith("In 1800") and examples[0]["instruction"] == "How did the mill that served three villages work?"
        run(rows(), back_instruct, examples=examples, **options)
        assert all("\n→ " in b["messages"][0]["content"] for b in bodies[paid:]) and len(bodies) == paid + 12
    own = next(b["messages"][0]["content"] for b in bodies[paid:] if b["messages"][0]["content"].count("In 1800") == 1 and "→ 5" not in b["messages"][0]["content"])
    assert "→ 1" in own


def test_the_same_texts_for_each_task():
    def asked(body): return answer(body, asked="Chi macinava il grano, e per chi?" if "what happened" in body["messages"][0]["content"] else "Come lavorava il mulino che serviva tre villaggi?", score=2 if "Chi macinava" in str(body) else 4)
    with serve(lambda body, n: asked(body)) as (model, bodies):
        lines = compare_tasks(rows()[:4], {"template": ["Scrivi un testo sul mulino 1.", "Scrivi un testo sul mulino 2."]}, only("question,story", TASKS), model=model, language="it", direct=True, store=":memory:")
    assert [(line["requests"], line["kept"]["value"], line["score"]) for line in lines] == [("question", 1, 4), ("story", 0, 2), ("template", None, None)] and lines[2]["texts"] == 2


def test_a_request_that_is_cut_off_says_so():
    def cut(body): return 200, {"choices": [{"message": {"content": '{"instruction": "Come lavorava il mul'}, "finish_reason": "length"}], "usage": {}}
    with serve(lambda body, n: cut(body)) as (model, bodies): outcome = run(rows()[:1], back_instruct, model=model, language="it", direct=True, store=":memory:")
    assert [r["reason"] for r in outcome.failed] == ["instruction: cut off (it took 600 of 600 tokens: give it more room)"] and len(bodies) == 2


def test_people_tell_the_precision_of_a_threshold():
    outcome, _ = made(lambda b: answer(b, 3 if "1800" in str(b) else 5), direct=True)
    lines = sweep(outcome.kept, good={"t0": False, "t1": True, "t2": True})
    assert [line["precision"]["value"] for line in lines] == [2 / 3] * 3 + [1, 1] and lines[0]["precision"]["n"] == 3


MILL = ENGLISH + " In winter the stream froze, and the wheel stood still for weeks; people brought their flour from the town then, and paid twice as much. When the railway came, nobody needed the mill any more. Its roof fell in, and children played among the stones, until a baker from abroad bought the ruin and put all of it back in order."


def test_the_pipeline(project, capsys):
    "The demo: three documents are no answer to anything; what is kept is the text as it was; a second round asks the judge alone; what cannot be is said first"
    texts = {r["id"]: r["text"] for r in load_rows("demo_texts")}
    def reply(body):
        prompt, wanted = body["messages"][0]["content"], body["response_format"]["json_schema"]["schema"]["properties"]
        if "score" in wanted: return json.dumps({"rationale": "Fits.", "score": 2 if "melon" in judged_texts(prompt)[-1][1] else 4})
        if "instruction" in wanted: return json.dumps({"instruction": "What should one know about this, and why does it matter?"})
        return json.dumps({"translation": "Che cosa bisogna sapere, e perché è importante?" if "into Italian" in prompt else "One tells a ripe melon by the nose: it smells sweet. Then one takes it in the hand, and it should be heavy. The skin gives way a little under the thumb. If there is a crack around the stalk, the fruit was about to fall, and it is ready to eat. Picked too early it grows softer in the kitchen, but no sweeter, for sugar comes from the plant." if "melone" in prompt else MILL})
    with serve(lambda body, n: reply(body)) as (model, bodies):
        assert main(["back_instruct", "-p", f"model={model}"]) == 0
        out, paid = project / "outputs" / "it" / "back_instruct", len(bodies)
        kept = load_dataset(str(out), split="train")
        assert len(kept) == 7 and all(r["messages"][1]["content"] == r["response"] == texts[r["document"]][r["start"]:r["end"]] and r["licence"] == "Apache-2.0" and requested(r) for r in kept)
        reasons = {r["id"]: r["reason"] for r in load_dataset("parquet", data_files=str(out / "dropped.parquet"), split="train")}
        assert [reasons[i].split("(")[0] for i in ("text-5-0", "text-9-0", "text-10-0", "text-11-0")] == ["alignment: judged too low ", "passage: too short ", "passage: wrong language ", "passage: too short "]
        card = (out / "README.md").read_text()
        assert "byte for byte" in card and "alignment_score" in card and (out / "plots" / "funnel.png").exists()
        assert main(["back_instruct", "-p", f"model={model}", "-p", "second_round=true"]) == 0 and 0 < len(bodies) - paid <= 8
        assert {("→ 4" in b["messages"][0]["content"], "→ 2" in b["messages"][0]["content"]) for b in bodies[paid:]} == {(True, False), (False, True)}  # no pair is an example of itself
    assert main(["back_instruct", "-p", "tasks=riddle"]) == 1 and "'riddle': expected question, explanation" in capsys.readouterr().err
