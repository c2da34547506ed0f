"""Aux messages: requests between a site, its jobs and the server, by topic (reference 4)."""
