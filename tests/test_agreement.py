"What `llmdata_nb.agreement` promises: worked examples, slow definitions to compare with, and simulated rows with a known answer."
import math
import time
from fractions import Fraction
from random import Random

import pytest

from llmdata_nb.agreement import (accuracy, bootstrap, kappa, longer_wins, one_sided, pearson, share, spearman, sweep, threshold_for,
                                  wilson)

NAN = float("nan")
PAIRED = [accuracy, kappa, lambda a, b: kappa(a, b, "quadratic"), pearson, spearman]
NAMES = ["accuracy", "kappa", "quadratic kappa", "pearson", "spearman"]
pairwise = pytest.mark.parametrize("f", PAIRED, ids=NAMES)
approx = pytest.approx


def rows_of(table):
    "Two lists from `{(human, judge): rows}`"
    human, judge = zip(*(pair for pair, n in table.items() for _ in range(n)))
    return list(human), list(judge)


def noisy(seed, n=60, values=(1, 2, 3, 4, 5)):
    "Two related lists of `n` scores"
    r = Random(seed)
    human = [r.choice(values) for _ in range(n)]
    return human, [r.choice([h, h, r.choice(values)]) for h in human]


# Shares

@pytest.mark.parametrize("hits, n, low, high", [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_wilson_as_published(hits, n, low, high):  # four of Newcombe's (1998), from memory: to be looked up by whoever doubts them
    assert wilson(hits, n) == approx((low, high), abs=6e-5)
    assert wilson(n - hits, n) == approx((1 - high, 1 - low), abs=6e-5)


def test_wilson_by_hand():
    # z = 2, 4 of 4: p = 1, scale 1 + 4/4 = 2, centre (1 + 4/8) / 2 = 0.75, half 2/2 · sqrt(0 + (2/8)²) = 0.25
    assert wilson(4, 4, z=2) == approx((0.5, 1))
    # z = 2, 2 of 4: centre (0.5 + 0.5) / 2 = 0.5, half 1 · sqrt(0.25/4 + 0.0625) = sqrt(0.125)
    assert wilson(2, 4, z=2) == approx((0.5 - math.sqrt(0.125), 0.5 + math.sqrt(0.125)))


def test_wilson_holds_the_share_it_saw_and_stays_within_0_and_1():
    for n in range(1, 60):
        for hits in range(n + 1):
            low, high = wilson(hits, n)
            assert 0 <= low <= hits / n <= high <= 1 and high - low > 0.01
            assert wilson(hits, n, z=1)[1] - wilson(hits, n, z=1)[0] < high - low
    assert wilson(0, 0) == (0, 1)


def test_wilson_covers_the_true_share():
    r = Random(3)
    for p in (0.05, 0.5, 0.9):
        inside = sum(low <= p <= high for low, high in (wilson(sum(r.random() < p for _ in range(60)), 60) for _ in range(1500)))
        assert 0.925 < inside / 1500 < 0.98


@pytest.mark.parametrize("hits, n, z", [(-1, 5, 1.96), (6, 5, 1.96), (1, 0, 1.96), (0, -1, 1.96), (NAN, 5, 1.96), (1, 5, 0), (1, 5, NAN), (1, 5, math.inf)])
def test_wilson_refuses(hits, n, z):
    with pytest.raises(ValueError, match="hits from 0 to n"): wilson(hits, n, z)


def test_share():
    assert share(3, 4) == {"value": 0.75, "low": wilson(3, 4)[0], "high": wilson(3, 4)[1], "n": 4}
    assert share(0, 0) == {"value": None, "low": None, "high": None, "n": 0}


# Two lists

@pairwise
def test_bad_columns_are_named(f):
    with pytest.raises(ValueError, match="human has 3, judge has 2"): f([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="no rows in human, judge"): f([], [])
    with pytest.raises(ValueError, match="judge: expected .* or None, not nan"): f([1, 2, 3], [1, NAN, 3])


@pytest.mark.parametrize("f", PAIRED[2:], ids=NAMES[2:])
@pytest.mark.parametrize("bad", ["4", "high", math.inf, [4], 1j])
def test_words_are_no_numbers(f, bad):
    with pytest.raises(ValueError, match="human: expected numbers or None, not "): f([1, bad, 3], [1, 2, 3])


@pairwise
def test_rows_with_none_are_left_out(f):
    human, judge = noisy(1)
    expected = f(human, judge)
    assert f([None, *human, 1, None], [5, *judge, None, None]) == expected and expected not in (0, 1)
    assert f([None, 1], [1, None]) is None


@pairwise
def test_sides_can_be_swapped_and_rows_shuffled(f):
    human, judge = noisy(2)
    order = Random(0).sample(range(60), 60)
    assert f(judge, human) == approx(f(human, judge))
    assert f([human[i] for i in order], [judge[i] for i in order]) == approx(f(human, judge))


@pairwise
def test_perfect_agreement(f):
    human = noisy(3)[0]
    assert f(human, human) == approx(1)


@pytest.mark.parametrize("f", PAIRED[1:5], ids=NAMES[1:5])
@pytest.mark.parametrize("constant", [4, 0.1])  # three times 0.1 has a mean that is not 0.1
def test_not_defined_where_a_side_is_constant(f, constant):
    assert f([constant] * 3, [1, 2, 3]) is None and f([1, 2, 3], [constant] * 3) is None and f([constant] * 3, [constant] * 3) is None
    assert f([1, 2, 3, None], [constant] * 3 + [7]) is None and f([1], [2]) is None
    assert f([constant, constant, 3], [constant, 2, 3]) is not None


@pytest.mark.parametrize("f", PAIRED[1:5], ids=NAMES[1:5])
def test_near_0_where_the_two_are_independent(f):
    r = Random(5)
    human, judge = ([r.choice((1, 1, 1, 2, 3)) for _ in range(20_000)] for _ in range(2))
    assert accuracy(human, judge) > 0.4 and abs(f(human, judge)) < 0.03


def test_accuracy():
    assert accuracy(["a", "b", "c", "d"], ["a", "b", "c", "a"]) == 0.75
    assert accuracy([1, 2], [2, 1]) == 0
    assert accuracy([True, False], [1, 0]) == 1 and accuracy(["1"], [1]) == 0


# Kappa

def test_kappa_by_hand():
    # agree on 35 of 50 = 0.7; by chance 25/50 · 30/50 + 25/50 · 20/50 = 0.5; (0.7 - 0.5) / (1 - 0.5) = 0.4
    assert kappa(*rows_of({("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15})) == approx(0.4)
    # always the opposite: agree on 0; by chance 1/2 · 1/2 + 1/2 · 1/2 = 0.5; (0 - 0.5) / 0.5 = -1
    assert kappa(["a", "b"], ["b", "a"]) == approx(-1)
    # three labels, one used by one side only: agree on 3 of 4; by chance 2/4 · 1/4 + 2/4 · 2/4 = 3/8; (3/4 - 3/8) / (5/8) = 3/5
    assert kappa(["a", "a", "b", "b"], ["a", "c", "b", "b"]) == approx(0.6)


def test_quadratic_kappa_by_hand():
    # human in rows, judge in columns:   1  2  3
    #                                1   2  1  0   3
    #                                2   0  1  0   1
    #                                3   1  0  1   2
    #                                    3  2  1   6
    # squares seen: 1 · 1² + 1 · 2² = 5 on 6 rows; by chance (3·2·1 + 3·1·4 + 1·3·1 + 1·1·1 + 2·3·4 + 2·2·1) / 6 = 50/6 on 6 rows; 1 - 5 / (50/6) = 0.4
    human, judge = rows_of({(1, 1): 2, (1, 2): 1, (2, 2): 1, (3, 1): 1, (3, 3): 1})
    assert kappa(human, judge, weights="quadratic") == approx(0.4)
    # unweighted: agree on 4 of 6; by chance (3·3 + 1·2 + 2·1) / 36 = 13/36; (24 - 13) / (36 - 13) = 11/23
    assert kappa(human, judge) == approx(11 / 23)


def slow_kappa(human, judge, weight):
    "By the definition, over all pairs, in exact numbers"
    n = len(human)
    return 1 - Fraction(sum(weight(a, b) for a, b in zip(human, judge)), n) / Fraction(sum(weight(a, b) for a in human for b in judge), n * n)


@pytest.mark.parametrize("seed", range(20))
def test_kappa_as_defined(seed):
    human, judge = noisy(seed, n=5 + 3 * seed, values=[(1, 2), (1, 2, 3, 4, 5), (0, 1, 7, 100)][seed % 3])
    assert kappa(human, judge) == approx(float(slow_kappa(human, judge, lambda a, b: a != b)))
    assert kappa(human, judge, "quadratic") == approx(float(slow_kappa(human, judge, lambda a, b: (a - b) ** 2)))


def test_kappa_does_not_care_what_labels_are_called():
    human, judge = noisy(7)
    for names in ({i: f"label {i}" for i in range(6)}, {i: (i, None) for i in range(6)}, {i: i * 100 - 7 for i in range(6)}):
        assert kappa([names[h] for h in human], [names[j] for j in judge]) == approx(kappa(human, judge))


def test_quadratic_kappa_measures_the_numbers_and_not_their_places():
    human, judge = noisy(8, values=(1, 2, 3))
    stretched = {1: 1, 2: 2, 3: 50}
    assert kappa([10 * h + 1e6 for h in human], [10 * j + 1e6 for j in judge], "quadratic") == approx(kappa(human, judge, "quadratic"))
    assert kappa([stretched[h] for h in human], [stretched[j] for j in judge], "quadratic") != approx(kappa(human, judge, "quadratic"), abs=0.001)


def test_quadratic_kappa_with_two_labels_is_kappa():
    human, judge = noisy(9, values=(0, 1))
    assert kappa(human, judge, "quadratic") == approx(kappa(human, judge))


def test_quadratic_kappa_sees_a_shift_that_correlation_does_not():
    assert pearson([1, 2, 3], [3, 4, 5]) == approx(1)
    # squares seen: 4 on each row; by chance (4 + 9 + 16 + 1 + 4 + 9 + 0 + 1 + 4) / 9 = 48/9; 1 - 4 / (48/9) = 1/4
    assert kappa([1, 2, 3], [3, 4, 5], "quadratic") == approx(0.25)


def test_kappa_refuses_other_weights():
    with pytest.raises(ValueError, match="weights: .* not 'linear'"): kappa([1, 2], [1, 2], weights="linear")


# Correlation and error

def test_pearson_by_hand():
    # means 2 and 2: (-1, 0, 1) and (0, -1, 1); products 0 + 0 + 1 = 1; lengths sqrt 2 and sqrt 2; 1/2
    assert pearson([1, 2, 3], [2, 1, 3]) == approx(0.5)
    # means 3 and 4: (-2, -1, 0, 3) and (-3, 1, 0, 2); products 6 - 1 + 0 + 6 = 11; lengths sqrt 14 and sqrt 14
    assert pearson([1, 2, 3, 6], [1, 5, 4, 6]) == approx(11 / 14)


def test_spearman_by_hand():
    # ranks 1 2 3 4 and 2 1 4 3: four differences of 1; 1 - 6 · 4 / (4 · 15) = 0.6
    assert spearman([10, 20, 30, 1000], [5, 1, 9, 8]) == approx(0.6)
    # ties: ranks 1.5 1.5 3 and 1 2 3; from the mean 2: (-.5, -.5, 1), (-1, 0, 1); products 1.5; lengths sqrt 1.5 and sqrt 2
    assert spearman([4, 4, 5], [1, 2, 3]) == approx(1.5 / math.sqrt(3))
    # three equal in the middle: ranks 1 3 3 3 5 and 1 2 3 4 5; products 4 + 0 + 0 + 0 + 4 = 8; lengths sqrt 8 and sqrt 10
    assert spearman([1, 7, 7, 7, 9], [1, 2, 3, 4, 5]) == approx(8 / math.sqrt(80))


def test_what_correlations_do_not_see():
    human, judge = noisy(10)
    assert pearson([3 * h - 7 for h in human], [0.5 * j for j in judge]) == approx(pearson(human, judge))
    assert pearson([-h for h in human], judge) == approx(-pearson(human, judge))
    assert spearman([math.exp(h) for h in human], [j ** 3 for j in judge]) == approx(spearman(human, judge))
    assert pearson([math.exp(h) for h in human], judge) != approx(pearson(human, judge), abs=0.01)


def test_pearson_of_very_large_and_very_small_numbers():
    human, judge = noisy(11)
    for scale, shift in ((1e-200, 0), (1e200, 0), (1, 1e9)):
        assert pearson([h * scale + shift for h in human], judge) == approx(pearson(human, judge), abs=1e-6)


def test_pearson_stays_within_its_range():  # rounding alone would leave it on some of these
    for n in range(2, 50):
        line = [0.1 * i for i in range(n)]
        assert 1 - 1e-12 < pearson(line, [7 * v + 0.3 for v in line]) <= 1 and -1 <= pearson(line, [0.3 - 7 * v for v in line]) < -1 + 1e-12


# Bootstrap

def simulated(r, n):
    "Human and judge on labels that are equally frequent, equal on 80 % of the rows: kappa (0.8 - 0.5) / 0.5 = 0.6"
    human = [r.choice("ab") for _ in range(n)]
    return human, [h if r.random() < 0.8 else "ba"["ab".index(h)] for h in human]


def test_bootstrap_covers_the_true_kappa():
    r = Random(1)
    inside = below = 0
    for i in range(200):
        low, high = bootstrap(kappa, *simulated(r, 80), rounds=150, seed=i)
        inside += low <= 0.6 <= high
        below += high < 0.6
    assert 0.9 < inside / 200 < 0.98 and 0 < below < 20  # 95 %, less a little for 80 rows; misses on both sides


def test_bootstrap_of_a_share_is_as_wide_as_wilsons():
    human, judge = simulated(Random(2), 400)
    hits = sum(map(str.__eq__, human, judge))
    assert bootstrap(accuracy, human, judge) == approx(wilson(hits, 400), abs=0.012)


def test_bootstrap_is_repeatable_and_its_level_counts():
    human, judge = simulated(Random(3), 100)
    low, high = bootstrap(kappa, human, judge, rounds=300)
    assert bootstrap(kappa, human, judge, rounds=300) == (low, high) != bootstrap(kappa, human, judge, rounds=300, seed=1)
    inner = bootstrap(kappa, human, judge, rounds=300, level=0.5)
    assert low < inner[0] < kappa(human, judge) < inner[1] < high


def test_bootstrap_cuts_as_many_on_each_side():
    asked = []
    def count(values): asked.append(values); return len(asked)  # 1 to 100
    assert bootstrap(count, [1, 2], rounds=100, level=0.9) == (6, 95) and len(asked) == 100


def test_bootstrap_keeps_rows_together():
    seen = []
    bootstrap(lambda *columns: seen.append(columns) or 1.0, [1, 2, 3], [10, 20, 30], [None, "b", "c"], rounds=20)
    assert len(seen) == 20
    for a, b, c in seen:
        assert len(a) == 3 and all((x, y, z) in {(1, 10, None), (2, 20, "b"), (3, 30, "c")} for x, y, z in zip(a, b, c))
    assert len({a for a, _, _ in seen}) > 5


@pytest.mark.parametrize("none, defined", [(50, True), (51, False), (100, False), (0, True)])
def test_bootstrap_leaves_out_what_is_not_defined(none, defined):
    figures = iter([None] * none + [3.0] * (100 - none))
    assert bootstrap(lambda values: next(figures), [1, 2], rounds=100) == ((3.0, 3.0) if defined else None)


def test_bootstrap_of_a_figure_that_is_0():
    assert bootstrap(lambda values: 0.0, [1, 2], rounds=10) == bootstrap(lambda values: 0.0, [1, 2], rounds=1) == (0, 0)


def test_bootstrap_refuses():
    with pytest.raises(ValueError, match="column 1 has 2, column 2 has 3"): bootstrap(kappa, [1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="no rows in column 1, column 2"): bootstrap(kappa, [], [])
    with pytest.raises(ValueError, match="no rows"): bootstrap(kappa)
    for wrong in ({"rounds": 0}, {"level": 0}, {"level": 1}, {"level": 95}):
        with pytest.raises(ValueError, match="level between 0 and 1"): bootstrap(kappa, [1, 2], [1, 2], **wrong)


@pytest.mark.parametrize("f", PAIRED[1:5], ids=NAMES[1:5])
def test_bootstrap_of_500_rows_is_quick(f):
    human, judge = noisy(12, n=500)
    start = time.process_time()
    low, high = bootstrap(f, human, judge)
    assert time.process_time() - start < 4 and low < f(human, judge) < high  # seconds, twice what is promised, for slow machines


# Thresholds

SCORES = [5, 5, 4, 4, 3, 2, None, 1, 3]
GOOD = [True, None, True, False, True, False, True, False, None]


def test_sweep_by_hand():
    # 9 rows, 7 with an opinion, 4 of them good (one unjudged); kept / known / good: 5: 2 1 1, 4: 4 3 2, 3: 6 4 3, 2: 7 5 3, 1: 8 6 3
    got = sweep(SCORES, GOOD)
    assert [s["threshold"] for s in got] == [1, 2, 3, 4, 5] and [s["kept"] for s in got] == [8, 7, 6, 4, 2]
    assert [s["keep_rate"] for s in got] == approx([8 / 9, 7 / 9, 6 / 9, 4 / 9, 2 / 9])
    assert [s["precision"] for s in got] == approx([3 / 6, 3 / 5, 3 / 4, 2 / 3, 1])
    assert [s["recall"] for s in got] == approx([3 / 4, 3 / 4, 3 / 4, 2 / 4, 1 / 4])
    assert [(s["precision_low"], s["precision_high"]) for s in got] == [wilson(3, 6), wilson(3, 5), wilson(3, 4), wilson(2, 3), wilson(1, 1)]
    assert list(got[0]) == ["threshold", "kept", "keep_rate", "precision", "precision_low", "precision_high", "recall"]


@pytest.mark.parametrize("seed", range(10))
def test_sweep_as_defined(seed):
    r = Random(seed)
    scores = [r.choice([None, round(r.random(), 1)]) for _ in range(50)]
    good = [r.choice([None, True, False]) for _ in range(50)]
    wished = [0.25, 0.3, 0.7, 2, -1]
    got = sweep(scores, good, wished)
    assert [s["threshold"] for s in got] == sorted(wished)
    for step in got:
        kept = [g for s, g in zip(scores, good) if s is not None and s >= step["threshold"]]
        known = len(kept) - kept.count(None)
        assert step["kept"] == len(kept) and step["keep_rate"] == len(kept) / 50
        assert step["precision"] == (kept.count(True) / known if known else None)
        assert step["recall"] == kept.count(True) / good.count(True)


def test_sweep_where_nothing_is_kept_or_known():
    (top,) = sweep(SCORES, GOOD, [6])
    assert (top["kept"], top["keep_rate"], top["recall"]) == (0, 0, 0)
    assert top["precision"] is top["precision_low"] is top["precision_high"] is None
    (step,) = sweep([1, 2], [None, False], [2])
    assert step["precision"] == 0 and step["recall"] is None
    assert sweep([None, None], [True, False]) == []


def test_sweep_refuses():
    with pytest.raises(ValueError, match="scores has 2, good has 1"): sweep([1, 2], [True])
    with pytest.raises(ValueError, match="no rows in scores, good"): sweep([], [])
    with pytest.raises(ValueError, match="scores: expected numbers or None, not '5'"): sweep([1, "5"], [True, False])
    with pytest.raises(ValueError, match="scores: .* not nan"): sweep([NAN], [True])
    with pytest.raises(ValueError, match="good: expected True, False or None, not 4"): sweep([1, 2], [True, 4])
    with pytest.raises(ValueError, match="thresholds: expected numbers, not None"): sweep([1], [True], [None])


def test_sweep_of_many_different_scores_is_quick():
    r = Random(0)
    scores = [r.random() for _ in range(20_000)]
    start = time.process_time()
    assert len(sweep(scores, [r.random() < s for s in scores])) == 20_000
    assert time.process_time() - start < 5  # 20,000 times 20,000 comparisons would take longer


def steps(*precisions): return [{"threshold": t, "precision": p} for t, p in enumerate(precisions, 1)]


@pytest.mark.parametrize("precisions, wished, threshold", [
    ((0.5, 0.7, 0.9), 0.7, 2), ((0.5, 0.7, 0.9), 0.71, 3), ((0.5, 0.7, 0.9), 0.95, None), ((0.5, 0.7, 0.9), 0, 1),
    ((0.5, 0.9, 1.0), 1, 3), ((0.9, 0.6, 0.8), 0.8, 3),                      # 1 reaches it by luck: 2 does not
    ((0.9, 0.8, 0.5), 0.8, None),                   # the highest falls below
    ((0.5, 0.8, 0.9, None), 0.8, 2),                # nothing kept above 3
    ((0.8, None, 0.9), 0.8, 1), ((None, None), 0.5, None), ((None, 0.9), 0.5, 2), ((), 0.5, None)])
def test_threshold_for(precisions, wished, threshold):
    assert threshold_for(steps(*precisions), wished) == threshold
    assert threshold_for(steps(*precisions)[::-1], wished) == threshold


def test_threshold_for_a_sweep():
    assert threshold_for(sweep(SCORES, GOOD), 0.6) == 2 and threshold_for(sweep(SCORES, GOOD), 0.75) == 5  # 3 reaches 3/4, but 4 has 2/3


@pytest.mark.parametrize("wished", [90, -0.1, NAN])
def test_threshold_for_refuses(wished):
    with pytest.raises(ValueError, match="precision: expected 0 to 1"): threshold_for([], wished)


# Judges to beware of

def test_one_sided():
    assert one_sided(["high"] * 58 + ["low"] * 2) == \
        "The judge gave 58 of 60 the same verdict (high): it tells nothing apart. Look at some rows, or take another judge."
    assert "20 of 20 the same verdict (4)" in one_sided([4] * 20)
    assert one_sided(["high"] * 19) == "" and one_sided(["high"] * 19 + [None]) == "" and one_sided([]) == ""
    assert one_sided(["high"] * 19 + ["low"]) == ""                       # 95 % is not more than 95 %
    assert "96 of 100" in one_sided(["high"] * 96 + ["low"] * 4 + [None] * 100)
    assert one_sided([1, 2, 3, 4, 5] * 20) == ""


@pytest.mark.parametrize("accepted, warns", [(100, True), (96, True), (95, False), (50, False), (5, False), (4, True), (0, True)])
def test_one_sided_by_what_is_accepted(accepted, warns):
    values = [3 + i % 3 for i in range(accepted)] + [1 + i % 2 for i in range(100 - accepted)]  # no score fills 95 %
    assert one_sided(values) == ""
    assert (f"accepted {accepted} of 100 (3 or more)" in one_sided(values, good=3)) == warns == bool(one_sided(values, good=3))


def test_one_sided_refuses():
    with pytest.raises(ValueError, match="values: expected numbers or None, not 'high'"): one_sided(["high"] * 30, good=3)
    with pytest.raises(ValueError, match="not nan"): one_sided([NAN] * 30)


def test_longer_wins():
    # counted: rows 0, 1, 3 and 6, of which the longest wins 0, 3 and 6
    lengths = [(9, 3), [3, 9], (5, 5), (1, 2, 3), (8, 8, 1), (4, 6), (2, 2, 7), None, (None, 3)]
    assert longer_wins(lengths, [0, 0, 1, 2, 0, None, 2, 0, 1]) == share(3, 4)
    assert longer_wins([(5, 5)], [0]) == {"value": None, "low": None, "high": None, "n": 0}
    assert longer_wins([(9, 4, 4)], [0])["n"] == 1  # only the longest must stand alone


def test_longer_wins_half_of_the_time_by_chance():
    r = Random(4)
    got = longer_wins([(r.random(), r.random()) for _ in range(5000)], [r.randrange(2) for _ in range(5000)])
    assert got["n"] == 5000 and 0.47 < got["low"] < got["value"] < got["high"] < 0.53


@pytest.mark.parametrize("row, winner", [((3, 4), 2), ((3, 4), -1), ((3, 4), "a"), ((3,), 0), ((), 0)])
def test_longer_wins_refuses(row, winner):
    with pytest.raises(ValueError, match="row 1: expected two lengths or more and the index of one"): longer_wins([(1, 2), row], [0, winner])


def test_longer_wins_refuses_what_is_no_length():
    with pytest.raises(ValueError, match="lengths: expected numbers, not 'long'"): longer_wins([("long", 2)], [0])
    with pytest.raises(ValueError, match="lengths has 1, winners has 2"): longer_wins([(1, 2)], [0, 1])
    with pytest.raises(ValueError, match="no rows in lengths, winners"): longer_wins([], [])
