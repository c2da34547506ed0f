"""A job's own process, for apps whose config names executors: it takes tasks, runs them, and sends results."""
