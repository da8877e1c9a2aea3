"""Corrections inside conversations: "no, I meant ...", "that's wrong", "try again", answers edited in place.

Rules over turns, and what a model said of turns where that is given. What is found joins the working frame as events
of kind IN_CONVERSATION or JUDGED: `prompt` is the conversation up to the corrected question, asked in the person's
final words; `answer_a` the answer that was wrong, `corrected` the one that was accepted.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
from raylign.feedback.correction_rules import ASKS_AGAIN, ASKS_ON, CORRECTS, DOES_NOT, RETRY, TELLS_ANSWER
from raylign.feedback.events import EventKind
from raylign.feedback.filtering import of_each_row
from raylign.feedback.judged_turns import turn_key
from raylign.feedback.turns import ROLE, TURN
from raylign.feedback.working import IN_CONVERSATION, JUDGED, normalised

_PART = 20_000  # conversations taken into their turns at a time
_COMPLAINT = (
    r"(?i)^(?:(?:no|nope|nah|sorry|wait|hmm+|well|ok(?:ay)?|wrong|incorrect|not quite|actually|"
    r"(?:that|this|it)(?:'s| is| was) (?:wrong|not right|not correct|incorrect|"
    r"not what i (?:asked(?: for)?|meant|wanted))|"
    r"(?:that|this|it) (?:isn'?t|wasn'?t) (?:right|correct|what i (?:asked(?: for)?|meant|wanted))|"
    r"you misunderstood(?: me| my question)?)\b[\s,.!:;\u2014-]*)+"
)
_THANKS = (
    r"(?i)^\s*(?:(?:ok(?:ay)?|great|yes|yeah|ah|oh|ha)\b[,.! ]*)?"
    r"(?:thank|thanks|thx|perfect|exactly|awesome|excellent|brilliant|wonderful|much better|"
    r"that'?s (?:it|right|better|correct|perfect|great)|that is (?:right|better|correct|perfect|great)|"
    r"(?:that |it )works|works now)\b"
)
_BUT = r"(?i)^[^.!?\n]{0,60}\b(?:but|however|except|although|still)\b"
_APOLOGY = (
    r"(?i)^\s*(?:(?:oh|ah)[,!. ]+)?(?:you(?:'re| are) (?:absolutely |completely |quite )?right|(?:i(?:'m| am) )?"
    r"(?:so |very )?sorry|(?:my|i) apolog(?:ies|i[sz]e)|apologies|my mistake|thank you for (?:the|your) correction|"
    r"thanks for (?:the|your) correction)[^.!?\n]*[.!?]\s*"
)


def is_correction(text: pl.Expr) -> pl.Expr:
    """Whether a user's turn says that the answer before it was wrong or not meant."""
    turn_text = text.str.to_lowercase().str.replace_all("\u2019", "'").str.strip_chars()
    asks_on = turn_text.str.contains(ASKS_ON) & ~turn_text.str.contains(ASKS_AGAIN)
    return turn_text.str.contains(CORRECTS) & ~turn_text.str.contains(DOES_NOT) & ~asks_on


def _thanks(text: pl.Expr) -> pl.Expr:
    """Whether a user's turn opens with thanks for the answer before it, without a but."""
    return text.str.contains(_THANKS) & ~text.str.contains(_BUT) & ~is_correction(text)


def without_apology(text: pl.Expr) -> pl.Expr:
    """An answer without the apology it opens with for the one before it."""
    return text.str.replace(_APOLOGY, "")


def find_corrections(work: pl.DataFrame, *, good_rating: float, told: frozenset[str] = frozenset()) -> pl.DataFrame:
    """Rows to add to the working frame, one for each corrected and then accepted answer.

    Accepted means: thumbed up, rated `good_rating` or better, edited into shape by the person, or thanked for. `told`:
    keys (feedback/judged_turns.py) of turns that a model calls corrections, beside what the rules find.
    """
    found = pl.concat([_corrected(part, told) for part in _accepted_parts(work, good_rating)])
    return _without_liked(work, _as_events(work, found, pl.col("content_1")), good_rating)


def turns_to_judge(work: pl.DataFrame, *, good_rating: float) -> pl.DataFrame:
    """`event_id`, `question`, `answer`, `text`, `by_rules`: users' turns that make a row if they correct."""
    parts = [
        part.select(
            "event_id",
            question="content",
            answer="content_1",
            text="content_2",
            by_rules=is_correction(pl.col("content_2")),
        )
        for part in _accepted_parts(work, good_rating)
    ]
    return pl.concat(parts).unique(["answer", "text"], keep="first", maintain_order=True)


