"""Tables of a server's own beside agentdb's: what was said in a session, its metadata, and work to do for it."""
