"""Everything breaks at random moments while studies come in: the parts of that test, each a real process or wire."""
