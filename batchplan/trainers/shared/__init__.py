"""What several trainers' formats have in common."""
