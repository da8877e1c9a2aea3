"""The one place that decides what a logged score means: each name once, from all values of it in the whole log.

Importers give raw values with their score's name (`LoggedValue`); a first pass collects them (`Collector`), `decide`
makes one `Reading` a name, and the second pass asks it what each value says. What is not known raises RowProblem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from raylign.feedback.events import Choice, Event, EventKind
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.score_names import Named, named
from raylign.feedback.importers.values import plain_value, says_good, scaled
from raylign.feedback.scores import Good, Scale, ScoreRead, ScoreSetting

SETTING = "reading.scores"
_FLIPPED = {Choice.A: Choice.B, Choice.B: Choice.A}
_MOST_VALUES = 1000  # different ones remembered; the ends are always known
_STARS = ("star", "csat", "nps", "likert", "grade")  # never asked as yes or no
_MOST_SHOWN = 6
_FAULT_WHY = "named after a fault: a yes is bad, a no need not be good"


@dataclass(frozen=True, slots=True)
class LoggedValue:
    """One value as logged, and what the tool itself says of its name: a scale, that it means approval, a comparison."""

    name: str
    value: object
    scale: Scale | None = None
    approves: bool = False  # the tool's own field for approval, or the user's own mapping: the name need not say so
    good: Good | None = None  # which end of it is good, where that is declared
    hint: str = ""  # where its scale is stated, of a rating that came without: its numbers alone say nothing
    compares: bool = False  # of two answers: a side, or numbers of which the higher is preferred


class As(Enum):
    """How values are read."""

    THUMB = "thumb"
    RATING = "rating"
    FAULT = "thumb down"  # a yes is bad, a no says nothing
    ASIDE = "quarantined"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one value says; just one of the two is known."""

    thumb: int | None = None
    rating: float | None = None

    @property
    def kind(self) -> EventKind:
        """Of an event with it."""
        return EventKind.THUMB if self.rating is None else EventKind.RATING

    def on(self, event: Event, name: str) -> Event:
        """The event with this judgement."""
        return replace(event, kind=self.kind, thumb=self.thumb, rating=self.rating, score=name)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one name means."""

    name: str
    numbers: As
    yes_no: As
    good: Good
    scale: Scale | None
    why: str
    aside: str  # the sentence for values that are quarantined
    unfounded_zero: bool = False  # 0 beside -1 and 1: neither
    words: Mapping[str, bool] = field(default_factory=dict)
    sides: bool = False  # of a choice: its numbers are 1 and 2

    def judge(self, raw: object) -> Verdict:
        """What a value says. Raises RowProblem where that is not known."""
        value = plain_value(raw)
        if value is None:
            raise RowProblem(f"score `{self.name[:60]}` has no value")
        if isinstance(value, str):
            return self._word(value)
        if isinstance(value, bool):
            return self._yes_no(value, self.yes_no)
        if self.numbers is As.RATING and self.scale is not None:
            share = scaled(value, self.scale.low, self.scale.high, self.name[:60])
            return Verdict(rating=share if self.good is Good.HIGH else 1 - share)
        if self.numbers is As.ASIDE:
            raise RowProblem(self.aside)
        if value == 0 and self.unfounded_zero:
            return Verdict(rating=0.5)
        return self._yes_no(value > 0, self.numbers)

    def _yes_no(self, yes: bool, how: As) -> Verdict:
        if how is As.THUMB:
            return Verdict(thumb=1 if yes is (self.good is Good.HIGH) else -1)
        if how is As.FAULT and yes:
            return Verdict(thumb=-1)
        if how is As.FAULT:
            raise RowProblem(
                f"score `{self.name[:60]}` is named after a fault, and an answer without it need not be good; "
                f"{_say(self.name, 'good: low')} to count it as good"
            )
        raise RowProblem(self.aside)

    def _word(self, value: str) -> Verdict:
        approves = self.words.get(value.lower())
        if approves is not None:
            return Verdict(thumb=1 if approves else -1)
        good = says_good(value)
        if good is None:
            raise RowProblem(
                f"score `{self.name[:60]}` says `{value[:40]}`, which is no word for good or bad; "
                f"{_say(self.name, 'words: {WORD: good}')}"
            )
        if named(self.name) in (Named.FAULT, Named.MIXED) and not self.words:
            raise RowProblem(
                f"score `{self.name[:60]}` is named after a fault and says `{value[:40]}`; " + _words(self.name)
            )
        return Verdict(thumb=1 if good else -1)


@dataclass(frozen=True, slots=True)
class Scores:
    """All names of a log."""

    by_name: Mapping[str, Reading] = field(default_factory=dict)
    table: tuple[ScoreRead, ...] = ()
    settings: Mapping[str, ScoreSetting] = field(default_factory=dict)

    def judge(self, logged: LoggedValue) -> Verdict:
        """What one value says. Raises RowProblem."""
        return self._reading(logged).judge(logged.value)

    def choice(self, logged: LoggedValue, word: Callable[[object], Choice | None]) -> Choice:
        """The side a value names: by `word`, or 1 and 2 where the log has both and no other number.

        Raises RowProblem: 0 and 1, or 1 alone, may be counted from 0.
        """
        value = plain_value(logged.value)
        if isinstance(value, float):
            if not self._reading(logged).sides:
                raise RowProblem(
                    f"`{logged.name[:60]}` names sides by number, and its numbers in this log are not 1 and 2, so "
                    f"`{value:g}` may be either; map the column and say under `values` which side each number is"
                )
            return self.side(logged.name, Choice.A if value == 1 else Choice.B)
        choice = word(logged.value)
        if choice is None:
            raise RowProblem(f"unknown choice `{str(logged.value)[:40]}`")
        return self.side(logged.name, choice)

    def _reading(self, logged: LoggedValue) -> Reading:
        reading = self.by_name.get(logged.name)
        if reading is not None:
            return reading
        seen = Seen(logged)
        seen.add(logged)
        return decide(seen, self.settings.get(logged.name))

    def side(self, name: str, choice: Choice) -> Choice:
        """The better side, where `name` may ask for the worse. Raises RowProblem."""
        setting = self.settings.get(name)
        if setting is not None:
            return _FLIPPED.get(choice, choice) if setting.good is Good.LOW else choice
        if named(name) in (Named.FAULT, Named.MIXED):
            raise RowProblem(
                f"score `{name[:60]}` is named after a fault, so the side it names may be the worse; "
                f"{_say(name, 'good: low')} if it is, high if not"
            )
        return choice


class Seen:
    """All values of one name."""

    def __init__(self, first: LoggedValue) -> None:
        self.name = first.name
        self.declared = first
        self.count = 0
        self.values: Counter[float | str] = Counter()
        self.low, self.high, self.fraction, self.yes_no = float("inf"), float("-inf"), False, False

    def add(self, logged: LoggedValue) -> None:
        """Count a value; one that is none of the known kinds counts and shows nothing."""
        self.count += 1
        try:
            value = plain_value(logged.value)
        except RowProblem:
            return
        if value is None:
            return
        shown: float | str = ("true" if value else "false") if isinstance(value, bool) else value
        if shown in self.values or len(self.values) < _MOST_VALUES:
            self.values[shown] += 1
        if isinstance(value, bool):
            self.yes_no = True
        elif isinstance(value, float):
            self.low, self.high = min(self.low, value), max(self.high, value)
            self.fraction |= not value.is_integer()

    def shown(self) -> tuple[str, ...]:
        """The most frequent values; of words only short ones, for a long text is somebody's."""
        most = sorted(self.values.items(), key=lambda entry: (-entry[1], f"{entry[0]}"))
        words = [value if isinstance(value, str) else f"{value:g}" for value, _ in most]
        return tuple(word for word in words if len(word) <= 20 and word.count(" ") < 3)[:_MOST_SHOWN]


