"""The hospital: every modality a thread that sends over one association at a time, and a journal of all answers.

It is run as `python -m tests.benchmarks.day.senders SPECIFICATION`, says "ready" when it is, and begins at the time
(of `time.time()`) that it is told on its standard input.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from dicom_node.sender import Destination, Kind, Link, Result
from models import logs
from tests.benchmarks.day.instances import Radiographs
from tests.benchmarks.day.schedule import MODALITIES, Day, Sending, What, plan

TIMEOUT_SECONDS = 60.0
PAUSE_SECONDS = 1.0
"""After which a modality tries again what was not answered with success."""
MOST_TRIES = 60


@dataclass(frozen=True)
class Specification:
    """What the senders have to know."""

    seed: int
    studies: int
    acceleration: float
    """By which all times are divided."""
    port: int
    data: str
    """The folder of the shared radiographs."""
    journal: str

    def write(self, path: Path) -> Path:
        """Write it for the process of the senders."""
        path.write_text(json.dumps(asdict(self)))
        return path


class Answer(NamedTuple):
    """One C-STORE: which image of which study, when it began and was answered, and what became of it."""

    what: str
    ae_title: str
    study: int
    image: int
    began: float
    answered: float
    stored: bool
    reason: str


class Journal:
    """Answers, one a line."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = path.open("a", buffering=1)

    def note(self, answer: Answer) -> None:
        """Write one down."""
        with self._lock:
            self._file.write(json.dumps(answer) + "\n")

    def close(self) -> None:
        """Write no more."""
        self._file.close()

    @staticmethod
    def read(path: Path) -> list[Answer]:
        """Return all of them."""
        return [Answer(*json.loads(line)) for line in path.read_text().splitlines()]


class Sender(threading.Thread):
    """One modality: sends its day, in order; what comes while it sends waits its turn."""

    def __init__(self, ae_title: str, sendings: list[Sending], hospital: Hospital, begin: float) -> None:
        super().__init__(name=ae_title, daemon=True)
        self._ae_title, self._sendings, self._hospital, self._begin = ae_title, sendings, hospital, begin
        self.error: BaseException | None = None

    def run(self) -> None:
        """Send everything at its time."""
        try:
            for sending in self._sendings:
                due = self._begin + sending.at / self._hospital.specification.acceleration
                time.sleep(max(0.0, due - time.time()))
                self._send(sending)
        except BaseException as error:
            self.error = error

    def _send(self, sending: Sending) -> None:
        study = self._hospital.day.studies[sending.study - 1]
        with tempfile.TemporaryDirectory(prefix="osteon-day-") as folder:
            files = {
                image: (path, self._hospital.radiographs.write(path, study, image, corrected=corrected))
                for image in sending.images
                for path in [Path(folder) / f"{image}.dcm"]
                for corrected in [sending.what is What.CORRECTED]
            }
            for _ in range(MOST_TRIES):
                files = self._try(sending, files)
                if not files:
                    return
                time.sleep(PAUSE_SECONDS)
        raise AssertionError(f"{self._ae_title} could not send study {sending.study}")

    def _try(self, sending: Sending, files: dict[int, tuple[Path, Kind]]) -> dict[int, tuple[Path, Kind]]:
        """Send over one association; return what was not answered with success."""
        left = dict(files)
        hospital = self._hospital
        kinds = [kind for _, kind in files.values()]
        with Link(hospital.node, kinds, calling_ae_title=self._ae_title, timeout=TIMEOUT_SECONDS) as link:
            for image, (path, kind) in files.items():
                began = time.time()
                outcome = link.store(path, kind)
                stored = outcome.result is Result.DELIVERED
                answer = (sending.what.value, self._ae_title, sending.study, image, began, time.time())
                hospital.journal.note(Answer(*answer, stored, outcome.reason))
                if stored:
                    del left[image]
        return left


class Hospital:
    """What the modalities share."""

    def __init__(self, specification: Specification) -> None:
        self.specification = specification
        self.day: Day = plan(specification.seed, specification.studies)
        self.radiographs = Radiographs(Path(specification.data), specification.seed)
        self.journal = Journal(Path(specification.journal))
        self.node = Destination("OSTEON", "127.0.0.1", specification.port)

    def live(self, begin: float) -> None:
        """Send the whole day. Raises what a modality failed with."""
        of: dict[str, list[Sending]] = {modality.ae_title: [] for modality in MODALITIES}
        for sending in self.day.sendings:
            of[sending.ae_title].append(sending)
        senders = [Sender(title, sendings, self, begin) for title, sendings in of.items()]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
            if sender.error is not None:
                raise sender.error


def main() -> None:
    """Send a day, then say how much processor time that took."""
    logs.configure("senders", level="critical")
    hospital = Hospital(Specification(**json.loads(Path(sys.argv[1]).read_text())))
    print("ready", flush=True)
    begin = float(sys.stdin.readline())
    hospital.live(begin)
    hospital.journal.close()
    print(json.dumps({"processor_seconds": time.process_time()}), flush=True)


if __name__ == "__main__":
    main()
