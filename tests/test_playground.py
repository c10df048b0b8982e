"The playground: what a watched recipe tells, edited prompts from the widget to the request, and the whole in a browser with LLMDATA_BROWSER=1 (wants node, npm and chromium)."
import asyncio
import json
import os
import re
import shutil
import subprocess
import time
from functools import partial
from html import unescape
from pathlib import Path

import nbformat
import pytest
from aiohttp import web
from hypothesis import given, settings, strategies as st
from scripted_server import said, serve, wrote
from test_annotate import BROWSER, button, lab, needs_browser  # noqa: F401 (lab is a fixture)

from llmdata_nb.aya import aya_preferences
from llmdata_nb.backinstruct import back_instruct
from llmdata_nb.judge import compare, rate, rubric
from llmdata_nb.languages import language, pack, packs
from llmdata_nb.magpie import magpie, seeds
from llmdata_nb.models import CallFailed, object_schema
from llmdata_nb.playground import _call_html, _flat_texts, differences, in_all, playground, prompts_in, read_prompts, save_prompts, verdict_text, watch, with_prompts
from llmdata_nb.rerank import rerank_preferences
from llmdata_nb.run import run
from llmdata_nb.translate import translate_and_judge

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(1)">'
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def anything(body, n=0):
    "A model for all recipes, in Italian; a judge that is told to be strict gives 2"
    if "prompt" in body: return wrote("b" if body["prompt"] == "a" else f"Potresti spiegarmi con parole semplici come si fa il pane in casa, in {body['seed']} minuti?")
    schema, text = body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {}), json.dumps(body["messages"], ensure_ascii=False)
    verdict = {"rationale": "Va bene." + HOSTILE, "score": 2 if "SEVERO" in text else 4}
    if "ratings" in schema: return json.dumps({"ratings": [verdict] * schema["ratings"]["minItems"]})
    if "score" in schema: return json.dumps(verdict)
    if "label" in schema: return json.dumps({"rationale": "Va bene.", "label": schema["label"]["enum"][-1]})
    if "instruction" in schema: return json.dumps({"instruction": "Puoi spiegarmi come si prepara un buon pane a casa?"})
    if "translation" in schema: return json.dumps({"translation": f"Questa è la traduzione italiana del messaggio che segue, numero {body['messages'][0]['content'].split()[-2]}"})
    return "Ecco una spiegazione semplice, con un esempio preso dalla vita di tutti i giorni."


def conversation(i): return {"id": f"r{i}", "messages": [{"role": "user", "content": f"How do you bake a good loaf of bread at home? Number {i}"}, {"role": "assistant", "content": f"Mix flour, water, salt and yeast, wait and bake. Number {i}"}]}


def pair(i): return {"id": f"r{i}", "messages": conversation(i)["messages"][:1], "chosen": "Il pane si fa con la farina.", "rejected": "Non lo so."}


def ran(widget, press="Run"):
    "Press a button, and wait until nothing runs"
    button(widget, press).click()
    for _ in range(600):
        if not button(widget, "Run").disabled: return widget
        time.sleep(0.05)
    raise AssertionError(status(widget))


def parts(widget): return [widget] + [p for child in getattr(widget, "children", ()) for p in parts(child)]


def status(widget): return re.sub("<[^>]*>", "", widget.children[3].value)


def shown(widget): return "".join(p.value for p in parts(widget) if type(p).__name__ == "HTML")


def field(widget, name): return next(p for p in parts(widget) if getattr(p, "description", "") == name)


def edit(widget, name, text):
    prompts = next(p for p in parts(widget) if "llmdata-prompts" in p._dom_classes)
    next(p for p in parts(prompts) if type(p).__name__ == "Dropdown").value = name
    next(p for p in parts(prompts) if type(p).__name__ == "Textarea").value = text


@pytest.fixture
def made(tmp_path):
    "A playground with a store and a file of its own"
    return lambda rows, recipe=translate_and_judge, **options: playground(rows, recipe, **{"store": tmp_path / "s.sqlite", "prompts": tmp_path / "prompts.toml"} | options)


# watching