class Collector:
    """The first pass."""

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}

    def add(self, logged: Iterable[LoggedValue]) -> None:
        """Count the scores of a row."""
        for one in logged:
            if one.name not in self._seen:
                self._seen[one.name] = Seen(one)
            self._seen[one.name].add(one)

    def result(self, settings: Mapping[str, ScoreSetting]) -> Scores:
        """The table."""
        by_name = {name: decide(seen, settings.get(name)) for name, seen in self._seen.items()}
        order = sorted(self._seen.values(), key=lambda seen: (-seen.count, seen.name))
        return Scores(by_name, tuple(_line(seen, by_name[seen.name]) for seen in order), settings)


def decide(seen: Seen, setting: ScoreSetting | None) -> Reading:
    """What a name means: by the setting, else by the tool, else by the name and the values."""
    name, declared = seen.name, seen.declared
    if setting is not None:
        return _as_set(seen, setting)
    meaning = named(name)
    if meaning is Named.UNKNOWN and declared.approves:
        meaning = Named.APPROVAL
    if declared.good is not None:
        return _as_set(seen, ScoreSetting(declared.good, declared.scale))
    if declared.compares:
        sides = (seen.low, seen.high, seen.fraction) == (1, 2, False)
        asks = "which side is better" if meaning not in (Named.FAULT, Named.MIXED) else "named after a fault"
        return Reading(name, As.THUMB, As.ASIDE, Good.HIGH, None, asks, "", sides=sides)
    if meaning is Named.FAULT:
        numbers = As.FAULT if not seen.fraction and seen.low >= 0 and seen.high <= 1 else As.ASIDE
        aside = f"score `{name[:60]}` is named after a fault, so a high value may be bad; {_say(name, _example(seen))}"
        return Reading(name, numbers, As.FAULT, Good.LOW, None, _FAULT_WHY, aside)
    if meaning is Named.MIXED:
        aside = f"score `{name[:60]}` names a fault and its absence, so yes may mean either; {_say(name, 'good: high')}"
        return _aside(seen, "names a fault and its absence", aside)
    if meaning is Named.ORDER:
        aside = f"score `{name[:60]}` is a place in an order, so 1 may be the best; {_say(name, _example(seen, 'low'))}"
        return _aside(seen, "a place in an order: 1 may be the best", aside)
    if meaning is Named.UNKNOWN:
        aside = f"score `{name[:60]}`: its name does not say whether high is good; {_say(name, _example(seen))}"
        return _aside(seen, "the name does not say whether high is good", aside)
    return _approval(seen)


