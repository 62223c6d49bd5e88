"""Decides when to analyse, report and deliver, and does it: the Celery app, its tasks, and the reader (LiteRT)."""
