"""The quality laboratory: what a setting does to the image, against what it saves.

    python3 dev.py quality [--checkpoint FILE --prompts FILE ...]

Quality needs one device only: the oracle computes what a group of any size would, bit for bit.
"""
