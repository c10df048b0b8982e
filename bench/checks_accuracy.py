"""How well the rules of `llmdata_nb.checks` do on real text. Usage: python bench/checks_accuracy.py [-v]; reads ../shared/data beside the repository

Published translations should pass, untranslated, half-translated and answered ones should not."""
import json, sys, time, zlib
from collections import Counter, defaultdict
from pathlib import Path

from llmdata_nb.checks import (TOLD_APART, _ASKS, _add_up, _both_detectors, _fast_votes, answered, detect_language, length_ratio, lost_numbers, main_script, doubtful_language, generation_problem, prose, refusal, repetition, script_density, template_leak,
                               translation_problem, truncated, wrong_language, wrong_script)

DATA = Path(__file__).resolve().parents[1] / "../shared/data"

def read(name): return [json.loads(line) for line in (DATA / f"{name}.jsonl").open(encoding="utf-8")]

def parallel():
    "(corpus, language, English, translation) of every published translation"
    for r in read("ntrex/ntrex_9lang"):
        for code in ("it", "nl", "es", "pt-BR", "ja", "te", "hi", "de", "fr"): yield "ntrex", code[:2], r["en"].strip(), r[code].strip()
    for r in read("tatoeba_laser/tatoeba_pairs"): yield "tatoeba", r["lang"], r["en"], r["text"]
    for r in read("mgsm/mgsm_6lang"):
        for code in ("es", "fr", "de", "ja", "te"): yield "mgsm", code, r["en"], r[code]
    for r in read("xquad_paragraphs/paragraphs_en_es_de_hi"):
        for code in ("es", "de", "hi"):
            yield "xquad paragraphs", code, r["en"], r[code]
            for en, other in zip(r["qas"]["en"], r["qas"][code]): yield "xquad questions", code, en["q"], other["q"]
    for r in read("mt_bench_x/instruction_translations"): yield "mt-bench-x", r["language"], r["en"], r["human_corrected"]

def monolingual():
    "(corpus, language, text) of native text"
    for path in sorted((DATA / "monolingual").glob("*.jsonl")):
        for r in read(f"monolingual/{path.stem}"): yield path.stem, r["lang"], r["text"]
    for r in read("dolly_15k_en/dolly_sample"): yield "dolly", "en", r["response"]
    for r in read("magpie_examples/example_instructions_5res_armorm"):
        for text in r["responses"]: yield "magpie", "en", text
    for r in read("language_confusion/prompts"):
        if r["task"] == "monolingual": yield "language_confusion prompts", r["language"], r["prompt"]

def detection():
    "(kind, language, text) for language identification"
    for r in read("tatoeba_laser/tatoeba_pairs"):
        yield "tatoeba", r["lang"], r["text"]
        yield "tatoeba", "en", r["en"]
    for r in read("lingua_testdata/lid_samples"): yield f"lingua {r['kind']}", r["lang"].replace("nb", "no"), r["text"]
    for r in read("language_confusion/prompts"):
        if r["task"] == "monolingual": yield "language_confusion prompts", r["language"], r["prompt"]
    for r in read("udhr/udhr_art1_2_langid"): yield "udhr articles", r["bcp47"].split("-")[0].replace("nb", "no"), r["text"]
    for r in read("cld2_unittest/samples"): yield "cld2 samples", r["code"].replace("iw", "he"), r["text"]

def table(title, head, rows):
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows: print(f"| {' | '.join(map(str, row))} |")

def percent(part, whole): return f"{100 * part / whole:.1f} %"

def detector_accuracy():
    right, n = defaultdict(Counter), Counter()
    fast, langid = lambda t: _fast_votes(" ".join(t.split())), lambda t: _add_up(_both_detectors()[1].rank(t), ())
    for kind, code, text in detection():
        n[kind] += 1
        for name, votes in (("fastText", fast(text)), ("py3langid", langid(text))): right[kind][name] += max(votes, key=votes.get, default="und") == code
        right[kind]["detect_language"] += detect_language(text)[0] == code
    table("Language identification", ["texts", "number", "fastText", "py3langid", "both (`detect_language`)"],
          [[k, n[k], *(percent(right[k][d], n[k]) for d in ("fastText", "py3langid", "detect_language"))] for k in n])

