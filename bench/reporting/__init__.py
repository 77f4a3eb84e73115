"""What the store says, as leaderboards with their uncertainty."""
