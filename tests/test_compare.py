"Languages side by side: what the manifests and rows say, what cannot be compared, tables for a paper; the notebook on runs in three languages."
import json
import re
import shutil
from pathlib import Path

import mistune
import nbformat
import papermill as pm
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted_server import serve
from test_export import NASTY, make_row, write_run
from test_judge import ratings, responses
from test_report import draw, texts

from llmdata_nb.cli import main
from llmdata_nb.report import (compare, compare_reasons, differences, plot_acceptance, plot_compared_scores, plot_confusion, plot_costs, plot_reasons, read_runs, save_comparison,
                               to_latex, to_markdown)
from llmdata_nb.rerank import rerank_preferences
from llmdata_nb.rows import load_rows
from llmdata_nb.run import run
from llmdata_nb.translate import translate_and_judge

NOTEBOOK = Path(__file__).parents[1] / "nbs" / "pipelines" / "compare_languages.ipynb"
SAID = {"Italian": "Questa è la traduzione italiana del messaggio che segue, numero {}", "Japanese": "これは次のメッセージを日本語に訳したものです。番号は{}です。", "Arabic": "كتب صاحب السؤال رسالة طويلة باللغة العربية رقمها {}"}
THINGS = "river mountain kitchen violin harbour forest".split()


def answer(body, n=0):
    "Translates into one sentence of each language, all but the last row's request into English for Japanese; of a pair the first answer is the better"
    prompt = body["messages"][0]["content"]
    wanted = body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {})
    if "translation" in wanted:
        number, name = re.findall(r"\d+", prompt)[-1], next(name for name in SAID if f"into {name}." in prompt)
        english = name == "Japanese" and number in "45" and "Please" in prompt
        return json.dumps({"translation": f"This is what became of the message with the number {number}" if english else SAID[name].format(number)})
    if "label" in wanted: return json.dumps({"rationale": "Good.", "label": wanted["label"]["enum"][-1]})
    if "score" in wanted: return json.dumps({"rationale": "Good.", "score": 4})
    return ratings(*(5 if "better" in text else 2 for text in responses(body)))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    "Two recipes in three languages, as they lie under outputs/"
    folder = tmp_path_factory.mktemp("made") / "outputs"
    rows = [{"id": f"d{i}", "messages": [{"role": "user", "content": f"Please explain to me what a {t} is used for {i}"}, {"role": "assistant", "content": f"A {t} has many uses {i}"}]} for i, t in enumerate(THINGS)]
    pairs = [{"id": f"p{i}", "question": f"What is a {t}?", "chosen": f"A better answer about a {t}", "rejected": f"An answer about a {t}"} for i, t in enumerate(THINGS)]
    with serve(answer) as (model, _):
        for code in ("it", "ja", "ar"):
            options = dict(model=model, language=code, store=folder / "store.sqlite")
            run(rows, translate_and_judge, out=folder / code / "translate_and_judge", source="rows.jsonl", **options)
            run(load_rows(pairs)[:4 if code == "ar" else 6], rerank_preferences, out=folder / code / "rerank_preferences", source="pairs.jsonl", **options)
    return folder


def test_the_numbers_are_those_of_the_runs(outputs):
    lines = {(line["recipe"], line["language"]): line for line in compare(read_runs(outputs))}
    assert list(lines) == [(recipe, name) for recipe in ("rerank_preferences", "translate_and_judge") for name in ("Arabic", "Italian", "Japanese")]
    assert lines["translate_and_judge", "Italian"]["accepted"] == "100% (61% to 100%; n = 6)" and lines["translate_and_judge", "Japanese"]["accepted"] == "67% (30% to 90%; n = 6)"
    assert lines["translate_and_judge", "Japanese"]["in the language, kept"] == "100% (51% to 100%; n = 4)" and lines["translate_and_judge", "Arabic"]["mean score"] == "4.00 (response score; n = 6)"
    assert lines["rerank_preferences", "Arabic"]["rows in"] == "4" == lines["rerank_preferences", "Arabic"]["kept"] and lines["rerank_preferences", "Arabic"]["mean score"] == "5.00 (chosen score; n = 4)" and lines["rerank_preferences", "Arabic"]["in the language, kept"] == "not checked"
    assert {line["cost per kept row"] for line in lines.values()} == {"unknown"}  # nobody knows what the scripted server costs
    assert [(line["reason"], line["Japanese"], line["Italian"]) for line in compare_reasons(read_runs(outputs))] == [("instruction: wrong language", "2 (33.3%)", "")]


