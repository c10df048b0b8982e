"Tags and guards: what counts as an answer, over a scripted server and through a run; levels, and the nearest vector."
import json
import random

import pytest
from scripted_server import serve

from llmdata_nb.run import run
from llmdata_nb.tags import CATEGORIES, DIFFICULTIES, QUALITIES, at_least, nearest, read_guard, read_tags, safety, tag

GOOD = {"intent": "A sum", "knowledge": "Adding", "difficulty": "very easy", "quality_explanation": "It is clear.", "quality": "good", "category": "math", "other_categories": ["reasoning"]}


def answer(**changed): return json.dumps(GOOD | changed)


def prompt(body): return body["messages"][0]["content"]


async def tagged(row, ask): return row | {"tags": await tag(row["text"], ask)}


async def guarded(row, ask): return row | {"guard": await safety(row["messages"], ask)}


def outcome_of(recipe, rows, says, tmp_path):
    with serve(says) as (model, bodies): return run(rows, recipe, model=model, store=tmp_path / "s.sqlite", concurrency=1), bodies


@pytest.mark.parametrize("key, choices", [("difficulty", DIFFICULTIES), ("quality", QUALITIES), ("category", CATEGORIES)])
def test_each_choice_is_read_however_it_is_written(key, choices):
    assert len(set(choices)) == len(choices)
    for choice in choices:
        for said in (choice, choice.upper(), choice.title(), choice.replace(" ", "_"), choice.replace(" ", "-"), f"  {choice.replace(' ', '   ')}\n"):
            assert read_tags(answer(**{key: said}))[key] == choice
    assert read_tags(answer(category="Other"))["category"] == "others"


@pytest.mark.parametrize("changed", [
    {"difficulty": "trivial"}, {"difficulty": "easy to medium"}, {"difficulty": 3}, {"difficulty": None}, {"difficulty": ""}, {"difficulty": "good"}, {"difficulty": "veryeasy"},
    {"quality": "great"}, {"quality": "hard"}, {"quality": ["good"]}, {"category": "poetry"}, {"category": "math, reasoning"}, {"category": ["math"]}, {"category": {}},
    {"intent": None}, {"knowledge": ["Adding"]}, {"quality_explanation": 1}])
def test_what_is_none_of_the_choices_is_no_answer(changed):
    with pytest.raises(ValueError, match=next(iter(changed))): read_tags(answer(**changed))


@pytest.mark.parametrize("key", GOOD)
def test_an_answer_with_a_key_missing_is_no_answer(key):
    with pytest.raises(ValueError, match="no JSON object"): read_tags(json.dumps({k: v for k, v in GOOD.items() if k != key}))


@pytest.mark.parametrize("text", ["", "4", "The sum is 4.", "[]", "<think>" + answer(), answer()[:120]])
def test_what_holds_no_tags_is_no_answer(text):
    with pytest.raises(ValueError): read_tags(text)


def test_tags_stand_in_a_fence_after_thinking_and_without_other_keys():
    assert read_tags("<think>" + answer(category="editing") + "</think>\n```json\n" + answer(mood="calm") + "\n```") == GOOD


@pytest.mark.parametrize("said, read", [
    ([], []), (None, []), ("reasoning", ["reasoning"]), (["Others", "other"], ["others"]), (["math", "Math"], []), (["poetry", 7, None, "Data_Analysis"], ["data analysis"])])
def test_unknown_other_categories_are_left_out(said, read):
    assert read_tags(answer(other_categories=said))["other_categories"] == read


def test_one_call_tags_an_instruction_and_is_stored(tmp_path):
    rows = [{"id": f"r{i}", "text": f"Quanto fa {i} + 2?\nE perché?"} for i in range(3)]
    with serve(lambda body, n: answer()) as (model, bodies):
        for _ in range(2): outcome = run(rows, tagged, model=model, store=tmp_path / "s.sqlite", concurrency=1)
    assert [r["tags"] for r in outcome.kept] == [GOOD] * 3 and len(bodies) == 3
    assert all(b["temperature"] == 0 and b["max_tokens"] == 512 for b in bodies)
    constant = prompt(bodies[0]).partition(rows[0]["text"])[0]
    for row, body in zip(rows, bodies): assert prompt(body) == constant + row["text"] + "\n</instruction>" and constant.endswith("<instruction>\n")
    schema = bodies[0]["response_format"]["json_schema"]["schema"]
    assert list(schema["properties"]) == list(GOOD) and schema["properties"]["category"]["enum"] == list(CATEGORIES)
    assert all(choice in constant for choice in (*DIFFICULTIES, *QUALITIES, *CATEGORIES))


