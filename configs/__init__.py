"""Named experiments: each module builds one Config and says what to expect of it."""
