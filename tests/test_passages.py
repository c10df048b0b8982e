"""Passages: hostile input, and what is selected from real corpora (skipped where they are not)."""
import json, time, tracemalloc
from collections import Counter
from itertools import groupby, islice
from pathlib import Path
import pytest
from hypothesis import example, given, settings, strategies as st
from llmdata_nb.passages import *
from llmdata_nb.rows import stream_rows

DATA = Path(__file__).parents[2]/"shared/data"
real = pytest.mark.skipif(not (DATA/"monolingual").is_dir(), reason="the corpora are not here")
RULES = [*PASSAGE_RULES, archaic]

pieces = st.sampled_from([". ", "! ", "? ", "… ", "。", "」", "「", "”", "“", "«", "»", "(", ")", "\"", "\n", "\r\n", "\n\n", "Dr. ", "A. ", "3. ", "- ", "Il gatto dorme", "本", "か", "है", "।", "ไทย ", "\0", "\ud800", "|", "\u2028",
                          "http://a.b", "{{", "1999", "Ã¨", "un cane. Poi ", ";", "፡፡", "։", "[1]", "*", "—"])
texts = st.one_of(st.text(st.characters(), max_size=80), st.lists(pieces, max_size=40).map("".join))

@settings(max_examples=300, deadline=None)
@given(texts, st.sampled_from(["it", "ja", "de", "th", "el", "hy", "hi"]))
@example("", "it")
@example("\ud800" * 40, "ja")
def test_sentences_are_the_whole_text_and_passages_are_slices_of_it(text, language):
    assert "".join(text[a:b] for a, b in sentences(text, language)) == text
    last = 0
    for a, b in passages(text, language, 10, 50):
        assert last <= a < b and text[a:b] == text[a:b].strip()
        last = b

@settings(max_examples=150, deadline=None)
@given(texts)
def test_no_string_raises_and_reasons_are_short_lines(text):
    for rule in RULES:
        reason = rule(text, "it") if text.strip() else None
        assert reason is None or 0 < len(reason) < 90 and "\n" not in reason and reason.encode("utf-8", "strict")

HOSTILE = ["a", ". ", "A. ", "1. ", "! ", "\n", "\n\n", "a\n", "- a\n", "\"", "“", "«", "(", "「", "。", "」", "[1]", "*", "x.\u00a0»", " ", "ก ", "Dr. ", "|", "a|b|\n", "{{", "<a", "[x](", "1999 ", "Ã", "é", "a-\n", "+1 2", "'", ", ", "; ", "''", "&a", "\\a",
           "a?a ", "=", "== ", "a@", "q e ", "０", "\u2028", "\0", "\ud800", "def a(", "Tel. 1", "\t"]

