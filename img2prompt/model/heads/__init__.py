"""From a tower's feature to the prompt embedding."""
