"""Pages that people look at: self-contained HTML."""
