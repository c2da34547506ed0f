"""The record as evidence: verified, replayed, carried away, forgotten, brought back."""