def test_an_answer_outside_of_the_choices_is_asked_for_once_more(tmp_path):
    outcome, bodies = outcome_of(tagged, [{"id": "r", "text": "2 + 2?"}], lambda body, n: answer(category="arithmetic") if body["temperature"] == 0 else answer(), tmp_path)
    assert outcome.kept[0]["tags"] == GOOD and len(bodies) == 2 and prompt(bodies[0]) == prompt(bodies[1])


def test_one_that_stays_outside_fails_its_row_and_no_other(tmp_path):
    rows = [{"id": "good", "text": "2 + 2?"}, {"id": "bad", "text": "Rhyme!"}]
    outcome, bodies = outcome_of(tagged, rows, lambda body, n: answer(difficulty="trivial") if "Rhyme" in prompt(body) else answer(), tmp_path)
    assert [r["id"] for r in outcome.kept] == ["good"] and len(bodies) == 3
    (failed,) = outcome.failed
    assert failed["id"] == "bad" and "tags" not in failed and failed["reason"].startswith("tag: unparseable") and "trivial" in failed["reason"]


def test_an_endpoint_without_schemas_is_asked_without(tmp_path):
    def says(body, n): return (400, {"error": {"message": "response_format is not supported"}}) if "response_format" in body else "Here it is:\n" + answer(difficulty="Very_Easy")
    outcome, bodies = outcome_of(tagged, [{"id": "r", "text": "2 + 2?"}], says, tmp_path)
    assert outcome.kept[0]["tags"] == GOOD and "response_format" not in bodies[-1]


@pytest.mark.parametrize("text", ["", " \n", None, ["2 + 2?"]])
def test_nothing_is_paid_for_what_is_no_text(tmp_path, text):
    outcome, bodies = outcome_of(tagged, [{"id": "r", "text": text}], lambda body, n: answer(), tmp_path)
    assert "expected an instruction to tag" in outcome.failed[0]["reason"] and not bodies


SAID = [("safe", True, []), ("\n\nsafe\n", True, []), ("unsafe", False, []), ("\n\nunsafe\nS1", False, ["S1"]), ("unsafe\nS1,S10", False, ["S1", "S10"]), ("unsafe\nS2, S9", False, ["S2", "S9"]),
        ("Safety: Safe\nCategories: None", True, []), ("Safety: Safe\nCategories: None\nRefusal: Yes", True, []), ("Safety: Unsafe\nCategories: Violent, PII", False, ["Violent", "PII"]),
        ("Safety: Unsafe\nCategories: Suicide & Self-Harm\nRefusal: No", False, ["Suicide & Self-Harm"]), ("Safety: Controversial\nCategories: None", False, []),
        ("Safety: Controversial\nCategories: Non-violent Illegal Acts", False, ["Non-violent Illegal Acts"]), ("<think>unsafe\nS1</think>\nsafe", True, [])]
GARBAGE = ["", "Yes", "No", "Safe enough.", "not safe", "safe\nunsafe", "unsafe or safe", "safe\nS1", "unsafe\nbecause it is", "I cannot help with that.", "Safety: Safe", "Safety: Fine\nCategories: None",
           "Safety: Safe\nCategories: Violent", "Safety: Safe\nCategories:", "Safety: Safe\nCategories: None\nBut wait", "<think>safe", "safe<think>", '{"safe": true}']


@pytest.mark.parametrize("text, safe, hazards", SAID)
def test_guards_are_read(text, safe, hazards): assert read_guard(text) == {"safe": safe, "hazards": hazards}


@pytest.mark.parametrize("text", GARBAGE)
def test_what_no_guard_would_say_is_never_safe(text):
    with pytest.raises(ValueError): read_guard(text)


