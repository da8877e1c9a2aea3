"""The page says what the log and the build hold, escapes what people wrote, and needs nothing from anywhere."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from raylign.feedback.build_result import (
    BuildResult,
    Count,
    EventDrop,
    Example,
    InputFile,
    Produced,
    RowDrop,
    RuleCount,
    Setting,
    ShownPair,
    SignalFate,
    WaterfallStep,
)
from raylign.feedback.events import EVENT_SCHEMA, hash_user
from raylign.feedback.report import render, write_report
from raylign.feedback.report.charts import SHARES, Scale, bar, interval
from raylign.feedback.simulate import (
    Group,
    Habits,
    PlantedModel,
    PlantedQuality,
    SignalMix,
    Simulation,
    TemplateAnswers,
    simulate,
)

ATTACK = "<script>alert('planted')</script><img src=x onerror=alert(1)>"


def log(conversations: int = 900, *, lazy: int = 2, seed: int = 0) -> pl.DataFrame:
    models = (
        PlantedModel("assistant-3-large", 0.7, words=70),
        PlantedModel("assistant-3-mini", 0.1, words=30),
        PlantedModel("assistant-2", -0.3, words=45),
        PlantedModel("candidate-with-a-rather-long-name-2026-02", -0.5, words=110),
    )
    settings = Simulation(
        conversations=conversations,
        users=(Group("user", 120, Habits(noise=1.0, tie_gap=0.1), PlantedQuality(0.5)),),
        annotators=(
            Group("careful", 14, Habits(noise=0.6, flip_rate=0.05, tie_gap=0.1), PlantedQuality(0.5)),
            Group("lazy", lazy, Habits(always_left=True, seconds=2.0)),
        ),
        judges_per_pair=2,
        mix=SignalMix(side_by_side=5, thumb=3, rating=1, correction=1),
        repeated_rate=0.02,
        copied_rate=0.05,
        days=60,
        seed=seed,
    )
    return asyncio.run(simulate(settings, TemplateAnswers(models, seed=seed))).frame()


def built(events: pl.DataFrame) -> BuildResult:
    rows_in = events.height + 7
    drops = (
        ("exact_duplicate", "cleaning", "The same event was logged before.", 31),
        ("near_duplicate", "cleaning", "The question is nearly one that was seen before.", 64),
        ("no_consent", "cleaning", "The user did not agree to training.", 12),
        ("tie", "signals", "Neither answer was better, so there is no preference in it.", 45),
        (
            "no_better_answer",
            "signals",
            "A thumbs down needs a better answer to the same question to become a pair.",
            0,
        ),
    )
    steps = [WaterfallStep("quarantined", "Broken lines and impossible values.", rows_in, 7, events.height)]
    for rule, _, why, lost in drops:
        steps.append(WaterfallStep(rule, why, steps[-1].after, lost, steps[-1].after - lost))
    example = Example(("conversation-4/0/careful-1",), f"Is this safe? {ATTACK}", "Yes. " * 40, "No, it is not.")
    answers = (
        "Start small and check the result.",
        f"Sure! Great question. {ATTACK} " + "Plan for twice the time. " * 6,
    )
    pair = ShownPair("p1", "How do I get started with bread dough?", *answers, 0.5, 1.0, ("side_by_side",), ("e1",))
    dropped = sum(lost for *_, lost in drops)
    return BuildResult(
        code_version="0.1.0+abc",
        settings_hash="f3a1" * 4,
        log_format="native",
        inputs=(InputFile("spring-feedback.jsonl", "ab" * 32, 1_234_567),),
        settings=(Setting("signals.thumbs_in_rm", "false", "false", "Thumbs are a weak reward."),
                  Setting("clean.per_user", "50", "200", "No user shall teach the model alone.")),
        rows_in=rows_in,
        quarantined=7,
        quarantine_reasons=(Count("not JSON", 4), Count("unknown choice `left-ish`", 3)),
        events_dropped=dropped,
        events_used=events.height - dropped,
        waterfall=tuple(steps),
        event_drops=tuple(EventDrop(r, s, w, n, (example,) if n else ()) for r, s, w, n in drops),
        row_drops=(RowDrop("per_prompt_cap", "pairs", "More than four pairs of one question.", 9, (example,)),),
        signals=(SignalFate("side_by_side", 800, 700, 0, 700, 0), SignalFate("thumb_up", 200, 190, 120, 0, 190),
                 SignalFate("thumb_down", 90, 90, 0, 12, 90), SignalFate("correction", 80, 80, 80, 80, 0)),
        produced=tuple(
            Produced(kind, split, f"{kind}/{split}.jsonl", n, n // 2 if kind == "kto" else 0, n * 0.9, 214.0,
                     188.0 if kind == "pairs" else 0.0, 40, n * 900, "cd" * 32)
            for kind, total in (("sft", 200), ("pairs", 792), ("kto", 280))
            for split, n in (("train", total * 8 // 10), ("eval", total // 10), ("test", total // 10))
        ),
        made_by=(RuleCount("pairs", "side_by_side", "The chosen answer over the other.", 700),),
        redactions=(Count("EMAIL", 14), Count("PHONE", 3)),
        pairs_to_look_at=(pair, replace(pair, row_id="p2", prompt="What should I watch out for with roman roads?")),
        warnings=("12 % of the pairs come from one user group.",),
        forgotten=0,
    )  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text of a page; checks that tags close in order."""

    VOID = ("meta", "br", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    return log()


@pytest.fixture(scope="module")
def page(events: pl.DataFrame) -> str:
    return render(built(events), events)


def test_what_people_wrote_is_shown_and_never_run(page: str):
    found = Page(page)

    assert not [tag for tag, _ in found.tags if tag in ("script", "img", "iframe", "link", "object")]
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert ATTACK in "".join(found.text)


def test_a_hostile_name_in_any_column_stays_text(events: pl.DataFrame):
    names = ["persona", "topic", "locale", "surface", "source", "model_a", "model_b", "annotator_hash", "user_hash"]
    hostile = events.with_columns(
        pl.format("{}{}", pl.lit(ATTACK + '" onload="x'), pl.col(name)).alias(name) for name in names
    )

    found = Page(render(None, hostile))

    assert not [tag for tag, _ in found.tags if tag in ("script", "img")]
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]


