"The tutorials, from top to bottom with a scripted server, and what `nbdev_docs` reads. (With the small model: `papermill nbs/tutorials/NAME.ipynb out.ipynb -p model embedded:smollm2-135m`.)"
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill as pm
import pytest
import yaml
from scripted_server import judged_texts, serve, translator_and_judge

from llmdata_nb.cli import main
from llmdata_nb.embedded import weights_path
from llmdata_nb.languages import language

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
TUTORIALS = sorted((NBS / "tutorials").glob("*.ipynb"))


def execute(name, folder, **parameters):
    "The texts that the cells of a tutorial show, when it runs in `folder` with `parameters`"
    pm.execute_notebook(str(NBS / "tutorials" / f"{name}.ipynb"), str(folder / "out.ipynb"), parameters=parameters, progress_bar=False, kernel_name="python3", cwd=str(folder))
    outputs = [o for c in nbformat.read(folder / "out.ipynb", 4).cells for o in c.get("outputs", [])]
    return [o.get("text") or o.data.get("text/html") or o.data.get("text/markdown") or o.data.get("text/plain", "") for o in outputs]


def one_with(texts, what):
    (found,) = [t for t in texts if what in t]
    return found


@pytest.mark.parametrize("nb", TUTORIALS, ids=lambda p: p.stem)
def test_form(nb):
    "No test and no docs build runs it by itself; title and purpose; one cell of parameters, each with a type"
    raw, title, *cells = nbformat.read(nb, 4).cells
    assert raw.source == "---\nskip_exec: true\n---" and title.source.startswith("# ") and "\n> " in title.source
    assert len([c for c in cells if "parameters" in c.metadata.get("tags", [])]) == 1
    assert all(p["inferred_type_name"] in ("str", "int") for p in pm.inspect_notebook(str(nb)).values())


def test_links_between_notebooks_lead_somewhere():
    for nb in TUTORIALS:
        text = "".join(c.source for c in nbformat.read(nb, 4).cells if c.cell_type == "markdown")
        for part in text.split("](")[1:]:
            target = part.split(")")[0]
            assert target.startswith("http") or (nb.parent / target).is_file(), (nb.name, target)


def short_rows(folder):
    "A source that the scripted server can translate"
    lines = [{"instruction": f"Please tell me about the number {i} and why people like it", "output": f"People like the number {i} because of its many friends {i}"} for i in range(6)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return "rows.jsonl"


def test_your_language(project):
    "One row in four steps, ten rows, the run by the command; what was asked once is replayed; the card"
    with serve(translator_and_judge) as (model, bodies):
        shown = execute("your_language", project, model=model, source=short_rows(project), sample=3, limit=4)
    made = json.loads((project / "outputs/your_language/it/manifest.json").read_text())
    assert made["rows"]["in"] == 4 and sum(c["replayed"] for c in made["calls"]) >= 4  # the row that was watched
    steps = one_with(shown, ">asked</th>")
    assert all(f">{step}</td>" in steps for step in ("translate instruction", "judge instruction", "translate response", "judge response"))
    sentences = one_with(shown, "would be dropped from a dataset in Italian")
    assert "wrong language (es" in sentences and "wrong language (en" in sentences
    assert "6 rows, judged by 3 of them" in "".join(shown) and "$ llmdata translate_and_judge --language it" in "".join(shown)
    assert "'README.md'" in one_with(shown, "'manifest.json'") and (project / "outputs/store.sqlite").exists()


def swahili(body, n=0):
    said = json.loads(translator_and_judge(body, n))
    if "translation" in said: said["translation"] = "Hii ndiyo tafsiri ya ujumbe unaofuata kwa lugha ya Kiswahili, numero " + said["translation"].split()[-1]
    return json.dumps(said)


def test_your_language_without_a_pack(project):
    assert not language("sw").texts
    with serve(swahili) as (model, bodies):
        shown = execute("your_language", project, language="Swahili", model=model, source=short_rows(project), sample=2, limit=2)
    assert json.loads((project / "outputs/your_language/sw/manifest.json").read_text())["rows"]["kept"] == 2
    assert any("correct, fluent and coherent Swahili" in json.dumps(b) for b in bodies)


def writer(body, n=0):
    "Simplifies all texts to one, which the judge finds good"
    prompt, schema = body["messages"][0]["content"], body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {})
    if "simple" in schema: return json.dumps({"simple": f"Questa è una frase breve. Ecco un'altra frase, la numero {body['seed'] + 1}. È molto facile."})
    if "score" in schema: return json.dumps({"rationale": "Va bene.", "score": 3 if "biblioteca" in prompt else 4})
    return json.dumps({"words": ["breve", "facile"]})


