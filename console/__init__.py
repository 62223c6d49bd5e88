"""What people use: the `osteon` command line, and `up`, which runs every part on one machine."""
