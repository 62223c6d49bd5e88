"""What is sent: real radiographs, each under UIDs and for a patient of its own."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pydicom
from pydicom.uid import UID

from dicom_node.sender import Kind
from tests.benchmarks.day.schedule import MODALITIES, Study

SAMPLES = ("RG2", "RG3")


def study_uid(seed: int, study: int) -> str:
    """Return the Study Instance UID."""
    return f"1.2.826.0.1.{seed}.{study}"


def sop_instance_uid(seed: int, study: int, image: int) -> str:
    """Return the SOP Instance UID of an image."""
    return f"{study_uid(seed, study)}.1.{image}"


class Radiographs:
    """Makes the files; always the same bytes for the same image."""

    def __init__(self, data: Path, seed: int) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        encodings = {modality.encoding for modality in MODALITIES}
        self._sources = {
            (sample, encoding): pydicom.dcmread(data / "dicom" / f"WG04_{sample}_{encoding}.dcm")
            for sample in SAMPLES
            for encoding in encodings
        }

    def write(self, target: Path, study: Study, image: int, *, corrected: bool) -> Kind:
        """Write an image of a study; return its SOP class and transfer syntax."""
        with self._lock:
            dataset = self._sources[study.sample, study.modality.encoding]
            dataset.StudyInstanceUID = study_uid(self._seed, study.number)
            dataset.SeriesInstanceUID = f"{dataset.StudyInstanceUID}.1"
            dataset.SOPInstanceUID = sop_instance_uid(self._seed, study.number, image)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.InstanceNumber = image
            dataset.PatientID = f"P{study.number}"
            dataset.PatientName = f"Day^Number {study.number}"
            dataset.AccessionNumber = f"A{study.number}{'C' if corrected else ''}"
            dataset.RequestedProcedurePriority = "STAT" if study.stat else "ROUTINE"
            buffer = io.BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            meta = dataset.file_meta
            kind = UID(meta.MediaStorageSOPClassUID), UID(meta.TransferSyntaxUID)
        target.write_bytes(buffer.getbuffer())
        return kind
