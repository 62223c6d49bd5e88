"""What the system knows: settings, the tables of the record, the engine, the clock and the log."""
