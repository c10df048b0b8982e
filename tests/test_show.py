"What an outcome shows: all of it true, none of it able to act, and no more rows read than are shown."
import pickle
import re
import time
from html import unescape
from html.parser import HTMLParser

import pytest
from scripted_server import serve, translator_and_judge

from llmdata_nb.languages import language
from llmdata_nb.people import resolve
from llmdata_nb.progress import Progress, visible
from llmdata_nb.rowfile import RowFile, Rows, reason_group
from llmdata_nb.run import Outcome, drop, run
from llmdata_nb.show import COLORS, funnel, short, text_html, to_read, total_money
from llmdata_nb.translate import translate_and_judge

HOSTILE = '</div></details><script>alert(1)</script><img src=x onerror=alert(1)> \u202e\u2066 \x00\x1b[31m "\' &amp; \ud83d'
DROPPED = [{"id": "a", "reason": "response: wrong language (en, 0.98)"}, {"id": "b", "reason": "response: wrong language (en, 0.71)"},
           {"id": "c", "reason": "response: judged too low (2, kept from 3)"}, {"id": "d", "reason": "dedup: same request as demo-01"}]
LINE = dict(step="judge", model="m", calls=3, replayed=1, retries=0, failed=0, lost=0, prompt_tokens=2000, completion_tokens=50, seconds=61.0, usd=0.5)


def said(*texts): return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts)]


def translated(i, *texts): return {"id": f"k{i}", "source_messages": said("Why is the sky blue?", "Air scatters it."), "messages": said(*texts)}


def outcome_of(kept=(), dropped=(), failed=(), ledger=(LINE,), **about): return Outcome(list(kept), list(dropped), list(failed), list(ledger), about)


class Tags(HTMLParser):
    "The tags of an HTML text with their attributes, and what stays open"
    def __init__(self, html):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(html)
    def handle_starttag(self, tag, attributes): self.tags.append((tag, dict(attributes))), self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag, tag


def plain(html): return unescape(re.sub("<[^>]*>", "\n", html))


def on_disk(rows):
    file = RowFile()
    for row in rows: file.append(row)
    return file.rows()


# Rows of a reason

@pytest.mark.parametrize("reason, ids", [("response: wrong language", "ab"), ("response", "abc"), ("response: wrong language (en, 0.7", "b"), ("dedup: same request as …", "d"), ("dedup: same request as demo-01", "d")])
def test_dropped_gives_the_rows_of_a_reason(reason, ids):
    outcome = outcome_of(dropped=DROPPED, failed=DROPPED[:1])
    assert [r["id"] for r in outcome.dropped(reason)] == list(ids)
    assert outcome.failed("response") == DROPPED[:1]


def test_every_reason_that_is_counted_gives_so_many_rows():
    "Also where the name of one reason begins that of another"
    outcome = outcome_of(dropped=[*DROPPED, {"id": "e", "reason": "response: wrong language and script"}, {"id": "f", "reason": ""}], failed=[{"id": "g", "reason": "KeyError: 'x1'"}])
    for r in outcome.reasons(): assert len(getattr(outcome, r["state"])(r["reason"])) == r["rows"], r
    assert sum(r["rows"] for r in outcome.reasons()) == 7


@pytest.mark.parametrize("make", [list, lambda rows: on_disk(rows * 1000)])
def test_an_unknown_reason_names_those_there_are(make):
    with pytest.raises(ValueError, match=r"no row has the reason 'judged'; the reasons here: response: wrong language \(2(000)?\); .*dedup: same request as … \(1(000)?\)"): Outcome([], make(DROPPED), [], []).dropped("judged")
    with pytest.raises(ValueError, match="none, for there is no row"): outcome_of().failed("x")


def test_rows_stay_a_list():
    rows = Rows(DROPPED)
    assert rows == DROPPED and DROPPED == rows and isinstance(rows, list) and type(rows[1:]) is list and len(rows) == 4 and [*rows, 1] + [] == rows + [1]
    copy = pickle.loads(pickle.dumps(outcome_of(dropped=DROPPED)))
    assert copy == outcome_of(dropped=DROPPED) and copy.dropped("dedup") == DROPPED[3:]


def test_rows_on_disk_can_be_called_too():
    found = on_disk([{"id": str(i), "reason": f"r: {'odd' if i % 2 else 'even'} ({i})"} for i in range(9000)])("r: odd")
    assert isinstance(found, RowFile) and len(found) == 4500 and found[4499]["id"] == "8999"  # as many as that are not held in memory


# What is shown

