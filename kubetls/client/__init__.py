"""What does the API server say? Verbs, lists, watches and logs over the transport."""
