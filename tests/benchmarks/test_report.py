"""What a report takes to be built: processor time, and memory by the number of views.

The first of a process loads the tables of codes, and is not counted.
"""

from __future__ import annotations

import time
import tracemalloc

from dicom_node.objects.content import ReportContent
from dicom_node.objects.report import build_report
from tests.benchmarks.results import save, spread
from tests.reports import REGION, content, image

ROUNDS = 20
VIEWS = (1, 10, 50, 200)


def of_views(count: int) -> ReportContent:
    return content(*(image(number, region=REGION) for number in range(1, count + 1)))


def test_building_a_report_of_one_image() -> None:
    report = of_views(1)
    build_report(report)
    spent = []
    for _ in range(ROUNDS):
        start = time.process_time()
        build_report(report)
        spent.append(1000 * (time.process_time() - start))
    result = {"milliseconds": spread(spent), "goal": 50}
    print(f"report of one image: {result}")
    save("report", result)


def test_building_a_report_of_many_views() -> None:
    build_report(of_views(1))
    results = []
    for count in VIEWS:
        report = of_views(count)
        start = time.process_time()
        size = len(build_report(report))
        spent = 1000 * (time.process_time() - start)
        tracemalloc.start()
        build_report(report)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        results.append({"views": count, "bytes": size, "milliseconds": round(spent, 1), "peak_bytes": peak})
        print(results[-1])
    save("report_views", {"by_views": results})