def test_text_and_html_tell_the_same():
    outcome = outcome_of([translated(i, f"Perché {i}?", f"Per {i}.") for i in range(8)], DROPPED, [{"id": "x", "raw": "{oops", "reason": "load: a.jsonl line 9: not JSON"}],
                         [LINE, LINE | dict(step="translate", usd=None)], recipe="translate_and_judge", language="it", seconds=200.0)
    text, html = repr(outcome), plain(outcome._repr_html_())
    assert text.startswith("    13  rows in\n     2  dropped: response: wrong language\n        such as a: response: wrong language (en, 0.98)\n") and "\n     8  kept\n" in text
    for shown in (text, html):
        for part in ("such as " * (shown is text) + "d: dedup: same request as demo-01", "load: a.jsonl line 9: not JSON", "{oops", "Why is the sky blue?", "in Italian", "Perché ", "6 calls, 2 replayed from the store",
                     "price unknown for 1 of 2 steps, the others $0.5", "3 min 20 s", "translate", "2,000", "1 min 01 s", "price unknown"): assert part in shown, (part, shown)
    assert [w for w in re.findall(r"\d+ (?:rows in|dropped|failed|kept)", html) if w != "0 kept"] == ["13 rows in", "2 dropped", "1 dropped", "1 dropped", "1 failed", "8 kept"]


def test_source_and_result_stand_side_by_side_in_their_direction():
    html = outcome_of([translated(1, "ما هي Python؟", "لغة")], language="ar")._repr_html_()
    side = html[html.index("Why is the sky") - 400:html.index("ما هي")]
    assert 'dir="auto"' in side and side.count("display:inline-block") == 2 and side.rindex('lang="ar" dir="rtl"') > side.index("Why is")
    assert 'lang="ja" dir="ltr"' in outcome_of([translated(1, "なぜ", "空気")], language="ja")._repr_html_() and 'lang="te"' in outcome_of([translated(1, "ఎందుకు", "గాలి")], language="te")._repr_html_()


AR = language("ar")
@pytest.mark.parametrize("row, lines", [
    (translated(1, "لماذا؟") | {"bad_translation": "Because", "reason": "x"}, [[("user", "Why is the sky blue?", None), ("in Arabic", "لماذا؟", AR)], [("assistant", "Air scatters it.", None), ("at fault", "Because", None)]]),
    (translated(1), [[("user", "Why is the sky blue?", None), ("assistant", "Air scatters it.", None)]]),
    ({"id": "p", "prompt": said("؟"), "chosen": said("", "نعم")[1:], "rejected": said("", "لا")[1:], "chosen_score": 4.5, "rejected_score": 1, "rejected_model": "m"},
     [[("request", "؟", AR)], [("chosen · 4.5", "نعم", AR), ("rejected · 1 · m", "لا", AR)]]),
    ({"id": "t", "messages": said("؟"), "responses": ["ا", "ب", "ت"], "models": ["human", "m", "n"]}, [[("request", "؟", AR)], [("answer", "ا", AR), ("answer", "ب", AR)], [("answer", "ت", AR)]]),
    ({"id": "m", "messages": [{"role": "system", "content": "s"}, *said("1", "2"), *said("3", "4"), *said("5")]},
     [[("system", "s", AR)], [("user", "1", AR), ("assistant", "2", AR)], [("user", "3", AR), ("assistant", "4", AR)], [("user", "5", AR)]]),
    ({"id": "b", "messages": said("ما", "نص"), "instruction_en": "What", "response_en": "Text"}, [[("user", "ما", AR), ("assistant", "نص", AR)], [("request in English", "What", language("en")), ("answer in English", "Text", language("en"))]]),
    ({"id": "u", "number": 3, "user_turns": [{"raw": "I am"}], "reason": "x"}, [[("the model wrote", "I am", None)]]),
    ({"id": "g", "reason": "x"}, []), ({"id": "o", "messages": "not a list", "n": 0, "tags": {"a": 1}}, [[("messages", "not a list", None), ("n", "0", None)], [("tags", "{'a': 1}", None)]]),
    ({"id": "odd", "messages": ["text", None, {"role": None}]}, [[("text", "text", AR)], [("text", "", AR)], [("text", "{'role': None}", AR)]])])
def test_what_there_is_to_read_in_a_row(row, lines): assert to_read(row, AR) == lines


