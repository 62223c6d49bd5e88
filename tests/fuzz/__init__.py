"""Programs that look for files which break a reader, by `make fuzz`; pytest does not collect them."""
