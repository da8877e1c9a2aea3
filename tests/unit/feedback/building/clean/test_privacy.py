"""Personal data and secrets: found, told apart from what looks alike, replaced consistently, never written."""

from __future__ import annotations

import pytest
from raylign.feedback.clean.personal_data import redact_frame, redact_text

FOUND = {
    "write to Jo.Doe+x@mail.example.co.uk today": "write to <EMAIL_1> today",
    "call +44 20 7946 0958 now": "call <PHONE_1> now",
    "call (212) 555-0187": "call <PHONE_1>",
    "call 0660 1234567": "call <PHONE_1>",
    "pay to DE89 3704 0044 0532 0130 00.": "pay to <IBAN_1>.",
    "card 4111 1111 1111 1111 please": "card <CARD_1> please",
    "cards:4111111111111111,5500005555555559.": "cards:<CARD_1>,<CARD_2>.",
    "from 203.0.113.7 again": "from <IP_1> again",
    "at 2001:0db8:85a3:0000:0000:8a2e:0370:7334": "at <IP_1>",
    "git clone https://bob:hunter2@git.example.com/x.git": "git clone <URL_1>",
    "key sk-proj-abcdefghijklmnop1234": "key <SECRET_1>",
    "AKIAIOSFODNN7EXAMPLE": "<SECRET_1>",
    "token ghp_abcdefghijklmnopqrstuvwxyz0123456789": "token <SECRET_1>",
    "password: correct-h0rse": "password: <SECRET_1>",
    "Authorization: Bearer abcdefghijklmnopqrstuvwxyz": "Authorization: Bearer <SECRET_1>",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY----- end": "<PRIVATE_KEY_1> end",
    "My name is Ada Byron and I ask. Ada!": "My name is <NAME_1> and I ask. <NAME_1>!",
}
LEFT_ALONE = (
    "What is 4111 1111 1111 1112 divided by 2?",  # no card: its checksum is wrong
    "GB00 WEST 1234 5698 7654 32 is not an account",
    "version 1.2.3 of 2024-05-06, chapter 10.11.12",
    "the localhost 127.0.0.1 and 999.1.1.1",
    "20 / 3 = 6.666666666666667, 100 / 3 = 33.333333333333336",  # their fractions carry a card's checksum
    "100000+5000000+1500000=6600000",
    "10,000-4000 = 6,000 and 10,440,000-9000",
    "2 + 2 = 4, 12345 * 678 = 8369910",
    "my name is not important",
    "the password is secret",
    "see https://example.com/a?b=c and user@host",
    "Ada Lovelace wrote the first program",  # a name nobody gave as theirs
)


@pytest.mark.parametrize(("text", "clean"), FOUND.items())
def test_it_is_replaced_by_its_type(text: str, clean: str):
    assert redact_text(text) == clean


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_only_looks_alike_is_left_alone(text: str):
    assert redact_text(text) == text


def test_a_second_pass_changes_nothing():
    once = redact_text("\n".join(FOUND))
    assert redact_text(once) == once


def test_one_thing_has_one_placeholder_throughout_its_conversation_and_another_elsewhere(make, frame):
    talk = {"conversation_id": "c", "user_id": "u"}
    told = [("user", "I am a@x.org"), ("assistant", "Hello a@x.org"), ("user", "and b@x.org?")]
    work = frame(
        [
            make(1, "side_by_side", "I am a@x.org", response_a="Hi A@X.org", response_b="b@x.org?", choice="a", **talk),
            make(2, "correction", told, response_a="no", corrected="b@x.org, a@x.org", **talk),
            make(3, "thumb", "My name is Zoe", response_a="Hi Zoe", thumb=1, conversation_id="d"),
            make(4, "thumb", "Who am I?", response_a="You are Zoe", thumb=1, conversation_id="d"),
            make(5, "thumb", "Who is Zoe?", response_a="b@x.org", thumb=1, conversation_id="e"),
        ]
    )
    done = redact_frame(work)
    rows = {row["event_id"]: row for row in done.frame.iter_rows(named=True)}
    assert rows["e1"]["answer_a"] == "Hi <EMAIL_1>" and rows["e1"]["answer_b"] == "<EMAIL_2>?"
    assert rows["e2"]["corrected"] == "<EMAIL_2>, <EMAIL_1>"
    assert "I am <EMAIL_1>" in rows["e2"]["prompt"] and "and <EMAIL_2>?" in rows["e2"]["prompt"]
    assert rows["e4"]["answer_a"] == "You are <NAME_1>"  # introduced in another event of the conversation
    assert "Zoe" in rows["e5"]["prompt"] and rows["e5"]["answer_a"] == "<EMAIL_1>"
    assert done.counts == {"EMAIL": 3, "NAME": 1}
    assert done.frame.columns == work.columns and done.frame["event_id"].to_list() == work["event_id"].to_list()


def test_nothing_personal_is_in_any_file_of_a_build(make, run_build):
    broken = '{"event_id": "x", "kind": "thumb", "user_id": "raw-id-77", "comment": "ring +44 20 7946 0958"'
    built = run_build(
        [
            make(1, "thumb", "mail a@x.org", response_a="a@x.org it is", thumb=1, user_id="raw-id-77", topic="a@x.org"),
            make(2, "thumb", "mail c@x.org", response_a="I cannot help with that.", thumb=1, user_id="raw-id-77"),
            make(3, "side_by_side", "d@x.org", response_a="e@x.org", response_b="b", choice="skipped"),
            broken,
        ]
    )
    text = built.everything()
    assert "x.org" not in text and "7946" not in text and "raw-id-77" not in text
    assert "<EMAIL_1>" in text and "<PHONE_1>" in text
    assert {count.name: count.count for count in built.result.redactions} == {"EMAIL": 4}
