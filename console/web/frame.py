"""What all pages have around them: which pages there are, who is signed in, and how to sign out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import streamlit as st
from PIL import Image, ImageDraw

from console import access
from console.access import Action, Person
from console.web import audit, drift, look, model, operations, state, study, try_image, who, worklist
from dicom_node.objects.content import DISCLAIMER

PAGES: tuple[tuple[Action, Callable[[], None], str, str, str, Literal["visible", "hidden"]], ...] = (
    (Action.VIEW_WORKLIST, worklist.page, "Worklist", "worklist", ":material/list:", "visible"),
    # One gets there by the worklist.
    (Action.VIEW_STUDY, study.page, "Study", "study", ":material/article:", "hidden"),
    (Action.TRY_IMAGE, try_image.page, "Try an image", "try", ":material/radiology:", "visible"),
    (Action.VIEW_OPERATIONS, operations.page, "Operations", "operations", ":material/monitor_heart:", "visible"),
    (Action.VIEW_DRIFT, drift.page, "Drift", "drift", ":material/show_chart:", "visible"),
    (Action.VIEW_MODELS, model.page, "Model", "model", ":material/neurology:", "visible"),
    (Action.VIEW_AUDIT, audit.page, "Audit", "audit", ":material/fact_check:", "visible"),
)


def run() -> None:
    """Draw the page that was asked for."""
    # The title is the same on every page: titles stand in a browser's history.
    st.set_page_config(page_title="Osteon", page_icon=_icon(), layout="wide")
    st.html(look.CSS)
    person = who.present()
    offered = [
        st.Page(page, title=title, url_path=path, icon=icon, visibility=visibility)
        for action, page, title, path, icon, visibility in PAGES
        if person is not None and person.may(action)
    ]
    # Whoever may see none is told so by the first.
    chosen = st.navigation(offered or [st.Page(worklist.page, title="Worklist", url_path="worklist")], position="top")
    title, rest = st.columns([2, 5], vertical_alignment="center")
    title.title(chosen.title, anchor=False)
    if person is not None:
        with rest:
            _person(person)
    chosen.run()


def _person(person: Person) -> None:
    left, right = st.columns([5, 1], vertical_alignment="center")
    roles = ", ".join(sorted(role.value for role in person.roles))
    who_it_is = person.name if person.session_id is not None else "Nobody has to sign in: this machine alone is served"
    told = f"{who_it_is} ({roles})" if person.session_id is not None else who_it_is
    left.html(
        look.block(look.Safe('<div class="person">'), look.span(f"{DISCLAIMER}."), look.span(told), look.Safe("</div>"))
    )
    if person.session_id is not None and right.button("Sign out", width="stretch"):
        access.sign_out(state.database(), person)
        st.rerun()


@cache
def _icon() -> Image.Image:
    """The browser's picture for the tab: Streamlit would fetch one of its own from elsewhere."""
    icon = Image.new("RGBA", (32, 32))
    ImageDraw.Draw(icon).polygon([(16, 1), (31, 16), (16, 31), (1, 16)], fill="#9ccbea")
    return icon
