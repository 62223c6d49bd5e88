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

from dicom_node.headers import SourceHeader

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
