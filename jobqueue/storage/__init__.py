"""Where artifacts live, by the scheme of their address."""
