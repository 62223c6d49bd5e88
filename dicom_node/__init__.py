"""DICOM itself: receiving, keeping, reading and sending instances. Knows neither the queue nor the model."""
