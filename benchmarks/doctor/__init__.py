"""What this machine's devices and the links between them can do: the first thing to run.

python3 dev.py doctor [--devices LIST] [--out FILE]
"""
