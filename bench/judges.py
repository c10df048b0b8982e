"""How far a judge agrees with people on published sets: run by hand, beside the shared data.

    python bench/judges.py --model embedded --data llmbar --pairs 60 --rubric comparison
    python bench/judges.py --model embedded --data pandalm --pairs 60 --rubric response

`llmbar`: pairs with an objective winner, its subset Natural (princeton-nlp/LLMBar). `pandalm`: pairs with three annotators who agree
(WeOpenML/PandaLM). `rakuda`: Japanese questions, a strong and a weak answer (yuzu-ai). The shortest pairs are taken, for time.
With the rubric `comparison` the judge chooses, with `response` it rates; both orders are asked, and everything is stored."""
import argparse
import json
from pathlib import Path

from llmdata_nb.judge import calibrate, compare, rubric
from llmdata_nb.report import plot_agreement, plot_figures, to_png

DATA = Path(__file__).parents[2] / "shared" / "data"


def lines(path): return map(json.loads, (DATA / path).open(encoding="utf-8"))


def llmbar():
    for r in lines("llmbar/llmbar.jsonl"):
        if r["subset"] == "Natural": yield dict(id=r["id"], request=r["input"], answers=[r["output_1"], r["output_2"]], human=r["label"] - 1, language="en")


def pandalm():
    for r in lines("pandalm_testset/testset_v1_with_judges.jsonl"):
        if len(votes := {r["annotator1"], r["annotator2"], r["annotator3"]}) != 1: continue
        request = "\n\n".join(t for t in (r["instruction"], r["input"]) if t)
        yield dict(id=str(r["idx"]), request=request, answers=[str(r["response1"]), str(r["response2"])], human=["tie", 0, 1][votes.pop()], language="en")


def rakuda():
    questions = {}
    for r in lines("rakuda_ja/answers.jsonl"): questions.setdefault((r["question_id"], r["question"]), {})["gpt-4" in r["model"]] = r["answer"]
    for n, ((name, request), answers) in enumerate(questions.items()):
        if len(answers) == 2: yield dict(id=name, request=request, answers=[answers[n % 2 == 0], answers[n % 2 == 1]], human=n % 2, language="ja")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="embedded")
    p.add_argument("--data", choices=["llmbar", "pandalm", "rakuda"], default="llmbar")
    p.add_argument("--pairs", type=int, default=60)
    p.add_argument("--rubric", choices=["comparison", "response"], default="comparison")
    p.add_argument("--store", default="outputs/store.sqlite")
    p.add_argument("--plots", help="a folder for the plots")
    a = p.parse_args()
    rows = [r for r in globals()[a.data]() if all(t.strip() for t in r["answers"])]
    rows = sorted(rows, key=lambda r: len(r["request"]) + sum(map(len, r["answers"])))[:a.pairs]
    async def judge(row, ask): return await compare(rubric(a.rubric, row["language"]), row["request"], row["answers"], ask)
    found = calibrate(judge, rows, model=a.model, store=a.store)
    print(f"{a.model} on {len(rows)} pairs of {a.data}, rubric {a.rubric}\n{found}\nverdicts: {found.verdicts}")
    if a.plots:
        for name, plot in (("figures", plot_figures), ("agreement", plot_agreement)): (Path(a.plots) / f"{a.data}_{a.rubric}_{name}.png").write_bytes(to_png(plot(found)))
