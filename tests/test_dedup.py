"What `llmdata_nb.dedup` promises, on real and on arbitrary texts. Real data lies beside the checkout in ../shared; without it those tests are skipped."
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings, strategies as st

import llmdata_nb
from llmdata_nb.dedup import jaccard, lsh_bands, mark_duplicates, near_duplicates, normalise, request, shingles

SHARED = Path(__file__).parents[2] / "shared" / "data"
ENGINES = ("rensa", "datasketch")
JA = "来週の土曜日に友達の誕生日パーティーを開きます。予算は一万円で、十人くらい来る予定です。簡単に作れる料理のメニューを考えてください。"
TH = "ช่วยเขียนจดหมายถึงเจ้าของบ้านเช่าว่าเครื่องทำน้ำอุ่นเสียมาเก้าวันแล้ว และขอให้ส่งช่างมาซ่อมภายในหนึ่งสัปดาห์"
EN = "Plan a quiet Saturday in the city for a family with two small children and a small budget. It is raining, and we do not have a car."


def read(name):
    path = SHARED / name
    if not path.exists(): pytest.skip(f"no {name} in ../shared/data")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def dolly(): return [f"{r['instruction']}\n\n{r['context']}" for r in read("dolly_15k_en/dolly_sample.jsonl")]
def gpteacher(): return [f"{r['instruction']}\n\n{r['input']}" for r in read("gpteacher_neardup/toolformer_block.jsonl")]


def by_comparing_all(texts, threshold):
    "What `near_duplicates` should answer, found by comparing every text with every kept one"
    texts = [normalise(t) for t in texts]
    sets, kept, first, answer = [shingles(t) for t in texts], [], {}, []
    for i, text in enumerate(texts):
        if text and text not in first:
            scores = {j: len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for j in kept}
            best = max(scores, key=scores.get, default=None)
            if best is not None and scores[best] >= threshold: first[text] = best
            else: first[text] = i; kept.append(i)
        answer.append(None if first.get(text, i) == i else first[text])
    return answer


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("texts, fewest", [(dolly, 40), (gpteacher, 20)])
def test_real_data_matches_comparing_all_pairs(texts, fewest, engine):
    texts = texts()
    for threshold in (0.5, 0.8):
        expected, found = by_comparing_all(texts, threshold), near_duplicates(texts, threshold, engine)
        copies = [i for i, j in enumerate(expected) if j is not None]
        assert len(copies) >= fewest
        assert sum(found[i] is not None for i in copies) >= 0.99 * len(copies)
        assert sum(a == b for a, b in zip(expected, found)) >= 0.99 * len(texts)


def test_the_engines_agree_on_real_data():
    texts = dolly() + gpteacher()
    assert near_duplicates(texts) == near_duplicates(texts, engine="datasketch")


