"Pairs that are kept, swapped, tied or failed: the recipe, its dataset, and its notebook."
import asyncio
import json
from pathlib import Path

import papermill as pm
import pytest
from aiohttp import web
from datasets import load_dataset
from scripted_server import said, serve
from test_judge import honest, prompt, ratings, responses, shared, worth

from llmdata_nb.cli import main
from llmdata_nb.rerank import on_policy, outcome_rates, rerank_preferences
from llmdata_nb.rows import load_rows
from llmdata_nb.run import run

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "nbs" / "pipelines" / "rerank_preferences.ipynb"


def made(n=60): return [{"id": f"p{i:03}", "question": f"What is {i}?", "chosen": f"The answer {i * 3} of a large model", "rejected": f"The answer {i} of a small one"} for i in range(n)]


def truth(row):
    a, b = worth(row["chosen"]), worth(row["rejected"])
    return "kept" if a > b else "swapped" if a < b else "tie"


def text(messages): return messages[0]["content"]


@pytest.mark.parametrize("tie", ["drop", "shorter", "original"])
def test_kept_swapped_and_tied(tmp_path, tie):
    rows, true = load_rows(made()), {r["id"]: truth(r) for r in made()}
    with serve(honest) as (model, bodies): outcome = run(rows, rerank_preferences, model=model, language="it", tie=tie, out=tmp_path / "out", store=tmp_path / "s.sqlite")
    kept = {r["id"]: r for r in outcome.kept}
    assert not outcome.failed and len(bodies) == 120 and {r["outcome"] for r in outcome.kept + outcome.dropped} == {"kept", "swapped", "tie"}
    assert {r["id"]: r["outcome"] for r in outcome.kept + outcome.dropped} == true
    assert set(kept) == {k for k, t in true.items() if t != "tie" or tie != "drop"}
    for row, source in ((kept[s["id"]], s) for s in made() if s["id"] in kept):
        chosen, rejected = text(row["chosen"]), text(row["rejected"])
        assert {chosen, rejected} == {source["chosen"], source["rejected"]} and row["original_chosen"] == source["chosen"]
        if row["outcome"] == "tie": assert chosen == (min(chosen, rejected, key=len) if tie == "shorter" else source["chosen"]) and row["margin"] == 0
        else: assert (chosen == source["chosen"]) == (row["outcome"] == "kept") and row["margin"] == worth(chosen) - worth(rejected) > 0
        assert row["chosen_score"] == worth(chosen) and f"worth {worth(rejected)}" in row["rejected_feedback"] and text(row["prompt"]) == source["question"]
    if tie == "drop": assert {r["reason"] for r in outcome.dropped} == {"tie: the same score"}


def test_the_dataset_is_a_preference_dataset_without_a_pair_of_one_text(tmp_path):
    rows = [*made(20), {"id": "same", "question": "What?", "chosen": "This.", "rejected": " This. "}]
    with serve(honest) as (model, bodies): run(load_rows(rows), rerank_preferences, model=model, language="en", out=tmp_path / "out", store=tmp_path / "s.sqlite")
    assert not any("This." in prompt(b) for b in bodies)  # nothing is paid for it
    for row in load_dataset(str(tmp_path / "out"), split="train"):
        assert [m["role"] for m in row["prompt"] + row["chosen"] + row["rejected"]] == ["user", "assistant", "assistant"] and text(row["chosen"]) != text(row["rejected"])
    (same,) = [r for r in load_dataset("parquet", data_files=str(tmp_path / "out" / "dropped.parquet"), split="train") if r["id"] == "same"]
    assert same["reason"] == "the answers are the same"


def test_an_unjudged_pair_fails_and_is_asked_again(tmp_path):
    "It is never passed on as if confirmed"
    silent = [True]
    def answer(body, n): return "I would rather not." if silent[0] and "What is 7?" in prompt(body) else honest(body)
    with serve(answer) as (model, bodies):
        first = run(load_rows(made(20)), rerank_preferences, model=model, language="it", tie="original", store=tmp_path / "s.sqlite")
        (failed,) = first.failed
        assert failed["id"] == "p007" and failed["reason"].startswith("judge: unjudged (") and "outcome" not in failed and len(first.kept) == 19
        silent[0], before = False, len(bodies)
        second = run(load_rows(made(20)), rerank_preferences, model=model, language="it", tie="original", store=tmp_path / "s.sqlite")
        assert len(second.kept) == 20 and len(bodies) == before + 2
        assert [r for r in second.kept if r["id"] != "p007"] == first.kept