def test_a_watched_recipe_asks_the_same_and_tells_all(tmp_path):
    async def recipe(row, ask, more=1):
        row["seed"], ask.shared["x"] = ask.seed, 1
        await ask.complete("a raw text", step="raw", max_tokens=5)
        row["vector"] = await ask.embed("a text")
        found = await compare(rubric("response"), "Why?", ["Because.", "So."], ask)
        await ask("hello to you", schema=object_schema(translation={"type": "string"}), temperature=0.5)
        return row | {"scores": found.scores, "more": more}
    def answer(body, n): return (200, {"data": [{"embedding": [0.1, 0.2]}], "usage": {"prompt_tokens": 3}}) if "input" in body else anything(body, n)
    with serve(answer) as (url, bodies):
        calls, models = [], {"default": url, "embedder": url}
        outcome = run([conversation(i) for i in range(5)], watch(partial(recipe, more=2), calls.append), model=models, store=tmp_path / "s.sqlite", seed=7)
        n = len(bodies)
        again = run([conversation(i) for i in range(5)], partial(recipe, more=2), model=models, store=tmp_path / "s.sqlite", seed=7)
        assert len(bodies) == n, "a watched run pays for the run of all"
    assert outcome.kept == again.kept and outcome.kept[0]["seed"] == 7 and outcome.kept[0]["more"] == 2 and outcome.about["recipe"] == "recipe"
    assert len(calls) == 25 and all(c["done"] for c in calls) and {c["step"] for c in calls} == {"raw", "embed", "judge", "ask"}
    for column in ("calls", "replayed", "retries", "prompt_tokens", "completion_tokens"): assert sum(c[column] for c in calls) == sum(line[column] for line in outcome.ledger), column
    raw, vector, *judged, last = [c for c in calls if c["row"] == "r0"]
    assert raw["raw"] and raw["request"] == "a raw text" and vector["answer"] == "a vector of 2 numbers" and vector["role"] == "embedder" and last["parsed"]["translation"]
    assert [verdict_text(c["parsed"]) for c in judged] == ["4, 4", "4, 4"] and judged[0]["model"] == url and last["options"] == {"temperature": 0.5}
    assert outcome.states["kept"][0]["calls"] > 0, "the ledger of the rows is booked too"


def test_failures_are_told_with_what_was_said():
    def answer(body, n): return "I'd rather not." if "judge" in str(body) else (400, {"error": {"message": "too long"}}) if "long" in str(body) else "yes"
    async def recipe(row, ask):
        try: await ask("long")
        except CallFailed: row["long"] = True
        await rate(rubric("response"), ["judge", "this"], ask)
        await ask("judge", parse=lambda text: int(text))
        return row
    calls = []
    with serve(answer) as (url, _): outcome = run([{"id": "a"}], watch(recipe, calls.append), model=url, store=":memory:")
    assert len(outcome.failed) == 1 and outcome.failed[0]["long"]
    assert [bool(c["error"]) for c in calls] == [True, True, True] and "too long" in calls[0]["error"] and calls[1]["unread"] == calls[2]["unread"] == ["I'd rather not."] * 2
    assert calls[0]["failed"] == 1 and calls[2]["retries"] + calls[2]["failed"] == 2
    assert "I&#x27;d rather not." in _call_html(calls[1]) and "2 without a result" in _call_html(calls[1])


# prompts

names = st.sampled_from(sorted(n for n, t in _flat_texts(pack("en")).items() if isinstance(t, str) and "{" not in t))
words = st.text(min_size=1).filter(lambda t: t.strip() and not any("\ud800" <= c <= "\udfff" for c in t))


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(st.sampled_from(packs()), st.dictionaries(names, words, min_size=1), min_size=1), st.lists(words, min_size=1))
def test_any_prompt_comes_back_from_its_file(tmp_path_factory, prompts, criteria):
    prompts = {code: texts | {"response.criteria": criteria} for code, texts in prompts.items()}
    file = tmp_path_factory.mktemp("p") / "prompts.toml"
    save_prompts(file, prompts)
    assert read_prompts(file) == prompts
    for code, texts in prompts.items():
        found = _flat_texts(with_prompts(code, file).texts)
        assert all(found[n] == t for n, t in texts.items()) and {n for n in found if found[n] != _flat_texts(pack("en") | pack(code))[n]} <= set(texts)
        assert _flat_texts(pack(code)) == _flat_texts(language(code).texts), "the pack itself is as it was"


