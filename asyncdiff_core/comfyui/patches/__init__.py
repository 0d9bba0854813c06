"""What a MODEL carries besides its weights, on its way to the workers and there."""