def test_a_judge_that_goes_by_the_place_keeps_nothing(tmp_path):
    with serve(lambda body, n: ratings(5, 2)) as (model, _): outcome = run(load_rows(made(20)), rerank_preferences, model=model, language="it", store=tmp_path / "s.sqlite")
    assert not outcome.kept and {r["reason"] for r in outcome.dropped} == {"tie: the two orders contradict each other"}
    assert outcome_rates(outcome.dropped)[-1]["outcome"] == "tie" and outcome_rates(outcome.dropped)[-1]["share"] == 1


def test_floor_and_margin(tmp_path):
    rows = load_rows(made())
    with serve(honest) as (model, bodies):
        every = run(rows, rerank_preferences, model=model, language="it", store=tmp_path / "s.sqlite").kept
        some = run(rows, rerank_preferences, model=model, language="it", min_score=4, min_margin=2, store=tmp_path / "s.sqlite")
        assert len(bodies) == 120
    assert [r["id"] for r in some.kept] == [r["id"] for r in every if r["chosen_score"] >= 4 and r["margin"] >= 2] and some.kept
    assert {r["reason"].split(" (")[0] for r in some.dropped} == {"tie: the same score", "answers judged too low", "margin too small"}


def test_rows_dropped_at_different_points_are_written_to_one_file(tmp_path):
    "One before it was judged, one as a tie, one for its margin"
    rows = [*made(30), {"id": "same", "question": "What?", "chosen": "This.", "rejected": "This."}]
    with serve(honest) as (model, _): outcome = run(load_rows(rows), rerank_preferences, model=model, language="it", min_margin=2, out=tmp_path / "out", store=tmp_path / "s.sqlite")
    dropped = load_dataset("parquet", data_files=str(tmp_path / "out" / "dropped.parquet"), split="train")
    assert len({r.split(" (")[0] for r in dropped["reason"]}) == 3 and len(dropped) == len(outcome.dropped)


def test_several_answers_of_several_models(tmp_path):
    "UltraFeedback's shape: the best and the worst make the pair, and who wrote them is known"
    rows = load_rows([{"id": "u", "instruction": "What?", "completions": [{"model": m, "response": f"The answer of {m}"} for m in ("alpha", "beta", "gamma", "delta")]}])
    with serve(honest) as (model, _): (row,) = run(rows, rerank_preferences, model=model, language="it", store=tmp_path / "s.sqlite").kept
    scores = [worth(t) for t in row["responses"]]
    assert row["scores"] == scores and row["outcome"] == "ranked" and row["chosen_score"] == max(scores) and row["rejected_score"] == min(scores)
    assert text(row["chosen"]) == f"The answer of {row['chosen_model']}" and "original_chosen" not in row


def test_own_answers_and_a_stronger_model_where_all_are_poor(tmp_path):
    "Two samples of the generator; one request has poor answers only, and another the same answer twice"
    def answer(body, n):
        if "## Response" in prompt(body): return ratings(*((1 if "poor" in r else 2 if "bad" in r else 5) for r in responses(body)))
        if body["model"] == "strong": return "A good answer."
        request, first = body["messages"][-1]["content"], body["seed"] == 0
        return {"easy": "A good answer." if first else "A poor answer.", "hard": "A bad answer." if first else "A poor answer.", "same": "It is so."}[request]
    rows = [{"id": r, "messages": [{"role": "user", "content": r}]} for r in ("easy", "hard", "same")]
    with serve(answer, models=("m", "strong")) as (model, bodies):
        outcome = run(rows, on_policy, model={"default": model, "strong": model.replace("#m", "#strong")}, language="en", store=tmp_path / "s.sqlite")
    easy, hard = outcome.kept
    assert (text(easy["chosen"]), text(easy["rejected"]), easy["outcome"], easy["margin"]) == ("A good answer.", "A poor answer.", "ranked", 4)
    assert (text(hard["chosen"]), text(hard["rejected"]), hard["outcome"], hard["margin"]) == ("A good answer.", "A poor answer.", "stronger", None)
    assert hard["chosen_model"] == "strong" and sum(b["model"] == "strong" for b in bodies) == 1
    assert outcome.dropped[0]["reason"] == "the answers are the same"