def good_translations():
    n, objections, numbers = Counter(), defaultdict(Counter), 0
    for corpus, code, source, text in parallel():
        n[corpus] += 1
        numbers += bool(lost_numbers(source, text))
        if reason := translation_problem(source, text, code):
            objections[corpus][reason.split(" ")[0].rstrip(":")] += 1
            if "-v" in sys.argv: print(corpus, code, reason, source[:60], text[:60], sep=" | ")
    table("Published translations that a rule objects to", ["corpus", "translations", "objections", "by"],
          [[c, n[c], objections[c].total(), ", ".join(f"{k} {v}" for k, v in objections[c].items()) or "-"] for c in n]
          + [["all", n.total(), f"{sum(o.total() for o in objections.values())} ({percent(sum(o.total() for o in objections.values()), n.total())})", f"lost_numbers alone {numbers}"]])

def native_text():
    n, bad = Counter(), defaultdict(Counter)
    for corpus, code, text in monolingual():
        n[corpus] += 1
        for rule, reason in dict(wrong_language=wrong_language(text, code), wrong_script=wrong_script(text, code), refusal=refusal(text),
                                 template_leak=template_leak(text), truncated=truncated(text), repetition=repetition(text)).items(): bad[corpus][rule] += bool(reason)
    table("Native text that a rule objects to", ["corpus", "texts", "objections"], [[c, n[c], ", ".join(f"{k} {v}" for k, v in bad[c].items() if v) or "-"] for c in n])

def generated_text():
    "The rules for made-up text on native text, and on short English sentences that are said to be in another language"
    pairs = read("tatoeba_laser/tatoeba_pairs")
    native = [*monolingual(), *(("tatoeba", r["lang"], r["text"]) for r in pairs)]
    n, bad = Counter(c for c, *_ in native), Counter(c for c, code, text in native if generation_problem(text[:3000], code))
    table("Native text that a rule for made-up text objects to", ["corpus", "texts", "objections"], [[c, n[c], bad[c]] for c in n])
    doubted, english = sum(bool(doubtful_language(r["text"], r["lang"])) for r in pairs), [r for r in pairs if len(r["en"]) < 25]
    table("Short texts", ["what", "number", "objections"], [["native Tatoeba sentences, `doubtful_language` alone", len(pairs), doubted],
          ["English ones under 25 characters, said to be in another language", len(english), sum(bool(generation_problem(r["en"], r["lang"])) for r in english)]])

def bad_translations():
    rows, by_length = [], defaultdict(list)
    for corpus, code, source, _ in parallel():
        by_length["1-30" if len(source) <= 30 else "31-80" if len(source) <= 80 else "over 80"].append(bool(translation_problem(source, source, code)))
    for length in ("1-30", "31-80", "over 80"): rows.append([f"source left as it was, {length} characters", len(by_length[length]), percent(sum(by_length[length]), len(by_length[length]))])
    documents = defaultdict(list)
    for r in read("ntrex/ntrex_9lang"): documents[r["doc"]].append(r)
    for left in (1, 2, 3):
        found = [bool(wrong_language(" ".join((r["en"] if i >= 6 - left else r[code]).strip() for i, r in enumerate(part)), code[:2], " ".join(r["en"] for r in part)))
                 for lines in documents.values() for part in (lines[i : i + 6] for i in range(0, len(lines) - 6, 6))
                 for code in ("it", "nl", "es", "pt-BR", "ja", "te", "hi", "de", "fr")]
        rows.append([f"{left} of 6 news lines left in English", len(found), percent(sum(found), len(found))])
    prompts = {r["id"]: r["prompt"] for r in read("language_confusion/prompts")}
    pairs = [(prompts[r["prompt_id"]], r["completion"]) for r in read("language_confusion/completions_monolingual")
             if r["prompt_id"] in prompts and "base" not in r["model"] and not wrong_language(r["completion"], r["language"])]
    solved = defaultdict(dict)
    for r in read("mgsm/exemplars_cot"): solved[r["n"]][r["language"]] = r
    for name, pairs in {"answers of Llama 2 and 3 to the request": pairs, "Dolly responses to the instruction": [(r["instruction"], r["response"]) for r in read("dolly_15k_en/dolly_sample")],
                        "worked answers to an English problem (10 languages)": [(d["en"]["q"], r["a"]) for d in solved.values() for code, r in d.items() if code != "en"]}.items():
        alone, both = (sum(bool(answered(s, t) or w and length_ratio(s, t)) for s, t in pairs) for w in (False, True))
        rows.append([name, len(pairs), f"{percent(alone, len(pairs))} by `answered`, {percent(both, len(pairs))} with `length_ratio`"])
    table("Wrong translations that are found", ["what is wrong", "texts", "found"], rows)

