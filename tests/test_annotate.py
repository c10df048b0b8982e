"Annotations, what becomes of them, and the widget: its logic here, itself in a browser with LLMDATA_BROWSER=1 (wants node, npm and chromium)."
import json
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from llmdata_nb.annotate import (Session, agreement_of, annotate, answers_to_show, fitting, krippendorff, labelled_from, new_annotation, opinion, order_for, read_annotations, render,
                                 resolve, save_annotation, worth_asking)
from llmdata_nb.judge import Comparison, calibrate
from llmdata_nb.people import with_people
from llmdata_nb.run import Dropped, drop

BROWSER = Path(__file__).parent / "browser"


def row(id, *scores, texts=None, **more):
    n = max(len(scores), 2)
    return {"id": id, "messages": [{"role": "user", "content": f"Question {id}?"}], "responses": texts or [f"answer {i} of {id}" + i * " long" for i in range(n)],
            "models": ["human", "m", "n"][:n], "scores": list(scores) or [None] * n, "feedbacks": [f"feedback {i}" for i in range(n)]} | more


def said(row, who="anna", *ratings, **more): return new_annotation(row, who, list(ratings) or None, **more)


# the file

def test_half_a_line_is_reported_and_what_follows_is_read(tmp_path):
    path, a, b = tmp_path / "deep" / "a.jsonl", row("a"), row("b")
    save_annotation(path, said(a, "anna", 1, 2))
    whole = path.read_bytes()
    for cut in range(1, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        save_annotation(path, said(b, "anna", 3, 4))
        found, unread = read_annotations(path)
        assert [x["id"] for x in found] == ["a", "b"] and [u["line"] for u in unread] == [2] and path.read_bytes().startswith(whole + whole[:cut])


@pytest.mark.parametrize("text", ["\ud83d half", "\u2028\u2029\x85 lines", "日本語 العربية", '"\\n\n{}', "\0"])
def test_any_text_comes_back(tmp_path, text):
    save_annotation(tmp_path / "a.jsonl", said(row("a"), "anna", 1, 2, rationale=text, improved=text, improved_of=0))
    ((found,), unread) = read_annotations(tmp_path / "a.jsonl")
    assert found["rationale"] == found["improved"] == text and not unread


def test_lines_of_other_kinds_are_unread_not_fatal(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'[1]\n"x"\n{"id": 1}\n\xff\xfe\n\n{"id": "a", "annotator": "a"}\n' + json.dumps(said(row("a"), "anna", 1, 2)).encode())
    found, unread = read_annotations(tmp_path / "a.jsonl")
    assert [f["id"] for f in found] == ["a"] and [u["line"] for u in unread] == [1, 2, 3, 4, 6]


def test_two_people_share_a_file(tmp_path):
    rows, path = [row(f"r{i}", 3, 4) for i in range(5)], tmp_path / "a.jsonl"
    anna, bert = Session(rows, path, "anna"), Session(rows, path, "bert")
    for _ in range(5):
        for who, keys in ((anna, "51"), (bert, "24")):
            for key in (*keys, "save"): who.press(key)
    assert len(read_annotations(path)[0]) == 10 and anna.current is None is bert.current
    assert {order_for(f"r{i}", "anna", 2) == order_for(f"r{i}", "bert", 2) for i in range(5)} == {True, False}


# the session

def test_a_session_of_random_acts_loses_nothing(tmp_path):
    "Whatever is done, and wherever the kernel dies, the file and the session say the same"
    rows = [row(f"r{i}", *draw, language="it" if i % 2 else "ar") for i, draw in enumerate([(3, 3), (5, 1, 2), (None, None), (4, 3.5), (2, 5)])] + [
        {"id": "one", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], "response_score": 3}]
    random_ = random.Random(1)
    for trial in range(30):
        path = tmp_path / f"{trial}.jsonl"
        session = Session(rows, path, "anna")
        for _ in range(60):
            act = random_.choice([*"12345123451", "left", "right", "p", "t", "e", "save", "save", "save", "skip", "undo", "back", "next", "text", "flag", "filter", "restart"])
            if act == "restart": session = Session(rows, path, "anna")
            elif act == "filter": session.filter(random_.choice([None, "it", "ar"]), random_.choice([None, 3]))
            elif act in ("text", "flag"): session.current and session.change(**{"rationale" if act == "text" else "flag": str(random_.random())})
            else: session.press(act)
            again = Session(rows, path, "anna")
            assert again.given == session.given and again.begun == session.begun and list(again.given) == list(session.given)
            assert {a["id"]: a for a in read_annotations(path)[0]} == session.given
            for a in session.given.values(): new_annotation(next(r for r in rows if r["id"] == a["id"]), "anna", a["ratings"], a["preference"], improved_of=a["improved_of"])  # all are valid