def test_what_else_differs_is_said(outputs):
    assert differences(read_runs(outputs)) == ["rerank_preferences: not the same rows in: 4 (Arabic); 6 (Italian, Japanese)"]


@pytest.mark.parametrize("filters, left", [(dict(recipes="rerank_preferences"), 3), (dict(recipes="rerank_preferences, translate_and_judge", languages="Japanese,ar"), 4), (dict(languages="it"), 2)])
def test_filters_take_names_of_recipes_folders_and_languages(outputs, filters, left): assert len(read_runs(outputs, **filters)) == left


def test_none_is_one_clear_error(outputs, tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest.json in it or below. Expected"): read_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none of 6 folders .*recipes: magpie"): read_runs(outputs, recipes="magpie")
    with pytest.raises(ValueError, match="unknown language"): read_runs(outputs, languages="klingonish")


def test_damaged_and_foreign_folders_are_left_out_and_said(outputs, tmp_path, capsys):
    folder = tmp_path / "outputs"
    shutil.copytree(outputs / "it", folder / "it")
    for code in ("lost", "cut", "short", "odd", "tongue"): shutil.copytree(outputs / "it" / "rerank_preferences", folder / code)
    (folder / "lost" / "data" / "train-00000-of-00001.parquet").unlink()
    (folder / "cut" / "manifest.json").write_text('{"recipe": "rer')
    (folder / "short" / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    told = json.loads((folder / "odd" / "manifest.json").read_text())
    (folder / "odd" / "manifest.json").write_text(json.dumps(told | {"calls": [told["calls"][0] | {"usd": "free"}]}))
    (folder / "tongue" / "manifest.json").write_text(json.dumps(told | {"language": "xx"}))
    for name, text in {"list": "[1, 2]", "theirs": '{"manifest_version": 3}', ".hidden": "[]", "evil\u202e": "[]"}.items():
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text(text)
    assert len(read_runs(folder)) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all(line.startswith("left out: ") and len(line) > 25 for line in lines) and "\u202e" not in "".join(lines)
    assert any("lost: " in line and "train-00000-of-00001.parquet: no such file, but manifest.json lists it" in line for line in lines) and any("theirs: no manifest of a run in one language: it has no recipe" in line for line in lines)
    assert any("tongue: unknown language 'xx'" in line for line in lines) and any("cut: " in line and "manifest.json is damaged" in line for line in lines)


def test_money_tokens_and_rows_that_are_not_there(tmp_path):
    call = dict(step="judge", model="m", calls=2, replayed=0, retries=0, failed=0, prompt_tokens=90, completion_tokens=10, seconds=4.0, usd=0.5)
    write_run(tmp_path / "it" / "a", [make_row(0), make_row(1)], calls=[call])
    write_run(tmp_path / "ja" / "a", [make_row(0)], language="ja", calls=[call, call | dict(usd=None, prompt_tokens=None)])
    write_run(tmp_path / "ar" / "a", (), [make_row(0, reason="x: y")], language="ar", calls=[call])
    write_run(tmp_path / "nl" / "a", language="nl", calls=[])
    runs = read_runs(tmp_path)
    money = {line["language"]: (line["tokens per kept row"], line["cost per kept row"], line["accepted"].split(" (")[0]) for line in compare(runs)}
    assert money == {"Italian": ("50", "$0.25", "100%"), "Japanese": ("unknown", "unknown", "100%"), "Arabic": ("no row kept", "no row kept", "0%"), "Dutch": ("no row kept", "no row kept", "no rows")}
    assert texts(draw(plot_costs(runs))) == ["50", "unknown", "2 s\n$0.25", "8 s\nprice unknown"]
    for plot in (plot_acceptance, plot_compared_scores, plot_confusion, plot_reasons, plot_costs): draw(plot(runs)), draw(plot(runs[2:3]))


def test_models_limits_and_failures_are_said(tmp_path):
    write_run(tmp_path / "it" / "magpie", [make_row(0)], recipe="magpie", until=1, models=dict(default="embedded", judge="hf:a"))
    write_run(tmp_path / "ja" / "magpie", [make_row(0)], [], [dict(id="f", reason="timeout")], recipe="magpie", language="ja", until=9, gave_up="of the last 100 rows 0 were kept", arguments=dict(min_score=4))
    told = differences(read_runs(tmp_path))
    assert "magpie: not the same models: default embedded, judge hf:a (Italian); default embedded (Japanese)" in told and "magpie: not the same rows asked for: 1 (Italian); 9 (Japanese)" in told
    assert "magpie: not the same min_score: 3 (Italian); 4 (Japanese)" in told and any(t.startswith("magpie, Japanese: 1 of 2 rows failed") for t in told) and any("ended before 9 were kept" in t for t in told)


def test_two_folders_of_one_language_keep_their_names(tmp_path):
    for name in ("first", "second"): write_run(tmp_path / name, [make_row(0)])
    assert [t.get_text() for t in plot_acceptance(read_runs(tmp_path)).axes[0].get_yticklabels()] == ["Italian (1), first", "Italian (1), second"]


@pytest.mark.parametrize("text", [*NASTY, "100 % & more_of #1 ~ ^ {x} \\input{y} $z$ <a>", "私は|です", "لا شيء"])
def test_any_text_stands_in_the_tables_as_text(tmp_path, text):
    write_run(tmp_path / "it" / "a", [make_row(0)], [make_row(1, reason=f"x: {text}")])
    runs = read_runs(tmp_path)
    records = compare_reasons(runs)
    page = mistune.create_markdown(escape=False, plugins=["table"])(to_markdown(records))
    assert page.count("<tr>") == 2 and page.count("<td") == 3 and not re.search("<(script|img|a|h1|pre)", page)
    (line,) = to_latex(records).split("\\midrule\n")[1].split("\n\\bottomrule")[0].splitlines()
    assert len(re.findall(r"(?<!\\)&", line)) == 2 and line.endswith(r" \\") and not re.search(r"(?<!\\)[%$#_]|[~^<>|]|\\input", line)
    assert ("XeLaTeX" in to_latex(records)) == bool(re.search("[\u0590-\u06ff\u3000-\u9fff\U0001f300-\U0001ffff\u200d]", line))
    draw(plot_reasons(runs))


def test_the_notebook_shows_three_languages_and_two_recipes(outputs, tmp_path):
    pm.execute_notebook(str(NOTEBOOK), str(tmp_path / "run.ipynb"), progress_bar=False, kernel_name="python3", parameters=dict(outputs=str(outputs), out_dir=str(tmp_path / "out")))
    names = {p.name for p in (tmp_path / "out").rglob("*.*")}
    assert names == {"comparison.md", "comparison.tex", "acceptance.png", "scores.png", "confusion.png", "costs.png", "reasons_translate_and_judge.png"}
    cells = [o for c in nbformat.read(tmp_path / "run.ipynb", 4).cells for o in c.get("outputs", [])]
    shown = "".join(o.get("text", "") + o.get("data", {}).get("text/html", "") for o in cells)
    assert sum("image/png" in o.get("data", {}) for o in cells) == 5 and shown.count("<tr>") == 7 + 2 and r"\begin{tabular}" in shown and "rerank_preferences: not the same rows in: 4 (Arabic)" in shown
    page = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert all(f"| {recipe} | {name} |" in page for recipe in (r"rerank\_preferences", r"translate\_and\_judge") for name in ("Arabic", "Italian", "Japanese"))


def test_the_command_runs_it_once_and_wants_no_language(outputs, project, capsys):
    shutil.copytree(outputs, project / "outputs")
    assert main(["compare_languages", "-p", "recipes=rerank_preferences"]) == 0
    assert (project / "outputs" / "compare_languages" / "run.ipynb").exists() and (project / "outputs" / "compare_languages" / "comparison.md").read_text().count(r"| rerank\_preferences |") == 3
    assert main(["compare_languages", "-p", "recipes=magpie"]) == 1 and "none of 6 folders" in capsys.readouterr().err


def test_a_second_comparison_leaves_no_plot_of_the_first(outputs, tmp_path):
    save_comparison(read_runs(outputs), tmp_path)
    save_comparison(read_runs(outputs, recipes="rerank_preferences"), tmp_path)
    assert not (tmp_path / "plots" / "reasons_translate_and_judge.png").exists()


def test_of_many_rows_only_the_columns_are_read(tmp_path):
    "A column that is not asked for may be as large as it likes: it is not even decoded"
    folder = write_run(tmp_path / "it" / "a", [make_row(0)])
    path = folder / "data" / "train-00000-of-00001.parquet"
    rows = pa.table({"response_score": [4] * 1000, "text": ["x" * 1000] * 1000})
    pq.write_table(rows, path, use_dictionary=False, compression="none", column_encoding=None)
    start = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[start:start + 200] = b"\xff" * 200
    path.write_bytes(bytes(data))
    told = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(told | {"rows": {"in": 1000, "kept": 1000, "dropped": 0, "failed": 0}}))
    with pytest.raises(OSError): pq.read_table(path)
    assert read_runs(tmp_path)[0]["scores"] == {4: 1000}


