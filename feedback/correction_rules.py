"""What people say when the answer before was wrong or not meant, in six languages, as patterns over lower-case text.

Plain enough for Rust's regex engine. A turn counts when it matches CORRECTS and not DOES_NOT.
"""

from __future__ import annotations

_LEAD = (
    r"(?:(?:no|nope|nah|hmm+|hm|sorry|ok(?:ay)?|well|but|wait|oh|uh|um|please|hey|ugh|i think|nein|nee|ähm|moment|"
    r"entschuldigung|leider|aber|non|ben|pardon|désolée?|mais|attends|perdón|perdona|disculpa|pero|espera|scusa|"
    r"mi dispiace|ma|"
    r"aspetta|não|desculpe|desculpa|mas|espere)\b[\s,.!:;\u2014-]*)*"
)
_YOUR = r"(?:your (?:answer|reply|response|code|result|translation|number|math|list|summary|text|formula))"

_ENGLISH = (
    rf"^{_LEAD}(?:what )?i (?:actually |really )?(?:meant?|was asking|asked|was looking|was talking|said|"
    r"wanted (?:it|you|the|this|that|one|something))\b",
    rf"^{_LEAD}i (?:did not|didn'?t|never) (?:mean|meant|ask|asked|want|wanted|say|said)\b",
    rf"^{_LEAD}(?:that|this|it|these|those|the \w+(?: \w+)?|{_YOUR})(?:'s|s| is| was| are| were|'re| looks| seems)? "
    r"(?:still |also |just |simply |clearly |completely |totally )?(?:wrong|incorrect|false|mistaken|flipped|missing|"
    r"not (?:right|correct|quite)|not true(?:[.,;:!]|$)|the wrong|not what i (?:asked|mean|meant|want|wanted|"
    r"need|said)|"
    r"n'?t (?:right|correct|true|quite|what i)|not how)",
    rf"^{_LEAD}(?:that|this|it|the code|{_YOUR}) (?:isn'?t|wasn'?t|aren'?t|doesn'?t look|can'?t be|cannot be) "
    r"(?:right|correct|true|quite|what i)",
    rf"^{_LEAD}(?:that|this|it|the code|the formula|{_YOUR}) (?:still )?(?:does not|doesn'?t|did not|didn'?t|won'?t) "
    r"(?:work|answer|compile|run|help|match|add up)",
    rf"^{_LEAD}(?:wrong|incorrect|not quite|not right|not correct|not true|not what i|not exactly)\b",
    rf"^{_LEAD}you(?:'ve| have| are|'re)? (?:clearly |completely |still )?(?:misunderst|misread|mixed up|confus|"
    r"got (?:it|that|this|the [a-z]+) wrong|made (?:a|an) (?:mistake|error|typo)|(?:forgot|missed|ignored|"
    r"skipped|left out)"
    r" (?:the|to|my|a|that|half|one|what)\b|didn'?t (?:answer|read|include|use|follow)|"
    r"did not (?:answer|read|include|use|follow)|wrong)",
    rf"^{_LEAD}you \w+ [^.!?]{{1,40}}, (?:but|and) i (?:said|asked|wanted|meant|need)\b",
    rf"^{_LEAD}(?:i think )?you (?:mixed up|confused)\b",
    rf"^{_LEAD}(?:(?:can|could|would) you )?(?:please )?(?:try|do it|answer|read|write it|generate it) (?:it |"
    rf"that |this )?"
    r"again(?: please)?(?:[.,!:;-]|$)",
    rf"^{_LEAD}(?:please )?read (?:my|the) (?:question|message|post) again\b",
    rf"^{_LEAD}(?:(?:can|could|would) you )?(?:please )?(?:re-?generate|redo|re-?try|re-?do)\b[^?]{{0,60}}"
    r"(?:like i (?:asked|said)|[.!]|$)",
    rf"^{_LEAD}(?:(?:can|could|would) you )?(?:please )?(?:re-?do|re-?write|fix)\b.{{0,60}}\b(?:like|"
    rf"as) i (?:asked|said)\b",
    rf"^{_LEAD}(?:it|that|the (?:answer|result|output|correct answer|right answer|capital|date|year|sum))"
    r" (?:should|must) (?:be|have been|say|read)\b",
    rf"^{_LEAD}the (?:correct|right) (?:answer|one|result|value|name|date) (?:is|was|would be) [^w]",
    rf"^{_LEAD}actually,? (?:no\b|i (?:meant|wanted|asked)|it'?s\b|the (?:answer|correct))",
    r"^(?:no|nope|nah)[,.!]+ (?:the (?:\w+er|other|first|second|third|last) (?:one|way)|(?:it )?still (?:does|"
    r"is|do|throws)|"
    r"you (?:said|got|forgot|missed|used)|that'?s the (?:old|wrong|other))\b",
    r"^(?:no|nope|nah),? that'?s (?:the (?:old|wrong|other)|not|wrong)\b",
    rf"^(?:no[,.! ]+)?{_YOUR} (?:still )?(?:ignores|misses|leaves out|lacks|contradicts|has|is for)\b",
    rf"^{_LEAD}(?:it |that |this )?still (?:does not|doesn'?t|won'?t|isn'?t|fails|wrong|(?:throws|gives|shows|"
    rf"says) (?:the|an?)\b|"
    r"not (?:right|working|correct|what|quite|fixed|there))",
    rf"^{_LEAD}(?:that|this|it)(?: is|'s) (?:just |exactly )?the same (?:answer|thing|code|text|error)\b",
    r"\b(?:what i (?:actually |really )?meant was|i should have been clearer|(?:no|sorry)[,.! ]+i meant)\b",
    r"\b(?:again|still) (?:wrong|incorrect)\b",
    rf"^{_LEAD}(?:are you sure\? .|did(?:n'?t| not) i (?:say|ask|mention|tell)\b|close, but\b|almost, but\b)",
    rf"^{_LEAD}that'?s (?:the |a )?(?:\w+ )?(?:\w+ )?(?:syntax|version|answer|model|year|one), (?:not|"
    rf"but) (?:the|i|what)\b",
    rf"^{_LEAD}that'?s .{{3,40}}, i (?:need|asked|want|meant|said)\b",
)
_GERMAN = (
    rf"^{_LEAD}ich (?:meinte|habe? (?:nach .{{1,40}} gefragt|.{{1,40}} gemeint|.{{1,40}}gefragt, nicht)|"
    rf"hatte .{{1,40}} gefragt)",
    r"^nein[,.! ]+(?:ich (?:wollte|meinte|will|brauche|habe)\b|das (?:ist|war|stimmt)|die |der |das )",
    rf"^{_LEAD}(?:das|dies|die \w+|der \w+|deine? \w+|ihre? \w+)? ?(?:ist|war|sind) (?:leider |immer noch |"
    rf"wieder |so )?"
    r"(?:falsch|nicht (?:richtig|korrekt|ganz|meine frage|das|was ich)|verkehrt|fehlerhaft)",
    rf"^{_LEAD}(?:das |so )?(?:stimmt|passt|geht|funktioniert|kompiliert) (?:so |leider |immer noch |"
    rf"noch immer )*nicht\b",
    rf"^{_LEAD}(?:das habe ich nicht (?:gefragt|gemeint|gesagt|gewollt)|das war nicht (?:meine|die) frage|"
    r"das kann (?:so )?nicht (?:sein|stimmen)|nicht ganz|falsch|leider falsch|noch ?mal falsch)\b",
    rf"^{_LEAD}(?:du hast|sie haben) (?:mich |da |leider )*(?:.{{1,50}} )?(?:vergessen|verwechselt|"
    rf"missverstanden|übersehen|"
    r"falsch|nicht (?:beantwortet|beachtet|gelesen|verwendet)|weggelassen|ignoriert)\b",
    rf"^{_LEAD}(?:da|es|hier|mir) fehl(?:t|en)\b",
)
_FRENCH = (
    rf"^{_LEAD}(?:je (?:voulais dire|parlais d|demandais)|j'(?:ai|avais) (?:demandé|dit)|je n'ai pas demandé)",
    r"^non[,.! ]+(?:je (?:voulais|veux|parle|demand)|c'est (?:faux|pas|le|la)|ce n'est|la |le )",
    rf"^{_LEAD}(?:c'est|c'était|la \S+ (?:\S+ )?est|le \S+ (?:\S+ )?est|ta \S+ est|votre \S+ est) (?:toujours |"
    rf"encore |totalement )?"
    r"(?:faux|fausse|incorrecte?|erronée?|inexacte?|pas (?:ça|correct|juste|bon|ce que|ma question))",
    rf"^{_LEAD}(?:ce n'est pas (?:ça|ce que|ma question|correct|juste|vrai)|c'est pas (?:ça|ce que|ma question))",
    rf"^{_LEAD}(?:ça|cela) (?:ne )?(?:marche|fonctionne|compile|peut) (?:toujours |encore )?pas\b",
    rf"^{_LEAD}(?:tu|vous) (?:t'es trompée?|vous êtes trompée?s?|n'avez pas|n'as pas|as pas|(?:as|"
    rf"avez) (?:oublié|confondu|mal|ignoré|"
    r"sauté|mélangé))",
    rf"^{_LEAD}(?:faux|incorrect|mauvaise réponse|pas tout à fait|pas exactement|il manque|erreur)\b",
)
_SPANISH = (
    rf"^{_LEAD}(?:me refer[íi]a|quer[íi]a decir|quise decir|hablaba de|pregunt[ée] (?:por|si|qu|cu|d)|ped[íi] |"
    rf"yo (?:dije|pregunt[ée]))",
    r"^no[,.! ]+(?:quer[íi]a|quiero (?:decir|el|la|los|las)|es (?:el|la)|eso|me |ped[íi]|pregunt)",
    rf"^{_LEAD}(?:eso|esto|la \S+ (?:\S+ )?|el \S+ (?:\S+ )?|tu \S+ |su \S+ )? ?(?:no es|no era) (?:correct[oa]|"
    rf"ciert[oa]|verdad|lo que|"
    r"mi pregunta|así)",
    rf"^{_LEAD}(?:eso|esto|la \S+(?: \S+)?|el \S+(?: \S+)?|tu \S+) (?:es|está|sigue) (?:siendo |"
    rf"estando )?(?:mal|incorrect[oa]|"
    r"equivocad[oa]|fals[oa]|erróne[oa])",
    rf"^{_LEAD}(?:sigue sin|no (?:funciona|compila|sirve)|todavía no)\b",
    rf"^{_LEAD}(?:te|se) (?:has? )?(?:equivoca|confund|olvid)\w*|^{_LEAD}se te olvid|^{_LEAD}(?:no (?:has|"
    rf"ha) (?:respond|le[íi]|inclu)|"
    r"confundiste|olvidaste)",
    rf"^{_LEAD}(?:incorrecto|falso|mal|respuesta (?:equivocada|incorrecta)|no exactamente|no puede ser|"
    rf"falta(?:n)? (?:el|la|los|las|un))\b",
)
_ITALIAN = (
    rf"^{_LEAD}(?:intendevo|mi riferivo|volevo dire|parlavo di|ho chiesto|avevo chiesto|non ho chiesto)\b",
    r"^no[,.! ]+(?:volevo|intendevo|è (?:il|la|sbagliat)|non è|ho chiesto|la |il )",
    rf"^{_LEAD}(?:(?:questo|questa|la \S+(?: \S+)?|il \S+(?: \S+)?|la tua \S+) )?(?:è|era) (?:ancora |completamente )?"
    r"(?:sbagliat[oa]|errat[oa]|fals[oa]|scorrett[oa])",
    rf"^{_LEAD}non (?:è (?:quello che|corrett|giust|vero|così|la mia domanda)|funziona|compila|può essere|"
    rf"proprio\b|esattamente)",
    rf"^{_LEAD}(?:hai|ha) (?:confuso|dimenticato|sbagliato|saltato|frainteso|ignorato)\b|^{_LEAD}non (?:hai|"
    rf"ha) (?:risposto|letto|usato|inc)",
    rf"^{_LEAD}(?:sbagliato|errato|falso|risposta (?:sbagliata|errata)|manca(?:no)? (?:il|la|lo|i|gli|le|un))\b",
)
_PORTUGUESE = (
    rf"^{_LEAD}(?:eu )?(?:quis dizer|me referia|estava falando d|falava d|perguntei|pedi )",
    r"^não[,.! ]+(?:eu (?:queria|quero|quis|pedi|perguntei)|é (?:o|a)|isso|o |a )",
    rf"^{_LEAD}(?:(?:isso|isto|a \S+(?: \S+)?|o \S+(?: \S+)?|sua \S+) )?(?:está|é|tá|"
    rf"continua) (?:ainda )?(?:errad[oa]|incorret[oa]|fals[oa]|mal)",
    rf"^{_LEAD}não (?:foi (?:isso|o que)|é (?:isso|o que|verdade|corret|minha pergunta)|funciona|compila|"
    rf"pode ser|exatamente|está cert)",
    rf"^{_LEAD}(?:continua sem|ainda não funciona|você (?:confundiu|esqueceu|errou|não (?:respondeu|leu|usou|"
    rf"inclu)|ignorou|pulou))\b",
    rf"^{_LEAD}(?:errado|incorreto|falso|resposta errada|falta(?:m)? (?:o|a|os|as|um|uma))\b",
)
CORRECTS = "|".join((*_ENGLISH, *_GERMAN, *_FRENCH, *_SPANISH, *_ITALIAN, *_PORTUGUESE))