def test_the_judge_is_hidden_until_the_own_rating_is_given(tmp_path):
    session = Session([row("a", 5, 1), row("b", None, None)], tmp_path / "a.jsonl")
    session.press("next")
    assert session.current["id"] == "a" and not session.judge_visible
    for key in ("2", "4", "save"): session.press(key)
    assert not session.given["a"]["seen_judge"] and "judge" in session.message
    session.press("next")
    while session.current["id"] != "a": session.press("back")
    assert session.judge_visible
    session.press("1"), session.press("save")
    assert session.given["a"]["seen_judge"] and sorted(session.given["a"]["ratings"]) == [1, 4]
    shown = Session([row("a", 5, 1), row("b", None, None)], tmp_path / "b.jsonl", hide_judge=False)
    for _ in range(2):
        for key in ("2", "4", "save"): shown.press(key)
    assert shown.given["a"]["seen_judge"] and not shown.given["b"]["seen_judge"]


def test_a_disk_that_is_full_is_told_and_nothing_is_taken_for_saved(tmp_path, monkeypatch):
    widget = annotate([row("a", 5, 1), row("b", 5, 1)], tmp_path / "a.jsonl")
    monkeypatch.setattr("llmdata_nb.annotate.save_annotation", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    button(widget, "4").click()
    assert "No space left" in widget.session.message and not any(widget.session.annotation["ratings"]) and widget.session.progress()["done"] == 0
    monkeypatch.undo()
    button(widget, "4").click()
    assert 4 in widget.session.annotation["ratings"] and widget.session.message == ""


def test_rows_without_answers_and_texts_that_changed_are_told(tmp_path):
    rows = [row("a", 5, 1), {"id": "none", "messages": [{"role": "user", "content": "?"}]}]
    session = Session(rows, tmp_path / "a.jsonl")
    assert session.message == "1 rows have no answers to show" and session.progress()["of"] == 1
    for key in ("2", "4", "save"): session.press(key)
    session = Session([row("a", 5, 1, texts=["new", "texts"])], tmp_path / "a.jsonl")
    assert "other texts" in session.message and session.current["id"] == "a" and len(read_annotations(tmp_path / "a.jsonl")[0]) == 1
    with pytest.raises(ValueError, match="several rows"): Session([row("a"), row("a")], tmp_path / "a.jsonl")


# the widget without a browser

def parts(widget):
    yield widget
    for child in getattr(widget, "children", ()): yield from parts(child)


def button(widget, text, nth=0): return [p for p in parts(widget) if getattr(p, "description", None) == text][nth]


def field(widget, css): return next(p for p in parts(widget) if css in getattr(p, "_dom_classes", ()))


def test_a_late_text_goes_to_the_row_it_was_typed_in(tmp_path):
    widget = annotate([row("a", 3, 3), row("b", 3, 3)], tmp_path / "a.jsonl")
    old = field(widget, "llmdata-rationale")
    for key in ("4", "2"): field(widget, f"llmdata-key-{key}").click()
    button(widget, "Save, next").click()
    old.value = "typed in row a"
    assert widget.session.current["id"] == "b" and field(widget, "llmdata-rationale").value == "" and read_annotations(tmp_path / "a.jsonl")[0][0]["rationale"] == "typed in row a"
    assert widget.session.annotation["rationale"] == ""


def test_the_widget_shows_what_it_may(tmp_path):
    rows = [row("a", 5, 1, language="ar", models=["human", "secret-model"]), row("b", 5, 1, 2)]
    def html(widget): return " ".join(p.value for p in parts(widget) if type(p).__name__ == "HTML" and "<style>" not in p.value)
    widget = annotate(rows, tmp_path / "a.jsonl")
    assert "feedback" not in html(widget) and "secret-model" not in html(widget) and 'lang="ar"' in html(widget)
    for key in "42": field(widget, f"llmdata-key-{key}").click()
    button(widget, "Save, next").click(), button(widget, "Back").click()
    assert "feedback 1" in html(widget) and "secret-model" in html(widget)
    assert "feedback 1" in html(annotate(rows, tmp_path / "b.jsonl", hide_judge=False)) and "secret-model" not in html(annotate(rows, tmp_path / "b.jsonl", hide_judge=False))
    assert "All 0 rows" in html(annotate([], tmp_path / "c.jsonl"))
    assert annotate(rows, tmp_path / "b.jsonl", language="ar", max_judge=5).session.progress()["of"] == 1


# Markdown

HOSTILE = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "![a](http://x/y)", "<http://x>", "`<b>`", "**<i>x</i>**", "```<script>\n</script>", "|<td>|\n|-|\n|<x>|",
           "# <h1>", "> <q>", "1. <li>", "&lt;script&gt;", "\0" + "0\0", "`a` \0" + "7\0", '" onmouseover="x', "' style='x", "</pre></div><script>", "<!-- ", "]]>", "\u202e<b>", "${x}", "~~~\n<p>\n~~~"]
