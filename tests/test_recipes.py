"What a recipe is stands in one record: with a module, a pipeline and a record, the command, the card and the plots know a new one."
import json
import sys
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from scripted_server import serve
from test_export import make_manifest, make_row

from llmdata_nb import report
from llmdata_nb.cli import main, pipelines
from llmdata_nb.export import dataset_card, judge_warnings
from llmdata_nb.recipes import RECIPES, for_run, import_from, recipe_record

MODULE = '''
from llmdata_nb.recipes import ONE_TO_FIVE, Recipe, add_recipe

PROMPT = "Write a haiku about {subject}."

async def haiku(row, ask, language, min_score=3):
    request = PROMPT.replace("{subject}", row["subject"])
    reply = await ask(request, step="haiku")
    row["messages"] = [{"role": "user", "content": request}, {"role": "assistant", "content": reply.text}]
    row["charm_score"] = 4
    return row

add_recipe(Recipe(
    name="haiku",
    function="haiku_recipe.haiku",
    pipeline="%s",
    method="1. A model writes a haiku about the subject.",
    limits=("Nobody counted the syllables.",),
    score_columns={"charm_score": ONE_TO_FIVE},
    main_score="charm_score",
    plots=("funnel", "scores", "calls"),
    prompts={"haiku.task": "haiku_recipe.PROMPT"}))
'''
PARAMETERS = 'language: str = "it"  # code or name\nmodel: str = "embedded"  # writes the haiku\nmin_score: int = 3  # 1 to 5\nout_dir: str = ""'
RUN = '''from haiku_recipe import haiku
from llmdata_nb import export, report
from llmdata_nb.run import run
run([{"id": s, "subject": s} for s in ("rain", "snow")], haiku, model=model, language=language, min_score=min_score, out=out_dir)
report.save_plots(out_dir)
export.write_card(out_dir)'''


@pytest.fixture
def haiku(project, monkeypatch):
    "A module with a recipe and its record, and a pipeline notebook"
    folder = project / "mine"
    folder.mkdir()
    (folder / "haiku_recipe.py").write_text(MODULE % (folder / "haiku.ipynb"))
    cells = [new_markdown_cell("# Haiku\n\n> Short poems, and what a judge finds in them."),
             new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(RUN)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / "haiku.ipynb")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{':'.join(filter(None, sys.path))}")  # for the kernel
    yield import_from("haiku_recipe.haiku")
    del RECIPES["haiku"], sys.modules["haiku_recipe"]


def test_a_new_recipe_is_a_module_a_pipeline_and_a_record(project, haiku, capsys):
    assert main([]) == 0 and "Short poems, and what a judge finds in them." in capsys.readouterr().out
    assert main(["haiku", "--help"]) == 0 and "writes the haiku" in capsys.readouterr().out
    with serve(lambda body, n: "Piove sul tetto") as (model, bodies):
        assert main(["haiku", "-p", f"model={model}"]) == 0
    folder = project / "outputs" / "it" / "haiku"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "1. A model writes a haiku about the subject." in card and "- Nobody counted the syllables." in card
    assert "| charm_score | rows |\n| :-- | --: |\n| 5 | 0 |\n| 4 | 2 |" in card
    assert sorted(path.stem for path in folder.glob("plots/*.png")) == ["calls", "funnel", "scores"], "those that the record names"
    assert "![scores](plots/scores.png)" in card
    assert json.loads((folder / "manifest.json").read_text())["recipe"] == "haiku" and len(bodies) == 2


def test_the_scores_of_a_new_recipe_are_watched(haiku):
    rows = [dict(charm_score=4) for _ in range(30)]
    assert judge_warnings(rows, min_score=3) == ["charm_score: The judge gave 30 of 30 the same verdict (4): it tells nothing apart. Look at some rows, or take another judge."]


def test_prompts_of_a_new_recipe_can_be_edited(haiku):
    from llmdata_nb.playground import prompts_in, with_prompts
    edited = with_prompts("it", {"it": {"haiku.task": "Scrivi un haiku su {subject}."}})
    assert edited.texts["haiku"] == {"task": "Scrivi un haiku su {subject}."}
    calls = [dict(step="haiku", request="Write a haiku about rain.")]
    assert list(prompts_in(calls, "it")) == ["haiku.task"]
    with pytest.raises(ValueError, match="haiku.task should hold {subject}"): with_prompts("it", {"it": {"haiku.task": "Un haiku."}})


def test_a_recipe_without_a_record_is_not_taken_for_another():
    card = dataset_card(make_manifest(1, recipe="simplify"), [make_row(0)])
    assert "1. translate\n\nThe recipe's arguments" in card, "its calls, one by one"
    assert "translat" not in card.split("## Known limits")[1].replace("translates plain sentences", "")
    record = recipe_record("simplify")
    names = for_run(record.plots, dict(recipe="simplify"), [make_row(0)])
    assert names == ("funnel", "scores", "requests", "calls") and not set(names) & {"labels", "lengths"}
    run = SimpleNamespace(manifest=make_manifest(1, recipe="simplify"), kept=[make_row(0)], dropped=[], failed=[])
    assert tuple(report.run_plots(run)) == names


def test_a_language_without_a_pack_is_said_on_the_card():
    def limits(code): return dataset_card(make_manifest(1, language=code), [make_row(0)]).split("## Known limits")[1]
    assert "no pack for Swahili" in limits("sw") and "pack" not in limits("it") and "pack" not in limits("de")


def test_every_record_is_whole():
    "Each pipeline has its notebook, each name its function, each plot and prompt is there"
    run = make_manifest(1, arguments=dict(answers=2, categories=True)), [dict(tags=dict(quality="good"))]
    for name, record in RECIPES.items():
        assert set(for_run(record.plots, *run)) <= set(report.PLOTS)
        assert record.name == name == import_from(record.function).__name__
        assert not record.pipeline or pipelines()[name].name == record.pipeline == f"{name}.ipynb"
        assert not record.main_score or record.makes_pairs or record.main_score in record.score_columns
        assert all(isinstance(import_from(place), str) for place in record.prompts.values())
        assert recipe_record(name) is record and all(recipe_record(old) is record for old in record.earlier_names)
    assert {record.pipeline for record in RECIPES.values() if record.pipeline} | {"compare_languages.ipynb"} == {path.name for path in pipelines().values()}