def _accepted_parts(work: pl.DataFrame, good_rating: float) -> Iterator[pl.DataFrame]:
    """Question, answer, turn and accepted answer, some thousand conversations at a time: all turns would be large."""
    long = work.filter(pl.col("prompt").str.count_matches(TURN) >= 2)
    for part in long.iter_slices(_PART) if long.height else [long]:
        yield _turns(part, good_rating=good_rating).filter(
            (pl.col("role") == "user")
            & (pl.col("role_1") == "assistant")
            & (pl.col("role_2") == "user")
            & (pl.col("role_3") == "assistant")
            & ~_asks(pl.col("content_1"))  # what follows a question of the assistant's answers it
            & (pl.col("accepted") | _thanks(pl.col("content_4")))
        )


def _corrected(window: pl.DataFrame, told: frozenset[str]) -> pl.DataFrame:
    """Those whose turn is a correction, with the question in final words."""
    window = window.with_columns(by_rules=is_correction(pl.col("content_2")))
    if told:
        keys = [turn_key(*texts) for texts in window.select("content_1", "content_2").iter_rows()]
        judged = pl.Series("judged", [key in told for key in keys], dtype=pl.Boolean)
        window = window.with_columns(judged).filter(pl.col("by_rules") | pl.col("judged"))
    else:
        window = window.filter("by_rules")
    kind = pl.when("by_rules").then(pl.lit(IN_CONVERSATION)).otherwise(pl.lit(JUDGED))
    return window.with_columns(kind=kind, intent=_intent(), corrected=without_apology(pl.col("content_3")))


def _without_liked(work: pl.DataFrame, found: pl.DataFrame, good_rating: float) -> pl.DataFrame:
    """Findings without those whose original somebody liked: nothing inferred speaks against it."""
    liked = work.filter((pl.col("thumb") == 1) | (pl.col("rating") >= good_rating))
    key = [pl.coalesce("conversation_id", "event_id").alias("talk"), pl.col("answer_a")]
    return found.with_columns(key).join(liked.select(key), on=["talk", "answer_a"], how="anti", nulls_equal=True,
                                        maintain_order="left").drop("talk")  # fmt: skip


def find_edits(work: pl.DataFrame, *, good_rating: float) -> pl.DataFrame:
    """Rows for answers that stand otherwise in a later turn of their conversation: edited, or generated anew.

    The answer the conversation went on with was accepted over the one that was logged. Apps also shorten and summarise
    what they send again, so it counts only where the logged answer was disliked, or where the later one keeps most of
    its words; never where it is a beginning or a shorter form of the logged one, and never against a liked answer.
    """
    asked = work.filter(pl.col("conversation_id").is_not_null())
    turn = rf"(?s)^(.*){TURN}assistant{ROLE}([^{TURN}]*){TURN}user{ROLE}[^{TURN}]*$"
    later = _later(asked, turn)
    asked = asked.join(
        later.select("conversation_id").unique(), on="conversation_id", how="semi", maintain_order="left"
    )
    liked, disliked = (pl.col("thumb") == 1) | (pl.col("rating") >= good_rating), pl.col("thumb") == -1
    logged = asked.select(
        "conversation_id",
        "event_id",
        at_hash=pl.col("prompt").hash(),
        original="answer_a",
        first="row_order",
        liked=liked.fill_null(False).any().over("conversation_id", pl.col("prompt").hash(), pl.col("answer_a").hash()),
        disliked=disliked.fill_null(False),
    )
    joined = logged.join(later, on=["conversation_id", "at_hash"], how="inner")
    both = joined.with_columns(at=pl.col("whole").str.extract(turn, 1), corrected=pl.col("whole").str.extract(turn, 2))
    both = both.filter(
        (pl.col("original").str.strip_chars() != pl.col("corrected").str.strip_chars())
        & (normalised(pl.col("original")) != normalised(pl.col("corrected")))
        & (pl.col("later_order") > pl.col("first"))
        & ~pl.col("liked")
        & ~_shortened(pl.col("original"), pl.col("corrected"))
        & (pl.col("disliked") | _keeps_most(pl.col("original"), pl.col("corrected")))
    )
    both = both.sort("first", "later_order").unique(["event_id"], keep="first", maintain_order=True)
    return (
        work.drop("prompt", "answer_a", "corrected", "events", "kind")
        .join(both.drop("conversation_id"), on="event_id", how="inner", maintain_order="left")
        .with_columns(
            kind=pl.lit(IN_CONVERSATION),
            prompt="at",
            answer_a="original",
            events=pl.concat_list("event_id", "later_event"),
        )
        .select(work.columns)
    )


def _later(asked: pl.DataFrame, turn: str) -> pl.DataFrame:
    """Events whose prompt goes on after an answer; `at_hash` is of the prompt that the answer was given to."""
    long = asked.filter(pl.col("prompt").str.contains(f"{TURN}assistant{ROLE}"))
    return long.select(
        "conversation_id",
        at_hash=of_each_row(long, pl.col("prompt").str.extract(turn, 1).hash()),
        whole="prompt",
        later_event=pl.col("event_id"),
        later_order="row_order",
    ).filter(pl.col("whole").str.contains(turn))


