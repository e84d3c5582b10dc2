"""What the commands `run` and `judge` do once their arguments are read: plan, execute, report."""
