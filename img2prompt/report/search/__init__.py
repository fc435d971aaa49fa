"""The report of a search: what its trials show, with intervals."""
