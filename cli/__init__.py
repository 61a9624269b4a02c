"""The commands `burst` and `bpt`: parse, call the library, print."""
