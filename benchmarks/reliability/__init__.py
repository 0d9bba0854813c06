"""The reliability harness: faults, soak, cancel, free and fuzz against a live server."""