ALLOWED = re.compile(r'</?(?:p|pre|div|table|tr|th|td|b|i|code|blockquote|hr)(?: class="(?:h[123]|item)")?(?: dir="(?:auto|ltr)")?(?: style="margin-inline-start:[\d.]+em")?>')


def test_no_tag_of_a_text_gets_through():
    random_ = random.Random(0)
    for _ in range(3000):
        text = random_.choice(["", "\n", " "]).join(random_.choices(HOSTILE + ["*", "**", "`", "```", "|", "\n", "#", "- ", "word", "<"], k=random_.randint(1, 9)))
        html = render(text)
        assert "<" not in ALLOWED.sub("", html) and "\0" not in html, text


def test_what_a_text_says_stays(tmp_path):
    for text in ["2 * 3 * 4 < 5 && x_y_z", "C:\\dir\\*", "a | b", "line\nline", "- - x", "*not closed", "`not closed", "| a |", "100% [x] ~y~"]:
        plain = re.sub("<[^>]*>", "", render(text)).replace("&lt;", "<").replace("&amp;", "&").replace("• ", "- ")
        assert plain == text
    assert render("```py\nif a:\n    b\n```\nafter") == '<pre dir="ltr">if a:\n    b</pre><p dir="auto">after</p>' and "<table>" in render("a|b\n-|-\n1|2") and render("***") == "<hr>"


@pytest.mark.parametrize("text", ["*" * 50000, "`" * 50000, "**a" * 20000, "|" * 20000 + "\n|-|", "- " * 30000, "#" * 50000, "\n" * 50000, " " * 50000 + "x", "```\n" * 20000, "> " * 20000, "\t" * 50000 + "- x", "_ " * 30000 + "x", "1" * 50000 + ". x"])
def test_render_is_fast_on_any_text(text):
    start = time.process_time()
    render(text)
    assert time.process_time() - start < 2


# the order

def test_every_row_is_asked_and_the_undecided_first():
    rows = [row("clear", 5, 1), row("tie", 3, 3, outcome="tie"), {"id": "none", "messages": []}, row("no"), row("orders", 5, 4, position_consistent=False), row("close", 4, 3.4), row("clear2", 1, 5)]
    assert [r["id"] for r in worth_asking(rows)] == ["tie", "no", "orders", "close", "clear", "clear2", "none"] and worth_asking(worth_asking(rows)) == worth_asking(rows)


# resolution

def check_pair(pair, source):
    "What holds for every pair"
    assert [len(pair[side]) for side in ("chosen", "rejected")] == [1, 1] and pair["prompt"][-1]["role"] == "user"
    chosen, rejected = (pair[side][0]["content"] for side in ("chosen", "rejected"))
    assert chosen.strip() != rejected.strip() and chosen in pair["responses"] and rejected in pair["responses"]
    scores = pair["people_ratings"] if pair["decided_by"] == "people" else pair["judge_scores"]
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        assert pair[f"{side}_score"] in [s for t, s in zip(pair["responses"], scores) if t == text] and pair[f"{side}_model"] in [m for t, m in zip(pair["responses"], pair["models"]) if t == text]
    assert (pair["decided_by"] == "people") == bool(pair["people"]) == (pair["people_ratings"] is not None)
    assert pair["judge_scores"] == (source["scores"] if any(source["scores"]) else None) and not {"scores", "feedbacks", "messages", "outcome", "chosen_feedback"} & set(pair)
    if pair["margin"] is not None and None not in (pair["chosen_score"], pair["rejected_score"]): assert pair["margin"] in (0, round(pair["chosen_score"] - pair["rejected_score"], 6)) and pair["margin"] >= 0


