"""Where raw tables come from: one file a data set."""
