"""The words of the card: what the reader is for, what it is not for, and whose data it learnt from."""

from __future__ import annotations

from worker.bundle import Ages, IntendedUse, TrainingData

INTENDED_USE = IntendedUse(
    statement=(
        "To show that a study travels the whole way through Osteon, and as the baseline for better models. It gives a "
        "second opinion on one radiograph of the limbs, hip or shoulder. Not for primary diagnosis, not to rule a "
        "fracture out, not a medical device."
    ),
    # Defined terms of PS3.16 Annex L for what FracAtlas shows (its "hand" reaches up to the humerus, its "leg" from the
    # thigh to the toes), then three forms that scanners send for the same.
    body_parts=(
        *("HAND", "FINGER", "THUMB", "WRIST", "RADIUS", "ULNA", "RADIUSULNA", "ELBOW", "ARM", "HUMERUS"),
        *("SHOULDER", "CLAVICLE", "SCAPULA"),
        *("HIP", "PELVIS", "FEMUR", "THIGH"),
        *("LEG", "KNEE", "PATELLA", "TIBIA", "FIBULA", "TIBIAFIBULA", "ANKLE", "CALCANEUS", "FOOT", "TOE"),
        "EXTREMITY",
        *("FOREARM", "LOWERLEG", "TIBFIB"),
    ),
    # Open growth plates look like fractures. FracAtlas holds children's images and does not say which they are, so that
    # no figure exists for them.
    ages=Ages(from_years=18),
    limits=(
        "A weak model: it misses fractures and calls sound bones broken; see the metrics and their intervals.",
        "It sees 150 × 150 pixels; the median fracture covers 0.5 % of its image, so fine fractures are mostly lost.",
        "One source (three hospitals of one country, published together); no other hospital's images were tried.",
        "Ages in the data are unknown, children among them: nothing was measured on children, whose open growth plates "
        "may look like fractures or hide them. Stated ages below 18 are not read; images without an age are.",
        "Nearly all training images with plates or screws are fractured: hardware alone raises the probability.",
        "Patients are not identified in the data; groups of neighbouring images stand in for them.",
        "The operating points were chosen on one fold of 550 images; on the test split they differ from their aims.",
        "It does not say where a fracture is, how old it is, or of what kind.",
        "Few images of hip and shoulder; skull, spine, ribs, chest and teeth are outside its use.",
        "Trained on 8-bit JPEG pictures; that DICOM images of the same radiographs are read alike was shown on copies "
        "of its own test pictures, not on images of a detector.",
    ),
)
