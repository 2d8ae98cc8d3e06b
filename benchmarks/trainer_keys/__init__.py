"""What each trainer takes, asked of the trainer itself in an environment of its own."""
