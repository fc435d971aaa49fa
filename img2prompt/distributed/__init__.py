"""Ray code that all stages share: the cluster, tasks, model actors, progress."""
