"""The server's side, as small as it can be: a peer that registers sites, runs jobs on them, and gives tasks."""
