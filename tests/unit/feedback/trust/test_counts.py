"""The statistics on hand-made rows: published values, and values worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from raylign.feedback.events import EVENT_SCHEMA
from raylign.feedback.trust.agreement import agreement, alpha_nominal, percent_agreement
from raylign.feedback.trust.coverage import concentration, coverage
from raylign.feedback.trust.intervals import ratio, shared_confidence, wilson
from raylign.feedback.trust.judgements import JUDGEMENT_SCHEMA, judgements
from raylign.feedback.trust.length import length_bias
from raylign.feedback.trust.noise import Method, noise
from raylign.feedback.trust.summary import measure_trust

# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", example C: 4 observers, 12 units, 7 missing.
PUBLISHED = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)


def events(rows: list[dict[str, object]]) -> pl.DataFrame:
    start = datetime(2026, 3, 2, tzinfo=UTC)
    filled = [
        {
            "event_id": f"e{i}",
            "kind": "side_by_side",
            "source": "native",
            "source_row": i,
            "prompt": [{"role": "user", "content": row.pop("question", "q")}],
            "response_a": "one answer",
            "response_b": "two answers",
            "time": start + timedelta(minutes=i),
            **row,
        }
        for i, row in enumerate(rows, start=1)
    ]
    return pl.DataFrame(filled, schema=EVENT_SCHEMA)


def test_alpha_equals_the_published_value():
    counts = np.array([[sum(row[u] == k for row in PUBLISHED) for k in range(1, 6)] for u in range(12)], dtype=float)

    found = alpha_nominal(counts)

    assert found is not None and found.value == pytest.approx(0.743, abs=5e-4)
    assert found.count == 11  # the last unit has one value and says nothing of agreement


def test_the_interval_of_alpha_is_the_bootstrap_s():
    rng = np.random.default_rng(0)
    votes = rng.binomial(4, rng.choice([0.2, 0.8], 400)).astype(float)
    counts = np.column_stack([votes, 4 - votes])
    found = alpha_nominal(counts)
    assert found is not None

    draws = [alpha_nominal(counts[rng.integers(0, 400, 400)]) for _ in range(600)]
    low, high = np.quantile([d.value for d in draws if d], [0.025, 0.975])

    assert found.low == pytest.approx(low, abs=0.015) and found.high == pytest.approx(high, abs=0.015)


def test_perfect_agreement_has_an_interval_that_few_pairs_leave_wide():
    counts = np.array([[2.0, 0.0], [0.0, 2.0]] * 5)

    alpha, share = alpha_nominal(counts), percent_agreement(counts)

    assert alpha is not None and alpha.value == 1 and alpha.low < 0.6
    assert share is not None and share.value == 1 and 0.7 < share.low < 0.75  # Wilson, 10 of 10


def test_nobody_judging_the_same_pair_is_unknown_and_not_zero():
    frame = events([{"question": f"q{i}", "choice": "a", "user_hash": "u"} for i in range(5)])

    found = agreement(judgements(frame))

    assert (found.pairs_judged, found.pairs_with_several, found.alpha, found.agree) == (5, 0, None, None)


def test_swapped_sides_are_the_same_pair_and_a_second_thought_counts_once():
    frame = events(
        [
            {"choice": "a", "annotator_hash": "x"},
            {"choice": "b", "annotator_hash": "y", "response_a": "two answers", "response_b": "one answer"},
            {"choice": "b", "annotator_hash": "z"},
            {"choice": "a", "annotator_hash": "z"},  # later: what z means
        ]
    )

    found = agreement(judgements(frame))

    assert (found.pairs_judged, found.pairs_with_several, found.raters) == (1, 1, 3)
    assert found.agree is not None and found.agree.value == 1


def test_skips_equal_answers_and_other_kinds_are_no_judgements():
    frame = events(
        [
            {"choice": "skipped"},
            {"choice": "a", "response_b": "one answer"},
            {"kind": "thumb", "thumb": 1, "response_b": None},
            {"choice": "both_bad"},
        ]
    )

    judged = judgements(frame)

    assert judged.schema == JUDGEMENT_SCHEMA
    assert judged.select("event_id", "score_a", "known").rows() == [("e4", 0.5, False)]


@pytest.mark.parametrize(("successes", "total", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634)])
def test_wilson_by_the_book(successes: int, total: int, low: float, high: float):
    found = wilson(successes, total)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_no_counts_have_no_share():
    assert wilson(0, 0) is None and ratio(np.array([]), np.array([])) is None
    assert shared_confidence(100) == pytest.approx(0.95**0.01)


def test_length_bias_counts_each_choice_in_its_bucket():
    short, longer, longest = "x" * 100, "y" * 120, "z" * 400
    frame = events(
        [
            {"choice": "b", "response_a": short, "response_b": longer},  # longer by 20 %, chosen
            {"choice": "a", "response_a": short, "response_b": longer},
            {"choice": "a", "response_a": longest, "response_b": short},  # longer by 300 %, chosen
            {"choice": "a", "response_a": short, "response_b": "w" * 100},  # equal
            {"choice": "both_good", "response_a": short, "response_b": longer},
        ]
    )

    found = length_bias(judgements(frame))

    shares = {(b.low, b.high): b.longer for b in found.buckets if b.longer}
    assert set(shares) == {(0.1, 0.25), (2.0, None)}
    assert (shares[0.1, 0.25].value, shares[0.1, 0.25].count, shares[2.0, None].value) == (0.5, 2, 1.0)
    assert found.equal == 1 and found.longer is not None and found.longer.value == pytest.approx(2 / 3)


def test_circles_among_three_answers_are_counted():
    texts = ("alpha", "beta", "gamma")

    def over(question: str, better: str, worse: str) -> dict[str, object]:
        return {"question": question, "response_a": better, "response_b": worse, "choice": "a"}

    rows = []
    for i in range(40):
        a, b, c = texts[i % 3 :] + texts[: i % 3]
        third = over(f"q{i}", c, a) if i < 4 else over(f"q{i}", a, c)  # the first four go round
        rows += [over(f"q{i}", a, b), over(f"q{i}", b, c), third]

    found = {e.method: e.rate for e in noise(judgements(events(rows))).estimates}

    circles = 4 / 40
    assert found.keys() == {Method.CIRCLES}
    assert found[Method.CIRCLES].value == pytest.approx((1 - (1 - 4 * circles) ** 0.5) / 2)


def test_a_double_click_is_no_second_look():
    rows: list[dict[str, object]] = []
    start = datetime(2026, 3, 2, tzinfo=UTC)
    for i in range(60):
        when = start + timedelta(hours=i)
        for gap, choice in ((0, "a"), (2, "a"), (1800, "a" if i % 3 else "b")):
            rows.append(
                {"question": f"q{i}", "choice": choice, "user_hash": "u", "time": when + timedelta(seconds=gap)}
            )

    found = noise(judgements(events(rows)))

    changed = 20 / 60
    assert [e.method for e in found.estimates] == [Method.WITHIN]
    assert found.estimates[0].rate.value == pytest.approx((1 - (1 - 2 * changed) ** 0.5) / 2)


def test_balancing_weights_bring_each_slice_to_its_share():
    frame = events(
        [{"choice": "a", "persona": name, "user_hash": f"{name}{i % 4}"} for i in range(90) for name in ("big",)]
        + [{"choice": "a", "persona": "small", "user_hash": "s"} for _ in range(10)]
    )

    (persona,) = coverage(frame, power=0.5)

    big, small = persona.slices
    assert (big.name, big.events, big.people, small.people) == ("big", 90, 4, 1)
    assert big.balanced_share == pytest.approx(3 / 4) and small.balanced_share == pytest.approx(1 / 4)
    assert small.share * small.balancing_weight == pytest.approx(small.balanced_share)
    assert sum(s.share * s.balancing_weight for s in persona.slices) == pytest.approx(1)
    assert persona.effective_slices == pytest.approx(1 / (0.9**2 + 0.1**2))


def test_one_loud_person_shows():
    rows = [{"choice": "a", "user_hash": "loud"}] * 91 + [{"choice": "a", "user_hash": f"u{i}"} for i in range(9)]
    found = concentration(events([dict(row) for row in rows]))

    assert found is not None and found.people == 10
    assert found.top_share == pytest.approx(0.91) and found.effective_people == pytest.approx(100**2 / (91**2 + 9))


def test_an_empty_log_has_no_figures_and_no_crash():
    found = measure_trust(pl.DataFrame(schema=EVENT_SCHEMA))

    assert (found.events, found.judgements, found.ranking, found.concentration) == (0, 0, None, None)
    assert found.agreement.alpha is None and found.position.left is None and found.noise.label_smoothing is None
