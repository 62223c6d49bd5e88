"""Who looks at this page, and whether they may: asked first by every page, and again by every action."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import streamlit as st

from console import access
from console.access import Action, Denied, Person
from console.web import door, look, sign_in, state


def require(
    action: Action, *, subject: str = "console", subject_id: int | None = None, by_itself: bool = False
) -> Person:
    """Return who looks at this page, where they may do this; else say so, and end the page here.

    Parameters
    ----------
    by_itself
        The page asks, and not the person: that keeps no session alive.
    """
    person = present(by_itself=by_itself)
    if person is None:
        _ask_to_sign_in()
    try:
        access.authorise(state.database(), person, action, subject=subject, subject_id=subject_id)
    except Denied as error:
        st.error(f"Not allowed. {error}", icon=":material/block:")
        st.stop()
    return person


def present(*, by_itself: bool = False) -> Person | None:
    """Return who looks at this page, or None where they have to sign in (again)."""
    return door.person_by_cookies(cookies(), touch=not by_itself)


def cookies() -> Mapping[str, str]:
    """Return the cookies with which this page's connection was opened."""
    return st.context.cookies


def _ask_to_sign_in() -> NoReturn:
    sentence = look.Safe(
        f'<p class="notice">You are not signed in (any more). <a href="{sign_in.SIGN_IN}">Sign in</a></p>'
    )
    st.html(look.block(sentence))
    st.stop()