def test_your_recipe(project, capsys):
    "Dropped by a score, replayed, only what changed is asked, the best of three, and a notebook of one's own that the command runs too"
    with serve(writer) as (model, bodies):
        shown = execute("your_recipe", project, model=model)
        asked = len(bodies)
        assert asked == 6 * 2 + 6 + 3 * 2 * 2 + 1  # the run; the changed judge; two more tries of three texts; the words, of one text as all three are the same here
        command = ["outputs/your_recipe/simplify.ipynb", "--language", "it", "-p", "source=outputs/your_recipe/texts.jsonl", "-p", f"model={model}", "-p", "min_score=3"]
        assert main(command) == 0 and len(bodies) == asked  # replayed
    assert "simple: judged too low (3)" in "".join(shown) and "5 kept" in "".join(shown)
    learners = project / "outputs/your_recipe/learners"
    assert json.loads((learners / "manifest.json").read_text())["rows"]["kept"] == 6 and (learners / "README.md").exists()
    assert "6 rows kept of 6" in capsys.readouterr().out


def human_scores():
    "The answers of the notebook's pairs, and what people gave them"
    (cell,) = [c for c in nbformat.read(NBS / "tutorials/your_judge.ipynb", 4).cells if c.source.startswith("OURS = ")]
    place = {}
    exec(cell.source.split("def better")[0], place)
    return {answer: score for _, a, b, x, y in place["OURS"] for answer, score in ((a, x), (b, y))}


def judge_that(scores):
    "A judge that gives the answers of a prompt `scores(texts)`"
    def answer(body, n=0):
        prompt = body["messages"][0]["content"]
        several = "ratings" in json.dumps(body.get("response_format", {}))
        given = scores([text for heading, text in judged_texts(prompt) if heading.startswith("Risposta")])
        said = [{"rationale": "Ecco.", "score": s} for s in given]
        return json.dumps({"ratings": said} if several else said[0])
    return answer


def test_your_judge_says_what_it_measures(project):
    "A judge that knows the answers is usable, and has a threshold; one that goes by the place is found out, and has none"
    known = human_scores()
    assert len(known) == 48 and {sum(v == s for v in known.values()) > 0 for s in (1, 2, 5)} == {True}
    with serve(judge_that(lambda texts: [known[t] for t in texts])) as (model, bodies):
        (project / "good").mkdir()
        good = execute("your_judge", project / "good", model=model, second_model="")
    assert "Usable: kappa is 1.00" in "".join(good) and "Usable: rank correlation is 1.00" in "".join(good) and "threshold: 5" in "".join(good) and "0 of 24 differ" in "".join(good)
    with serve(judge_that(lambda texts: [5, 2][:len(texts)])) as (model, bodies):
        (project / "bad").mkdir()
        bad = execute("your_judge", project / "bad", model=model, second_model=model)
    assert "Usable" not in "".join(bad) and "Nothing can be told" in "".join(bad) and "threshold: None" in "".join(bad) and "22 of 24 differ" in "".join(bad)
    assert len(bodies) == 48 + 24  # the jury's second judge is the first one here: replayed


