"""`osteon doctor`: looks at everything a node needs, and says in plain words what to do about what is not well."""
