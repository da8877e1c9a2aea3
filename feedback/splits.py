"""Train, eval and test by whose event it is: a larger log tomorrow moves nothing from one to another.

**The key is the event's own.** A split is a salted BLAKE2b hash of the event's user; without a known user of its
conversation; without either of the first thing the user said, which every later turn of that conversation shares. It
never looks at another event, so an event has the same split in every log it occurs in, whatever grows around it.

**What should stay together but does not is dropped, never moved.** Two users in different splits may ask the same
thing. The question then belongs to the split where it came up first (by time, then event id), and so does every group
of nearly equal questions; events elsewhere are dropped as `split_overlap`. When new events join two old groups, the
group that came up later loses its rows; none changes sides. So, with a log that grows by later events, a row is in one
and the same split in all builds it is in; the price is rows of popular questions held out by nobody (10 % of them at
the default shares), and rows that leave when a bridge appears. Only an export that adds *older* events can hand a
question over to another split, and then the events that carried it before are gone.
"""

from __future__ import annotations

import hashlib

import polars as pl
from raylign.feedback.filtering import Filtered, apply_rules
from raylign.feedback.settings import SplitBy, SplitSettings
from raylign.feedback.turns import first_user
from raylign.feedback.working import normalised

_BLOCK = 2.0**64


def draw(key: str, settings: SplitSettings) -> str:
    """The split of a key: a draw from its salted hash."""
    digest = hashlib.blake2b(key.encode(), key=settings.salt.encode()[:64], digest_size=8).digest()
    share = int.from_bytes(digest, "big") / _BLOCK
    if share < settings.test:
        return "test"
    return "eval" if share < settings.test + settings.eval else "train"


def add_split(work: pl.DataFrame, settings: SplitSettings) -> pl.DataFrame:
    """The working frame with a column `split`, by each event's own key."""
    keyed = work.with_columns(split_key=_key(settings.by))
    # Hashed once a key, by Python's own BLAKE2: the same in every version of everything.
    keys = keyed.select("split_key").unique()
    drawn = pl.Series([draw(key, settings) for key in keys["split_key"]], dtype=pl.String)
    table = keys.with_columns(split=drawn)
    return keyed.join(table, on="split_key", how="left", maintain_order="left").drop("split_key")


def drop_overlap(work: pl.DataFrame) -> Filtered:
    """Keep events where their question, and its groups of nearly equal ones, first came up in the same split.

    `work` is in order of time and has `split`, `prompt_id`, `cluster` (nearly the same words) and `story` (long
    questions that share most of their words).
    """
    elsewhere = [pl.col("split") != pl.col("split").first().over(group) for group in ("prompt_id", "cluster", "story")]
    return apply_rules(work, {"split_overlap": pl.any_horizontal(elsewhere)})


def _key(by: SplitBy) -> pl.Expr:
    user = pl.lit("user:") + pl.col("user_hash")
    conversation = pl.lit("conversation:") + pl.col("conversation_id")
    opening = pl.lit("question:") + normalised(first_user(pl.col("prompt")))
    owners = {SplitBy.USER: [user, conversation], SplitBy.CONVERSATION: [conversation], SplitBy.PROMPT: []}
    return pl.coalesce(*owners[by], opening)
