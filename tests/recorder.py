"""A storage SCP that keeps what it was asked and does as it is told: answers, hangs, or breaks off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from tests.servers import shut_down

Answer = int | str
"""A status, "abort", or "hang"."""


class Recorder:
    """Listens on a port of its own. `answer` is asked for each instance, `reject` for each association."""

    def __init__(
        self,
        answer: Callable[[str], Answer] = lambda _: 0x0000,
        *,
        reject: Callable[[], tuple[int, int, int] | None] = lambda: None,
        port: int = 0,
        sop_class: str = Comprehensive3DSRStorage,
        ae_title: str = "PACS",
    ) -> None:
        self.associations = 0
        """Associations that were asked for."""
        self.asked: list[str] = []
        """The SOP Instance UID of each C-STORE, in order."""
        self.stored: dict[str, set[str]] = {}
        """Digests of the data sets that were answered with success, by SOP Instance UID."""
        self._answer = answer
        self._reject = reject
        self._released = threading.Event()
        ae = AE(ae_title=ae_title)
        ae.maximum_associations = 100
        ae.add_supported_context(sop_class, ExplicitVRLittleEndian)
        self._ae = ae
        handlers: list[Any] = [(evt.EVT_REQUESTED, self._requested), (evt.EVT_C_STORE, self._store)]
        server: Any = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        self.port: int = server.server_address[1]

    def stop(self) -> None:
        """End it, and what hangs."""
        self._released.set()
        shut_down(self._ae)

    def _requested(self, event: evt.Event) -> None:
        self.associations += 1
        refusal = self._reject()
        if refusal is not None:
            event.assoc.acse.send_reject(*refusal)
            # As pynetdicom does where it rejects by itself.
            event.assoc.kill()

    def _store(self, event: evt.Event) -> int:
        request: Any = event.request
        uid = str(request.AffectedSOPInstanceUID)
        self.asked.append(uid)
        answer = self._answer(uid)
        if answer == "hang":
            self._released.wait(60)
            return 0x0110
        if answer == "abort":
            event.assoc.abort()
            return 0x0110
        assert isinstance(answer, int)
        if answer == 0x0000:
            self.stored.setdefault(uid, set()).add(sha256(event.encoded_dataset(include_meta=False)).hexdigest())
        return answer
