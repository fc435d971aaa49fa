"""Report of a search: results with confidence intervals."""
