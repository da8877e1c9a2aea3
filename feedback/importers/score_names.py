"""What the name of a score says: approval, a fault, an order, or nothing that is known here. English names only."""

from __future__ import annotations

import re
from enum import Enum


class Named(Enum):
    """What a high value or a yes means, by the name alone."""

    APPROVAL = "approval"  # good
    FAULT = "fault"  # bad; a low value or a no is not yet good
    ORDER = "order"  # a place: the first is the best, or is not
    MIXED = "mixed"  # a fault and a negation ("no_errors"), or a fault and approval
    UNKNOWN = "unknown"


_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_APPROVAL = re.compile(
    r"""^(?:accept(?:ed|able|ance)?|accura(?:cy|te|tely)|adequa(?:cy|te)|adheren(?:ce|t)|annotation|appropriate(?:ness)?
    |approv(?:al|ed|e)|approve[sd]?|best|better|clarity|clear|coheren(?:ce|cy|t)|complete(?:ness)?|concise(?:ness)?
    |correct(?:ness|ly)?|csat|engag(?:ing|ement)|evaluation|excellent|factual(?:ity|ness)?|faithful(?:ness)?|favou?rite
    |feedback|fluen(?:cy|t)|follow(?:s|ed|ing)?|friendl(?:y|iness)|good|goodness|grade|great|ground(?:ed|edness)
    |harmless(?:ness)?|help(?:ful|fulness|ed|s)|honest(?:y)?|judge?ment|label|like[sd]?|likert|logical|natural(?:ness)?
    |nps|ok|okay|opinion|overall|pass(?:ed|es)?|perfect|polite(?:ness)?|positive|preference|preferred|quality|rating
    |reaction|readab(?:le|ility)|reasonable(?:ness)?|recommend(?:ed|ation)?|relevan(?:ce|cy|t)|resolved|review|right
    |safe(?:ty)?|satisf(?:ied|action|ying|actory)|score|sentiment|solved|stars?|succe(?:ss|ssful|eded|eds)|thumbs?|true
    |trustworth(?:y|iness)|truth(?:ful|fulness)?|understandab(?:le|ility)|up|upvote[sd]?|use(?:ful|fulness)|valid(?:ity)?
    |verdict|vote[sd]?|well|worked|works)$""",
    re.VERBOSE,
)
_FAULT = re.compile(
    r"""^(?:abus|annoy|awful|bad(?:ly|ness)?$|bias|boring|broken|bugs?$|complain|concern|confabul|confus|contradict|crash
    |danger|decepti|defect|deni|disapprov|discriminat|dislik|dissatisf|distrust|down(?:vote|voted|votes)?$|error|fabricat
    |fail|fals|fault|flag(?:s|ged)?$|flaw|hallucinat|harm(?!less)|hate|hostil|illegal|illogic|impolite|inaccura|inadequa
    |inappropriat|incoheren|incomplet|incorrect|inconsisten|insult|invalid|irrelevan|issue|jailbreak|lazy$|leak|lie(?:s|d)?$
    |mislead|misinform|mistak|misunderst|negativ|nonsens|obscen|offens|offtopic$|outdated|plagiar|poor|problem|profan|racis
    |refus|reject|repetit|rude|sexis|slop$|spam|slur|stereotyp|stupid|suspicio|threat|toxic|troll|ugly|unaccept|unclear
    |unfaithful|unfair|unfriendl|ungrounded|unhelpful|unreadab|unrelated|unresolved|unsafe|unsatisf|unsolved|unsupported
    |untrue|untruth|unuse|useless|vague|violat|violen|vulgar|weak|worse|worst|worthless|wrong)""",
    re.VERBOSE,
)
_NEGATION = re.compile(
    r"^(?:no|non|not|without|free|zero|absent|absence|lack|lacks|lacking|anti|need|needs|needed|missing|avoid|avoids"
    r"|avoided|avoidance|resist\w*|detect\w*|prevent\w*|never|isnt|un|less|low|lowest|least)$"
)
_PREFIXED = re.compile(r"^(?:non|no|anti|un|de)(?=(?:toxic|harmful|hallucinat|bias|offens|abus|error|violen))")
_ORDER = re.compile(r"^(?:rank(?:s|ed|ing|ings)?|order(?:s|ing)?|position|place|placement)$")


_NEUTRAL = re.compile(
    r"^(?:annotation|evaluation|feedback|grade|judge?ment|label|likert|opinion|overall|quality|rating|reaction|review|score"
    r"|sentiment|stars?|thumbs?|verdict|vote[sd]?)$"
)
"""Words of approval that take the side of a fault beside them: `toxicity_score`, `bad_quality`."""


def named(name: str) -> Named:
    """The meaning of a score's name."""
    tokens = [token.lower() for token in re.split(r"[^A-Za-z]+", _CAMEL.sub(" ", name)) if token]
    if any(_ORDER.match(token) for token in tokens):
        return Named.ORDER
    fault = any(_FAULT.match(token) for token in tokens)
    approval = any(_APPROVAL.match(token) for token in tokens)
    praise = any(_APPROVAL.match(token) and not _NEUTRAL.match(token) for token in tokens)
    negated = any(_NEGATION.match(token) for token in tokens)
    if any(_PREFIXED.match(token) for token in tokens):
        return Named.MIXED
    if fault:
        return Named.MIXED if negated or praise else Named.FAULT
    if negated and approval:
        return Named.MIXED
    return Named.APPROVAL if approval else Named.UNKNOWN
