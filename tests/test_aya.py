"From human answers to preference pairs: who is chosen, what is left out, what the models' figures say."
import json
from pathlib import Path

import pytest
from scripted_server import judged_texts, serve

from llmdata_nb.aya import aya_preferences, compare_models, of_language, overview, split_test
from llmdata_nb.languages import pack
from llmdata_nb.rows import load_rows
from llmdata_nb.run import run

SHARED = Path(__file__).parents[2] / "shared" / "data"


def rows(n=6): return load_rows([{"inputs": f"Che cosa sai dirmi del numero {i}, e perché piace alla gente?", "targets": f"Il numero {i} piace perché porta fortuna, dice mia nonna.", "language_code": "ita", "user_id": f"u{i % 2}"} for i in range(n)])


def judge(body, best=lambda text: 5 if "nonna" in text else 2, key="score"):
    "Rates each answer by its text, wherever it stands"
    _, *answers = [text for _, text in judged_texts(body["messages"][0]["content"])]
    return json.dumps({"ratings": [{"rationale": "L'ho letta.", key: best(a)} for a in answers]})


def model(say=lambda body: f"Il numero è una quantità, e questa è la mia risposta numero {body['seed']}.", best=lambda text: 5 if "nonna" in text else 2):
    return serve(lambda body, n: judge(body, best) if "response_format" in body else say(body))


def made(reference, data=None, **options): return run(data if data is not None else rows(), aya_preferences, model=reference, language="it", store=":memory:", **options)


def test_the_better_answer_is_chosen_whoever_wrote_it():
    for best, author in ((lambda t: 5 if "nonna" in t else 2, "human"), (lambda t: 1 if "nonna" in t else 4, "model")):
        with model(best=best) as (reference, bodies): outcome = made(reference)
        assert len(outcome.kept) == 6 and {r["chosen_model"] for r in outcome.kept} == {"human" if author == "human" else reference}
        row = outcome.kept[0]
        assert row["margin"] == 3 and row["prompt"][0]["content"].startswith("Che cosa sai") and row["models"] == ["human", reference] and row["user_id"] == "u0"
        assert [r["language"] for r in row["response_languages"]] == ["it", "it"] and row["position_consistent"] is True
        asked = [b for b in bodies if "response_format" not in b]
        assert all(b["messages"][0] == {"role": "system", "content": pack("it")["magpie"]["answer"]} for b in asked) and len(asked) == 6 and len(bodies) == 18


def test_a_judge_that_goes_by_place_makes_no_pair():
    "The human answer is first in one order and last in the other"
    def first(body):
        n = len(judged_texts(body["messages"][0]["content"])) - 1
        return json.dumps({"ratings": [{"rationale": "x", "score": 5 - i} for i in range(n)]})
    with serve(lambda body, n: first(body) if "response_format" in body else "Il numero è una quantità.") as (reference, _): outcome = made(reference)
    assert not outcome.kept and {r["reason"].split(":")[0] for r in outcome.dropped} == {"tie"} and all(r["responses"] for r in outcome.dropped)


def test_several_generators_several_answers_and_aspects():
    seen = []
    def best(text): return 5 if "nonna" in text else 4 if "large" in text else 1
    def ask(name): return serve(lambda body, n: seen.append(body) or judge(body, best) if "response_format" in body else f"Sono {name}, e questa è la mia risposta numero {body['seed']} alla domanda.")
    with ask("large") as (large, _), ask("small") as (small, _):
        outcome = made({"default": small, "large": large}, generators=("large", "generator"), answers=2, aspects=True)
    row = outcome.kept[0]
    assert row["models"] == ["human", large, large, small, small] and row["scores"] == [5, 4, 4, 1, 1] and len(seen) == 6 * 8
    assert set(row["aspect_scores"]) == {"instruction_following", "honesty", "truthfulness", "helpfulness"} and row["chosen_feedback"].startswith("instruction_following: L'ho letta.\nhonesty:")
    lines = compare_models(outcome.kept, "it")
    assert [(line["model"], line["rating"]["value"], line["better_than_others"]["value"]) for line in lines] == [("human", 5, 1), (large, 4, 2 / 3), (small, 1, 0)]
    assert lines[1]["better_than_human"] | {"low": 0, "high": 0} == {"value": 0, "low": 0, "high": 0, "n": 12} and lines[0]["better_than_human"]["value"] is None and lines[1]["in_language"]["value"] == 1


