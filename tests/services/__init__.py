"""Real servers on free loopback ports with folders of their own, for tests, benchmarks and scripts."""
