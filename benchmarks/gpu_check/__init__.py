"""Does the estimate hold on this machine's own GPU? A fixed grid, trained and compared."""