@pytest.mark.parametrize("text, message", [("x = 1", "in brackets"), ("[it]\nresponse.tusk = 'a'", "did you mean response.task"), ("[it]\nresponse.task = 3", "should be a text"), ("[it]\nresponse.scale = ['a']", "expected 5"),
                                           ("[it]\nresponse.criteria = ['a', '']", "none of them empty"), ("[it]\njudge.reply = 'JSON'", "{key}"), ("[xx]\nresponse.task = 'a'", "unknown language"), ("[it", "prompts"), ("", "none are for Italian")])
def test_a_file_that_holds_no_prompts_is_refused(tmp_path, text, message):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)): with_prompts("it", tmp_path / "p.toml")


def test_the_file_is_named_when_it_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="nowhere.toml"): with_prompts("it", tmp_path / "nowhere.toml")


def text(i): return {"id": f"r{i}", "text": f"Il pane si fa con farina, acqua, lievito e sale, e poi si cuoce nel forno molto caldo. Numero {i}"}


NEW = "NUOVO: rispondi bene in {language}, {name}. {task} {style} SEVERO"
RECIPES = [(back_instruct, text, "it", "backinstruct.task", {"direct": True}), (back_instruct, text, "it", "alignment.task", {"direct": True}), (translate_and_judge, conversation, "it", "translate.task", {}), (translate_and_judge, conversation, "it", "response.task", {}), (rerank_preferences, pair, "it", "response.task", {}), (rerank_preferences, pair, "cy", "response.task", {}), (aya_preferences, conversation, "it", "magpie.answer", {}),
           (magpie, None, "it", "magpie.user", {"min_score": 1}), (magpie, None, "it", "response.task", {"min_score": 1})]


@pytest.mark.parametrize("recipe, row, code, name, options", RECIPES, ids=lambda v: getattr(v, "__name__", v if isinstance(v, str) else ""))
def test_an_edited_prompt_is_asked_and_nothing_else_is_paid_again(tmp_path, made, recipe, row, code, name, options):
    "The recipes find their prompts by what they ask, in a language with a pack, and in one without"
    (tmp_path / "chat.jinja").write_text(CHATML)
    if recipe is magpie: options = options | {"template": str(tmp_path / "chat.jinja")}
    with serve(anything) as (url, bodies):
        widget = ran(made([row(i) for i in range(5)] if row else [], recipe, model=url, language=code, **options))
        assert len({c["row"] for c in widget.calls}) == 3 and not widget.outcome.failed, status(widget)
        found, first = prompts_in(widget.calls, code), len(bodies)
        assert name in found
        edit(widget, name, NEW)
        assert status(ran(widget)) == "Done."
        new = [b for b in bodies[first:] if (b.get("prompt") or "") != "a"]
        assert new and any("NUOVO" in json.dumps(b) for b in new)
        if name == "response.task": assert all("NUOVO" in json.dumps(b) for b in new) and all(c["replayed"] for c in widget.calls if "NUOVO" not in json.dumps(c["request"]))
        ran(widget, "Save")
        assert "with_prompts" in status(widget) and read_prompts(tmp_path / "prompts.toml") == {code: {name: NEW}}
        n = len(bodies)
        rows = [row(i) for i in range(3)] if row else list(seeds(3))
        outcome = run(rows, recipe, model=url, language=with_prompts(code, tmp_path / "prompts.toml"), store=tmp_path / "s.sqlite", **options)
        assert len(bodies) == n and outcome.kept == widget.outcome.kept and outcome.dropped == widget.outcome.dropped, "the file gives a run what the widget asked"


# the widget