def test_a_lower_threshold_finds_more_as_the_published_filters_did():
    rows, texts = read("gpteacher_neardup/toolformer_block.jsonl"), gpteacher()
    ours = [sum(j is not None for j in near_duplicates(texts, t)) for t in (0.9, 0.8, 0.7, 0.6)]
    theirs = [sum(not r[f"kept_at_{t}"] for r in rows) for t in (0.9, 0.8, 0.7, 0.6)]
    assert ours == sorted(ours) and theirs == sorted(theirs) and ours[0] < ours[-1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text, old, new", [(EN, "Saturday", "Sunday"), (JA, "十人", "八人"), (TH, "เก้าวัน", "แปดวัน")])
def test_one_changed_word_in_any_script(text, old, new, engine):
    texts = [text, "?", text.replace(old, new), f" {text}\n"]
    assert texts[2] != text and near_duplicates(texts, engine=engine) == [None, None, 0, 0]


@pytest.mark.parametrize("engine", ENGINES)
def test_short_texts_that_differ_are_kept(engine):
    texts = ["2+2?", "2+3?", "こんにちは", "こんばんは", "a", "b", "สวัสดี", "明日の東京の天気は？", "明日の大阪の天気は？"]
    assert near_duplicates(texts, engine=engine) == [None] * len(texts)
    assert near_duplicates(texts * 2, engine=engine)[len(texts):] == list(range(len(texts)))


def drift(steps):
    "A chain of texts: each is close to the one before it, and the last is far from the first"
    words = EN.split()
    return [" ".join([w.upper()[::-1] if k < n else w for k, w in enumerate(words)]) for n in range(steps)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_chain_points_at_kept_texts(engine):
    texts = drift(12)
    assert all(jaccard(a, b) >= 0.8 for a, b in zip(texts, texts[1:])) and jaccard(texts[0], texts[-1]) < 0.6
    found = near_duplicates(texts, engine=engine)
    assert found == by_comparing_all(texts, 0.8)
    assert found[1] == 0 and any(j is None for j in found[1:]) and any(j not in (None, 0) for j in found)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_exact_copy_of_a_near_copy_points_at_the_kept_text(engine):
    near = EN.replace("Saturday", "Sunday")
    assert near_duplicates([EN, near, near, near.upper()], engine=engine) == [None, 0, 0, 0]


def test_none_are_duplicates_of_nothing():
    assert near_duplicates([]) == [] and near_duplicates(iter(["a", "a"])) == [None, 0]
    assert near_duplicates(["", " \n", "\u3000", ""]) == [None] * 4


@pytest.mark.parametrize("threshold", (0, -0.1, 1.01, 80, float("nan")))
def test_threshold_is_checked(threshold):
    with pytest.raises(ValueError, match="threshold"): near_duplicates(["a"], threshold)


def test_engine_is_checked():
    with pytest.raises(ValueError, match="engine.*rensa, datasketch.*'Rensa'"): near_duplicates([], engine="Rensa")


any_text = st.text(st.characters(exclude_categories=()), max_size=40) | st.text("ab あ", max_size=30)  # lone surrogates too


@pytest.mark.parametrize("engine", ENGINES)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(texts=st.lists(any_text, max_size=12), threshold=st.sampled_from((0.01, 0.3, 0.5, 0.8, 1)))
@example(texts=["\ud83d hello", "\ud83d hello", "", "ﾊﾟ", "パ"], threshold=0.8)
def test_any_strings(engine, texts, threshold):
    found = near_duplicates(texts, threshold, engine)
    assert len(found) == len(texts)
    for i, j in enumerate(found):
        if j is None: continue
        assert 0 <= j < i and found[j] is None and normalise(texts[i])
        assert normalise(texts[i]) == normalise(texts[j]) or jaccard(texts[i], texts[j]) >= threshold


@settings(deadline=None, max_examples=100, derandomize=True)
@given(a=any_text, b=any_text)
def test_jaccard_is_a_similarity(a, b):
    assert 0 <= jaccard(a, b) == jaccard(b, a) <= 1
    assert jaccard(a, a) == (1 if normalise(a) else 0)


def test_bands_use_no_more_than_128_numbers():
    for percent in range(1, 101):
        bands, rows = lsh_bands(percent / 100)
        assert bands >= 2 and rows >= 1 and bands * rows <= 128


def conversation(id, *messages, **more): return {"id": id, "messages": [{"role": r, "content": c} for r, c in messages], **more}


def test_request():
    row = conversation("a", ("system", "Be brief."), ("user", "Why?"), ("assistant", "Because."), ("user", "Really?"))
    assert request(row) == ("Be brief.", "Why?")
    assert request(conversation("b", ("user", "Why?"), ("system", "late"))) == ("", "Why?")
    assert request(conversation("c", ("assistant", "Hello"), ("user", "Hi"))) == ("", "Hi")
    assert request(conversation("d", ("system", "Be brief."))) == ("Be brief.", "")
    assert request(conversation("e")) == ("", "")


def test_mark_duplicates_names_the_row_and_leaves_its_input_alone():
    rows = [conversation("a", ("user", EN), ("assistant", "one")), conversation("b", ("user", "Hi"), topic="x"), conversation("c"),
            conversation("d", ("user", EN.replace("Saturday", "Sunday"))), conversation("e", ("user", EN + " "), ("assistant", "two")), conversation("f")]
    before = json.dumps(rows)
    marked = mark_duplicates(rows)
    assert json.dumps(rows) == before
    assert [row["id"] for row in marked] == list("abcdef")
    assert [row.get("dropped") for row in marked] == [None, None, None, "dedup: near-duplicate of a (0.89)", "dedup: same request as a", None]
    assert marked[1] == rows[1] and {**marked[3], "dropped": 0} == {**rows[3], "dropped": 0}
    assert mark_duplicates(rows, engine="datasketch") == marked


def test_settled_rows_take_no_part():
    rows = [conversation("a", ("user", "Hi"), failed="load: line 3"), {"id": "b", "dropped": "load: empty"}, conversation("c", ("user", "Hi")),
            conversation("d", ("user", "Hi"))]
    assert mark_duplicates(rows) == [*rows[:3], {**rows[3], "dropped": "dedup: same request as c"}]


def test_a_shared_system_message_does_not_make_requests_alike():
    rows = [conversation("a", ("system", EN), ("user", "Why?")), conversation("b", ("system", EN), ("user", "How?")),
            conversation("c", ("system", "Rhyme."), ("user", "Why?")), conversation("d", ("system", EN), ("user", "why?"))]
    assert [row.get("dropped") for row in mark_duplicates(rows)] == [None, None, None, "dedup: same request as a"]


def test_demo_lines():
    "The demo runs the first 14 lines, so these hold one row of every kind that the loader and dedup have to deal with"
    lines = (Path(llmdata_nb.__file__).parent / "data/demo.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for i, line in enumerate(lines, 1) if i != 9]
    with pytest.raises(json.JSONDecodeError): json.loads(lines[8])
    assert len(lines) == 40 and [row["id"] for row in rows] == [f"demo-{i:02d}" for i in range(1, 41) if i != 9]
    assert all(row["messages"][-1]["role"] == "assistant" and row["topic"] for row in rows)
    marked = {row["id"]: row["dropped"] for row in mark_duplicates(rows) if "dropped" in row}
    assert marked == {"demo-06": "dedup: same request as demo-01", "demo-11": "dedup: near-duplicate of demo-07 (0.89)"}
