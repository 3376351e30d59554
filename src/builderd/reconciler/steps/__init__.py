"""Steps of the reconciler, a file for each."""
