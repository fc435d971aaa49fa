"""Time, money, storage, network and memory of a chain before it runs."""