def test_nothing_is_loaded_from_anywhere(page: str):
    found = Page(page)
    addresses = [value for _, attrs in found.tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    addresses = [address for address in addresses if not (address or "").startswith("#")]  # places on the page itself

    assert not addresses and "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page


def test_the_figures_of_the_build_are_on_the_page_and_add_up(page: str, events: pl.DataFrame):
    result, words = built(events), Page(page).words

    assert f"{result.events_used:,} of {result.rows_in:,} pieces of feedback became training data" in words
    assert "200 answers to imitate, 791 preference pairs and 280 single judged answers" in words
    assert "does not add up" not in words
    broken = replace(result, events_dropped=result.events_dropped + 1)
    assert "does not add up" in Page(render(broken, events)).words


def test_the_planted_lazy_annotators_are_the_ones_to_look_at(page: str):
    rows = re.findall(r"<li id=\"person-[0-9a-f]{16}\"><code>([0-9a-f]{16})</code>", page)

    assert set(rows) == {hash_user(f"lazy-{i}", "simulated") for i in range(2)}
    assert "2 people judge in a way that should be looked at" in Page(page).words


def test_the_table_of_annotators_has_everybody_and_their_figures(page: str, events: pl.DataFrame):
    table = page[page.index("Everybody who judged 20 times or more") :].split("</table>")[0]
    rows = re.findall(r"<tr><th scope=\"row\"><code>([^<]*)</code></th><td[^>]*>([^<]*)</td>(.*?)</tr>", table)
    by_person = events.group_by(pl.coalesce("annotator_hash", "user_hash").alias("who")).len()
    enough = {who: n for who, n in by_person.drop_nulls().iter_rows() if n >= 20}
    assert {who: int(n) for who, n, _ in rows} == enough
    assert ["picks one side" in rest for who, _, rest in rows] == sorted(
        ("picks one side" in rest for who, _, rest in rows), reverse=True
    )
    assert any("picks one side" in rest for _, _, rest in rows)


def test_a_log_alone_makes_a_page_without_any_of_its_text(events: pl.DataFrame):
    words = Page(render(None, events)).words
    asked = events["prompt"].list.last().struct.field("content").unique()

    assert f"{events.height:,} pieces of feedback" in words and "Which model do people prefer?" in words
    assert not [text for text in asked if text in words]  # nothing has been redacted yet
    assert "Pairs to look at" not in words and "What was left out" not in words


def test_the_same_log_writes_the_same_bytes_in_any_order(tmp_path: Path, events: pl.DataFrame):
    one = write_report(tmp_path / "one", built(events), events)
    two = write_report(tmp_path / "two", built(events), events.sample(fraction=1.0, shuffle=True, seed=3))

    assert one.name == "report.html" and one.read_bytes() == two.read_bytes()


def test_what_all_events_share_is_one_sentence_and_no_bar(events: pl.DataFrame):
    words = Page(render(None, events.with_columns(surface=pl.lit("kiosk")))).words

    assert "place in the product: kiosk" in words and "By place in the product" not in words
    assert "By kind of user" in words  # four of them: bars


def test_a_cut_answer_is_marked_and_an_unknown_margin_left_out(events: pl.DataFrame):
    result = built(events)
    first, second = result.pairs_to_look_at
    shown = replace(result, pairs_to_look_at=(replace(first, rejected_cut=True), replace(second, margin=0.0)))
    page = render(shown, events)

    assert page.count("(cut off)") == 1 and page.count("margin <b>") == 1
    assert page.index(first.chosen) < page.index("(cut off)") < page.index(second.prompt)


def test_an_empty_log_is_said_to_be_empty():
    words = Page(render(None, pl.DataFrame(schema=EVENT_SCHEMA))).words

    assert "This log holds no feedback." in words


def test_thumbs_alone_make_no_claim_about_agreement():
    words = Page(render(None, log(200).filter(pl.col("kind") == "thumb"))).words

    assert "nothing can be said about agreement" in words and "Which model do people prefer?" not in words


def test_a_few_pairs_judged_twice_are_no_verdict_on_the_people():
    words = Page(render(None, log(8, lazy=0))).words

    assert "How far it can be trusted is not known yet: only" in words and "close to chance" not in words
    assert "Too few to tell." in words and "Usual for opinions" not in words


def test_a_log_without_times_sides_people_or_models_is_still_a_page():
    nothing = [
        "time",
        "shown_left",
        "user_hash",
        "annotator_hash",
        "model_a",
        "model_b",
        "persona",
        "topic",
        "seconds_taken",
    ]
    bare = log(200).with_columns(pl.lit(None, EVENT_SCHEMA[name]).alias(name) for name in nothing)

    words = Page(render(None, bare)).words

    assert "times not logged" in words and "Which answer stood on the left" in words
    assert "A hashed id of who judged" in words


def test_bars_lie_where_their_values_are_and_never_outside():
    drawn = interval(0.25, 0.5, 0.75, SHARES, label="x")
    assert '<rect class="spread" x="25.00" y="4" width="50.00"' in drawn and 'x1="50.00" x2="50.00" y1="1"' in drawn
    assert 'width="100.00"' in bar(9.0, Scale(0.0, 3.0), label="x") and 'width="0.00"' in bar(
        1.0, Scale(0.0, 0.0), label="x"
    )


def test_words_of_people_are_counted_and_redacted_and_only_shown_of_a_build():
    events = log(200).with_columns(
        reasons=pl.Series([["wrong", "ask joe@example.com"] if n % 3 == 0 else None for n in range(log(200).height)]),
        comment=pl.when(pl.int_range(pl.len()) == 5).then(pl.lit(f"mail joe@example.com {ATTACK}")),
    )
    page = render(built(events), events)
    assert "joe@example.com" not in page and "mail &lt;EMAIL_1&gt;" in page and "<script>alert" not in page
    given = f"{events['reasons'].drop_nulls().len():,}"
    assert re.search(rf'<th scope="row" dir="auto">wrong</th><td class="n">{given}</td>', page)
    assert "What people said" not in render(None, events)


def test_flagged_people_lead_to_judgements_of_theirs(page: str):
    for name in re.findall(r'<a href="#person-([0-9a-f]{16})">', page):
        (theirs,) = re.findall(rf'<li id="person-{name}">.*?</li>\n', page, re.DOTALL)
        assert theirs.count('class="example"') == 4
    assert 'href="#person-' in page


def test_what_to_do_begins_with_the_strongest_finding():
    def steps(lazy: int) -> list[str]:
        return re.findall(r"<li>(.*?)</li>", render(None, log(600, lazy=lazy)).partition("What to do next")[2])

    assert "Does the side of the screen decide? 89" in steps(40)[0]
    assert not any("side of the screen" in step or "carelessly" in step for step in steps(0))


def test_the_page_does_not_praise_sides_that_were_not_shuffled():
    """The choices for the left and for the right are even; one model stands on the left four times in five, or not."""

    def page(left: int) -> str:
        events = log(600, lazy=0).filter(pl.col("kind") == "side_by_side")
        stood = pl.when(pl.int_range(pl.len()) % 10 < left).then(pl.lit("a")).otherwise(pl.lit("b"))
        shown = (
            pl.when(pl.col("model_a") < pl.col("model_b")).then(stood).otherwise(stood.replace({"a": "b", "b": "a"}))
        )
        picked = pl.when(pl.int_range(pl.len()) % 2 == 0).then(shown).otherwise(shown.replace({"a": "b", "b": "a"}))
        return render(None, events.with_columns(shown_left=shown, choice=picked))

    assert "The side of the screen does not decide." in page(5) and "sides were not shuffled" not in page(5)
    assert "The side of the screen does not decide." not in page(8) and "sides were not shuffled" in page(8)
