"""Models that a source wrote itself, each a folder that ``trust_remote_code`` loads.

What decides memory is as in the source: modules, the order of operations and their dtypes.
"""
