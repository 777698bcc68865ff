"""Outside formats -> description types, one file a format. Everything read here is hostile until checked."""
