"""Data sets as samples: from manifests, from a folder per class, or from DICOM files with a label file.

`open_dataset` tells which, and reports by name whatever it leaves out.
"""

from training.data.dataset import Dataset, Problem
from training.data.manifests import REGIONS, VIEWS, read_fracatlas
from training.data.opening import named, open_dataset
from training.data.sample import Box, Sample, arrays, data_root, is_dicom, labels, prepared
from training.data.splits import Split, check_groups, split, split_groups

__all__ = [
    "REGIONS",
    "VIEWS",
    "Box",
    "Dataset",
    "Problem",
    "Sample",
    "Split",
    "arrays",
    "check_groups",
    "data_root",
    "is_dicom",
    "labels",
    "named",
    "open_dataset",
    "prepared",
    "read_fracatlas",
    "split",
    "split_groups",
]
