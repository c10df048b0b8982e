"""Speed and recall of `near_duplicates` on made-up requests: python bench/dedup_speed.py [TEXTS] [ENGINE]   (defaults 100000 rensa)

Requests are 8 to 40 words drawn from the demo conversations; one in twenty is an exact copy of an earlier one, one in ten a copy with
one to three words replaced. Recall is over the edited copies whose similarity to their original, computed exactly, is at or above 0.8."""
import json
import random
import re
import resource
import sys
import time
from pathlib import Path

import llmdata_nb
from llmdata_nb.dedup import jaccard, near_duplicates


def corpus(n, seed=0):
    "`n` texts, and for each the number of the text that it was copied from, or None"
    demo = (Path(llmdata_nb.__file__).parent / "data/demo.jsonl").read_text(encoding="utf-8")
    words, rng = re.findall(r"[a-zé]+", demo), random.Random(seed)
    texts, source = [], []
    for i in range(n):
        kind, copy = rng.random(), rng.randrange(i) if i else None
        if i and kind < 0.15:
            text = texts[copy].split()
            if kind >= 0.05:
                for _ in range(rng.randint(1, 3)): text[rng.randrange(len(text))] = rng.choice(words)
        else: copy, text = None, [rng.choice(words) for _ in range(rng.randint(8, 40))]
        texts.append(" ".join(text)); source.append(copy)
    return texts, source


if __name__ == "__main__":
    n, engine = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, sys.argv[2] if len(sys.argv) > 2 else "rensa"
    texts, source = corpus(n)
    wall, cpu = time.perf_counter(), time.process_time()
    found = near_duplicates(texts, engine=engine)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    near = [i for i, j in enumerate(source) if j is not None and texts[i] != texts[j] and jaccard(texts[i], texts[j]) >= 0.8]
    # a copy of a duplicate may have drifted below the threshold from the text that was kept: count those whose original was kept
    near = [i for i in near if found[source[i]] is None]
    wrong = [i for i, j in enumerate(found) if j is not None and jaccard(texts[i], texts[j]) < 0.8]
    print(json.dumps({"texts": n, "engine": engine, "characters": round(sum(map(len, texts)) / n), "wall_s": round(wall, 1), "cpu_s": round(cpu, 1),
                      "texts_per_cpu_s": round(n / cpu), "max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                      "duplicates": sum(j is not None for j in found), "edited_copies": len(near),
                      "recall": round(sum(found[i] is not None for i in near) / len(near), 4), "wrong": len(wrong)}))
