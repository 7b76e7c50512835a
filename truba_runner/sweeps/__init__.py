"""Many runs from one command: composed together, submitted as job arrays, looked at as one table."""
