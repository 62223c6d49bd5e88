"""What all pages have around them: which pages there are, who is signed in, and how to sign out."""

from __future__ import annotations

import streamlit as st

from console import access
from console.access import Action
from console.web import look, state, try_image, who, worklist
from dicom_node.objects.content import DISCLAIMER

PAGES = (
    (Action.VIEW_WORKLIST, worklist.page, "Worklist", "worklist", ":material/list:"),
    (Action.TRY_IMAGE, try_image.page, "Try an image", "try", ":material/radiology:"),
)


def run() -> None:
    """Draw the page that was asked for."""
    st.set_page_config(page_title="Osteon", layout="wide", initial_sidebar_state="expanded")
    st.html(look.CSS)
    person = who.present()
    offered = [
        st.Page(page, title=title, url_path=path, icon=icon)
        for action, page, title, path, icon in PAGES
        if person is not None and person.may(action)
    ]
    chosen = st.navigation(offered or [st.Page(worklist.page, title="Worklist", url_path="worklist")])
    with st.sidebar:
        st.caption(f"{DISCLAIMER}.")
        if person is not None:
            roles = ", ".join(sorted(role.value for role in person.roles))
            st.html(look.block(look.facts([("Signed in", person.name), ("Roles", roles)])))
            if person.session_id is not None and st.button("Sign out", width="stretch"):
                access.sign_out(state.database(), person)
                st.rerun()
    chosen.run()
