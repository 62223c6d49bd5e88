"""Which side a text names: whole words in five languages, and nothing where it could be either."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.sides import BOTH_WORDS, LEFT_WORDS, RIGHT_WORDS, named_side


@pytest.mark.parametrize("word", sorted(RIGHT_WORDS | LEFT_WORDS))
def test_every_word_names_its_side_wherever_it_stands(word: str) -> None:
    side = "R" if word in RIGHT_WORDS else "L"
    for text in (word, f"Wrist {word.lower()}", f"{word}_HAND", f"hand,{word}.", f"XR-{word}-2 views"):
        assert named_side(text) == side, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Handgelenk links", "L"),
        ("Épaule DROITE", "R"),
        ("Muñeca izquierda", "L"),
        ("Mano destra", "R"),
        ("Left lateral elbow", "L"),
        ("", ""),
        ("L HAND", ""),
        ("HAND R", ""),
        ("Standing upright", ""),
        ("Wright protocol", ""),
        ("RTX", ""),
        ("altleft", ""),
        ("Right posterior oblique", ""),
        ("LT ANT OBL", ""),
        ("left decubitus", ""),
        ("Left hip, right posterior oblique", "L"),
    ],
)
def test_a_text_names_a_side_only_by_a_whole_word_that_means_one(text: str, expected: str) -> None:
    assert named_side(text) == expected


@pytest.mark.parametrize("word", sorted(BOTH_WORDS))
def test_a_text_about_both_sides_names_none(word: str) -> None:
    assert named_side(f"Left wrist {word.lower()}") == ""


def test_texts_that_together_name_both_sides_name_none() -> None:
    assert named_side("Wrist left and right") == ""
    assert named_side("Left wrist", "Right wrist") == ""
    assert named_side("Left wrist", "", "Hand LT") == "L"


@given(st.lists(st.text(max_size=40), max_size=3))
def test_any_text_names_a_side_or_none(texts: list[str]) -> None:
    assert named_side(*texts) in {"R", "L", ""}
