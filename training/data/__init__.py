"""Data sets as samples: from manifests, from a folder per class, or from DICOM files with a label file.

`open_dataset` tells which, and reports by name whatever it leaves out.
"""

from training.data.manifests import read_fracatlas
from training.data.sample import Box, Sample, arrays, data_root, is_dicom, labels, prepared
from training.data.splits import Split, check_groups, split, split_groups

__all__ = [
    "Box",
    "Sample",
    "Split",
    "arrays",
    "check_groups",
    "data_root",
    "is_dicom",
    "labels",
    "prepared",
    "read_fracatlas",
    "split",
    "split_groups",
]
