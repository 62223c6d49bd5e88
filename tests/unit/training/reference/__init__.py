"""What other programs computed, kept so that tests can compare with them where they are not installed."""