def _asks(text: pl.Expr) -> pl.Expr:
    """Whether an answer ends with a question, a bracket or a sign after it aside."""
    return text.str.contains(r"[?\uff1f\u061f][^\p{L}\p{N}]*$")


def _shortened(original: pl.Expr, later: pl.Expr) -> pl.Expr:
    """Whether the later text is how an app cuts or sums up the original."""
    old, new = normalised(original), normalised(later)
    marked = later.str.contains(
        r"(?i)\[(?:\.\.\.|\u2026|truncated|summary)|(?:\.\.\.|\u2026)\s*$|^\s*(?:summary|tl;dr)\b"
    )
    return old.str.starts_with(new) | marked | (new.str.len_chars() * 2 < old.str.len_chars())


def _keeps_most(original: pl.Expr, later: pl.Expr) -> pl.Expr:
    """Whether two texts share half of their words."""
    old, new = (normalised(text).str.split(" ") for text in (original, later))
    return old.list.set_intersection(new).list.len() * 2 >= old.list.set_union(new).list.len()


def _turns(long: pl.DataFrame, *, good_rating: float) -> pl.DataFrame:
    """One row a turn of every conversation, with the four turns after it; the answer is the last."""
    edited = pl.col("kind") == EventKind.CORRECTION.value
    liked = edited | (pl.col("thumb") == 1) | (pl.col("rating") >= good_rating)
    judged = pl.col("kind") != EventKind.SIDE_BY_SIDE.value
    answer = pl.when(edited).then(pl.col("corrected")).otherwise(pl.col("answer_a"))
    split = long.select(
        "event_id",
        "row_order",
        liked=liked.fill_null(False) & judged,
        turn_list=pl.when(judged)
        .then(pl.concat_str(pl.col("prompt"), pl.lit(f"{TURN}assistant{ROLE}"), answer))
        .otherwise(pl.col("prompt"))
        .str.split(TURN),
    )
    turns = split.explode("turn_list").with_columns(
        role=pl.col("turn_list").str.extract(f"^([a-z]+){ROLE}"),
        content=pl.col("turn_list").str.replace(f"^[a-z]+{ROLE}", ""),
    )
    after = [pl.col(name).shift(-k).over("row_order").alias(f"{name}_{k}") for k in (1, 2, 3, 4)
             for name in ("role", "content")]  # fmt: skip
    before = pl.col("turn_list").cum_count().over("row_order").alias("position")
    turns = turns.with_columns(*after, before)
    return turns.with_columns(
        accepted=pl.col("liked") & pl.col("role_4").is_null(), content_4=pl.col("content_4").fill_null("")
    )


def _intent() -> pl.Expr:
    """The question in final words: the first one, and what the correction adds to it without its complaint."""
    turn_text = pl.col("content_2").str.strip_chars()
    adds = turn_text.str.replace(_COMPLAINT, "").str.strip_chars()
    lower = turn_text.str.to_lowercase()
    says_nothing = lower.str.contains(RETRY) | lower.str.contains(TELLS_ANSWER) | (adds.str.count_matches(r"\w+") < 2)
    sentence = adds.str.slice(0, 1).str.to_uppercase() + adds.str.slice(1)
    return pl.when(says_nothing).then(pl.col("content")).otherwise(pl.concat_str("content", pl.lit("\n\n"), sentence))


def _as_events(work: pl.DataFrame, found: pl.DataFrame, original: pl.Expr) -> pl.DataFrame:
    """Findings as rows of the working frame; the same one seen from several events of a conversation counts once."""
    usable = (pl.col("corrected").str.strip_chars() != "") & (normalised(original) != normalised(pl.col("corrected")))
    rows = found.filter(usable).select("row_order", "position", "intent", "corrected", "kind", original=original)
    joined = work.drop("answer_a", "corrected", "kind").join(rows, on="row_order", how="inner", maintain_order="right")
    history = pl.col("prompt").str.split(TURN).list.head(pl.col("position") - 1).list.join(TURN)
    asked = pl.concat_str(pl.lit(f"user{ROLE}"), "intent")
    prompt = pl.when(history == "").then(asked).otherwise(pl.concat_str(history, pl.lit(TURN), asked))
    rows = joined.with_columns(prompt=prompt, answer_a="original").select(work.columns)
    same = pl.struct(pl.coalesce("conversation_id", "event_id"), "prompt", "answer_a", "corrected").hash()
    return rows.sort("row_order", maintain_order=True).filter(same.is_first_distinct())
