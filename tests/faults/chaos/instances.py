"""The radiographs that are sent: small, each unlike every other, of 40 studies that come interleaved."""

from __future__ import annotations

import random
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests import litert
from tests.phantom import limb
from tests.radiographs import radiograph
from tests.servers import data_set_of

STUDIES = 40
INSTANCES = 300


@dataclass(frozen=True)
class Instance:
    """A file to send, and what has to be found of it afterwards."""

    path: Path
    study_uid: str
    sop_instance_uid: str
    sha256: str
    """Of its data set's bytes: as DCMTK sends them, they are those of the file."""


def make_instances(folder: Path, *, studies: int = STUDIES, instances: int = INSTANCES) -> list[Instance]:
    """Write them, study after study."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(instances):
        study = number % studies
        study_uid, uid = f"1.2.826.0.1.{study + 1}", f"1.2.826.0.1.{study + 1}.1.{number + 1}"
        dataset = radiograph(
            limb(72, 60),
            noise=1 + number / 100,
            patient_id=f"P{study}",
            study_uid=study_uid,
            series_uid=f"{study_uid}.1",
            sop_instance_uid=uid,
            instance_number=number // studies + 1,
        )
        path = folder / f"{number}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        made.append(Instance(path, study_uid, uid, sha256(data_set_of(path)).hexdigest()))
    return sorted(made, key=lambda instance: instance.study_uid)


def dealt(instances: list[Instance], lanes: int, chance: random.Random) -> list[list[Instance]]:
    """Deal the instances to associations: studies overlap, and most are split over several associations."""
    # Each study begins somewhere in the first nine tenths and takes a tenth of the time.
    begins = {uid: chance.uniform(0, 0.9) for uid in {instance.study_uid for instance in instances}}
    order = sorted(instances, key=lambda instance: begins[instance.study_uid] + chance.uniform(0, 0.1))
    return [order[lane::lanes] for lane in range(lanes)]


def make_bundle(folder: Path) -> Path:
    """Write a model bundle that reads every one of them, quickly."""
    card = litert.card(litert.SIZE, litert.CELLS)
    card["gate"]["refuse_above"] = 1.0
    return litert.write_bundle(folder, card, litert.network(litert.SIZE, litert.CELLS))
