"""Where a leaderboard is read: a terminal, a Markdown file."""