def test_random_rows_and_people_end_as_pairs_or_with_a_reason():
    random_ = random.Random(2)
    for _ in range(400):
        rows, given = [], []
        for i in range(8):
            n = random_.choice([2, 2, 3])
            texts = random_.sample(["yes", "yes ", "no", "maybe so", "a long answer"], n)
            r = row(f"r{i}", *([None] * n if random_.random() < 0.3 else random_.choices([1, 2, 3, 4, 5], k=n)), texts=texts, models=["human", "m", "n"][:n])
            if random_.random() < 0.2: r["reason"] = "judge: too low"
            for who in random_.sample(["anna", "bert", "carl"], random_.choice([0, 1, 2, 3])):
                of = random_.choice([None, *range(n)])
                given.append(said(r, who, *random_.choices([None, 1, 2, 3, 4, 5], k=n), preference=random_.choice([None, "tie", *range(n)]), skipped=random_.random() < 0.1, flag=random_.choice(["", "", "", "bad"]),
                                  improved=random_.choice([None, None, None, "yes", "better"]), improved_of=of))
            rows.append(r)
        copy = json.dumps(rows)
        for options in ({}, {"tie": "shorter"}, {"judge": False}):
            kept, dropped = resolve(rows, given, **options)
            assert json.dumps(rows) == copy and sorted(r["id"] for r in kept + dropped) == [r["id"] for r in rows] and all(d["reason"] for d in dropped)
            for pair in kept:
                source = next(r for r in rows if r["id"] == pair["id"])
                check_pair(pair, source)
                people = [a for a in given if a["id"] == pair["id"] and not a["skipped"] and not a["flag"] and (any(a["ratings"]) or a["preference"] is not None or a["improved"])]
                better = next((a for a in people if a["improved"] not in (None, *(t.strip() for t in source["responses"]))), None)
                assert (pair["decided_by"] == "people") == bool(people) and pair["responses"] == source["responses"] + ([better["improved"]] if better else [])
                if better: assert pair["chosen"][0]["content"] == better["improved"] and pair["chosen_model"] == "human" and pair["chosen_score"] is None
                if not people: assert "reason" not in source and options.get("judge", True)


def test_a_judged_pair_is_left_as_rerank_made_it():
    turned = row("t", 2, 5, outcome="swapped", position_consistent=True, scores_by_order=[[2, 5], [2, 5]])
    turned |= {"prompt": turned.pop("messages"), "margin": 3, "original_chosen": "answer 0 of t", "original_rejected": "answer 1 of t long"}
    turned |= {"chosen": [{"role": "assistant", "content": "answer 1 of t long"}], "rejected": [{"role": "assistant", "content": "answer 0 of t"}], "chosen_score": 5, "rejected_score": 2}
    ((pair,), dropped) = resolve([turned], [])
    assert not dropped and pair["chosen"] == turned["chosen"] and pair["rejected"] == turned["rejected"] and pair["margin"] == 3 and pair["decided_by"] == "judge" and pair["original_chosen"] == "answer 0 of t"
    assert pair["judge_outcome"] == "swapped" and pair["judge_scores_by_order"] == [[2, 5], [2, 5]]
    ((pair,), _) = resolve([turned], [said(turned, "anna", 5, 4)])
    assert pair["chosen"] == turned["rejected"] and (pair["chosen_score"], pair["rejected_score"], pair["margin"], pair["judge_scores"]) == (5, 4, 1, [2, 5])
    by_recipe = turned | {"scores": [None, None], "outcome": "human", "chosen_score": None, "rejected_score": None, "margin": None}
    assert resolve([by_recipe], [])[0][0]["decided_by"] == "recipe"


