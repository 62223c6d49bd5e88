"""`python -m training`: look at data, fit, tune, compare, cross-validate, release and measure a reader."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from training.data import data_root

COMMANDS = {
    "show": "draw samples of both classes, augmented samples, and counts",
    "leaks": "find radiographs that are on both sides of a split",
    "fit": "fit one network by a recipe; goes on where a stopped run was",
    "tune": "search a recipe; goes on where a stopped search was",
    "compare": "fit several architectures alike and measure them side by side",
    "cross-validate": "fit the members of a reader on all folds and on everything",
    "release": "join a reader, calibrate it on the folds, measure it on test, write its bundle",
    "restate": "release a bundle anew with the same model and a card that says more",
    "evaluate": "measure a bundle through the worker's predictor",
    "presentations": "compare a bundle's readings of the same images in many DICOM presentations",
    "reproduce": "fit the published CNN as published, and show what its figure is worth",
}
"""What each does. A command's module has its name, `finalist` for `cross-validate`, and is imported only for it."""
_MODULES = {"cross-validate": "finalist"}


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and run one of the commands."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_root(), help="folder of the data sets (OSTEON_TEST_DATA)")
    commands = parser.add_subparsers(dest="command", required=True)
    # Only the command that is asked for is imported: Keras and matplotlib take seconds.
    wanted = next((word for word in given if word in COMMANDS), None)
    for name, words in COMMANDS.items():
        command = commands.add_parser(name, help=words)
        if name == wanted:
            module = importlib.import_module(f"training.{_MODULES.get(name, name)}")
            command.description = module.__doc__
            module.configure(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(given)
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}. Training needs more than a node does: pip install 'osteon[train]'.") from error


if __name__ == "__main__":
    main()
