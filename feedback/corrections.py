"""Corrections inside conversations: "no, I meant ...", "that's wrong", "try again", answers edited in place.

Rules over turns, no model. What is found joins the working frame as events of kind `in_conversation`: `prompt` is the
conversation up to the corrected question, asked in the person's final words; `answer_a` the answer that was wrong,
`corrected` the one that was accepted.
"""

from __future__ import annotations

import polars as pl
from raylign.feedback.events import EventKind
from raylign.feedback.turns import ROLE, TURN
from raylign.feedback.working import IN_CONVERSATION, normalised

_LEAD = r"(?:(?:no|nope|nah|hmm+|hm|sorry|ok(?:ay)?|well|but|wait|oh|uh|um|please|hey|ugh|i think)\b[\s,.!:;\u2014-]*)*"
_CORRECTS = "|".join(
    (
        rf"^{_LEAD}(?:what )?i (?:actually |really )?(?:meant?|was asking|asked|was looking|was talking|said|"
        r"(?:want|need)ed (?:it|you|the|this|that|one|something))\b",
        rf"^{_LEAD}i (?:did not|didn'?t|never) (?:mean|meant|ask|asked|want|wanted|say|said)\b",
        rf"^{_LEAD}(?:that|this|it|these|those|your (?:answer|reply|response|code|result|translation|number|math))"
        r"(?:'s|s| is| was| are| were|'re| looks| seems)? (?:still |also |just |simply |clearly |completely |totally )?"
        r"(?:wrong|incorrect|false|mistaken|not (?:right|correct|quite)|not true(?:[.,;:!]|$)|the wrong|"
        r"not what i (?:asked|mean|meant|want|wanted|need|said)|"
        r"n'?t (?:right|correct|true|quite))",
        rf"^{_LEAD}(?:that|this|it|the code|your code) (?:isn'?t|wasn'?t|aren'?t) (?:right|correct|true|quite|what i)",
        rf"^{_LEAD}(?:that|this|it|the code|your code|the formula) (?:still )?(?:does not|doesn'?t|did not|didn'?t) "
        r"(?:work|answer|compile|run|help|match|add up)",
        rf"^{_LEAD}(?:wrong|incorrect|not quite|not right|not correct|not true|not what i|not exactly)\b",
        rf"^{_LEAD}you(?:'ve| have| are|'re)? (?:clearly |completely |still )?(?:misunderst|misread|"
        r"mixed up|confus|got (?:it|that|this|the [a-z]+) wrong|made (?:a|an) (?:mistake|error|typo)|forgot|missed|"
        r"ignored|skipped|didn'?t (?:answer|read|include|use|follow)|did not (?:answer|read|include|use|follow)|wrong)",
        rf"^{_LEAD}(?:(?:can|could|would) you )?(?:please )?(?:try|do it|answer|read|write it|generate it) "
        r"(?:it |that |this )?again\b",
        rf"^{_LEAD}(?:(?:can|could|would) you )?(?:please )?(?:re-?generate|redo|re-?try|re-?do)\b",
        rf"^{_LEAD}(?:it|that|the (?:answer|result|output|correct answer|right answer|capital|date|year|sum))"
        r" (?:should|must) (?:be|have been|say|read)\b",
        rf"^{_LEAD}the (?:correct|right) (?:answer|one|result|value|name|date) (?:is|was|would be)\b",
        rf"^{_LEAD}actually,? (?:no\b|i (?:meant|wanted|need|asked)|it'?s\b|the (?:answer|correct))",
        rf"^{_LEAD}not [^,.;!?\n]{{1,50}}[,;\u2014-]+ ?(?:but |i |the |rather )?",
        r"^no[,.!\s]+(?:it|that|he|she|they|the|there)(?:'s| is| was| are| were)\b",
        r"^no[,.! ]+no\b",
        r"^(?:no|nope|nah)[,.!]+\s*(?:the (?:\w+er|other|first|second|third|last) (?:one|way)?|"
        r"i (?:want|need|live|am|have|mean|don'?t|did)\b|(?:it )?still (?:does|is|do)|you\b)",
        r"^(?:no[,.! ]+)?(?:it|he|she|that|they|my \w+)(?:'s|'re| is| are| was| were) [^.,;?!]{1,40}, not\b",
        r"^your (?:answer|reply|code|list|summary|text|translation) (?:still )?"
        r"(?:ignores|misses|leaves out|lacks|contradicts|has)\b",
        rf"^{_LEAD}(?:it |that |this )?still (?:does not|doesn'?t|won'?t|isn'?t|fails|wrong|not)\b",
        r"^no[,.!\u2014-]+\s*(?:not|in|for|the one|with|as in|like|use|just)\b",
        r"\b(?:what i (?:actually |really )?meant|i meant)\b",
        r"\b(?:again|still) (?:wrong|incorrect)\b",
    )
)
_DOES_NOT = "|".join(
    (
        r"^no[,.!]*\s*(?:not yet|not now|not really|not today|thanks|thank you|thx|ty|"
        r"problem|worries|need|more|further|questions?\b|"
        r"that'?s (?:all|it|fine|great|perfect|ok|okay|good|enough|everything)|"
        r"that is (?:all|it|fine|great|perfect|good)|it'?s (?:fine|ok|okay|good|perfect|great|all)|"
        r"i'?m (?:good|fine|done|all))",
        r"\b(?:something|anything) (?:else|different)\b|\b(?:another|different|new|unrelated|separate) "
        r"(?:question|topic|thing|subject)\b",
        r"\bnot (?:bad|wrong|a (?:problem|bad)|necessary|too|an issue|that bad)\b",
        r"^(?:i )?(?:said|meant|mean) it as a (?:joke|compliment)",
        r"^(?:is|was|are|were|am|did|do|does|why|what|how|who|when|where|which) "
        r"(?:that|this|it|i|you|he|she|they|we|the|would|is|are|does|do|did|happens|if)\b[^.!]*\?",
        r"\b(?:my|his|her|their|the teacher'?s|our) (?:code|answer|homework|solution|essay|boss|friend|guess) "
        r"(?:is|was|were) (?:wrong|incorrect)",
        r"\bwrong with (?:my|me|him|her|the|this|our)\b",
        r"\bi meant (?:to (?:thank|say thank|ask|tell|mention)|no (?:harm|offen[cs]e)|well|every word)",
        r"\bas you (?:said|wrote|explained|suggested)\b",
        r"^(?:i'?ll|let me|i will|i can) (?:try|do)",
        r"^(?:translate|write|spell|rephrase|say|summari[sz]e|explain|tell)\b",
        r"\bi (?:wanted|meant) to (?:thank|say|tell|let|share)\b",
        r"\bi (?:asked|told|said) (?:my|her|him|them|his|our|yes|no to|the \w+ and)\b",
        r"\bshould be (?:fine|ok|okay|good|enough|great|easy|possible)\b",
        r"\b(?:not right|not fair|not true|wrong) of\b|^wrong (?:number|turn|place|way|side)\b",
        r"\bis (?:that|this|it) (?:normal|expected|a problem|dangerous)\?",
        r"^not (?:sure|yet|now|really|that i|only|at all|much|today|bad)\b",
    )
)
_RETRY = (
    rf"^{_LEAD}(?:(?:can|could|would) you )?(?:please )?(?:try|do it|do that|answer|write it|generate it|re-?generate|"
    r"redo|re-?try|re-?do)\b"
)
_TELLS_ANSWER = (
    r"\b(?:should|must) (?:be|have been|say|read)\b|\b(?:correct|right) (?:answer|one|result|value|name|date)"
)
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
    said = text.str.to_lowercase().str.replace_all("\u2019", "'").str.strip_chars()
    return said.str.contains(_CORRECTS) & ~said.str.contains(_DOES_NOT)


