"""Before a run: which devices hold which part of the model."""