def test_rows_of_any_shape_are_shown():
    import numpy as np
    loop = {}
    loop["self"] = loop
    odd = [{"id": 1, 2: np.zeros(3), "messages": np.array([{"role": "user"}])}, {"chosen": np.array(["a"]), "rejected": 3, "prompt": "x"}, {"id": None, "loop": loop, "when": float("nan")}, {}]
    outcome = outcome_of(odd, [row | {"reason": f"r {i}"} for i, row in enumerate(odd)])
    assert "[0. 0. 0.]" in repr(outcome) and "4 of 8 rows kept" in outcome._repr_html_()


def test_nothing_in_a_row_acts():
    "In any place where text of a row, a reason, an id or a name can stand"
    row = {"id": HOSTILE, HOSTILE: HOSTILE, "reason": HOSTILE}
    outcome = outcome_of([{"id": HOSTILE, "messages": [{"role": HOSTILE, "content": HOSTILE}]}, translated(1, HOSTILE, HOSTILE * 99), row], [row], [row | {"raw": HOSTILE}], [LINE | dict(step=HOSTILE, model=HOSTILE)],
                         recipe=HOSTILE, language="fa", gave_up=HOSTILE, until=9)
    html, text = outcome._repr_html_(), repr(outcome)
    found = Tags(html)
    assert not found.open and {tag for tag, _ in found.tags} == {"style", "div", "p", "b", "span", "details", "summary", "table", "tr", "th", "td"}
    assert {name for _, attributes in found.tags for name in attributes} <= {"style", "class", "dir", "lang"}
    for shown in (html, text):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown) and "\\u202e" in shown
        shown.encode()


def test_a_line_of_text_is_cut_where_it_is_too_wide():
    assert short("a  b\n\nc") == "a b c" and short("x" * 88) == "x" * 88 and short("x" * 89) == "x" * 88 + "…"
    assert short("空" * 44) == "空" * 44 and short("空" * 45) == "空" * 44 + "…"
    assert short("నీ" * 9, 3) == "నీ" * 3 + "…" and short("é" * 9, 3) == "é" * 3 + "…"  # a sign stays with its letter


def test_long_texts_are_folded_and_have_an_end():
    html = text_html("word " * 10_000)
    assert html.startswith("<details>") and "all 50,000 characters" in html and "30,000 characters more" in html and len(html) < 21_500
    assert "<details>" not in text_html("x" * 600)
    outcome = outcome_of([translated(i, "x" * 10**6, "y" * 10**6) for i in range(5)], [{"id": "d", "reason": "z" * 10**6}])
    assert len(outcome._repr_html_()) < 250_000 and len(repr(outcome)) < 5000


# Ends of a run

def test_a_reason_of_a_million_characters_is_grouped_at_once():
    "As the message of an error may be"
    started = time.monotonic()
    assert reason_group("x" * 10**6 + " a1b:2") == "x" * 10**6 + " …:…" and time.monotonic() - started < 5


def test_an_empty_outcome():
    outcome = outcome_of(ledger=[])
    assert repr(outcome) == "     0  rows in\n     0  kept\n        0 calls, 0 replayed from the store, $0.00" and "0 of 0 rows kept" in outcome._repr_html_()


def test_a_run_that_gave_up_says_so():
    outcome = outcome_of(dropped=DROPPED, gave_up="of the last 100 rows 0 were kept", until=50)
    assert "ended before 50 were kept: of the last 100 rows 0 were kept" in repr(outcome) and "Ended before 50 were kept:\n of the last" in plain(outcome._repr_html_())


def test_many_reasons_are_cut_and_keep_their_sum():
    outcome = outcome_of(dropped=[{"id": str(i), "reason": f"{'x' * (i % 40 + 1)}: y"} for i in range(100)])
    html = plain(outcome._repr_html_())
    assert "16 more reasons" in repr(outcome) and "16 more reasons" in html and repr(outcome).count("such as") == 24
    assert sum(int(n) for n in re.findall(r"(\d+)  (?:dropped|lost): ", repr(outcome))) == 100 == sum(int(n) for n in re.findall(r"(\d+) (?:dropped|lost)", html))


def test_the_bars_hang_where_rows_were_taken():
    reasons = [dict(state="dropped", reason="a", rows=3), dict(state="failed", reason="b", rows=1)]
    assert funnel({"in": 10, "kept": 6}, reasons) == [("all rows", "in", 0, 10), ("a", "dropped", 7, 3), ("b", "failed", 6, 1), ("what is left", "kept", 0, 6)]
    html = outcome_of([{"id": str(i)} for i in range(6)], [{"id": "x", "reason": "a"}] * 3, [{"id": "y", "reason": "b"}])._repr_html_()
    for left, width, color in ((70, 30, "dropped"), (60, 10, "failed"), (0, 60, "kept")): assert f"margin-left:{left}.00%;width:{width}.00%;min-width:2px;height:.8em;background-color:{COLORS[color]}" in html