@pytest.mark.parametrize("part", HOSTILE)
def test_time_is_linear(part):
    def seconds(size):
        text = (part * (size // len(part) + 1))[:size]
        start = time.process_time()
        for _ in passages(text, "it"): pass
        for rule in RULES: rule(text, "it")
        return time.process_time() - start
    seconds(1000)
    small, large = seconds(10_000), seconds(100_000)
    assert large < 2.5 or large < 25 * small, (part, small, large)

@pytest.mark.parametrize("language, text, n", [
    ("en", "Mr. and Mrs. Smith of the U.S. Army met Dr. No. It was 5 p.m. on 3.5 acres.", 2), ("fr", "M. Dupont et Mme. Durand sont là ! Vraiment ? « Oui. »", 3),
    ("es", "El Sr. Pérez y la Dra. Gil. ¿Vienes? ¡Sí! Véase pág. 3 y el núm. 4.", 4), ("pt", "A F. Ramada, do Sr. Silva. Às 19h.", 2), ("pl", "Prof. Nowak, tj. ojciec. Ul. Długa 3.", 2),
    ("ru", "А. С. Пушкин родился в 1799 г. в Москве. Это т. е. давно.", 2), ("nl", "Hij (de heer Jansen. Nee toch.) kwam d.w.z. ging. 't Was laat.", 2),
    ("ja", "「モーニング娘。」のメンバー。彼女は言った。「はい。そうです。」", 3), ("ja", "価格は3．5円。本当に？！はい。", 3), ("zh", "“好。”他说。“走吧！”", 3), ("ar", "هل أنت بخير؟ نعم. د. أحمد هنا.", 3),
    ("bn", "আমি যাই। তুমি কি আস? হ্যাঁ!", 3), ("lo", "ສະບາຍດີຂ້ອຍຊື່ວ່າສົມສັກມາຈາກວຽງຈັນປະເທດລາວເດີ ຂ້ອຍມັກກິນເຂົ້າ", 2)])
def test_sentences_of_many_scripts(language, text, n):
    found = [text[a:b] for a, b in sentences(text, language)]
    assert len(found) == n, found

def test_what_is_cut_says_so_with_the_right_reason():
    good = "La cooperativa nacque per volontà dei contadini della valle. Oggi conta duecento soci e produce olio, vino e formaggi. Chi la visita può assaggiare tutto, e comprare direttamente dal produttore."
    assert passage_problem(good, "it") is None
    bad = {good.replace("è", "Ã¨").replace("à", "Ã\xa0"): "broken encoding", good.replace("Oggi", "{{quando}} Oggi"): "markup", good.lower(): "starts in the middle", good[:-1]: "ends in the middle",
           good.replace("contadini", "conta-\ndini"): "hyphenated line end", good + "\n" + good + "\n- 12 -": "header or footer", good + " Scrivere a info@example.org.": "contact data",
           "Il Comune ha tre frazioni. Alta: 12 | 33 | 41.\nBassa: 14 | 37 | 46.\nMedia: 1 | 2 | 3.": "table", "Si visitano:\n- il duomo;\n- il museo;\n- la rocca.": "mostly a list",
           good.replace(" e ", " ^ ").replace("a", "a|", 8): "scan noise", "The valley has three villages. They are all very old, and few people live there. Each has a church and a school.": "wrong language",
           (good + "\n") * 6: "repeats", "Ecco: «" + good + "» Così disse il presidente. E tacque.": "mostly quotations"}
    for text, reason in bad.items(): assert (passage_problem(text, "it") or "").startswith(reason), (reason, passage_problem(text, "it"), text)

def test_columns_answers_and_limits():
    good = "La cooperativa nacque per volontà dei contadini della valle. Oggi conta duecento soci e produce olio, vino e formaggi. Chi la visita può assaggiare tutto, e comprare direttamente dal produttore."
    other = "Il ponte fu costruito in tre anni da operai venuti dalla città. Ha cinque arcate di pietra chiara e regge ancora il traffico. D'inverno il ghiaccio ne copre i parapetti."
    rows = [{"id": "a", "text": good + "\n\n" + other, "url": "u", "start": "x", "licence": "L"}, {"id": "b", "messages": [{"role": "user", "content": "Com'è?"}, {"role": "assistant", "content": other + " È bello."}]},
            {"id": "c", "messages": [{"role": "user", "content": "?"}]}, {"id": "d", "text": "Breve."}, {"id": "e", "failed": "load: x"}, {"id": "f", "text": "x" * 10_000}]
    got = list(select(rows, "Italian"))
    assert got[0] == {"id": "a-0", "response": good, "document": "a", "start": 0, "end": len(good), "url": "u", "licence": "L"}
    assert got[1]["response"] == other and got[2]["dropped"].startswith("passage: near-duplicate (of a-")
    assert got[2]["source_request"] == "Com'è?" and got[3]["dropped"] == "passage: no passage" and got[4]["dropped"] == "passage: too short (6)" and got[5] == rows[4]
    assert got[6]["dropped"] == "passage: too long (10000)" and len(got[6]["response"]) == 3000 and got[6]["end"] == 10_000
    assert [r["id"] for r in select(rows[:1], "it", per_document=1)] == ["a-0"]
    assert not list(select(rows[1:2], "it", near=None))[0].get("dropped")

def _peak(make):
    tracemalloc.start()
    try:
        n = make()
        return n, tracemalloc.get_traced_memory()[1] / 1e6
    finally: tracemalloc.stop()

def test_memory_is_steady():
    line = "Parola dopo parola la frase cresce e non finisce mai, "
    huge = line * 20_000  # 1 MB without a mark
    assert _peak(lambda: sum(1 for _ in select([{"id": "x", "text": huge}], "it")))[1] < 20
    assert _peak(lambda: [r["dropped"] for r in select(({"id": str(i), "text": "voce di menu"} for i in range(3000)), "it")] and 0)[1] < 10
    assert _peak(lambda: sum(1 for _ in islice(sentences("voce\n" * 40_000, "it"), 1000)))[1] < 20

def test_bad_files(tmp_path):
    (tmp_path/"empty.txt").write_text("")
    with pytest.raises(ValueError, match="empty"): stream_rows(tmp_path/"empty.txt")
    (tmp_path/"binary.txt").write_bytes(bytes(range(256)) * 50)
    assert all(r.get("failed") or r.get("dropped") for r in select(stream_rows(tmp_path/"binary.txt"), "it"))
    assert "not UTF-8" in next(whole_files(tmp_path/"binary.txt"))["failed"]
    (tmp_path/"control.txt").write_text("Testo con \x01\x02 caratteri di controllo. " * 20)
    assert "broken encoding" in next(select(stream_rows(tmp_path/"control.txt"), "it"))["dropped"]
    assert next(select(whole_files(tmp_path/"empty.txt"), "it"))["dropped"] == "passage: no passage"
    with pytest.raises(FileNotFoundError): next(whole_files(tmp_path/"none.txt"))

def _rows(name): return [json.loads(line) for line in (DATA/name).open(encoding="utf-8")]

@real
@pytest.mark.parametrize("name, least", [("it_wikipedia", 50), ("nl_wikipedia_lassy", 55), ("ja_wikipedia_jsquad", 45), ("pt_news_bosque", 50), ("it_promessi_sposi_pd", 30), ("es_quijote_pd", 10), ("nl_gutenberg_24675_pd", 8), ("te_wikisource_pd", 0)])
def test_real_corpora(name, least):
    rows = [dict(row, id=str(i)) for i, row in enumerate(_rows(f"monolingual/{name}.jsonl"))]
    got = list(select(rows, name[:2]))
    for g in got: assert rows[int(g["document"])]["text"][g["start"]:g["end"]] == g["response"] and g["licence"] and g["source"]
    assert {g["document"] for g in got} == {r["id"] for r in rows}
    assert sum(not g.get("dropped") for g in got) >= least, Counter(g.get("dropped", "").split(" (")[0] for g in got)
    if name[:2] == "te": assert all(g.get("dropped") for g in got)  # it is all verse
    assert not any("broken encoding" in g.get("dropped", "") or "scan noise" in g.get("dropped", "") for g in got)
    assert not [g for g in select(rows, "fi", rules=PASSAGE_RULES[-2:], per_document=None) if not g.get("dropped") and len(g["response"]) > 200]

@real
def test_archaic_spelling_is_told_from_modern():
    def share(name): return (lambda texts: sum(bool(archaic(t["text"], name[:2])) for t in texts) / len(texts))(_rows(f"monolingual/{name}.jsonl"))
    assert share("nl_gutenberg_24675_pd") > 0.8 and share("es_quijote_pd") > 0.25 and share("it_promessi_sposi_pd") > 0.1
    assert max(map(share, ["nl_wikipedia_lassy", "it_wikipedia", "pt_news_bosque"])) < 0.04

@real
@pytest.mark.parametrize("column, right, extra", [("en", 211, 0), ("it", 209, 0), ("nl", 220, 16), ("es", 212, 10), ("pt-BR", 212, 19), ("ja", 209, 38), ("te", 219, 1), ("hi", 217, 0), ("de", 219, 20), ("fr", 216, 5)])
def test_sentences_of_the_news(column, right, extra):
    "The lines of each document joined; translators split some sentences, so a few that are extra are right"
    hits = more = 0
    for _, lines in groupby(_rows("ntrex/ntrex_9lang.jsonl"), lambda row: row["doc"]):
        text, ends = "", set()
        for line in lines:
            text += line[column].strip() + ("" if column == "ja" else " ")
            ends.add(len(text))
        found = {b for _, b in sentences(text, column[:2])} | {len(text)}
        hits, more = hits + len(found & ends), more + len(found - ends)
    assert hits >= right and more <= extra