DOES_NOT = "|".join(
    (
        r"^no[,.!]*\s*(?:not yet|not now|not really|not today|thanks|thank you|thx|ty|problem|worries|need|more|"
        r"further|"
        r"questions?\b|that'?s (?:all|it|fine|great|perfect|ok|okay|good|enough|everything)|"
        r"that is (?:all|it|fine|great|perfect|good)|it'?s (?:fine|ok|okay|good|perfect|great|all)|i'?m (?:good|"
        r"fine|done|all))",
        r"\b(?:something|anything) (?:else|different)\b|\b(?:another|different|new|unrelated|separate) "
        r"(?:question|topic|thing|subject)\b",
        r"\bnot (?:bad|wrong|a (?:problem|bad)|necessary|too|an issue|that bad)\b",
        r"^(?:i )?(?:said|meant|mean) it as a (?:joke|compliment)",
        r"^(?:is|was|were|am|do|does|why|what|how|who|when|where|which) "
        r"(?:that|this|it|i|he|she|they|we|the|would|is|are|does|do|did|happens|if)\b[^.!]*\?",
        r"\b(?:my|his|her|their|the teacher'?s|our) (?:code|answer|homework|solution|essay|boss|friend|guess|fault) "
        r"(?:is|was|were) (?:wrong|incorrect)|\b(?:was|is) my (?:fault|mistake|bad)\b|\byou (?:were|are) right\b",
        r"\bwrong with (?:my|me|him|her|the|this|our)\b",
        r"\bi meant (?:to (?:thank|say thank|ask|tell|mention)|no (?:harm|offen[cs]e)|well|every word)",
        r"\bas you (?:said|wrote|explained|suggested)\b|\bwhat you said\b|\bforgot nothing\b",
        r"^(?:i'?ll|let me|i will|i can) (?:try|do)",
        r"^(?:translate|write|spell|rephrase|say|summari[sz]e|explain|tell)\b",
        r"\bi (?:wanted|meant) to (?:thank|say|tell|let|share|ask)\b",
        r"\bi (?:asked|told|said) (?:my|her|him|them|his|our|yes|no to|the \w+ and)\b",
        r"\bshould be (?:fine|ok|okay|good|enough|great|easy|possible)\b",
        r"\b(?:not right|not fair|not true|wrong) of\b|\bnot true (?:for|of) (?:my|me|us)\b|^wrong (?:number|"
        r"turn|place|way|side)\b",
        r"\bis (?:that|this|it) (?:normal|expected|a problem|dangerous)\?",
        r"^not (?:sure|yet|now|really|that i|only|at all|much|today|bad)\b",
        r"\b(?:try|do|answer) (?:it |that |this )?again (?:with|but|for|using|in)\b|\bstill not (?:tired|over|sure)\b",
        r"\b(?:thank|thanks|thx|merci|danke|gracias|grazie|obrigad[oa]|perfekt|perfect|perfecto|perfetto|great|"
        r"genial)\b",
        r"\b(?:que dijiste|que tu as dit|was du gesagt|che hai detto|que você disse)\b",
        r"\b(?:lol|haha\w*|jaja\w*|hehe\w*|scherzo|brincadeira|spaß|blague|broma|my bad)\b|[:;]-?[)D]",
        r"\b(?:errore mio|erro meu|error mío|erreur de ma part|mein fehler|culpa mía|colpa mia|culpa minha|ma faute)\b",
        r"\bcan'?t be (?:more|any)\b|\b(?:puede ser|può essere|pode ser|peut pas être) (?:más|più|mais|plus)\b|"
        r"\bnicht schlimm\b",
        r"\bno está (?:nada )?mal\b|\bnon è male\b|\bpas (?:mal|grave|faux)\b|\bfehl\w+ mir (?:die worte|noch an)\b",
    )
)
ASKS_ON = r"\?[\s)\"']*$"
"""A question at the end is the next question ..."""

ASKS_AGAIN = (
    r"\bare you sure\b|\bdid(?:n'?t| not) i\b|\b(?:like|as) i (?:asked|said)\b|\b(?:try|do it|answer|"
    r"write it) (?:it |that |this )?again\b"
    r"|^(?:.*[.!] )?(?:can|could|would) you (?:please )?(?:fix|redo|re-?do|correct|try|answer|regenerate)\b"
)
"""... unless it asks again for what was asked."""

RETRY = (
    rf"^{_LEAD}(?:(?:can|could|would) you )?(?:please )?(?:try|do it|do that|answer|write it|generate it|"
    rf"re-?generate|redo|re-?try|"
    r"re-?do|wrong|incorrect|falsch|faux|mal|sbagliato|errado)(?: (?:it|that|this))?(?: again)?(?:,? please)?[.! ]*$"
)
"""A turn that says nothing beside that: the question as it stands is asked again."""

TELLS_ANSWER = (
    r"^[^.!?\n]*(?:\b(?:should|must) (?:be|have been|say|read)\b|\b(?:correct|right) (?:answer|one|result|value|"
    r"name|date))"
    r"[^.!?\n]*[.! ]*$"
)
"""One sentence that gives the answer away and asks for nothing."""
