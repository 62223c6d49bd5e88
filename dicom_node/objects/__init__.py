"""Builders of the DICOM objects that Osteon sends.

Pure: plain dataclasses in, bytes out; no clock, no disk, no database.
"""