def test_a_wrong_language_is_written_down_and_taken_out_only_on_request():
    with model(lambda body: "This number is a quantity, and people like it a great deal.") as (reference, _):
        kept, strict = made(reference), made(reference, in_language=True)
    assert [r["language"] for r in kept.kept[0]["response_languages"]] == ["it", "en"] and not strict.kept
    assert {r["reason"].split(" (")[0] for r in strict.dropped} == {"response: no other answer than the human one"} and strict.dropped[0]["left_out"][0]["model"] == reference


@pytest.mark.parametrize("answer, why", [("", "empty"), ("Il numero 0 piace perché porta fortuna, dice mia nonna.", "as another answer")])
def test_answers_that_are_no_candidates(answer, why):
    with model(lambda body: answer) as (reference, bodies): outcome = made(reference, rows(1))
    assert why in outcome.dropped[0]["reason"] and not any("response_format" in b for b in bodies)


def test_an_answer_that_is_cut_off_twice_is_no_candidate_and_one_alone_fails_its_row():
    cut = (200, {"choices": [{"message": {"content": "Il numero è"}, "finish_reason": "length"}]})
    with model(lambda body: cut) as (reference, bodies): outcome = made(reference, rows(1))
    assert "cut off (it took 3000 of 3000 tokens: give it more room)" in outcome.failed[0]["reason"]
    assert [body["max_tokens"] for body in bodies] == [1500, 3000]


def test_prefer_human_asks_no_judge():
    with model() as (reference, bodies): outcome = made(reference, prefer_human=True)
    assert len(outcome.kept) == 6 == len(bodies) and all(r["chosen_model"] == "human" and r["margin"] is None and r["outcome"] == "human" for r in outcome.kept)


def test_rows_without_a_human_answer_fail_before_they_are_paid():
    data = [{"id": "a", "messages": [{"role": "user", "content": "Ciao?"}]}, {"id": "b"}]
    with model() as (reference, bodies): outcome = made(reference, data)
    assert len(outcome.failed) == 2 and not bodies and "ends with a request" in outcome.failed[0]["reason"].replace("end with", "ends with")


def test_a_last_answer_of_a_longer_conversation():
    data = [{"id": "a", "messages": [{"role": "user", "content": "Ciao, come stai?"}, {"role": "assistant", "content": "Bene, e tu?"}, {"role": "user", "content": "Anche io. Che ore sono?"}, {"role": "assistant", "content": "Le tre, dice mia nonna."}]}]
    with model() as (reference, bodies): outcome = made(reference, data)
    assert [m["role"] for m in outcome.kept[0]["prompt"]] == ["user", "assistant", "user"] and "[user] Anche io" in bodies[-1]["messages"][0]["content"]


def test_languages_by_any_name():
    data = load_rows("demo_aya")
    assert [len(of_language(data, name)) for name in ("it", "ita", "Italian", "italiano", "Dutch", "ja")] == [8, 8, 8, 8, 4, 4]
    with pytest.raises(ValueError, match=r"no row is in Telugu; language_code or language says ita \(8\)"): of_language(data, "te")
    assert of_language([*data, {"id": "x", "failed": "load: line 9"}], "nl")[-1]["failed"] == "load: line 9"


