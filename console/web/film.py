"""One image of a study on the screen: with the model's map, in a contrast that a person chooses.

Its file was read before, by a worker; one that was not analysed is read in a process of its own, and when asked only.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import numpy.typing as npt
import streamlit as st
from sqlalchemy import select

from console.access import Action
from console.web import films, look, reading, state, who
from dicom_node.headers import SourceHeader
from dicom_node.pixels import Window, Windowable
from dicom_node.spool import Spool
from models.tables import File, FileKind, Installation
from worker.pictures import Pictures

_STEPS = 200
"""Of a slider, over all that an image holds."""


class Contrast(StrEnum):
    """How an image is shown."""

    MODEL = "As the model saw it"
    FILE = "As the file says"
    OWN = "Own window"


@st.fragment
def film(prediction_id: int, header: SourceHeader, title: str, *, study_id: int) -> None:
    """Draw the image of a prediction and, over it, the map; and the controls of its contrast.

    A fragment: whoever moves a window has this image alone drawn anew.
    """
    who.require(Action.VIEW_STUDY, subject="study", subject_id=study_id)
    drawn = _drawn(prediction_id, header)
    if drawn is None:
        st.html(look.block(look.heading(title), look.paragraph("There is nothing left to draw it from.", "notice")))
        return
    place = st.empty()
    radiograph, heat = _in_contrast(prediction_id) or drawn[0], drawn[1]
    place.html(look.block(look.heading(title), look.films(radiograph, heat, title)))


def not_analysed(image_id: int, title: str, *, study_id: int) -> None:
    """Offer to draw an image that no model has read."""
    if not st.button("Show the image", key=f"show_{image_id}"):
        return
    who.require(Action.VIEW_STUDY, subject="study", subject_id=study_id)
    radiograph = _read_apart(image_id)
    if isinstance(radiograph, str):
        st.html(look.block(look.paragraph(radiograph, "notice")))
    else:
        st.html(look.block(look.films(radiograph, None, title)))


def _in_contrast(prediction_id: int) -> bytes | None:
    """Draw the controls; return the image as they say, or None where it is to look as the model saw it."""
    with st.popover("Window", icon=":material/contrast:"):
        chosen = st.radio("Contrast", list(Contrast), key=f"contrast_{prediction_id}")
        if chosen == Contrast.MODEL:
            return None
        if chosen == Contrast.FILE:
            return _as_stated(prediction_id)
        source = _for_windows(prediction_id)
        if source is None:
            st.caption("No window fits this image: it is in colour, or its file is no longer kept.")
            return None
        return _own(prediction_id, source)


def _own(prediction_id: int, source: Windowable) -> bytes:
    spread = source.high - source.low
    step = max(round(spread / _STEPS), 1) if spread >= _STEPS else spread / _STEPS
    window = source.window
    written = "%.0f" if spread >= _STEPS else "%.4g"
    centre = st.slider(
        "Window Center",
        min(source.low, window.centre),
        max(source.high, window.centre),
        window.centre,
        float(step),
        format=written,
        key=f"centre_{prediction_id}",
    )
    width = st.slider(
        "Window Width",
        float(step),
        max(2 * spread, window.width),
        max(window.width, float(step)),
        float(step),
        format=written,
        key=f"width_{prediction_id}",
    )
    inverted = st.toggle("Inverted", key=f"inverted_{prediction_id}")
    return films.radiograph(source.drawn(Window(centre, width), inverted=inverted))


def _pictures() -> Pictures:
    return Pictures(state.database(), Spool(state.settings().data_dir / "spool"))


# What is drawn of a prediction never changes; kept for a while only, since retention may take the file.
@st.cache_data(max_entries=32, ttl=3600, show_spinner="Drawing")
def _drawn(prediction_id: int, _header: SourceHeader) -> tuple[bytes, bytes | None] | None:
    picture = _pictures().picture(prediction_id, _header)
    if picture is None:
        return None
    return films.radiograph(picture.pixels), None if picture.scores is None else films.heat(picture.scores)


@st.cache_data(max_entries=32, ttl=3600, show_spinner="Drawing")
def _as_stated(prediction_id: int) -> bytes | None:
    pixels: npt.NDArray[np.uint8] | None = _pictures().as_stated(prediction_id)
    return None if pixels is None else films.radiograph(pixels)


# Four megabytes each, shared by all who look.
@st.cache_resource(max_entries=16, ttl=3600, show_spinner="Reading")
def _for_windows(prediction_id: int) -> Windowable | None:
    return _pictures().for_windows(prediction_id)


@st.cache_data(max_entries=8, ttl=600, show_spinner="Reading it in a process of its own")
def _read_apart(image_id: int) -> bytes | str:
    """The image as JPEG, or a sentence that says why there is none."""
    with state.database().read() as session:
        key = session.scalars(
            select(File.key).where(File.image_id == image_id, File.kind == FileKind.INSTANCE, File.removed_at.is_(None))
        ).first()
        installation = session.scalars(select(Installation.uid)).one()
    if key is None:
        return "Its file is no longer kept."
    try:
        with Spool(state.settings().data_dir / "spool").open(key) as file:
            content = file.read()
    except FileNotFoundError:
        return "Its file is missing."
    answer = reading.read(content, state.settings(), installation)
    if isinstance(answer, reading.Unread):
        return answer.sentence
    return answer.bytes_of("radiograph") or "Its pixels cannot be shown."