def test_what_is_under_way_when_a_sibling_fails_is_kept(tmp_path):
    "The first order is refused at once, the second is answered later: it is not paid again"
    refuse = [True]
    def answer(body, n):
        first = responses(body)[0].endswith("large model")
        if refuse[0] and first: return 400, {"error": {"message": "content filter"}}
        async def later(request):
            await asyncio.sleep(0.3)
            return web.json_response(said(honest(body)))
        return later
    with serve(answer) as (model, bodies):
        first = run(load_rows(made(1)), rerank_preferences, model=model, language="it", store=tmp_path / "s.sqlite")
        assert len(first.failed) == 1 and len(bodies) == 2
        refuse[0] = False
        second = run(load_rows(made(1)), rerank_preferences, model=model, language="it", store=tmp_path / "s.sqlite")
        assert len(bodies) == 3 and not second.failed


def test_a_tie_is_decided_by_its_policy_whatever_the_average(tmp_path):
    "The orders contradict each other; the average is for either side"
    for scores in ((5, 3), (5, 4)):
        for tie in ("shorter", "original"):
            with serve(lambda body, n: ratings(*scores) if n or responses(body)[0].endswith("model") else ratings(4, 1)) as (model, _):
                outcome = run(load_rows(made(3)), rerank_preferences, model=model, language="it", tie=tie, store=":memory:")
            for row in outcome.kept:
                assert row["outcome"] == "tie"
                texts = text(row["chosen"]), text(row["rejected"])
                assert row["margin"] == 0 and (texts[0] == min(texts, key=len) if tie == "shorter" else texts[0] == row["original_chosen"])
            assert len(outcome.kept) == 3 and not outcome.failed


def test_the_spread_of_several_samples_is_kept(tmp_path):
    def answer(body, n): return ratings(*((5, 1 + body["seed"]) if responses(body)[0].endswith("large model") else (1 + body["seed"], 5)))
    with serve(answer) as (model, bodies): (row,) = run(load_rows(made(1)), rerank_preferences, model=model, language="it", samples=3, store=tmp_path / "s.sqlite").kept
    assert len(bodies) == 6 and row["rejected_score"] == 2 and round(row["spread"], 3) == 0.816  # of 1, 2 and 3


def test_a_dataset_of_ours_is_ranked_again_as_a_pair(tmp_path):
    "What the first run wrote is not taken for an opinion"
    with serve(honest) as (model, _):
        first = run(load_rows(made(20)), rerank_preferences, model=model, language="it", out=tmp_path / "out", store=tmp_path / "s.sqlite")
        again = run(load_rows(str(tmp_path / "out")), rerank_preferences, model=model, language="it", tie="original", store=tmp_path / "s.sqlite")
    assert {r["outcome"] for r in again.kept} == {"kept"} and [text(r["chosen"]) for r in again.kept] == [text(r["chosen"]) for r in first.kept]
    with serve(lambda body, n: "No.") as (model, _): failed = run(load_rows(str(tmp_path / "out")), rerank_preferences, model=model, language="it", store=":memory:").failed
    assert len(failed) == len(first.kept) and not any({"outcome", "scores", "margin", "chosen_score"} & set(r) for r in failed)


def test_own_answers_are_not_booked_to_the_authors_of_the_source(tmp_path):
    row = {"id": "r", "messages": [{"role": "user", "content": "What?"}], "responses": ["x", "y", "z"], "models": ["gpt", "llama", "other"]}
    def answer(body, n): return honest(body) if "## Response" in prompt(body) else f"An answer of seed {body['seed']}."
    with serve(answer) as (model, _): outcome = run([row], on_policy, model=model, n=3, min_score=1, language="en", store=tmp_path / "s.sqlite")
    (kept,) = outcome.kept + outcome.dropped
    assert kept["models"] == ["generator"] * 3 and all("seed" in t for t in kept["responses"])


