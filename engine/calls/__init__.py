"""The engine's calls, each top to bottom in a file of its own: check, decide, record, ring, answer.

They raise Flightlog's errors; ``engine.client_engine`` turns those into the reference's strings.
"""
