"""Ray for every room: the cluster, tasks, model actors, progress."""