def _approval(seen: Seen) -> Reading:
    name, declared = seen.name, seen.declared
    if declared.scale is not None:
        return Reading(name, As.RATING, As.THUMB, Good.HIGH, declared.scale, "the tool says its scale", "")
    if declared.approves and seen.low >= 0 and seen.high <= 1 and seen.fraction:
        return Reading(name, As.RATING, As.THUMB, Good.HIGH, Scale(0, 1), "numbers from 0 to 1", "")
    if seen.low > seen.high:
        return Reading(name, As.THUMB, As.THUMB, Good.HIGH, None, "named after approval", "")
    if declared.hint:
        return _off_scale(seen)
    if any(word in name.lower() for word in _STARS) and not seen.fraction and seen.low >= 1:
        return _off_scale(seen)
    if seen.low < -1 or seen.high > 1 or (seen.fraction and seen.low < 0):
        return _off_scale(seen)
    if seen.fraction:
        return Reading(name, As.RATING, As.THUMB, Good.HIGH, Scale(0, 1), "numbers from 0 to 1", "")
    zero = -1.0 in seen.values and 0.0 in seen.values
    why = "1 is up, -1 is down, 0 is neither" if zero else "1 is up, 0 or -1 is down"
    return Reading(name, As.THUMB, As.THUMB, Good.HIGH, None, f"named after approval; {why}", "", zero)


def _off_scale(seen: Seen) -> Reading:
    ran = f"only {seen.low:g}" if seen.low == seen.high else f"{seen.low:g} to {seen.high:g}"
    aside = (
        f"score `{seen.name[:60]}` has values {ran} in this log, a scale not known here, so none of its numbers "
        f"is read; {seen.declared.hint and seen.declared.hint + ', or '}{_say(seen.name, _example(seen))}"
    )
    return Reading(seen.name, As.ASIDE, As.THUMB, Good.HIGH, None, "its scale is not known", aside)


def _aside(seen: Seen, why: str, aside: str) -> Reading:
    return Reading(seen.name, As.ASIDE, As.ASIDE, Good.HIGH, None, why, aside)


def _as_set(seen: Seen, setting: ScoreSetting) -> Reading:
    scale = setting.scale or seen.declared.scale
    if scale is None and seen.fraction and seen.low >= 0 and seen.high <= 1:
        scale = Scale(0, 1)
    numbers = As.THUMB if scale is None else As.RATING
    aside = ""
    if scale is None and (seen.low < -1 or (seen.high > 1)):
        numbers, aside = (
            As.ASIDE,
            f"{SETTING} gives score `{seen.name[:60]}` no scale; {_say(seen.name, _example(seen))}",
        )
    return Reading(seen.name, numbers, As.THUMB, setting.good, scale, f"set by {SETTING}", aside, words=setting.words)


def _example(seen: Seen, good: str = "high") -> str:
    if named(seen.name) is Named.FAULT:
        good = "low"
    if seen.low <= seen.high and (seen.low < 0 or seen.high > 1):
        return f"scale: [{min(seen.low, 1):g}, {max(seen.high, 5):g}], good: {good}"
    return f"good: {good}"


def _say(name: str, what: str) -> str:
    return f"say {SETTING}={{{name[:60]}: {{{what}}}}}"


def _words(name: str) -> str:
    return _say(name, "words: {WORD: good or bad}")


def _line(seen: Seen, reading: Reading) -> ScoreRead:
    has_words = any(isinstance(value, str) and value not in ("true", "false") for value in seen.values)
    used = [reading.numbers] if seen.low <= seen.high else []
    used += [reading.yes_no] if seen.yes_no else []
    read_as = list(dict.fromkeys(how.value for how in used))
    if has_words:
        read_as.append("words for good and bad")
    if seen.declared.compares:
        read_as = ["choice"]
    scale = "?" if As.ASIDE in used else "yes or no" if used else "words" if has_words else "?"
    if seen.declared.compares:
        scale = "sides"
    if reading.scale is not None:
        scale = f"{reading.scale.low:g} to {reading.scale.high:g}"
    known = As.ASIDE not in used and bool(used or has_words)
    return ScoreRead(seen.name, seen.count, seen.shown(), scale, reading.good.value if known else "?",
                     ", ".join(dict.fromkeys(read_as)) or "nothing", reading.why)  # fmt: skip