@pytest.mark.parametrize("fault", [dict(min_score="4"), dict(min_margin=None), dict(orders=True), dict(samples=0), dict(roles="judge"), dict(tie="longer")])
def test_wrong_choices_fail_with_what_was_expected_and_cost_nothing(fault):
    with serve(honest) as (model, bodies): outcome = run(load_rows(made(2)), rerank_preferences, model=model, language="it", store=":memory:", **fault)
    assert not bodies and {r["reason"].split(": ")[0] for r in outcome.failed} == {"ValueError"} and all("expected" in r["reason"] for r in outcome.failed)


# the notebook

def test_the_command_makes_a_dataset_and_runs_again_for_nothing(project, capsys):
    (project / "pairs.jsonl").write_text("\n".join(map(json.dumps, made(30))) + '\n{"broken": \n')
    with serve(honest) as (model, bodies):
        command = ["rerank_preferences", "--language", "it", "-p", "source=pairs.jsonl", "-p", f"model={model}", "-p", "tie=shorter"]
        assert main(command) == 0
        out, before = project / "outputs" / "it" / "rerank_preferences", len(bodies)
        rows = (out / "data" / "train-00000-of-00001.parquet").read_bytes()
        assert main(command) == 0 and len(bodies) == before == 60
        assert (out / "data" / "train-00000-of-00001.parquet").read_bytes() == rows
    card, manifest = (out / "README.md").read_text(), json.loads((out / "manifest.json").read_text())
    assert manifest["rows"]["failed"] == 1 and manifest["rows"]["kept"] == 30
    assert "| swapped |" in card and "| tie |" in card and 'folder = "outputs/it/rerank_preferences"' in card and "- dpo" in card
    assert {p.stem for p in (out / "plots").glob("*.png")} >= {"funnel", "margins", "judged_by_length", "calls"}
    assert "30 rows kept of 31" in capsys.readouterr().out


def test_wrong_parameters_are_one_line(project, capsys):
    for parameter, message in (("tie=longer", "expected drop, shorter, original"), ("min_score=9", "expected 1 to 5"), ("orders=3", "expected 1 or 2")):
        assert main(["rerank_preferences", "-p", parameter]) == 1
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err


@shared
@pytest.mark.parametrize("name, n", [("pandalm_testset", 20), ("rakuda_ja", 10)])
def test_real_pairs_through_papermill(project, name, n):
    "On real texts, with a scripted judge; the real small one is tried in bench/judges.py"
    if name == "pandalm_testset":
        records = [json.loads(line) for line in (ROOT.parent / "shared/data/pandalm_testset/testset_v1_with_judges.jsonl").open()][:n]
        pairs = [{"id": str(r["idx"]), "instruction": r["instruction"], "input": r["input"], "chosen": r["response1"], "rejected": r["response2"]} for r in records]
    else:
        records = [json.loads(line) for line in (ROOT.parent / "shared/data/rakuda_ja/answers.jsonl").open()]
        by = {}
        for r in records: by.setdefault(r["question_id"], {"id": r["question_id"], "question": r["question"]})["chosen" if "gpt-4" in r["model"] else "rejected"] = r["answer"]
        pairs = [p for p in by.values() if {"chosen", "rejected"} <= set(p)][:n]
    (project / "pairs.jsonl").write_text("\n".join(json.dumps(p, ensure_ascii=False) for p in pairs))
    with serve(honest) as (model, bodies):
        given = dict(source="pairs.jsonl", model=model, language="ja" if name == "rakuda_ja" else "en", out_dir=str(project / "out"))
        for _ in range(2):
            pm.execute_notebook(str(NOTEBOOK), str(project / "run.ipynb"), parameters=given, progress_bar=False, kernel_name="python3", cwd=str(project))
            calls = len(bodies)
        assert calls == len(bodies)
    rows = json.loads((project / "out" / "manifest.json").read_text())["rows"]
    assert rows["in"] == len(pairs) and rows["kept"] + rows["dropped"] + rows["failed"] == rows["in"] and rows["failed"] <= 2