def test_a_reason_that_the_source_brought_drops_no_row():
    import asyncio
    judged = row("t", 5, 2, outcome="kept", position_consistent=True, scores_by_order=[[5, 2], [5, 2]], reason="spam")
    async def recipe(row, ask, dropping=False):
        if dropping: drop("tie: the same score")
        return row
    decided = with_people(recipe, [])
    assert asyncio.run(decided(judged, None))["decided_by"] == "judge"
    with pytest.raises(Dropped, match="tie: the same score"): asyncio.run(decided(judged, None, dropping=True))
    kept, dropped = resolve([judged | {"reason": {"code": 7}}], [])
    assert len(kept) == 1 and not dropped


def test_two_texts_and_a_single_answer():
    two = {"id": "p", "messages": [{"role": "user", "content": "?"}], "chosen": "first", "rejected": "second", "chosen_score": 4, "rejected_score": 2, "chosen_model": "m"}
    ((pair,), _) = resolve([two], [said(two, "anna", 1, 5)])
    assert pair["chosen"][0]["content"] == "second" and pair["rejected_model"] == "m" and pair["original_chosen"] == "first" and pair["judge_scores"] == [4, 2] and pair["chosen_score"] == 5
    one = {"id": "o", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}
    assert resolve([one], [said(one, "anna", 3)])[1][0]["reason"] == "one answer, and no improved one"
    ((pair,), _) = resolve([one], [said(one, "anna", 3, improved="!!", improved_of=0)])
    assert pair["prompt"] == one["messages"][:1] and pair["chosen_model"] == "human" and pair["rejected"][0]["content"] == "!"


def test_annotations_of_other_texts_are_told_and_not_used():
    old, new = row("a", 5, 1), row("a", 5, 1, texts=["new", "texts"])
    with pytest.warns(UserWarning, match="1 of 1 annotations"): kept, _ = resolve([new], [said(old, "anna", 1, 5)])
    assert kept[0]["decided_by"] == "judge" and fitting([new], [said(old, "anna", 1, 5)])[0] == {} and not labelled_from([new], [said(old, "anna", 1, 5)])


# agreement

def test_krippendorff_by_hand():
    "Two people, nominal: 1 - (n - 1) · disagreements / expected ones, from the published example of two people, ten units (2011, part B: .095)"
    assert round(krippendorff(list(zip([0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0])), "nominal"), 3) == 0.095
    assert krippendorff([[1, 1], [2, 2]]) == 1 and krippendorff([[3, 3], [3, 3]]) is None and krippendorff([]) is None and krippendorff([[1, 2], [1, 2]], "nominal") < 0
    assert krippendorff([["tie", 0], [0, 0], [1, 1]], "nominal") > 0


def test_agreement_says_of_how_many():
    rows = [row(f"r{i}", 5, 2) if i % 2 else row(f"r{i}", 1, 4) for i in range(20)]
    given = [said(r, who, *r["scores"]) for r in rows for who in ("anna", "bert", "carl")] + [said(row("other"), "anna", 1, 2)]
    found = {f["figure"]: f for f in agreement_of(given, rows)}
    assert len(found) == 2 + 3 * 2 + 1 and all(f["value"] == 1 for f in found.values()) and found["people prefer what the judge prefers"]["n"] == 20
    seen = [a | {"seen_judge": True} for a in given]
    found = {f["figure"]: f for f in agreement_of(seen, rows)}
    assert found["people prefer what the judge prefers"]["n"] == 0 and found["the same, of those who had seen its rating"]["n"] == 20 and labelled_from(rows, seen) == []


def test_calibrate_takes_the_labelled_rows(tmp_path):
    rows = [row(f"r{i}", 5, 2) if i % 3 else row(f"r{i}", 1, 4) for i in range(12)]
    labelled = labelled_from(rows, [said(r, "anna", *r["scores"]) for r in rows])
    async def judge(r, ask):
        scores = [1, 2] if r["id"] in ("r0", "r3") else [2, 1]
        return Comparison(scores, orders=[[0, 1]], by_order=[scores], status="ok")
    found = calibrate(judge, labelled, model="http://127.0.0.1:9/v1#none", store=tmp_path / "s.sqlite")
    assert found.kind == "preference" and found.figures["same opinion"]["value"] == 10 / 12


# the browser

