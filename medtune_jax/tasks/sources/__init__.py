"""The built-in sources by kind of problem, each module a tuple SOURCES; the registry joins them."""
