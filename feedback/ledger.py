"""What became of every event: kept, or dropped by exactly one named rule. The counts always add up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl
from raylign.conf.errors import RunFailed
from raylign.feedback.build_result import EventDrop, Example, RowDrop, WaterfallStep
from raylign.feedback.filtering import Filtered
from raylign.feedback.rules import DROP_RULES
from raylign.feedback.turns import last_user, shown, turns_in
from raylign.feedback.working import IN_CONVERSATION

_EXAMPLES = 5
_EXCERPT = 300
_TURN, _TURNS = 4000, 40  # characters of a turn, and turns, of a conversation shown whole
_NO_TEXT = frozenset({"no_consent"})  # nobody may look at these; of forgotten events not even the ids remain


@dataclass(slots=True)
class _Dropped:
    ids: list[pl.Series] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(len(ids) for ids in self.ids)


class Ledger:
    """Collects what filters drop."""

    def __init__(self) -> None:
        self._events: dict[str, _Dropped] = {}
        self._rows: dict[tuple[str, str], _Dropped] = {}
        self._lost: list[pl.DataFrame] = []

    def events(self, filtered: Filtered) -> pl.DataFrame:
        """Note dropped events of a working frame; what is kept, to go on with.

        A correction found in a conversation is no event of its own: it leaves without being counted.
        """
        for rule, gone in _by_rule(filtered.dropped.filter(pl.col("kind") != IN_CONVERSATION)):
            kept = self._events.setdefault(rule, _Dropped())
            kept.ids.append(gone["event_id"])
            if rule == "forgotten":
                continue
            texts = gone.select(pl.concat_list("event_id").alias("events"), "prompt", answer="answer_a",
                                other=pl.coalesce("answer_b", "corrected"))  # fmt: skip
            kept.examples += _examples(texts, _EXAMPLES - len(kept.examples), hidden=rule in _NO_TEXT)
        return filtered.kept

    def rows(self, kind: str, filtered: Filtered) -> pl.DataFrame:
        """Note dropped candidate rows of a kind; what is kept, to go on with."""
        for rule, gone in _by_rule(filtered.dropped):
            kept = self._rows.setdefault((kind, rule), _Dropped())
            kept.ids.append(gone["prompt"])
            kept.examples += _examples(gone, _EXAMPLES - len(kept.examples))
            self._lost.append(gone.select(pl.col("events").alias("event_id"), "rule").explode("event_id"))
        return filtered.kept

    def close(self, work: pl.DataFrame, used: pl.Series, unused: pl.DataFrame) -> None:
        """Give every event of `work` that made no row its reason: the rule that lost its first row, else `unused`'s.

        `used`: ids of events that rows name; `unused`: `work` with a `rule` for the case that nothing was made of it.
        """
        left = unused.filter((pl.col("kind") != IN_CONVERSATION) & ~pl.col("event_id").is_in(used.implode()))
        if self._lost:
            lost = pl.concat(self._lost).unique("event_id", keep="first", maintain_order=True)
            left = left.join(lost.rename({"rule": "lost"}), on="event_id", how="left", maintain_order="left")
            left = left.with_columns(rule=pl.coalesce("lost", "rule")).drop("lost")
        self.events(Filtered(work.head(0), left))

    @property
    def dropped(self) -> int:
        """How many events were dropped."""
        return sum(dropped.count for dropped in self._events.values())

    def dropped_events(self) -> pl.DataFrame:
        """`event_id` and `rule`, sorted. Forgotten events are in no list."""
        frames = [pl.DataFrame({"event_id": [], "rule": []}, schema={"event_id": pl.String, "rule": pl.String})]
        for rule, dropped in self._events.items():
            if rule != "forgotten":
                ids = pl.concat(dropped.ids).alias("event_id")
                frames.append(pl.DataFrame({"event_id": ids}).with_columns(rule=pl.lit(rule)))
        return pl.concat(frames).sort("event_id", "rule")

    def event_drops(self) -> tuple[EventDrop, ...]:
        """By rule, in the order in which rules work."""
        found = []
        for rule, (stage, why) in DROP_RULES.items():
            if rule in self._events:
                dropped = self._events[rule]
                found.append(EventDrop(rule, stage.value, why, dropped.count, tuple(dropped.examples)))
        return tuple(found)

    def row_drops(self) -> tuple[RowDrop, ...]:
        """By kind and rule."""
        return tuple(
            RowDrop(
                rule, kind, DROP_RULES[rule][1], self._rows[kind, rule].count, tuple(self._rows[kind, rule].examples)
            )
            for kind, rule in sorted(self._rows, key=lambda key: (key[0], list(DROP_RULES).index(key[1])))
        )

    def waterfall(self, *, read: int, quarantined: int, used: int) -> tuple[WaterfallStep, ...]:
        """From everything read to everything used. Raises RunFailed when an event was lost or counted twice."""
        steps = [WaterfallStep("in", "Judgements in the logs.", read, 0, read)]
        losses = [("quarantined", "The row is broken; quarantine.jsonl says how.", quarantined)]
        losses += [(drop.rule, drop.why, drop.events) for drop in self.event_drops()]
        for name, why, lost in losses:
            before = steps[-1].after
            steps.append(WaterfallStep(name, why, before, lost, before - lost))
        if steps[-1].after != used:
            raise RunFailed(
                f"feedback build: counts do not add up: of {read} judgements {steps[-1].after} should be used, "
                f"{used} are."
            )
        return tuple(steps)


def excerpt(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]} ..."


def _by_rule(dropped: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    for part in dropped.partition_by("rule", maintain_order=True):
        yield part["rule"][0], part


def _examples(rows: pl.DataFrame, most: int, *, hidden: bool = False) -> list[Example]:
    asked = last_user(pl.col("prompt")).alias("asked")
    found = []
    for events, packed, *texts in (
        rows.head(max(most, 0)).select("events", "prompt", asked, "answer", "other").iter_rows()
    ):
        prompt, answer, other = ("" if hidden else excerpt(text or "") for text in texts)
        texts_shown = () if hidden else whole(packed or "", ("answer", texts[1]), ("other answer", texts[2]))
        found.append(Example(tuple(events), prompt, answer, other, texts_shown))
    return found


def whole(packed: str, *answers: tuple[str, str | None]) -> tuple[tuple[str, str], ...]:
    """A conversation with its answers, turn by turn; nothing where an excerpt shows all of it."""
    turns = [*turns_in(packed), *((role, shown(text)) for role, text in answers if text)]
    if len(turns) <= 1 + len(answers) and all(len(text) <= _EXCERPT for _, text in turns):
        return ()
    return tuple((role, text if len(text) <= _TURN else f"{text[:_TURN]} ...") for role, text in turns[-_TURNS:])
