"""A static site of leaderboards: pages, downloads, and the folder that holds them."""
