"""`python -m training`: fit a network, evaluate a bundle, release a bundle, show that it reads any presentation."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.data import data_root


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and run one of the steps."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_root(), help="folder of the data sets (OSTEON_TEST_DATA)")
    steps = parser.add_subparsers(dest="step", required=True)
    fit = steps.add_parser("fit", help="fit the published CNN; goes on where a stopped run was")
    fit.add_argument("run", type=Path, help="folder of the run, e.g. runs/published-cnn")
    fit.add_argument("--epochs", type=int, default=None)
    evaluate = steps.add_parser("evaluate", help="measure a bundle on the test split")
    evaluate.add_argument("bundle", type=Path)
    release = steps.add_parser("release", help="turn a run into a bundle: export, calibrate, measure, write")
    release.add_argument("run", type=Path)
    release.add_argument("bundle", type=Path, help="the new folder, e.g. worker/bundles/NAME-VERSION")
    presentations = steps.add_parser("presentations", help="compare a bundle's readings of the same images as DICOM")
    presentations.add_argument("bundle", type=Path)
    presentations.add_argument("--every", type=int, default=1, help="read every n-th image only")
    options = parser.parse_args(arguments)

    # Imported late: TensorFlow takes seconds, and --help and evaluate do without it.
    if options.step == "fit":
        from training.fit import Settings
        from training.fit import fit as run_fit

        settings = Settings() if options.epochs is None else Settings(epochs=options.epochs)
        run_fit(settings, options.data, options.run)
    elif options.step == "evaluate":
        from training.evaluate import evaluate as run_evaluate
        from training.evaluate import table

        print(table(run_evaluate(options.bundle, options.data)))
    elif options.step == "presentations":
        from training.presentations import compare
        from training.presentations import table as differences

        print(differences(compare(options.bundle, options.data, every=options.every)))
    else:
        from training.release import release as run_release

        run_release(options.run, options.bundle, options.data)


if __name__ == "__main__":
    main()