def test_the_whole_of_a_row_is_shown_and_nothing_runs_in_the_page(made):
    with serve(anything) as (url, bodies):
        widget = ran(made([conversation(i) for i in range(5)], model=url))
        html = shown(widget)
        assert html.count(">kept<") == 3 and html.count("<details>") == 3 * 5 and "<script" not in html and "<img" not in html and "&lt;script&gt;" in html
        assert "20 → 5 tokens · price unknown · new" in html and "How do you bake" in html and 'chip">4<' in html and 'chip">high<' in html
        assert "10,000 rows like these would take about 40,000 requests, 1,000,000 tokens, price unknown (an estimate from 3 rows)" in html
        edit(widget, "response.task", "Sii SEVERO.")
        html = shown(ran(widget))
        assert html.count(">dropped<") == 3 and html.count(">changed<") == 3 and html.count("replayed</span>") == 9 and html.count("new</span>") == 3 and "<del>4</del><ins>2</ins>" in html
        button(widget, "Undo the edit").click()
        assert ">dropped<" not in (html := shown(ran(widget))) and "new</span>" not in html, "all of it is in the store"
        field(widget, "Rows").value = "5, 1"
        assert {c["row"] for c in ran(widget).calls} == {"r0", "r4"} and [r["id"] for r in widget.outcome.kept] == ["r4", "r0"]