def rows_for_the_browser():
    texts = {"it": ("Perché il cielo è blu?", "## In breve\n\nL'aria diffonde **di più** il blu.\n\n1. luce\n2. aria\n   - molecole", "Nessuno lo sa."),
             "ar": ("لماذا السماء زرقاء؟", "**الهواء** يشتت الضوء الأزرق أكثر من غيره:\n\n- الضوء الأبيض مزيج من الألوان\n- الأزرق أقصر موجة", "لا أحد يعلم. HTTP 404"),
             "ja": ("空はなぜ青いのですか。", "空気が青い光を強く散乱するからです。\n\n> 直射日光は白い。", "誰にも分かりません。")}
    rows = []
    for i in range(10):
        code = ["it", "ar", "ja"][i % 3]
        question, good, bad = texts[code]
        if i == 3: bad = '<script>alert(1)</script><img src=x onerror="alert(1)"> <a href="javascript:alert(1)" onclick="alert(1)">qui</a> [qui](javascript:alert(1))'
        if i == 6: question, good = "Scrivi una funzione che somma.", "```python\ndef somma(a, b):\n    return a + b  # <b>\n```\n\n| a | b | somma |\n|---|---|---|\n| 1 | 2 | `3` |"
        system = [{"role": "system", "content": "Rispondi in italiano."}] if i == 6 else []
        rows.append(row(f"r{i}", 5, 1, language=code, texts=[f"{good}\n\n[r{i}.0]", f"{bad}\n\n[r{i}.1]"], messages=[*system, {"role": "user", "content": question}]))
    return rows


needs_browser = pytest.mark.skipif(not os.environ.get("LLMDATA_BROWSER") or not all(map(shutil.which, ("node", "npm", "chromium"))), reason="only with LLMDATA_BROWSER=1, node, npm and chromium")


@pytest.fixture
def lab(tmp_path):
    "URL of a JupyterLab in a folder of its own, with its token"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token, folder = secrets.token_hex(16), tmp_path / "lab"
    folder.mkdir()
    env = os.environ | {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")} | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}"],
                                  env=env, stdout=log, stderr=log)
        try:
            for _ in range(120):
                try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=5).read(); break
                except OSError: time.sleep(0.5)
            else: pytest.fail((tmp_path / "lab.log").read_text()[-2000:])
            yield folder, f"http://127.0.0.1:{port}/lab/tree/annotate.ipynb?token={token}&reset"
        finally:
            server.terminate()
            server.wait(20)


@needs_browser
def test_ten_rows_in_jupyterlab(lab, tmp_path):
    folder, url = lab
    rows = rows_for_the_browser()
    (folder / "rows.json").write_text(json.dumps(rows))
    cells = ["import json\nfrom llmdata_nb.annotate import annotate", 'annotate(json.load(open("rows.json")), "annotations.jsonl", "anna")', "1 + 1"]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}), folder / "annotate.ipynb")
    shots = Path(os.environ.get("LLMDATA_SHOTS") or tmp_path / "shots")
    shots.mkdir(exist_ok=True)
    driver = shutil.copytree(BROWSER, tmp_path / "browser", ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=driver, check=True)
    ended = subprocess.run(["node", "annotate.mjs", url, str(shots)], cwd=driver, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout)
    assert seen["alerts"] == [] and seen["ran"] == 0
    found, unread = read_annotations(folder / "annotations.jsonl")
    given = {a["id"]: a for a in found}
    assert len(given) == 10 and not unread and not fitting(rows, found)[1]
    assert [act["row"] for act in seen["done"]] == list(range(10))
    for act in seen["done"]:
        id = f"r{act['row']}"
        a, order = given[id], order_for(id, "anna", 2)
        assert act.get("places", [f"{id}.{i}" for i in order]) == [f"{id}.{i}" for i in order]
        assert [a["ratings"][i] for i in order] == act.get("ratings", [None, None]), act
        assert a["preference"] == (order[act["preference"]] if type(act.get("preference")) is int else act.get("preference"))
        assert a["rationale"] == act.get("rationale", "") and a["flag"] == act.get("flag", "") and not a["skipped"] and not a["seen_judge"] and a["seconds"] >= 0
        if "improved" in act: assert a["improved_of"] == order[act["of"]] and a["improved"] == act["improved"] + rows[act["row"]]["responses"][a["improved_of"]]
        else: assert a["improved"] is None
    assert {tuple(order_for(f"r{i}", "anna", 2)) for i in range(10)} == {(0, 1), (1, 0)}
