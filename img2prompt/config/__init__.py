"""Every setting of every stage: frozen dataclasses that go to JSON and back.

A complete config is saved beside every result, and its fingerprint decides whether a folder
belongs to the requested run. Configs check themselves when they are constructed, so every config
is valid. `base.py` has the base class, `ranges.py` the declared ranges, every other file the
settings of one room.
"""
