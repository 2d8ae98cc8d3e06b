"""One script a tool: questions as JSON on standard input, answers as JSON on standard output.

A script runs beside the tool that it asks and imports nothing of batchplan. An answer is bytes of
live tensors on the fullest device, or words why the tool cannot be asked.
"""
