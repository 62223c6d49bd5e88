"""Makes pynetdicom write a C-STORE's data set straight into the spool, hashed on the way.

pynetdicom can write a data set to a temporary file while it arrives (`STORE_RECV_CHUNKED_DATASET`), but the file lies
where `tempfile` puts it, often on another file system; nothing is hashed, and a file whose association breaks off is
never removed. This module puts `dicom_node.spool.Incoming` in the place of that temporary file. With
`bounds`, `guard` and `connections` it is all that overrides pynetdicom's internals; `tests/unit/test_receiving.py`
fails when they change.
"""

from __future__ import annotations

import threading
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any

from pynetdicom import _config
from pynetdicom.association import Association

from dicom_node.spool import Incoming, Spool

# Not exported, hence not typed.
_dimse_messages: Any = import_module("pynetdicom.dimse_messages")
_write_file_meta_info = _dimse_messages.write_file_meta_info
_temporary_file = _dimse_messages.NamedTemporaryFile


class Receiver:
    """Hands out incoming files, and finds them again when the C-STORE handler is called."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._open: weakref.WeakValueDictionary[str, Incoming] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def install(self) -> None:
        """Receive through this spool from now on, in the whole process."""
        _config.STORE_RECV_CHUNKED_DATASET = True
        _dimse_messages.NamedTemporaryFile = self._new_file
        _dimse_messages.write_file_meta_info = self._write_file_meta

    def uninstall(self) -> None:
        """Leave pynetdicom as it was, unless another has been installed since."""
        if _dimse_messages.NamedTemporaryFile == self._new_file:
            _config.STORE_RECV_CHUNKED_DATASET = False
            _dimse_messages.NamedTemporaryFile = _temporary_file
            _dimse_messages.write_file_meta_info = _write_file_meta_info

    def find(self, path: Path) -> Incoming:
        """Return the incoming file that `event.dataset_path` names."""
        with self._lock:
            return self._open[str(path)]

    @staticmethod
    def abandon(association: Association) -> None:
        """Remove what an association that has ended received of a data set that will never be whole.

        pynetdicom's own references form a circle: without this the file would lie there until the garbage is collected.
        """
        message: Any = association.dimse.message
        unfinished = None if message is None else message._data_set_file
        if isinstance(unfinished, Incoming):
            unfinished.discard()

    def _new_file(self, **_options: Any) -> Incoming:
        incoming = self._spool.incoming()
        with self._lock:
            self._open[incoming.name] = incoming
        return incoming

    @staticmethod
    def _write_file_meta(incoming: Incoming, file_meta: Any) -> None:
        """Write the file meta information; the data set, and so the digest, begins behind it."""
        _write_file_meta_info(incoming, file_meta)
        incoming.begin_digest()
