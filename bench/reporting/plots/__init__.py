"""The figures of a leaderboard: their data, how they are drawn, and how they are rendered."""