@pytest.mark.parametrize("usd, text", [([], "$0.00"), ([0.5, 0.25], "$0.75"), ([None], "price unknown"), ([None, 2], "price unknown for 1 of 2 steps, the others $2.00")])
def test_an_unknown_price_stays_unknown(usd, text): assert total_money([{"usd": u} for u in usd]) == text


def test_a_language_that_is_none_does_not_matter(): assert "1 of 1 rows kept" in outcome_of([{"id": "a"}], language="no such")._repr_html_()


# Of many rows, few are read

class Counted(RowFile):
    "Counts the rows that are read"
    def __getitem__(self, i):
        self.read = getattr(self, "read", 0) + 1
        return super().__getitem__(i)


def test_of_many_rows_only_those_shown_are_read():
    kept, dropped = Counted(), Counted()
    for i in range(5000): kept.append(translated(i, f"Perché {i}?", "Sì.")), dropped.append({"id": str(i), "reason": f"r: {'odd' if i % 2 else 'even'} ({i})"})
    outcome = Outcome(kept, dropped, [], [])
    outcome.manifest()  # reasons are counted once, when a run ends
    kept.read = dropped.read = 0
    text, html = repr(outcome), outcome._repr_html_()
    assert (kept.read, dropped.read) == (2 + 4, 2 + 2) and "Perché 1250?" in text and "Perché 4375?" in html


# In a run

def test_a_run_shows_itself(tmp_path):
    rows = [{"id": f"r{i}", "messages": said(f"Please tell me about the number {i}", f"I can tell you about the number {i}")} for i in range(5)]
    with serve(translator_and_judge) as (model, bodies): outcome = run(rows, translate_and_judge, model=model, language="it", store=tmp_path / "s.sqlite")
    assert "Please tell me about the number 1" in repr(outcome) and "Questa è la traduzione" in repr(outcome) and "judge response" in repr(outcome) and outcome._repr_html_().count('lang="it" dir="ltr"') == 8


def test_a_run_that_its_budget_ended(tmp_path):
    async def ask_once(row, ask):
        if row["id"] == "0": drop("not this one")
        await ask(row["id"], step="say")
        return row
    with serve(lambda body, n: "fine") as (model, bodies): outcome = run([{"id": str(i)} for i in range(9)], ask_once, model=model, store=tmp_path / "s.sqlite", budget="3 calls", concurrency=1)
    assert "     5  failed: say: over budget\n" in repr(outcome) and "3 of 3 calls spent" in repr(outcome) and len(outcome.failed("say: over budget")) == 5 and len(outcome.dropped("not this one")) == 1


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b2J", "\x1b]52;c;aGk=\x07", "a\x08b", "a\rb", "a\u202eb", "a\u2066b", "a\u2028b", "a\x85b", "\ud800", "\x7f"])
def test_no_text_of_others_steers_what_shows_it(text, capsys, monkeypatch, tmp_path):
    "In the outcome, in its HTML and in the line of progress, whether it goes to a log or to the file of the command"
    outcome = outcome_of([{"id": text, "messages": [{"role": text, "content": text}]}], [{"id": text, text: text, "reason": text}], language=text, model=text)
    monkeypatch.setenv("LLMDATA_PROGRESS", str(tmp_path / "line"))
    Progress().show(f"waiting until 12:00: 429 {text}\nkept", last=True)
    line = (tmp_path / "line").read_text()
    logged = capsys.readouterr().err
    assert "\n" not in line and logged == line + "\n"
    for shown in (str(outcome), repr(outcome), outcome._repr_html_(), line, logged): assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800]", shown)


@pytest.mark.parametrize("text", ["مرحبا 👋🏽", "می‌خواهم", "क्‍ष", "ภาษา\u200bไทย", "a\tb\nc", "a\u200fb", "👨‍👩‍👧", "œ ß 漢字"])
def test_what_scripts_need_is_shown_as_it_is(text): assert visible(text) == text


def test_a_warning_of_ids_steers_nothing():
    "Of annotations that belong to other rows"
    row = {"id": "a", "prompt": said("Why?"), "responses": ["So.", "Thus."]}
    stray = {"id": "\x1b[2Jb\nc\u202e", "annotator": "ana", "answers": "other", "preference": 0, "ratings": [None, None], "skipped": False}
    with pytest.warns(UserWarning) as warned: resolve([row], [stray])
    assert "\\u001b[2Jb c\\u202e" in str(warned[0].message)
