"""DECIDE: what may happen, by whom, and why; and what people look at."""
