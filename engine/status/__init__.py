"""The status API and its pages: what the record says, over HTTP.

It answers from projections and read models. Commands become the engine's calls, with the caller as their actor.
"""
