"""Version 1, generated from proto/jobqueue/wire/v1 by `make proto`."""
