"""How long a report takes to be built, in processor time; the first of a process loads highdicom's tables."""

from __future__ import annotations

import time

from dicom_node.objects.report import build_report
from tests.benchmarks.results import save, spread
from tests.reports import REGION, content, image

ROUNDS = 20


def test_building_a_report_of_one_image() -> None:
    report = content(image(region=REGION))
    build_report(report)
    spent = []
    for _ in range(ROUNDS):
        start = time.process_time()
        build_report(report)
        spent.append(1000 * (time.process_time() - start))
    result = {"milliseconds": spread(spent), "goal": 50}
    print(f"report of one image: {result}")
    save("report", result)
