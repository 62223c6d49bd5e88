"""What sources write about body part, side, view and modality, as codes of the standard's context groups.

An unknown value gives `None`, and the report then leaves the item out: a guessed body part would be worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as SrCode
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
)

from dicom_node.headers import Code, SourceHeader
from dicom_node.sides import BOTH_WORDS, LEFT_WORDS, RIGHT_WORDS, words

# Body Part Examined (PS3.16, Annex L), and what scanners write instead: to keywords of CID 4031.
_BODY_PARTS = {
    "ABDOMEN": "Abdomen",
    "ACJOINT": "AcromioclavicularJoint",
    "ANKLE": "AnkleJoint",
    "ARM": "UpperLimb",
    "CALCANEUS": "Calcaneus",
    "CERVICAL SPINE": "CervicalSpine",
    "CERVICALSPINE": "CervicalSpine",
    "CHEST": "Chest",
    "CLAVICLE": "Clavicle",
    "COCCYX": "Coccyx",
    "CSPINE": "CervicalSpine",
    "CTSPINE": "CervicoThoracicSpine",
    "ELBOW": "ElbowJoint",
    "EXTREMITY": "Extremity",
    "FACIALBONES": "FacialBones",
    "FEMUR": "Femur",
    "FIBULA": "Fibula",
    "FINGER": "Finger",
    "FOOT": "Foot",
    "FOREARM": "Forearm",
    "HAND": "Hand",
    "HEAD": "Head",
    "HEEL": "Calcaneus",
    "HIP": "HipJoint",
    "HUMERUS": "Humerus",
    "ILIUM": "Ilium",
    "JAW": "JawRegion",
    "KNEE": "Knee",
    "LEG": "LowerLimb",
    "LOWER EXTREMITY": "LowerLimb",
    "LOWER LEG": "LowerLeg",
    "LOWERLEG": "LowerLeg",
    "LOWERLIMB": "LowerLimb",
    "LSPINE": "LumbarSpine",
    "LSSPINE": "LumboSacralSpine",
    "LUMBAR SPINE": "LumbarSpine",
    "MANDIBLE": "Mandible",
    "MAXILLA": "Maxilla",
    "NECK": "Neck",
    "NOSE": "NasalBone",
    "PATELLA": "Patella",
    "PELVIS": "Pelvis",
    "RIB": "Rib",
    "RIBS": "Rib",
    "SACRUM": "Sacrum",
    "SCAPULA": "Scapula",
    "SCJOINT": "SternoclavicularJoint",
    "SHOULDER": "Shoulder",
    "SIJOINT": "SacroiliacJoint",
    "SKULL": "Skull",
    "SPINE": "Spine",
    "SSPINE": "Sacrum",
    "STERNUM": "Sternum",
    "THIGH": "Thigh",
    "THORACIC SPINE": "ThoracicSpine",
    "THUMB": "Thumb",
    "TLSPINE": "ThoracoLumbarSpine",
    "TMJ": "TemporomandibularJoint",
    "TOE": "Toe",
    "TSPINE": "ThoracicSpine",
    "UPPER ARM": "UpperArm",
    "UPPER EXTREMITY": "UpperLimb",
    "UPPERARM": "UpperArm",
    "UPPERLIMB": "UpperLimb",
    "WRIST": "WristJoint",
    "ZYGOMA": "Zygoma",
}

# View Position (PS3.3, C.8.7.1.1 and C.8.11.7) to keywords of CID 4010 "DX View".
_VIEWS = {
    "AP": "AnteroPosterior",
    "PA": "PosteroAnterior",
    "LL": "LeftLateral",
    "RL": "RightLateral",
    "LLD": "LeftLateral",
    "RLD": "RightLateral",
    "LAT": "LateralProjection",
    "LATERAL": "LateralProjection",
    "LLO": "LeftOblique",
    "RLO": "RightOblique",
    "LAO": "LeftAnteriorOblique",
    "LPO": "LeftPosteriorOblique",
    "RAO": "RightAnteriorOblique",
    "RPO": "RightPosteriorOblique",
    "OBLIQUE": "ObliqueProjection",
    "AXIAL": "AxialProjection",
}

# CID 244 has no code for "unpaired": U stays without one.
_LATERALITIES: dict[str, SrCode] = {"R": codes.cid244.Right, "L": codes.cid244.Left, "B": codes.cid244.Bilateral}

_REGIONS: dict[str, SrCode] = codes.cid4031.concepts
_VIEW_CODES: dict[str, SrCode] = codes.cid4010.concepts
_MODALITIES: dict[str, SrCode] = {code.value: code for code in codes.cid29.concepts.values()}
# Where Modality is missing or is no way of acquiring ("OT"), the SOP class may still tell.
_MODALITIES_OF_SOP_CLASSES = {
    ComputedRadiographyImageStorage: "CR",
    DigitalXRayImageStorageForPresentation: "DX",
    DigitalXRayImageStorageForProcessing: "DX",
}


# --- what a radiograph is meant to show, to be compared with what a model is for -----------------------------------

# One exposure, two names: which of them a scanner writes is its habit.
_SAME_EXPOSURE = {
    "BoneOfLowerLimb": "LowerLimb",
    "BoneOfUpperLimb": "UpperLimb",
    "Hip": "HipJoint",
    "SesamoidBonesOfFoot": "Foot",
    "TarsalJoint": "Foot",
    "Thigh": "Femur",
    "UpperArm": "Humerus",
}
# Names beside those of the standard, without spaces and accents: words of scanners, single bones of what is exposed as
# a whole, and words of German, French, Spanish and Italian; those of trunk and head, so that no limb beside hides them.
_OTHER_NAMES = {
    "Extremity": "EXTREMITIES EXTREMITAET EXTREMITAT EXTREMITAETEN EXTREMITATEN EXTREMITE EXTREMIDAD EXTREMIDADES",
    "UpperLimb": "UPPEREXTREMITIES UPEXM UPPEREXT UPEXT OBEREEXTREMITAET OBEREEXTREMITAT MEMBRESUPERIEUR "
    "EXTREMIDADSUPERIOR MIEMBROSUPERIOR ARTOSUPERIORE",
    "LowerLimb": "LOWEREXTREMITIES LOWEXM LOWEREXT LOWEXT UNTEREEXTREMITAET UNTEREEXTREMITAT BEIN BEINE "
    "MEMBREINFERIEUR EXTREMIDADINFERIOR MIEMBROINFERIOR ARTOINFERIORE",
    "Finger": "DIGIT DOIGT DEDO DEDODELAMANO DITO DITA DITODELLAMANO",
    "Thumb": "DAUMEN POUCE PULGAR POLLICE",
    "Hand": "METACARPUS METACARPAL METACARPI MITTELHAND HAENDE HANDE MAIN MANO MANI METACARPE METACARPO",
    "WristJoint": "CARPUS CARPAL CARPI SCAPHOID SKAPHOID DISTALRADIUS HANDGELENK HANDGELENKE HANDWURZEL POIGNET MUNECA "
    "POLSO POLSI CARPE CARPO SCAPHOIDE ESCAFOIDES SCAFOIDE",
    "Forearm": "RADIUSULNA RADIUSANDULNA UNTERARM UNTERARME AVANTBRAS ANTEBRAZO AVAMBRACCIO",
    "Radius": "RADIUS RADII SPEICHE RADIO",
    "Ulna": "ULNA ULNAE ELLE CUBITUS CUBITO",
    "ElbowJoint": "OLECRANON ELLENBOGEN ELLBOGEN ELLENBOGENGELENK COUDE CODO GOMITO",
    "UpperArm": "OBERARM OBERARME BRAS BRAZO BRACCIO",
    "Humerus": "HUMERI HUMERO OMERO",
    "Shoulder": "SCHULTER SCHULTERN SCHULTERGELENK EPAULE HOMBRO SPALLA SPALLE",
    "Clavicle": "COLLARBONE SCHLUESSELBEIN SCHLUSSELBEIN CLAVICULA KLAVIKULA CLAVICULE CLAVICOLA",
    "Scapula": "SCAPULAE SHOULDERBLADE SCHULTERBLATT OMOPLATE OMOPLATO ESCAPULA SCAPOLA",
    "Pelvis": "BECKEN BECKENUEBERSICHT BECKENUBERSICHT BASSIN BACINO",
    "HipJoint": "HUEFTE HUFTE HUEFTEN HUFTEN HUEFTGELENK HUFTGELENK HANCHE CADERA ANCA",
    "Femur": "FEMORA NOF SCHENKELHALS FEMORE COLDUFEMUR COLFEMORAL CUELLODEFEMUR CUELLODELFEMUR COLLODELFEMORE "
    "COLLOFEMORALE",
    "Thigh": "OBERSCHENKEL CUISSE MUSLO COSCIA",
    "Knee": "KNIE KNIEGELENK GENOU GENOUX RODILLA GINOCCHIO GINOCCHIA",
    "Patella": "PATELLAE KNEECAP KNIESCHEIBE ROTULE ROTULA",
    "LowerLeg": "TIBIAFIBULA TIBIAANDFIBULA TIBFIB UNTERSCHENKEL JAMBE PIERNA GAMBA",
    "Tibia": "TIBIA TIBIAE SCHIENBEIN",
    "Fibula": "FIBULAE WADENBEIN PERONE PERONEO",
    "AnkleJoint": "SPRUNGGELENK OBERESSPRUNGGELENK OSG KNOECHEL KNOCHEL CHEVILLE TOBILLO CAVIGLIA",
    "Calcaneus": "OSCALCIS CALCANEUM CALCANEI FERSE FERSENBEIN CALCANEO CALCAGNO TALON TALLONE",
    "Foot": "FEET FOREFOOT MIDFOOT HINDFOOT TALUS TARSUS TARSAL TARSI METATARSUS METATARSAL METATARSI "
    "FUSS FUESSE FUSSE VORFUSS MITTELFUSS RUECKFUSS RUCKFUSS PIED PIE PIEDE PIEDI TARSE TARSO METATARSE METATARSO",
    "Toe": "GREATTOE BIGTOE HALLUX ZEHE ZEHEN GROSSZEHE GROSSZEHEN ORTEIL GROSORTEIL DEDODELPIE DITODELPIEDE ALLUCE",
    "Chest": "THORAX CXR LUNG TORAX TORACE BRUST BRUSTKORB LUNGE LUNGEN POUMON PULMON PULMONES POLMONE POLMONI PECHO "
    "PETTO",
    "Rib": "RIPPE RIPPEN COTES COSTILLA COSTA COSTE COSTOLE RIBCAGE",
    "Sternum": "BRUSTBEIN ESTERNON STERNO",
    "Trunk": "TRUNK TORSO RUMPF TRONC TRONCO",
    "Abdomen": "BAUCH ADDOME VENTRE KUB",
    "Spine": "WIRBELSAEULE WIRBELSAULE RACHIS RACHIDE COLUMNA COLONNE COLONNA VERTEBRA VERTEBRAE",
    "CervicalSpine": "HWS HALSWIRBELSAEULE HALSWIRBELSAULE CERVICAL ODONTOID DENS",
    "ThoracicSpine": "BWS BRUSTWIRBELSAEULE BRUSTWIRBELSAULE THORACIC DORSALSPINE DSPINE",
    "LumbarSpine": "LWS LENDENWIRBELSAEULE LENDENWIRBELSAULE LUMBAR LUMBAL LOMBAIRE LOMBARE",
    "Sacrum": "KREUZBEIN SACRO",
    "Coccyx": "STEISSBEIN",
    "Skull": "CRANIUM CRANIAL SCHAEDEL SCHADEL CRANE CRANEO CRANIO",
    "Head": "KOPF TETE CABEZA TESTA",
    "Neck": "HALS COU COL CUELLO COLLO",
    "JawRegion": "KIEFER OBERKIEFER UNTERKIEFER MACHOIRE",
    "Teeth": "TEETH TOOTH DENTAL ZAHN ZAEHNE ZAHNE",
}
# What else has a head or a neck of its own, which is neither the head nor the neck.
_ENDS = {
    "Femur": ("FEMUR", "FEMORAL"),
    "Fibula": ("FIBULA", "FIBULAR"),
    "Humerus": ("HUMERUS", "HUMERAL"),
    "Radius": ("RADIUS", "RADIAL"),
}
_AROUND_A_NAME = (
    {"L", "R", "LI", "RE", "STRUCTURE", "BONE", "BONES", "REGION", "JOINT", "ENTIRE", "WHOLE", "OF", "THE", "AND"}
    | {"AP", "PA", "LAT", "LATERAL", "OBL", "OBLIQUE", "AXIAL", "VIEW", "VIEWS", "ST", "ND", "RD", "TH"}
    | LEFT_WORDS
    | RIGHT_WORDS
    | BOTH_WORDS
)
_NOT_STATED = {
    *(
        "UNKNOWN",
        "UNSPECIFIED",
        "UNDEFINED",
        "NOTSTATED",
        "NOTKNOWN",
        "NOTSPECIFIED",
        "NOTAPPLICABLE",
        "NA",
        "NONE",
        "NULL",
        "NIL",
    ),
    *("OTHER", "OTHERS", "OT", "MISC", "MISCELLANEOUS", "DEFAULT", "GENERAL"),
}
# Beside a name they say nothing of the part; alone they could be said of any, and are no more understood than others.
_BESIDE_A_NAME = {
    *("I", "II", "III", "IV", "V", "VW", "VWS", "Y", "XR", "XRAY", "SERIES", "ROUTINE", "STANDARD", "ADULT"),
    *("WB", "NWB", "WEIGHT", "BEARING", "WEIGHTBEARING", "STANDING", "STRESS", "FLEXION", "EXTENSION", "UNILATERAL"),
    *("TRAUMA", "FRACTURE", "POSTOP", "MORTISE", "MORTICE", "SKYLINE", "SUNRISE", "MERCHANT", "TUNNEL", "NOTCH"),
    *("AXILLARY", "OUTLET", "SCAPULAR", "GRASHEY", "DORSAL", "PLANTAR", "PALMAR", "PROXIMAL", "DISTAL", "MID", "SHAFT"),
    *("UPPER", "LOWER", "ANTERIOR", "POSTERIOR", "INTERNAL", "EXTERNAL", "ROTATION"),
    *("SEITLICH", "PROFIL", "DE", "DU", "DES", "LA", "LE", "EL", "DEL", "DELLA", "DI", "DER", "UND", "ET", "E"),
}
_SIDE_PREFIXES = ("", "LEFT", "RIGHT", "LT", "RT", "L", "R")
_VERTEBRA = re.compile(r"\bL[1-5]\b")  # the letters of the other vertebrae are no side, and not understood alone
_OLD_SNOMED = {"SNM3", "99SDM"}  # schemes with the values of SRT


class Parts(NamedTuple):
    """The body parts that a text names, each as one word whatever its synonym, and whether nothing else is in it."""

    named: frozenset[str] = frozenset()
    understood: bool = True


def body_parts(text: str) -> Parts:
    """Return the body parts that a text names.

    Words for side, view and position around the names say nothing of the part: "HAND_RIGHT", "L HAND" and "HANDS PA"
    are a hand. A text that holds sides and views alone, or a way of saying nothing such as "OTHER", names none and is
    understood.

    Parameters
    ----------
    text
        A Body Part Examined, the meaning of an anatomic region's code, or a body part on a model's card.
    """
    rest = words(text)
    named, beside, unknown = set(), False, False
    while rest:
        # The longest name first: a "LOWER LEG" is no "LEG", and an "L SPINE" no left spine.
        for count in range(min(4, len(rest)), 0, -1):
            joined = "".join(rest[:count])
            name = _named(joined)
            if name is not None:
                named.add(name)
            if name is not None or joined in _NOT_STATED:
                rest = rest[count:]
                break
        else:
            word = rest.pop(0)
            beside = beside or word in _BESIDE_A_NAME
            unknown = unknown or word not in _AROUND_A_NAME | _BESIDE_A_NAME
    if not named and _VERTEBRA.search(
        text.upper()
    ):  # beside a name, the L of "HAND L2" may be the left and 2 its views
        named.add("LumbarSpine")
    return Parts(frozenset(named), not unknown and (bool(named) or not beside))


def region_parts(region: Code | None) -> Parts:
    """Return the body parts of an Anatomic Region code, by its code if CID 4031 has it, else by its meaning."""
    if region is None:
        return Parts()
    scheme = "SRT" if region.scheme in _OLD_SNOMED else region.scheme
    coded = SrCode(region.value, scheme, region.meaning)  # equal to its SNOMED CT code also where it is of SRT
    known = next((keyword for keyword, code in _REGIONS.items() if code == coded), None)
    return body_parts(region.meaning) if known is None else Parts(frozenset({_SAME_EXPOSURE.get(known, known)}))


def _named(name: str) -> str | None:
    for prefix in _SIDE_PREFIXES:
        bare = name.removeprefix(prefix)
        if prefix and bare == name:
            continue
        keyword = _NAMES.get(bare) or _NAMES.get(bare.removesuffix("S"))
        if keyword is not None:
            return _SAME_EXPOSURE.get(keyword, keyword)
    return None


def _ends_of_bones() -> Iterator[tuple[str, str]]:
    for keyword, (noun, adjective) in _ENDS.items():
        for end in ("NECK", "HEAD"):
            for name in (noun + end, adjective + end, f"{end}OF{noun}"):
                yield name, keyword
            for side in ("THE", "LEFT", "RIGHT", "LT", "RT", "L", "R"):
                yield f"{end}OF{side}{noun}", keyword


_NAMES = {
    **{"".join(words(code.meaning)): keyword for keyword, code in _REGIONS.items()},
    **{"".join(words(text)): keyword for text, keyword in _BODY_PARTS.items()},
    **{name: keyword for keyword, names in _OTHER_NAMES.items() for name in names.split()},
    **dict(_ends_of_bones()),
}


# --- the codes of a report --------------------------------------------------------------------------------------------


def anatomic_region(header: SourceHeader) -> SrCode | None:
    """The coded body part: the source's own Anatomic Region Sequence first, then its Body Part Examined."""
    own = header.anatomic_region
    if own is not None and is_usable(own.value, own.scheme, own.meaning):
        return SrCode(own.value, own.scheme, own.meaning)
    keyword = _BODY_PARTS.get(header.body_part_examined)
    return None if keyword is None else _REGIONS[keyword]