def test_what_is_wrong_is_said_in_one_line(made, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve(anything) as (url, bodies):
        for change, message in (({"Model": "openai:gpt-4.1-mini"}, "set OPENAI_API_KEY"), ({"Model": "http://127.0.0.1:9/v1#m"}, "cannot be reached"), ({"Language": "klingonish"}, "unknown language"), ({"Rows": "9"}, "expected numbers from 1 to 2"), ({"Model": "nonsense"}, "expected embedded")):
            widget = made([conversation(0), {"id": "bad", "text": "no messages"}], model=url)
            for name, value in change.items(): field(widget, name).value = value
            ran(widget)
            assert message in status(widget) and "\n" not in status(widget) and 'class="bad"' in widget.children[3].value and not bodies
        ran(widget := made([conversation(0), {"id": "bad", "text": "no messages"}], model=url))
        assert "a conversation needs a user message" in shown(widget) and ">failed<" in shown(widget) and ">kept<" in shown(widget)
        ran(widget := made([conversation(0), "no row"], model=url))
        assert "row 2 is str" in status(widget)
        for message, name in (({"role": "user"}, "messages"), ({"content": "Hello?"}, "messages"), ("Hello?", "prompt")):
            ran(widget := made([conversation(0), {"id": "b", name: [message]}], model=url))
            assert f"row 2: message 1 of {name} should have a role and a content" in status(widget)
        edit(ran(widget := made([conversation(0)], model=url)), "judge.reply", "Rispondi in JSON.")
        assert "{key}" in status(widget) and "{key}" in status(ran(widget, "Save")) and "{key}" in status(ran(widget))
        edit(widget, "response.scale", "uno\ndue")
        assert "expected 5" in status(widget)


def test_an_edit_that_no_step_asks_is_told(made, tmp_path):
    save_prompts(tmp_path / "prompts.toml", {"it": {"fidelity.task": "Confronta."}, "es": {"response.task": "Evalúa."}})
    with serve(anything) as (url, bodies):
        widget = ran(made([conversation(0)], model=url))
        assert status(widget) == "Done. What was edited is in none of these prompts: fidelity.task."
        assert status(ran(made([conversation(0)], model=url, fidelity=True))) == "Done." and any("Confronta." in json.dumps(b) for b in bodies)
        ran(widget, "Save")
        assert read_prompts(tmp_path / "prompts.toml")["es"] == {"response.task": "Evalúa."}, "those of another language stay in the file"


def test_stop_ends_a_run_and_keeps_what_was_answered(made):
    over = []
    def answer(body, n):
        if "translation" in str(body.get("response_format")) and "Mix flour" in str(body["messages"]):
            async def held(request):
                while not over: await asyncio.sleep(0.02)
                return web.json_response(said(anything(body)))
            return held
        return anything(body, n)
    with serve(answer) as (url, bodies):
        widget = made([conversation(i) for i in range(3)], model=url)
        button(widget, "Run").click()
        while sum("Mix flour" in str(b) for b in bodies) < 3: time.sleep(0.05)
        started = time.monotonic()
        ran(widget, "Stop")
        assert time.monotonic() - started < 5 and status(widget) == "Stopped. What was answered is in the store." and shown(widget).count(">stopped<") >= 3 and widget.outcome is None
        n = len(bodies)
        button(widget, "Run").click()
        while sum("Mix flour" in str(b) for b in bodies) < 6: time.sleep(0.05)
        ran(widget, "Stop")
        assert len(bodies) == n + 3, "what was answered before is replayed"
        over.append(True)
        time.sleep(0.2)
    widget = made([conversation(0)], model="embedded:smollm2-135m")
    button(widget, "Run").click()
    ran(widget, "Stop")  # before any row has begun
    assert status(widget).startswith("Stopped") and not widget.calls


def test_a_recipe_of_ones_own_and_the_budget(made):
    async def capital(row, ask, country="Italy"): return row | {"city": (await ask(f"The capital of {country}?", step="capital")).text}
    with serve(lambda body, n: "Roma") as (url, bodies):
        widget = ran(made([{"id": 5}, {}, {"id": "c"}], capital, model={"default": url}, country="France", budget="2 calls"))
        assert "France" in str(bodies[0]) and {c["row"] for c in widget.calls} == {"5", "row-1", "c"} and "language" not in widget.outcome.about
        assert [r["city"] for r in widget.outcome.kept] == ["Roma"] * 3, "one call: the others are the same question"


def test_differences_are_of_the_text_as_it_is():
    for old, new in (("a b c", "a x c"), ("", "x"), ("<b>", "<i>"), ("猫", "犬と猫"), ("قط صغير", "قط كبير"), ("x " * 4000, "y " * 4000)):
        assert unescape(re.sub("<del>.*?</del>|</?ins>", "", differences(old, new), flags=re.S)) == new
        if len(old) < 9: assert unescape(re.sub("<ins>.*?</ins>|</?del>", "", differences(old, new), flags=re.S)) == old


def test_unknown_prices_stay_unknown():
    line = dict(calls=3, replayed=0, retries=0, failed=0, prompt_tokens=30, completion_tokens=0)
    assert "price unknown. 10,000" in in_all([line | {"usd": None}], 3) and "requests, 100,000 tokens, price unknown (" in in_all([line | {"usd": None}], 3) and "$30.00 (an" in in_all([line | {"usd": 0.009}], 3)


# the browser

@needs_browser
def test_the_playground_and_the_progress_in_jupyterlab(lab, tmp_path):  # noqa: F811
    folder, url = lab
    url = url.replace("annotate.ipynb", "playground.ipynb")
    def slow(body, n):
        async def answered(request):
            held = n == 0 and re.search(r"<message>.nMix flour.*Number [0-2].n", json.dumps(body))  # until the button Stop is pressed
            await asyncio.sleep(600 if held else 0.4)
            return web.json_response(said(anything(body)))
        return answered
    rows = [conversation(i) for i in range(40)]
    rows[1] |= {"id": HOSTILE, "messages": [{"role": "user", "content": "كيف تخبز الخبز في البيت؟ هذا هو السؤال رقم 1"}, rows[1]["messages"][1]]}
    (folder / "rows.json").write_text(json.dumps(rows))
    with serve(slow) as (model, bodies):
        cells = ["import json\nfrom llmdata_nb.playground import playground, with_prompts\nfrom llmdata_nb.run import run\nfrom llmdata_nb.translate import translate_and_judge\nrows = json.load(open('rows.json'))",
                 f"playground(rows, translate_and_judge, language='it', model='{model}', store='s.sqlite')",
                 f"outcome = run(rows, translate_and_judge, model='{model}', store='s.sqlite', language=with_prompts('it', 'prompts.toml'), concurrency=6)\noutcome"]
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}), folder / "playground.ipynb")
        driver, shots = shutil.copytree(BROWSER, tmp_path / "browser", ignore=shutil.ignore_patterns("node_modules")), Path(os.environ.get("LLMDATA_SHOTS") or tmp_path / "shots")
        shots.mkdir(exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=driver, check=True)
        ended = subprocess.run(["node", "playground.mjs", url, str(shots)], cwd=driver, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout)
    assert seen["alerts"] == [] and seen["ran"] == 0 and seen["errors"] == []
    assert read_prompts(folder / "prompts.toml") == {"it": {"response.task": "Sii SEVERO: vota da 1 a 5."}}
    lines = seen["lines"]
    assert all(re.match(r"translate_and_judge it  \d+/40 rows", line) for line in lines) and len(set(lines)) > 3 and lines[-1].startswith("translate_and_judge it  40/40 rows"), lines
    assert re.search(r"40\s+rows in", seen["outcome"]) and "Traceback" not in seen["outcome"]
