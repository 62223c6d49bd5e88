"""Builders of the DICOM objects that Osteon sends. Pure: plain dataclasses in, datasets out, no clock, no disk, no database."""
