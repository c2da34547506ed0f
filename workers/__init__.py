"""ACT: what touches the workspace and the processes, and records what came of it."""