def test_a_guard_sees_the_messages_as_they_are_and_what_it_does_not_say_fails_the_row(tmp_path):
    says = {"a": "safe", "b": "unsafe\nS1,S10", "c": "Safety: Controversial\nCategories: Unethical Acts", "d": "Sure! Here is how.", "e": "I think that"}
    rows = [{"id": i, "messages": [{"role": "user", "content": f"Ask {i}"}, {"role": "assistant", "content": "Say"}]} for i in says]
    def guard(body, n):
        i = prompt(body)[-1]
        return "safe" if i == "e" and body["temperature"] else says[i]
    outcome, bodies = outcome_of(guarded, rows, guard, tmp_path)
    assert {r["id"]: r["guard"] for r in outcome.kept} == {"a": {"safe": True, "hazards": []}, "b": {"safe": False, "hazards": ["S1", "S10"]},
                                                           "c": {"safe": False, "hazards": ["Unethical Acts"]}, "e": {"safe": True, "hazards": []}}
    assert [r["id"] for r in outcome.failed] == ["d"] and outcome.failed[0]["reason"].startswith("guard: unparseable") and len(bodies) == 7
    assert [b["messages"] for b in bodies[:3]] == [r["messages"] for r in rows[:3]] and not any("response_format" in b for b in bodies)


def test_tagger_and_guard_are_models_of_their_own(tmp_path):
    async def both(row, ask): return row | {"tags": await tag(row["text"], ask), "guard": await safety(row["text"], ask)}
    def says(body, n): return {"tagger": answer(), "guard": "safe"}[body["model"]]
    with serve(says, models=("m", "tagger", "guard")) as (model, _):
        models = {"default": model} | {name: model.replace("#m", f"#{name}") for name in ("tagger", "guard")}
        outcome = run([{"id": "r", "text": "2 + 2?"}], both, model=models, store=tmp_path / "s.sqlite")
    assert outcome.kept[0]["tags"] == GOOD and outcome.kept[0]["guard"]["safe"] and {line["step"] for line in outcome.ledger} == {"tag", "guard"}


@pytest.mark.parametrize("scale", [DIFFICULTIES, QUALITIES])
def test_a_level_is_reached_by_itself_and_those_above(scale):
    for i, value in enumerate(scale):
        for j, least in enumerate(scale): assert at_least(value, least, scale) is (i >= j)
    for value, least in ((scale[0], "great"), ("great", scale[0])):
        with pytest.raises(ValueError, match=f"'great': expected {', '.join(scale)}"): at_least(value, least, scale)


def test_the_nearest_is_that_of_the_smallest_angle():
    chance = random.Random(5)
    vectors = [[chance.gauss(0, 1) * 10 ** (i % 3) for _ in range(8)] for i in range(50)]
    def cosine(a, b): return sum(x * y for x, y in zip(a, b)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    for _ in range(20):
        vector = [chance.gauss(0, 1) for _ in range(8)]
        index, similarity = nearest(vectors, vector)
        assert similarity == pytest.approx(max(cosine(v, vector) for v in vectors), abs=1e-5) and cosine(vectors[index], vector) == pytest.approx(similarity, abs=1e-5)
    assert nearest(vectors, [x * 7 for x in vectors[3]]) == (3, 1.0) and nearest([vectors[3]], [-x for x in vectors[3]]) == (0, -1.0)


def test_nearest_takes_arrays_and_gives_plain_numbers():
    import numpy as np
    index, similarity = nearest(np.eye(3, dtype="float16"), np.array([0, 0, 2]))
    assert (index, similarity) == (2, 1.0) and type(index) is int and type(similarity) is float
    assert nearest(np.empty((0, 3)), np.array([0, 0, 2])) == nearest([], [1.0]) == (None, None)


@pytest.mark.parametrize("vectors, vector, message", [
    ([[1, 0], [0, 0]], [1, 0], "a vector of zeros"), ([[1, 0]], [0, 0], "a vector of zeros"), ([], [0, 0], "a vector of zeros"), ([], [], "a vector of zeros"),
    ([[1, float("nan")]], [1, 0], "not finite"), ([[1, 0]], [1, float("inf")], "not finite"),
    ([[1, 0]], [1, 0, 0], "vectors of 2 and of 3 numbers"), ([[1, 0], [1, 0, 0]], [1, 0], "vectors of 3 and of 2 numbers")])
def test_vectors_without_a_direction_or_of_other_lengths_are_refused(vectors, vector, message):
    with pytest.raises(ValueError, match=message): nearest(vectors, vector)


def test_importing_is_light():
    import subprocess, sys
    code = "import sys; before = set(sys.modules); import llmdata_nb.models; known = set(sys.modules); import llmdata_nb.tags; print([m for m in set(sys.modules) - known if not m.startswith('llmdata_nb')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() in ("[]", "['unicodedata']")