def laterality(header: SourceHeader) -> SrCode | None:
    """The coded side (CID 244), or None when it is unknown or in dispute, or the part is unpaired."""
    return _LATERALITIES.get(side(header))


def side(header: SourceHeader) -> str:
    """The side that an image shows: "R", "L", "B" (both), "U" (unpaired), or "".

    The image's own word goes before its series', the attributes before the texts, and those of the series before those
    of the study. Where one level says right and another left, nobody here can know.
    """
    sides = header.sides
    told = [header.laterality, sides.image, sides.series, sides.region, sides.series_text, sides.study_text]
    return "" if {"R", "L"} <= set(told) else next((name for name in told if name), "")


def image_view(header: SourceHeader) -> SrCode | None:
    """The coded view: the source's own View Code Sequence first, then its View Position."""
    own = header.view_code
    if own is not None and is_usable(own.value, own.scheme, own.meaning):
        return SrCode(own.value, own.scheme, own.meaning)
    keyword = _VIEWS.get(header.view_position)
    return None if keyword is None else _VIEW_CODES[keyword]


def modality(header: SourceHeader) -> SrCode | None:
    """The coded acquisition modality (CID 29)."""
    by_class = _MODALITIES_OF_SOP_CLASSES.get(UID(header.sop_class_uid), "")
    return _MODALITIES.get(header.modality) or _MODALITIES.get(by_class)


def is_usable(value: str, scheme: str, meaning: str) -> bool:
    """Whether a source's code can be passed on as it is (PS3.3, Table 8.8-1: SH and LO values)."""
    return (
        0 < len(value) <= 16
        and 0 < len(scheme) <= 16
        and 0 < len(meaning) <= 64
        and not any("\\" in text for text in (value, scheme, meaning))
    )
