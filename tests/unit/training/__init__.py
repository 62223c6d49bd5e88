"""Tests of the room `training`: data without leaks, figures that are what they are called."""