def _thanks(text: pl.Expr) -> pl.Expr:
    """Whether a user's turn opens with thanks for the answer before it, without a but."""
    return text.str.contains(_THANKS) & ~text.str.contains(_BUT) & ~is_correction(text)


def without_apology(text: pl.Expr) -> pl.Expr:
    """An answer without the apology it opens with for the one before it."""
    return text.str.replace(_APOLOGY, "")


def find_corrections(work: pl.DataFrame, *, good_rating: float) -> pl.DataFrame:
    """Rows to add to the working frame, one for each corrected and then accepted answer.

    Accepted means: thumbed up, rated `good_rating` or better, edited into shape by the person, or thanked for.
    """
    turns = _turns(work, good_rating=good_rating)
    window = turns.filter(
        (pl.col("role") == "user")
        & (pl.col("role_1") == "assistant")
        & (pl.col("role_2") == "user")
        & (pl.col("role_3") == "assistant")
        & is_correction(pl.col("content_2"))
        & (pl.col("accepted") | _thanks(pl.col("content_4")))
    )
    found = window.with_columns(intent=_intent(), corrected=without_apology(pl.col("content_3")))
    return _as_events(work, found, pl.col("content_1"))


def find_edits(work: pl.DataFrame) -> pl.DataFrame:
    """Rows for answers that stand otherwise in a later turn of their conversation: edited, or generated anew.

    The answer the conversation went on with was accepted over the one that was logged.
    """
    asked = work.filter(pl.col("conversation_id").is_not_null())
    logged = asked.select("conversation_id", "event_id", at="prompt", original="answer_a", first="row_order")
    turn = rf"(?s)^(.*){TURN}assistant{ROLE}([^{TURN}]*){TURN}user{ROLE}[^{TURN}]*$"
    later = asked.select(
        "conversation_id",
        at=pl.col("prompt").str.extract(turn, 1),
        corrected=pl.col("prompt").str.extract(turn, 2),
        later_event=pl.col("event_id"),
        later_order="row_order",
    ).drop_nulls("at")
    both = logged.join(later, on=["conversation_id", "at"], how="inner").filter(
        (pl.col("original").str.strip_chars() != pl.col("corrected").str.strip_chars())
        & (normalised(pl.col("original")) != normalised(pl.col("corrected")))
        & (pl.col("later_order") > pl.col("first"))
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


def _turns(work: pl.DataFrame, *, good_rating: float) -> pl.DataFrame:
    """One row a turn of every conversation long enough, with the four turns after it; the answer is the last."""
    edited = pl.col("kind") == EventKind.CORRECTION.value
    liked = edited | (pl.col("thumb") == 1) | (pl.col("rating") >= good_rating)
    judged = pl.col("kind") != EventKind.SIDE_BY_SIDE.value
    answer = pl.when(edited).then(pl.col("corrected")).otherwise(pl.col("answer_a"))
    long = work.filter(pl.col("prompt").str.count_matches(TURN) >= 2).select(
        "event_id",
        "row_order",
        liked=liked.fill_null(False) & judged,
        turn_list=pl.when(judged)
        .then(pl.concat_str(pl.col("prompt"), pl.lit(f"{TURN}assistant{ROLE}"), answer))
        .otherwise(pl.col("prompt"))
        .str.split(TURN),
    )
    turns = long.explode("turn_list").with_columns(
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
    said = pl.col("content_2").str.strip_chars()
    adds = said.str.replace(_COMPLAINT, "").str.strip_chars()
    lower = said.str.to_lowercase()
    says_nothing = lower.str.contains(_RETRY) | lower.str.contains(_TELLS_ANSWER) | (adds.str.count_matches(r"\w+") < 2)
    sentence = adds.str.slice(0, 1).str.to_uppercase() + adds.str.slice(1)
    return pl.when(says_nothing).then(pl.col("content")).otherwise(pl.concat_str("content", pl.lit("\n\n"), sentence))


def _as_events(work: pl.DataFrame, found: pl.DataFrame, original: pl.Expr) -> pl.DataFrame:
    """Findings as rows of the working frame; the same one seen from several events of a conversation counts once."""
    usable = (pl.col("corrected").str.strip_chars() != "") & (normalised(original) != normalised(pl.col("corrected")))
    rows = found.filter(usable).select("row_order", "position", "intent", "corrected", original=original)
    joined = work.drop("answer_a", "corrected", "kind").join(rows, on="row_order", how="inner", maintain_order="right")
    history = pl.col("prompt").str.split(TURN).list.head(pl.col("position") - 1).list.join(TURN)
    asked = pl.concat_str(pl.lit(f"user{ROLE}"), "intent")
    prompt = pl.when(history == "").then(asked).otherwise(pl.concat_str(history, pl.lit(TURN), asked))
    rows = joined.with_columns(kind=pl.lit(IN_CONVERSATION), prompt=prompt, answer_a="original").select(work.columns)
    same = pl.struct(pl.coalesce("conversation_id", "event_id"), "prompt", "answer_a", "corrected").hash()
    return rows.sort("row_order", maintain_order=True).filter(same.is_first_distinct())