def test_your_judge_takes_other_pairs(project):
    lines = [{"request": f"Was ist {i} plus {i}?", "answers": [str(2 * i), "Ich weiß nicht."], "scores": [5, 1], "human": 0} for i in range(1, 4)]
    (project / "de.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with serve(lambda body, n: json.dumps({"ratings": [{"rationale": "Gut.", "score": 3}] * 2} if "ratings" in json.dumps(body["response_format"]) else {"rationale": "Gut.", "score": 3})) as (model, bodies):
        shown = execute("your_judge", project, model=model, second_model="", language="de", labelled="de.jsonl")
    assert "Bewerte" in json.dumps(bodies[0], ensure_ascii=False) and "3 of 3 differ" in "".join(shown)


KAGGLE = """
import json, subprocess, sys
run, asked = subprocess.run, []
def without_pip(command, **options):
    asked.append([str(c) for c in command])
    return run(command, **options) if "pip" not in command else None
subprocess.run = without_pip
book = json.load(open(sys.argv[1]))
for cell in book["cells"]:
    if cell["cell_type"] != "code": continue
    exec("".join(cell["source"]), globals())
    if "parameters" in cell["metadata"].get("tags", []): globals().update(json.loads(sys.argv[2]))
print(json.dumps(asked))
"""


@pytest.mark.parametrize("attached", [True, False])
def test_kaggle(project, attached):
    "What pip is asked with and without the attached folder (it is not run here), and the run with the weights that lie there"
    folder, working, weights = project / "input", project / "working", weights_path("smollm2-135m")[0]
    working.mkdir()
    (folder / "some-name").mkdir(parents=True)
    if attached:
        (folder / "some-name/llmdata_nb-0.1.0-py3-none-any.whl").touch()
        os.symlink(weights, folder / "some-name" / weights.name)
    values = dict(offline=str(folder), working=str(working), model="embedded:smollm2-135m", limit=2)
    env = {k: v for k, v in os.environ.items() if k != "LLMDATA_CACHE"} | ({"LLMDATA_CACHE": str(weights.parent)} if not attached else {"XDG_CACHE_HOME": str(project / "nothing")})
    done = subprocess.run([sys.executable, "-c", KAGGLE, NBS / "tutorials/kaggle.ipynb", json.dumps(values)], capture_output=True, text=True, env=env, cwd=project)
    assert done.returncode == 0, done.stderr
    pip, command = json.loads(done.stdout.splitlines()[-1])
    wheel = folder / "some-name/llmdata_nb-0.1.0-py3-none-any.whl"
    assert pip[4:] == (["-q", "--no-index", "--find-links", str(wheel.parent), str(wheel)] if attached else ["-q", "git+https://github.com/llmdata-nb/llmdata_nb"])
    assert json.loads((working / "outputs/it/translate_and_judge/manifest.json").read_text())["rows"]["in"] == 2 and (working / "outputs/store.sqlite").exists()


def in_sidebar(contents):
    "The pages in the sidebar, from all its sections"
    for entry in contents:
        if isinstance(entry, str): yield entry
        elif "href" in entry: yield entry["href"]
        else: yield from in_sidebar(entry["contents"])


def test_the_sidebar_has_every_notebook_once():
    sections = yaml.safe_load((NBS / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    assert [s.get("section") or s["href"] for s in sections] == ["index.ipynb", "Tutorials", "Recipes", "Modules", "Pipelines", "The project"]
    listed = list(in_sidebar(sections))
    assert sorted(listed) == sorted(p.relative_to(NBS).as_posix() for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site that `make docs` builds, from a copy of the notebooks"
    folder = tmp_path_factory.mktemp("site") / "nbs"
    shutil.copytree(NBS, folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "_docs"))
    program = Path(sys.executable).parent / "smalldocs"
    for arguments in (["check", folder], ["render", "--quiet", "--strict", folder]):
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "_docs"


def test_the_site_has_a_page_for_each_notebook(site):
    for notebook in NBS.rglob("*.ipynb"):
        page = site / notebook.relative_to(NBS).with_suffix(".html")
        assert page.is_file() or ".ipynb_checkpoints" in notebook.parts, page


def test_the_site_shows_each_definition_and_each_picture(site):
    page = (site / "05_embedded.html").read_text()
    assert "weights_path" in page and "downloaded when they are not in the cache" in page
    pages = [p.read_text() for p in site.rglob("*.html")]
    for picture in re.findall(r'<img[^>]+src="([^":]+)"', "".join(pages)): assert (site / picture.removeprefix("../")).is_file(), picture


def test_a_broken_link_is_found(site, tmp_path):
    "By the same command: a link to no page, and a picture that is not there"
    (tmp_path / "_quarto.yml").write_text("project: {type: website}\n")
    (tmp_path / "index.md").write_text("# A\n\n[none](nothing.ipynb) ![none](nothing.png)\n")
    done = subprocess.run([Path(sys.executable).parent / "smalldocs", "check", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and "nothing.ipynb" in done.stdout and "nothing.png" in done.stdout
