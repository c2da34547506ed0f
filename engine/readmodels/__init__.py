"""Read models: what lists, sums and searches are answered from, fed from the log by one follower per site.

They hold nothing that is not in the log. Each lives below ``rm:`` in the record, with the position up to which it was
fed; whoever deletes them finds them written anew.
"""