@pytest.mark.parametrize("asked, seen, passes", [("nb", "no", 2), ("nn", "no", 2), ("arz", "ar", 2), ("nb", "sv", 1), ("pt", "es", 1)])
def test_what_passes_the_checks_is_in_the_language(tmp_path, asked, seen, passes):
    "One row in the language as it is called, one as the detectors call it"
    write_run(tmp_path / asked / "a", [make_row(0, detected_language=asked), make_row(1, detected_language=seen)], language=asked)
    (line,) = compare(read_runs(tmp_path))
    assert line["in the language, kept"].startswith(f"{passes / 2:.0%} (") and line["in the language, checked"] == line["in the language, kept"]


def test_scores_that_are_words_are_no_scores(tmp_path):
    "A recipe of one's own may call its verdict so; a column of numbers beside it is taken"
    write_run(tmp_path / "it" / "own", [make_row(0) | {"response_score": "good"}], [make_row(1) | {"response_score": "bad", "reason": "x: y"}])
    write_run(tmp_path / "nl" / "own", [make_row(0) | {"response_score": "good", "chosen_score": 4.5}], language="nl")
    runs = read_runs(tmp_path)
    assert [line["mean score"] for line in compare(runs)] == ["4.50 (chosen score; n = 1)", "no scores"]
    draw(plot_compared_scores(runs))
    save_comparison(runs, tmp_path / "compared")


def test_the_column_of_scores_of_a_recipe_is_compared_first(tmp_path, monkeypatch):
    "A row may have been through several recipes, and have a score of each"
    from llmdata_nb.recipes import RECIPES, Recipe
    monkeypatch.setitem(RECIPES, "haiku", Recipe("haiku", main_score="charm_score"))
    for recipe in ("haiku", "rerank_preferences", "simplify"): write_run(tmp_path / recipe, [make_row(0, charm_score=2, chosen_score=5)], recipe=recipe)
    assert {line["recipe"]: line["mean score"] for line in compare(read_runs(tmp_path))} == {
        "haiku": "2.00 (charm score; n = 1)", "rerank_preferences": "5.00 (chosen score; n = 1)", "simplify": "4.00 (response score; n = 1)"}