def neighbours():
    texts = defaultdict(list)
    for _, code, text in detection(): texts[code].append(text)
    rows = []
    for a, b in sorted(map(sorted, TOLD_APART)):
        if texts[a] and texts[b]:
            own = [bool(wrong_language(t, x)) for x in (a, b) for t in texts[x]]
            other = [bool(wrong_language(t, x)) for x, y in ((a, b), (b, a)) for t in texts[y] if len(prose(t)) > 30]
            rows.append([f"{a}, {b}", len(own), sum(own), len(other), percent(sum(other), len(other))])
    table("Neighbours told apart", ["pair", "right texts", "called wrong", "texts of the other language, over 30 characters", "called wrong"], rows)

def bounds():
    questions = [t for _, _, s, t in parallel() if s.rstrip().endswith("?")]
    ratios = sorted(len(t) / len(s) / script_density(main_script(t)) for _, _, s, t in parallel() if len(s) >= 30)
    squeezed = [len(zlib.compress(t[i : i + 400].encode())) / 400 for _, _, t in monolingual() for t in [" ".join(prose(t).split())] for i in range(0, len(t) - 399, 200)]
    table("What the bounds rest on", ["what", "number", "value"], [
        ["translations of questions without any sign of asking", len(questions), sum(not _ASKS.search(t) for t in questions)],
        ["length ratio of translations of at least 30 characters: least, most", len(ratios), f"{ratios[0]:.2f}, {ratios[-1]:.2f}"],
        ["the same without the outermost thousandth", "", f"{ratios[len(ratios) // 1000]:.2f}, {ratios[-1 - len(ratios) // 1000]:.2f}"],
        ["zlib bytes per character of 400 characters of native text: least", len(squeezed), f"{min(squeezed):.2f}"]])

def speed():
    source = ("How can I sort a list of dictionaries by the value of a key in Python? I would also like to know when `sorted()` is the better choice and when the method is. " * 4)[:490]
    text = ("Come posso ordinare una lista di dizionari in base al valore di una chiave in Python? Vorrei anche sapere quando conviene `sorted()` e quando il metodo. " * 4)[:490]
    times, short = [], []
    for i in range(2000):
        start = time.perf_counter(); translation_problem(f"{source} {i}", f"{text} {i}", "it"); times.append(time.perf_counter() - start)
        start = time.perf_counter(); detect_language(f"Come ordino la lista numero {i}?"); short.append(time.perf_counter() - start)
    times.sort(); short.sort()
    table("Time on this machine", ["what", "fastest tenth", "median"],
          [["`translation_problem`, 500 characters", *(f"{1000 * times[i]:.2f} ms" for i in (200, 1000))], ["`detect_language`, 30 characters", *(f"{1 / short[i]:,.0f}/s" for i in (200, 1000))]])

if __name__ == "__main__":
    for part in (detector_accuracy, good_translations, native_text, generated_text, bad_translations, neighbours, bounds, speed): part()
