"""How often the parser reads what real judges said as their authors did: python bench/judge_raw.py

Reads ../shared/data/judge_raw_* beside the repository. A judgement is agreed on, refused (unjudged) or different; every different one
is printed whole, and up to five refused ones of each judge."""
import json
from collections import defaultdict
from pathlib import Path

from llmdata_nb.verdict import parse_ratings, parse_verdict

DATA = Path(__file__).parents[1] / "../shared/data"


def rows(path): return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def llmbar(data):
    "Which of two outputs is better; `swap`: the first one shown was the second"
    for r in rows(data / "judge_raw_llmbar/llmbar_natural_raw.jsonl"):
        label = parse_verdict(r["raw"], labels={"1": ["Output (a)"], "2": ["Output (b)"]}).label
        yield {"id": r["id"], "judge": f"{r['judge']} {r['strategy']}", "raw": r["raw"], "recorded": r["authors_parsed_winner"],
               "ours": {"1": "2", "2": "1"}.get(label) if r["swap"] else label}


def mtbench(data):
    "A score from 1 to 10, in Japanese, German and English; -1: no verdict"
    for r in rows(data / "judge_raw_mtbench_multilingual/gpt4_single_ja_de_en.jsonl"):
        recorded = r["authors_parsed_score"]
        yield {"id": r["id"], "judge": f"{r['judge']} {r['language']}", "raw": r["raw"], "recorded": None if recorded == -1 else recorded,
               "ours": parse_verdict(r["raw"], (1, 10), language=r["language"]).score}


def fastchat(data):
    "Two scores from 1 to 10; -1, -1: no verdict"
    for r in rows(data / "judge_raw_fastchat/vicuna_bench_reviews.jsonl"):
        ours, recorded = [v.score for v in parse_ratings(r["raw"], 2, (1, 10))], r["authors_parsed_scores"]
        yield {"id": r["id"], "judge": r["judge"], "raw": r["raw"], "recorded": None if recorded == [-1, -1] else recorded,
               "ours": None if None in ours else ours}


def prometheus(data):
    "Feedback whose score was cut off: nothing must be read from it"
    for r in rows(data / "judge_raw_prometheus/mt_bench_gpt4_feedback.jsonl"):
        for i, text in enumerate(r["gpt4_feedback"]):
            yield {"id": f"{r['idx']}/{r['response_source']}/{i}", "judge": "gpt-4", "raw": text, "recorded": None, "ours": parse_verdict(text).score}


READERS = {f.__name__: f for f in (llmbar, mtbench, fastchat, prometheus)}


def outcome(row):
    if row["ours"] == row["recorded"]: return "agreed"
    return "refused" if row["ours"] is None else "different"


if __name__ == "__main__":
    for kind, read in READERS.items():
        judges, shown = defaultdict(lambda: defaultdict(int)), []
        for row in read(DATA):
            counts, what = judges[row["judge"]], outcome(row)
            counts[what] += 1
            if what == "different" or (what == "refused" and counts[what] <= 5): shown.append((what, row))
        total = {what: sum(c[what] for c in judges.values()) for what in ("agreed", "refused", "different")}
        print(f"\n{kind}: {sum(total.values())} judgements, " + ", ".join(f"{n} {what}" for what, n in total.items()))
        for judge, c in sorted(judges.items()): print(f"  {judge:40} {sum(c.values()):4}  " + ", ".join(f"{n} {what}" for what, n in c.items()))
        for what, row in shown: print(f"\n  {what}: {row['id']}  ours {row['ours']}, recorded {row['recorded']}\n    " + row["raw"].replace("\n", "\n    "))
