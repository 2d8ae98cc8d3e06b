"""Other estimators, each asked about the same rows in an environment of its own."""
