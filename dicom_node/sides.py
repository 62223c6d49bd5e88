"""Which side of the body a text names. Only whole words count: a single letter may stand for anything."""

from __future__ import annotations

import re
import unicodedata

RIGHT_WORDS = frozenset(
    {
        *("RIGHT", "RT"),
        *("RECHTS", "RECHTE", "RECHTER", "RECHTES", "RECHTEN", "RECHTEM"),
        *("DROIT", "DROITE", "DROITS", "DROITES"),
        *("DERECHA", "DERECHO", "DERECHAS", "DERECHOS"),
        *("DESTRA", "DESTRO", "DESTRE", "DESTRI"),
    }
)
LEFT_WORDS = frozenset(
    {
        *("LEFT", "LT"),
        *("LINKS", "LINKE", "LINKER", "LINKES", "LINKEN", "LINKEM"),
        *("GAUCHE", "GAUCHES"),
        *("IZQUIERDA", "IZQUIERDO", "IZQUIERDAS", "IZQUIERDOS"),
        *("SINISTRA", "SINISTRO", "SINISTRE", "SINISTRI"),
    }
)
BOTH_WORDS = frozenset(
    {
        *("BOTH", "BILAT", "BILATERAL", "BILATERALLY", "COMPARISON", "COMPARATIVE", "COMPARE", "CONTRALATERAL"),
        *("BEIDE", "BEIDER", "BEIDEN", "BEIDSEITS", "BEIDSEITIG", "BDS", "VERGLEICH", "SEITENVERGLEICH"),
        *("BILATERALE", "BILATERAUX", "COMPARATIF", "COMPARAISON", "DEUX"),
        *("AMBOS", "AMBAS", "BILATERALES", "COMPARATIVA", "COMPARATIVO", "COMPARACION"),
        *("AMBO", "ENTRAMBI", "ENTRAMBE", "AMBEDUE", "BILATERALI", "CONFRONTO"),
    }
)
"""Words of a study of both sides, where one side's word holds for some of its images only."""

# There the word says how the beam runs or how the patient lies: the left acetabulum has its "right posterior oblique".
_NO_SIDE = re.compile(r"\b(?:RIGHT|LEFT|RT|LT) (?:(?:ANTERIOR|POSTERIOR|ANT|POST) OBL(?:IQUE)?|DECUBITUS)\b")


def named_side(*texts: str) -> str:
    """Return "R" or "L" where the texts, taken together, name that side and it alone; else "".

    English, German, French, Spanish and Italian words are known. Texts that name both sides, or that say "both",
    "bilateral" or "comparison", name none.
    """
    found = {word for text in texts for word in _NO_SIDE.sub(" ", " ".join(words(text))).split()}
    right, left = bool(found & RIGHT_WORDS), bool(found & LEFT_WORDS)
    if right == left or found & BOTH_WORDS:
        return ""
    return "R" if right else "L"


def words(text: str) -> list[str]:
    """Return the words of a text in capitals and without accents; what is no letter parts them."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    # Letters of other scripts belong to their words, or the "LT" of a longer word could stand alone.
    return re.findall(r"[^\W\d_]+", plain.upper())
