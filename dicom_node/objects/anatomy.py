"""What sources write about body part, side, view and modality, as codes of the standard's context groups.

An unknown value gives `None`, and the report then leaves the item out: a guessed body part would be worse than none.
"""

from __future__ import annotations

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as SrCode
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
)

from dicom_node.headers import Code, SourceHeader
from dicom_node.sides import BOTH_WORDS, LEFT_WORDS, RIGHT_WORDS

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
# Names beside those of the standard, without spaces: words of scanners, and single bones of what is exposed as a whole.
_OTHER_NAMES = {
    "Calcaneus": ("OSCALCIS",),
    "Chest": ("THORAX",),
    "Clavicle": ("COLLARBONE",),
    "ElbowJoint": ("OLECRANON",),
    "Foot": ("FEET", "FOREFOOT", "MIDFOOT", "HINDFOOT", "METATARSUS", "METATARSAL"),
    "Forearm": ("RADIUSULNA", "RADIUSANDULNA"),
    "Hand": ("METACARPUS", "METACARPAL"),
    "LowerLeg": ("TIBIAFIBULA", "TIBIAANDFIBULA", "TIBFIB"),
    "Patella": ("KNEECAP",),
    "Radius": ("RADIUS",),
    "Tibia": ("TIBIA",),
    "Toe": ("GREATTOE", "BIGTOE", "HALLUX"),
    "Ulna": ("ULNA",),
    "WristJoint": ("CARPUS", "SCAPHOID", "DISTALRADIUS"),
}
_AROUND_A_NAME = (
    {"L", "R", "LI", "RE", "STRUCTURE", "BONE", "BONES", "REGION", "JOINT", "ENTIRE", "WHOLE", "OF", "THE", "AND"}
    | {"AP", "PA", "LAT", "LATERAL", "OBL", "OBLIQUE", "AXIAL", "VIEW", "VIEWS", "ST", "ND", "RD", "TH"}
    | {"UNKNOWN", "UNSPECIFIED", "UNDEFINED"}
    | LEFT_WORDS
    | RIGHT_WORDS
    | BOTH_WORDS
)
_SIDE_PREFIXES = ("", "LEFT", "RIGHT", "LT", "RT", "L", "R")
_OLD_SNOMED = {"SNM3", "99SDM"}  # schemes with the values of SRT


def body_parts(text: str) -> frozenset[str] | None:
    """Return the body parts that a text names, each as one word whatever its synonym; None where one is not understood.

    Words for side and view around the names say nothing of the part: "HAND_RIGHT", "L HAND" and "HANDS PA" are a hand.
    A text that holds nothing else, or nothing at all, gives the empty set.

    Parameters
    ----------
    text
        A Body Part Examined, the meaning of an anatomic region's code, or a body part on a model's card.
    """
    words = _words(text)
    found = set()
    while words:
        # The longest name first: a "LOWER LEG" is no "LEG", and an "L SPINE" no left spine.
        for count in range(min(4, len(words)), 0, -1):
            name = _named("".join(words[:count]))
            if name is not None:
                found.add(name)
                words = words[count:]
                break
        else:
            if words.pop(0) not in _AROUND_A_NAME:
                return None
    return frozenset(found)


def region_parts(region: Code | None) -> frozenset[str] | None:
    """Return the body parts of an Anatomic Region code, by its code if CID 4031 has it, else by its meaning."""
    if region is None:
        return frozenset()
    scheme = "SRT" if region.scheme in _OLD_SNOMED else region.scheme
    coded = SrCode(region.value, scheme, region.meaning)  # equal to its SNOMED CT code also where it is of SRT
    known = next((keyword for keyword, code in _REGIONS.items() if code == coded), None)
    return body_parts(region.meaning) if known is None else frozenset({_SAME_EXPOSURE.get(known, known)})


def _named(name: str) -> str | None:
    for prefix in _SIDE_PREFIXES:
        bare = name.removeprefix(prefix)
        if prefix and bare == name:
            continue
        keyword = _NAMES.get(bare) or _NAMES.get(bare.removesuffix("S"))
        if keyword is not None:
            return _SAME_EXPOSURE.get(keyword, keyword)
    return None


def _words(text: str) -> list[str]:
    return "".join(sign if sign.isalpha() else " " for sign in text.upper()).split()


_NAMES = {
    **{"".join(_words(code.meaning)): keyword for keyword, code in _REGIONS.items()},
    **{"".join(_words(text)): keyword for text, keyword in _BODY_PARTS.items()},
    **{name: keyword for keyword, names in _OTHER_NAMES.items() for name in names},
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
    """The coded side (CID 244), or None when it is unknown or the part is unpaired."""
    return _LATERALITIES.get(header.laterality)


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
