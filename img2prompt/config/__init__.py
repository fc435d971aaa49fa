"""Every setting of every stage: frozen dataclasses that go to JSON and back.

A complete config is saved beside every result, and its fingerprint decides whether a folder
belongs to the run that is asked for. Checks live here, so a config that exists is a valid one.
"""