def test_the_test_part_is_first_and_chosen_by_ids():
    data = [{"id": str(i)} for i in range(200)]
    def test(rows): return {r["id"] for r in split_test(rows, 20) if r["split"] == "test"}
    assert len(test(data)) == 20 and [r["split"] for r in split_test(data, 20)] == ["test"] * 20 + ["train"] * 180
    assert test(data[::-1]) == test(data) and split_test(data, 0)[0]["split"] == "train"
    more = test(data + [{"id": f"n{i}"} for i in range(20)])
    assert len(more) == 20 and test(data) - more and all(i.startswith("n") for i in more - test(data))  # only new rows come in


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not here")
def test_rows_in_the_shape_of_aya():
    data = load_rows(SHARED / "aya_like" / "aya_schema_sample.jsonl")
    assert overview(of_language(data, "ja"))["rows"] > 20 and overview(of_language(data, "fr"))["annotators"] >= 1


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not here")
def test_real_answers_in_the_wrong_language_are_caught():
    "Llama 2 and 3 as recorded for the language confusion benchmark: whoever answers Japanese or Hindi in English is found"
    from llmdata_nb.checks import language_problem
    said = [json.loads(line) for line in (SHARED / "language_confusion" / "completions_monolingual.jsonl").read_text().splitlines()]
    ja, hi = ([language_problem(r["completion"], code) is not None for r in said if r["model"] == model and r["language"] == code] for model, code in (("llama-3-instruct", "ja"), ("llama-2-instruct", "hi")))
    assert min(len(ja), len(hi)) >= 10 and all(ja) and all(hi)


def test_the_pipeline_in_batch_and_with_annotations(project, capsys):
    "First the judge alone; then a person turns one pair round and gives a better answer to another, and nothing is called again"
    from datasets import load_dataset

    from llmdata_nb.annotate import answers_to_show, new_annotation, save_annotation
    from llmdata_nb.cli import main
    out = project / "outputs" / "nl" / "aya_preferences"
    def best(text): return 4 if any(w in text for w in ("vlak", "knus", "12 euro", "afwacht")) else 2
    with serve(lambda body, n: judge(body, best) if "response_format" in body else f"Dat is een goede vraag, en dit is mijn antwoord daarop: {body['messages'][-1]['content'][-20:]}") as (reference, bodies):
        run_it = ["aya_preferences", "--language", "nl", "-p", f"model={reference}", "-p", "test_rows=2"]
        assert main(run_it) == 0
        paid = len(bodies)
        rows = load_dataset(str(out), split="train")
        assert paid == 4 * 3 and len(rows) == 4 and set(rows["decided_by"]) == {"judge"} and set(rows["chosen_model"]) == {"human"} and sorted(rows["split"]) == ["test", "test", "train", "train"]
        card = (out / "README.md").read_text()
        assert "0 of 4 rows were decided by people, 0 in all; 4 by a judge" in card and "The judge decided 4 pairs; in 4 of them both orders name the same best answer." in card and "preference" in card and {p.name for p in (out / "plots").iterdir()} == {"funnel.png", "models.png", "languages.png", "calls.png"}
        assert "the judge alone decides" in (out / "run.ipynb").read_text()
        shown = [answers_to_show(r) for r in rows]
        save_annotation(out / "annotations.jsonl", new_annotation(rows[0], "ada", [2 if m == "human" else 5 for m in shown[0]["models"]]))
        save_annotation(out / "annotations.jsonl", new_annotation(rows[1], "ada", [3, 2], improved="Een nog beter antwoord, met de hand geschreven.", improved_of=1))
        save_annotation(out / "annotations.jsonl", new_annotation(rows[2] | {"responses": ["another", "text"]}, "ada", [1, 5]))
        assert main(run_it) == 0 and len(bodies) == paid
        assert "1 annotations are of rows that are not here, or of other answers than these" in (out / "run.ipynb").read_text()
    after = {r["id"]: r for r in load_dataset(str(out), split="train")}
    turned, better = after[rows[0]["id"]], after[rows[1]["id"]]
    assert turned["decided_by"] == "people" and turned["chosen_model"] == reference and turned["chosen_score"] == 5 and turned["judge_scores"] == [4, 2] and turned["people"] == ["ada"]
    assert better["chosen"][0]["content"].startswith("Een nog beter") and better["chosen_model"] == "human" and better["chosen_score"] is None
    assert sorted(r["decided_by"] for r in after.values()) == ["judge", "judge", "people", "people"] and "2 of 4 rows were decided by people, 1 in all" in (out / "README.md").read_text()
