"""Personal data and secrets: found, told apart from what looks alike, replaced consistently, never written."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from raylign.conf.errors import ConfigError
from raylign.feedback.clean.personal_data import redact_frame, redact_text
from raylign.feedback.forget import forget
from raylign.feedback.overrides import parse_settings

FOUND = {
    "write to Jo.Doe+x@mail.example.co.uk today": "write to <EMAIL_1> today",
    "call +44 20 7946 0958 now": "call <PHONE_1> now",
    "call (212) 555-0187": "call <PHONE_1>",
    "call 0660 1234567": "call <PHONE_1>",
    "tel:+49-30-901820": "tel:<PHONE_1>",
    "91 222 33 44 es mi teléfono": "<PHONE_1> es mi teléfono",
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY": "aws_secret_access_key = <SECRET_1>",
    '"password": "abc\\"def123"': '"password": "<SECRET_1>"',
    "My name: Maria Lopez": "My name: <NAME_1>",
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
    "612 345 678 + 1 = 612 345 679 and 12 34 56 78 90",
    "the phone costs 2400 / 200 = 12 and a phone plan 10800-2500=8300",
    "01 02 03 04 05 06 are consecutive, 02 11 0a 04 05 is a dump",
    "on 2024-11-05 12:30:45 or 05.11.2024, call it 2024-11-05",
    "ISSN 0962-4929, pp. 159-208, arXiv 0706.1234567",
    "upgrade to 10.15.7.1, pip install x==1.24.33.7, OID 1.3.101.110, mask 255.255.255.0",
    "x[1::2], std::vector<a::b>, be::add and 12:34:56",
    "seed 4012888888881881e3, id=4111111111111111, default_rng(2435908729190400)",
    "q@k.transpose(1, 2) + a@b.T, icon@2x.png, git@github.com:org/repo.git",
    "token=tokenizer.decode(ids[0]), max_tokens=1234567890, password = os.environ['DB_PASSWORD_1']",
    "keyword arguments to pass to torch.nn.max_unpool2d, pk_rsaSSA_PSS_SHAKE128",
    "https://x.example/?page=2&key=value&sort=created_at2",
    "by the name's GROUP, the name is looked up there, my name is spelled with two n",
    "commit 9f8e7d6c5b4a39281706f5e4d3c2b1a098765432, uuid 123e4567-e89b-12d3-a456-426614174000",
    "f'postgres://{user}:{password}@{host}/db' and s3://$KEY:$SECRET@bucket",
)


@pytest.mark.parametrize(("text", "clean"), FOUND.items())
def test_it_is_replaced_by_its_type(text: str, clean: str):
    assert redact_text(text) == clean


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_only_looks_alike_is_left_alone(text: str):
    assert redact_text(text) == text


def _planted():
    with (Path(__file__).parent / "planted.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_nothing_that_is_claimed_leaks_from_the_planted_set():
    """354 texts of 14 kinds and 20 countries; of those, 341 when they were first measured (docs/feedback-build.md)."""
    planted = _planted()
    kinds = Counter(item["kind"] for item in planted)
    assert len(planted) >= 300 and len(kinds) >= 12 and len({item["country"] for item in planted}) >= 8
    leaked = [item for item in planted if any(gone in redact_text(item["text"]) for gone in item["gone"])]
    by_kind = Counter(item["kind"] for item in leaked)
    assert not leaked, [item["text"] for item in leaked]
    assert all(1 - by_kind[kind] / count >= 0.95 for kind, count in kinds.items())
    assert all(item["gone"] and all(gone in item["text"] for gone in item["gone"]) for item in planted)


def test_a_number_of_a_country_looked_at_is_found_by_its_locale_or_by_setting(make, frame):
    kenyan = "it is 0712 123456"
    plain = frame([make(1, "thumb", "Q?", response_a=kenyan, thumb=1)])
    assert redact_frame(plain).frame["answer_a"][0] == kenyan
    assert redact_frame(plain, ("KE",)).frame["answer_a"][0] == "it is <PHONE_1>"
    local = frame([make(1, "thumb", "Q?", response_a=kenyan, thumb=1, locale="sw-KE")])
    assert redact_frame(local).frame["answer_a"][0] == "it is <PHONE_1>"


def test_a_region_that_is_no_country_is_refused():
    assert parse_settings(["privacy.regions=[ke]"]).privacy.regions == ("ke",)
    with pytest.raises(ConfigError, match=r"privacy.regions: XX, Kenya is no country"):
        parse_settings(["privacy.regions=[KE,XX,Kenya]"])


def test_ids_made_of_an_address_are_hashed_and_can_still_be_forgotten(make, run_build):
    rows = [
        make(i, "thumb", f"What about {i}?", response_a=f"Answer {i} in full.", thumb=1, user_id=f"u{i}")
        | {"event_id": f"jo{i}@example.com-vote", "conversation_id": f"chat jo{i}@example.com"}
        for i in range(1, 5)
    ]
    built = run_build(rows)
    assert "@example.com" not in built.everything()
    ids = {event for row in built.rows("sft") for event in row["events"]}
    assert len(ids) == 4 and all(re.fullmatch(r"id-[0-9a-f]{16}", event) for event in ids)
    forget(built.folder, events=["jo2@example.com-vote"])
    left = "".join(
        file.read_text() for file in built.folder.rglob("*") if file.is_file() and file.name != "source.json"
    )
    assert "Answer 2" not in left and "Answer 3" in left and "@example.com" not in left


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
