"""`python -m console` is `osteon`: how `up` starts its parts, whatever is on the PATH."""

from console.main import run

run()
