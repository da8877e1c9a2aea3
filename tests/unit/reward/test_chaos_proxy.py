"""Rewards from a server behind a bad network: a score is the server's own for this very answer, or a named failure."""

from __future__ import annotations

import random
import time

import pytest
from raylign.conf.schema import RemoteProtocol
from raylign.reward.samples import NotScored, Sample, Score

from tests.unit.reward.chaos_proxy import Fault, spoiling
from tests.unit.reward.json_server import Reply, serving
from tests.unit.reward.test_remote import scorer

pytestmark = pytest.mark.slow

NUMBER = 12
SAMPLES = [
    Sample(
        f"{i}?", str(i), (("user", f"{i}?"),), (5,), "sums", None, {}, templated_prompt=f"{i}?", templated_query=f"{i}"
    )
    for i in range(NUMBER)
]
TRUTH = [100.25 + i for i in range(NUMBER)]
PASSING = [fault for fault in Fault if fault is not Fault.STALL]


def test_a_bare_number_is_taken_only_where_its_end_is_told() -> None:
    """100.25 cut to 100.2 is a number too; an object that is cut is none."""
    found, _, _ = asked(RemoteProtocol.slime, [Fault.CUT_UNSIZED])
    assert isinstance(found[0], NotScored) and "without Content-Length" in found[0].reason and found[1:] == TRUTH[1:]


def answer(body: object, _: int) -> Reply:
    """A number that belongs to its question alone, in the form of each protocol."""
    assert isinstance(body, dict)
    if "query" in body:
        return Reply({"rewards": [100.25 + float(text) for text in body["query"]]})
    if "samples" in body:
        return Reply({"scores": [100.25 + float(s["answer"]) for s in body["samples"]], "errors": []})
    if "input" in body:
        return Reply({"data": [{"index": i, "probs": [100.25 + float(t)]} for i, t in enumerate(body["input"])]})
    return Reply(100.25 + float(body["response"]))


def asked(protocol: RemoteProtocol, faults: list[Fault], **given: object) -> tuple[list[Score], list[Fault], float]:
    """The scores of all samples, two a request, with `faults` struck in turn by connection; then none."""
    settings = {"request_timeout_s": 0.5, "timeout_s": 20.0, "max_concurrent": 1, **given}
    with serving(answer) as server, spoiling(server.url, lambda n: faults[n] if n < len(faults) else Fault.NONE) as bad:
        began = time.monotonic()
        found = scorer(bad.url, protocol, **settings).score(SAMPLES)
        return found, bad.done, time.monotonic() - began


@pytest.mark.parametrize("protocol", [RemoteProtocol.openrlhf, RemoteProtocol.slime])  # a list, and a bare number
@pytest.mark.parametrize("fault", list(Fault))
def test_one_fault_costs_another_try_and_no_score(protocol: RemoteProtocol, fault: Fault) -> None:
    found, struck, _ = asked(protocol, [Fault.NONE, fault, fault] if fault is Fault.NONE else [fault])
    assert fault in struck
    wrong = [(s, t) for s, t in zip(found, TRUTH, strict=True) if s != t and not isinstance(s, NotScored)]
    assert not wrong, "a number that is not the server's for this answer"
    if fault is not Fault.CUT_UNSIZED and fault is not Fault.GARBLED:  # what no try can tell from a bad server
        assert found == TRUTH


@pytest.mark.parametrize("protocol", RemoteProtocol)
def test_a_bad_hour_gives_right_scores_or_named_failures_within_the_deadline(protocol: RemoteProtocol) -> None:
    draw = random.Random(protocol.value)
    faults = [draw.choice(PASSING) for _ in range(40)]
    found, struck, seconds = asked(protocol, faults, max_concurrent=3, timeout_s=15.0)
    assert len(set(struck)) > 3 and seconds < 25
    wrong = [(s, t) for s, t in zip(found, TRUTH, strict=True) if s != t and not isinstance(s, NotScored)]
    assert not wrong


def test_a_server_that_answers_nothing_fails_every_answer_by_name_in_time() -> None:
    found, _, seconds = asked(RemoteProtocol.openrlhf, [Fault.STALL] * 99, timeout_s=2.0, max_concurrent=3)
    assert all(isinstance(score, NotScored) and "no answer within" in score.reason for score in found[:2])
    assert all(isinstance(score, NotScored) for score in found) and seconds < 10
